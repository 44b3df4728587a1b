"""From tensors by name to a network of a known class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.memory import check_bytes
from solvers.interop.networks import network_class
from solvers.processes.process import Process


@dataclass(frozen=True)
class Checkpoint:
    """A network with what makes it a denoiser.

    Attributes:
        family: what it was recognised as.
        network: of one of the classes in :mod:`solvers.interop.networks`, or diffusers'.
        process: that it was trained under.
        prediction_type: what it estimates.
        settings: the other arguments of :class:`solvers.Denoiser`.
        details: what was read off its shapes, in words.
    """

    family: str
    network: Any
    process: Process
    prediction_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    details: str = ""


@torch.no_grad()
def build(path: Path, name: str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> Any:
    """A network of the class ``name`` that holds these tensors, which are used up; in eval mode, in
    single precision or, where the file is, in half.

    Raises:
        ModelError: tensors that are missing, left over, of other shapes, or not finite.
    """
    check_bytes(str(path), 4 * sum(v.numel() for v in tensors.values()))
    with reading(path, f"the weights of a {name}", ModelError), torch.device("meta"):
        network = network_class(name)(**config)
    wanted = network.state_dict()
    if missing := sorted(set(wanted) - set(tensors)):
        raise ModelError(
            f"{path} lacks {len(missing)} of the tensors of a {name}, such as {missing[0]}; it"
            " belongs to another network or was cut short"
        )
    if extra := sorted(set(tensors) - set(wanted)):
        raise ModelError(
            f"{path} holds {len(extra)} tensors that a {name} has no place for, such as {extra[0]}:"
            " it is another network than it looks like"
        )
    state = {}
    for key, value in wanted.items():
        given = tensors.pop(key)
        if given.shape != value.shape:
            raise ModelError(
                f"{path}: {key} has the shape {tuple(given.shape)} where a {name} like this has"
                f" {tuple(value.shape)}"
            )
        if not torch.isfinite(given).all():
            raise ModelError(f"{path}: {key} holds NaN or infinite values")
        half = given.dtype in (torch.float16, torch.bfloat16)
        state[key] = (given if half else given.to(torch.float32)).contiguous()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
