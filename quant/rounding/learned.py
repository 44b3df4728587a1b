"""Learned rounding (AdaRound, Nagel et al. 2020, arXiv 2004.10568, eqs. 21-25) and GPTQ (Frantar et
al. 2022, through brevitas).

    W_hat = s clip(floor(W/s) + h(a) + z, low, high) - s z
    h(a)  = clip(1.2 sigmoid(a) - 0.1, 0, 1)

Soft while it is trained, hard (``a >= 0``) afterwards. The regulariser ``sum(1 - |2h - 1|^b)``
drives h to 0 or 1 as b falls from 20 to 2 after a warm-up. EDA-DM's release builds it but never
applies it; ``weight=0`` is that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ZETA, GAMMA = 1.1, -0.1  # the stretch of the sigmoid: h reaches 0 and 1 at finite logits


def h(logits: Tensor) -> Tensor:
    """The rectified sigmoid, eq. 23, in [0, 1]."""
    return (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_logits(weight: Tensor, step: Tensor) -> Tensor:
    """Logits whose h is the fraction of ``weight/step`` above its floor: soft rounding starts at
    the float weight.
    """
    x = weight / step
    return -torch.log((ZETA - GAMMA) / (x - x.floor() - GAMMA) - 1)


def rounded(
    weight: Tensor,
    step: Tensor,
    logits: Tensor,
    low: int,
    high: int,
    zero_point: Tensor | float = 0.0,
    *,
    hard: bool = False,
):
    """The fake-quantized weight; ``step`` and ``zero_point`` broadcast against it."""
    up = (logits >= 0).to(weight.dtype) if hard else h(logits)
    return ((weight / step).floor() + up + zero_point).clamp(low, high).sub(zero_point) * step


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum over channels (axis 1), mean over the rest: the reconstruction loss of BRECQ, Q-Diffusion
    and EDA-DM.
    """
    return (prediction - target).square().sum(1).mean()


@dataclass(frozen=True)
class RoundingLoss:
    """``weight * sum(1 - |2h - 1|^b)``, off during the warm-up.

    Args:
        iterations: in all.
        weight: 0.01 in the papers; 0 switches it off.
        start, end: of the exponent b, linear after the warm-up.
        warmup: share of the iterations without it.
    """

    iterations: int
    weight: float = 0.01
    start: float = 20.0
    end: float = 2.0
    warmup: float = 0.2

    def exponent(self, count: int) -> float:
        """b at iteration ``count`` (1-based)."""
        begin = self.warmup * self.iterations
        progress = (count - begin) / (self.iterations - begin)
        return self.end + (self.start - self.end) * min(1.0, max(0.0, 1 - progress))

    def __call__(self, logits: Iterable[Tensor], count: int) -> Tensor | float:
        if self.weight == 0 or count < self.warmup * self.iterations:
            return 0.0
        b = self.exponent(count)
        return self.weight * sum((1 - (2 * h(a) - 1).abs().pow(b)).sum() for a in logits)


@torch.no_grad()
def gptq(
    network: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Round the weights of a network of brevitas layers in place, by GPTQ with activation order and
    quantized inputs.

    Layer by layer in network order: each column's rounding error is moved into the columns not yet
    rounded, weighted by the inverse of ``X X^T`` over the quantized inputs of that layer.

    Args:
        network: ``network(x, t)`` with brevitas layers whose scales are set.
        batches: calibration batches ``(x, t)``.
        progress: called with the number of finished layers and their total.
    """
    from brevitas.graph.gptq import gptq_mode

    with gptq_mode(
        network, act_order=True, use_quant_activations=True, create_weight_orig=False
    ) as mode:
        for k in range(mode.num_layers):
            for x, t in batches:
                mode.model(x, t)
            mode.update()
            progress(k + 1, mode.num_layers)
