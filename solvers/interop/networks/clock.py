"""diffusers' networks whose time is not their process's, or whose output is the score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# the arguments of :func:`adapt`, as a description notes them
NOTED: dict[str, Any] = {"scale": float, "log": bool, "score": bool}


class _Clock:
    """Forward pre-hook of the layer that embeds times: ``scale t``, or ``scale log(t)``."""

    def __init__(self, scale: float, log: bool):
        self.scale, self.log = scale, log

    def __call__(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        t = inputs[0].to(torch.float32)
        return (self.scale * (t.log() if self.log else t), *inputs[1:])


def _noise_of_score(network: Any, inputs: tuple[Any, ...], answer: Any) -> Tensor:
    """Forward hook: the noise ``-sigma`` times the score."""
    score = answer if isinstance(answer, Tensor) else answer.sample
    times = inputs[1].to(score).reshape(-1, 1, 1, 1)
    if "guidance" in network._buffers:  # asked twice at the same times
        times = times.unflatten(0, (2, -1))[0]
    return -times * score


def adapt(network: Any, scale: float = 1.0, log: bool = False, score: bool = False) -> None:
    """Let ``network(x, t)`` take the process's time, which it embeds as ``scale t`` or ``scale
    log(t)``, and give the noise where its output is the score.
    """
    if (scale, log) != (1.0, False):
        network.time_proj.register_forward_pre_hook(_Clock(scale, log))
    if score:
        network.register_forward_hook(_noise_of_score)
    network.adapted = {"scale": scale, "log": log, "score": score}
