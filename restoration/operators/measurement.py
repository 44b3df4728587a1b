"""A measurement: operator, data and noise level, in image units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.operators.linear import Operator, check_operator
from solvers.solver import all_finite


@dataclass(frozen=True)
class Measurement:
    """``y = A x + sigma n``.

    Args:
        operator: any object with ``A``, ``A_adjoint``, ``A_dagger``, ``prox_l2``.
        y: the data, batch first.
        sigma: standard deviation of the white noise on ``y``, in the units of ``y``; 0 = noiseless.

    Raises:
        TypeError: the operator lacks a method.
        ValueError: ``y`` is empty or not finite, or ``sigma`` is neither 0 nor in [1e-18, 1e18].
    """

    operator: Operator
    y: Tensor
    sigma: float = 0.0

    def __post_init__(self) -> None:
        check_operator(self.operator)
        if self.y.numel() == 0 or not all_finite(self.y):
            raise ValueError("the measurement is empty or holds NaN or infinite values")
        # beyond, its square is nothing or infinite in single precision
        if self.sigma != 0 and not 1e-18 <= self.sigma <= 1e18:
            raise ValueError(f"sigma must be 0, or from 1e-18 to 1e18; got {self.sigma:g}")

    def in_range(self, low: float, high: float, like: Tensor) -> Measurement:
        """The same measurement of an image whose [0, 1] is stretched to [low, high]; the one place
        where ranges are converted.

        For linear A: ``A(s x + low) = s A x + low A 1``. ``like`` is any image tensor ``(B, C, H,
        W)`` of the right shape.

        Raises:
            TypeError: a non-linear operator, whose data can't be converted without knowing it.
        """
        if not getattr(self.operator, "linear", True):
            raise TypeError(
                "the data of a non-linear operator can't change their range: define it in the"
                " denoiser's value range"
            )
        scale = high - low
        offset = self.operator.A(torch.full_like(like, low))
        return Measurement(self.operator, scale * self.y + offset, scale * self.sigma)

    def residual(self, x: Tensor) -> Tensor:
        """``y - A x``."""
        return self.y - self.operator.A(x)
