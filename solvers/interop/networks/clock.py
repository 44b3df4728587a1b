"""diffusers' networks whose time is not their process's, or whose output is the score."""

from __future__ import annotations

from collections.abc import Callable
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


def _negated_times(_: Any, times: Tensor) -> Tensor:
    return -times


def _factors_of_rows(network: Any, rows: Tensor) -> Tensor:
    factors: Tensor = network.factors[rows.long()]
    return factors


def _is_divided(network: Any) -> bool:
    """Whether diffusers divides the output by the time."""
    kind = getattr(network, "config", {}).get("time_embedding_type")
    return type(network).__name__ == "UNet2DModel" and kind == "fourier"


class _Scaled:
    """Forward hook: the output times ``factors(network, times)``."""

    def __init__(self, factors: Callable[[Any, Tensor], Tensor]):
        self.factors = factors

    def __call__(self, network: Any, inputs: tuple[Any, ...], answer: Any) -> Tensor:
        out: Tensor = answer if isinstance(answer, Tensor) else answer.sample
        factors = self.factors(network, inputs[1]).to(out).reshape(-1, 1, 1, 1)
        if "guidance" in network._buffers:  # asked twice at the same times
            factors = factors.unflatten(0, (2, -1))[0]
        return factors * out


def scale_of(network: Any) -> Callable[[float], float] | None:
    """What the output of a network's last layer is multiplied by at a time; None: nothing. The
    noise is ``-sigma`` times a score, and diffusers' networks with Fourier features give their last
    layer's output over the time.
    """
    score = bool(getattr(network, "adapted", {}).get("score"))
    divided = _is_divided(network)
    if not score and not divided:
        return None
    sign = -1.0 if score else 1.0
    return lambda t: sign * t ** (score - divided)


def scale_by_row(network: Any, factors: Tensor) -> None:
    """Let a network, which is asked for rows in place of times, multiply by ``factors (rows,)``
    what :func:`scale_of` multiplies.
    """
    for key, hook in list(network._forward_hooks.items()):
        if isinstance(hook, _Scaled):
            del network._forward_hooks[key]
    if _is_divided(network):
        network.register_to_config(time_embedding_type="positional")  # divides no more
    network.register_buffer("factors", factors, persistent=False)
    network.register_forward_hook(_Scaled(_factors_of_rows))
    network.adapted = {"rows": len(factors)}


def adapt(network: Any, scale: float = 1.0, log: bool = False, score: bool = False) -> None:
    """Let ``network(x, t)`` take the process's time, which it embeds as ``scale t`` or ``scale
    log(t)``, and give the noise where its output is the score.
    """
    if (scale, log) != (1.0, False):
        network.time_proj.register_forward_pre_hook(_Clock(scale, log))
    if score:
        network.register_forward_hook(_Scaled(_negated_times))
    network.adapted = {"scale": scale, "log": log, "score": score}
