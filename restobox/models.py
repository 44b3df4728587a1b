"""The models that tasks are given: names, folders, bundles, denoisers of the caller's."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import torch

from solvers.denoiser import Denoiser
from toolbox.api import load

Model = str | os.PathLike[str] | Denoiser
log = logging.getLogger("restobox")


def load_model(model: Model, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A denoiser, or the whole restoration of a bundle, on ``device``.

    A denoiser of the caller's stays as it is: with a ``dtype`` a copy of its network is converted.

    Args:
        dtype: of a PyTorch network's weights; None: as they are.

    Raises:
        ValueError: as :func:`toolbox.api.load`; a ``dtype`` for an exported bundle, or another
            ``device`` than the one that a given denoiser lives on.
    """
    found = model if isinstance(model, Denoiser) else load(os.fspath(model), device=device)
    if (
        isinstance(model, Denoiser)
        and device not in ("cpu", "auto")
        and torch.device(device).type != model.device.type
    ):
        raise ValueError(
            f"the denoiser lives on {model.device}; move its network to {device} before, or leave"
            " out device"
        )
    if dtype is not None:
        network = getattr(found, "network", None)
        if not isinstance(network, torch.nn.Module):
            raise ValueError(
                f"{named(model)} is an exported bundle, whose precision is its graph's; leave out"
                " dtype"
            )
        found = found.around(copy.deepcopy(network).to(dtype))
    log.info("took %s", named(model))
    return found


def named(model: Model) -> str:
    """What an error calls it."""
    return type(model).__name__ if isinstance(model, Denoiser) else f"model {os.fspath(model)!r}"
