"""Self-ensemble: the same question asked of an image's flips and turns, and the answers averaged
(Timofte et al. 2016).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Self

import torch
from torch import Tensor

from solvers.denoiser import Denoiser
from solvers.prediction import Prediction
from solvers.processes.process import Process
from solvers.solver import DenoiserLike, Noise, bound

COUNTS = (1, 2, 4, 8)


def turn(x: Tensor, k: int) -> Tensor:
    """The k-th of the eight symmetries of the square, of ``(..., H, W)``; 0 is the image itself."""
    return rotate(x.flip(-1) if k % 2 else x, k // 2)


def turn_back(x: Tensor, k: int) -> Tensor:
    """The inverse of :func:`turn`."""
    x = rotate(x, -(k // 2))
    return x.flip(-1) if k % 2 else x


def rotate(x: Tensor, quarters: int) -> Tensor:
    """``torch.rot90`` of the last two axes in operators that every exporter knows."""
    quarters %= 4
    if quarters == 0:
        return x
    if quarters == 2:
        return x.flip((-2, -1))
    return x.transpose(-2, -1).flip(-2 if quarters == 1 else -1)


def average(images: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    return reduce(add, images) / len(images)


class Symmetric:
    """A denoiser that asks ``denoiser`` about ``count`` turned images and averages what comes back,
    turned upright again.

    A network is not exactly equivariant; the average is closer to the posterior mean than a single
    answer. Costs ``count`` calls.

    Args:
        denoiser: conditioned already; its condition is turned along.
        count: 1, 2, 4 or 8. Half of them swap height and width where it is 4 or more.

    Raises:
        ValueError: another count.
    """

    def __init__(self, denoiser: Denoiser, count: int):
        if count not in COUNTS:
            raise ValueError(
                f"symmetries must be one of {', '.join(map(str, COUNTS))}; got {count}"
            )
        condition = denoiser.condition
        self.denoiser = denoiser
        self.turned: list[DenoiserLike] = [
            denoiser if condition is None or k == 0 else denoiser.conditioned(turn(condition, k))
            for k in range(count)
        ]

    def bind(self, times: Sequence[float], noise: Noise) -> Self:
        """A copy for one run; each turned image is asked about by itself."""
        other = copy.copy(self)
        other.turned = [bound(d, times, noise) for d in self.turned]
        return other

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def __call__(self, x: Tensor, t: float) -> Prediction:
        answers = [d(turn(x, k), t) for k, d in enumerate(self.turned)]
        spreads = [turn_back(p.spread, k) for k, p in enumerate(answers) if p.spread is not None]
        return Prediction(
            average([turn_back(p.x0, k) for k, p in enumerate(answers)]),
            average([turn_back(p.eps, k) for k, p in enumerate(answers)]),
            spread=average(spreads) if spreads else None,
        )
