"""Model folders of a training: the weights it begins with, and what it writes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser
from toolbox.api import load
from toolbox.training.widening import doubled, is_doubled


def load_weights(network: nn.Module, model: str | Path) -> None:
    """Those of a shipped model or a model folder, into ``network``; of a denoiser of single planes
    half as wide, twice (:mod:`toolbox.training.widening`).

    Raises:
        ValueError: an exported bundle, or a network of another shape.
    """
    found = load(model).network
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{model} is an exported bundle; training goes on from a model folder or a shipped"
            " float model"
        )
    try:
        wider = is_doubled(network, found)
        network.load_state_dict(doubled(network, found) if wider else found.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{model} can't be trained further with this recipe: its network has other weights"
            f" ({error})"
        ) from error


def save_model(denoiser: Denoiser, weights: dict[str, Tensor], out: Path) -> None:
    """Write a model folder that :meth:`Denoiser.from_pretrained` loads: the denoiser with these
    weights, in single precision, whatever device it is trained on.
    """
    network = denoiser.network
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    trained = copy.deepcopy(network).to("cpu", torch.float32)
    trained.load_state_dict(weights)
    denoiser.around(trained).save_pretrained(out)
