"""First images from undersampled data: what the network is shown."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.mri.sense import Sense, SingleCoil
from restoration.operators.quantiles import quantile

ITERATIONS = 12
QUANTILE = 0.99
CONDITION_CHANNELS = 7
UNIT = 0.03
SIGMA_UNIT = 0.01


def lift(operator: Sense | SingleCoil, y: Tensor, sigma: float = 0.0) -> Tensor:
    """CG-SENSE with a fixed number of iterations, ``(1, 2, H, W)``; zero-filled for one coil.

    The Tikhonov weight is the noise variance over the mean signal power, which the zero-filled
    image tells up to a factor.
    """
    if isinstance(operator, SingleCoil):
        return operator.A_adjoint(y)
    power = operator.A_adjoint(y).square().sum(1).mean().clamp(min=1e-12)
    return operator.sense(y, max(float(sigma**2 / power), 1e-4), ITERATIONS)


def image_scale(image: Tensor) -> Tensor:
    """0.99 quantile of the magnitude of ``(B, 2, H, W)``, as ``(B, 1, 1, 1)``; images are divided
    by it for the network. The largest magnitude where almost all are zero.
    """
    magnitude = image.square().sum(1).sqrt().flatten(1)
    scale = quantile(magnitude, QUANTILE)
    scale = torch.where(scale > 0, scale, magnitude.amax(1)).clamp(min=1e-30)
    return scale[:, None, None, None]


def condition(operator: Sense | SingleCoil, y: Tensor, sigma: float) -> tuple[Tensor, float]:
    """What the network sees besides the state, and the scale of it.

    Channels: the lift (2), its fine structure (2), what tells it from the zero-filled image (2),
    the noise level (1). Noise and aliasing are a few percent of the image; the second and third
    pair show them at unit size, edges compressed by ``asinh``. Without that a network spends its
    first thousands of steps on finding them.

    Args:
        sigma: noise of the real part of ``y``, in its units.

    Returns:
        ``(1, 7, H, W)`` and the scale.
    """
    first = lift(operator, y, sigma)
    scale = float(image_scale(first))
    return features(first / scale, operator.A_adjoint(y) / scale, sigma / scale), scale


def features(first: Tensor, zero_filled: Tensor, sigma: float | Tensor) -> Tensor:
    """The condition ``(B, 7, H, W)`` from two scaled images ``(B, 2, H, W)`` and the scaled noise
    level (a number or ``(B, 1, 1, 1)``).
    """
    mean = F.avg_pool2d(F.pad(first, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    level = torch.zeros_like(first[:, :1]) + sigma / SIGMA_UNIT
    return torch.cat(
        [
            first,
            torch.asinh((first - mean) / UNIT),
            torch.asinh((zero_filled - first) / UNIT),
            torch.asinh(level),
        ],
        dim=1,
    )


def noise_level(kspace: Tensor, mask: Tensor) -> float:
    """Standard deviation of the real (and of the imaginary) part of the noise, from the outer
    sampled points of ``(coils, H, W)``.

    Far from the centre k-space is mostly noise, and the lowest tenth of ``|k|^2`` there
    (exponentially distributed for noise alone) is moved least by what signal is left; of
    sharp-edged objects with little noise too much is found still. Points that are exactly zero were
    filled in by software and do not count. Noise is taken as white and alike in all coils:
    prewhiten data for which it is not.

    Raises:
        ValueError: fewer than 32 measured points.
    """
    height, width = mask.shape
    y, x = torch.meshgrid(
        *((torch.arange(n) - n // 2) / (n / 2) for n in (height, width)), indexing="ij"
    )
    radius = torch.hypot(y, x)
    sampled = (mask > 0) & (kspace.abs().sum(0) > 0)
    if sampled.sum() * len(kspace) < 32:
        raise ValueError(
            f"only {int(sampled.sum())} k-space points are measured; too few to tell signal from"
            " noise"
        )
    outer = sampled & (radius >= torch.quantile(radius[sampled][: 2**24], 0.8))
    power = kspace[:, outer].abs().square().flatten()[: 2**24]
    return float((torch.quantile(power, 0.1) / (2 * math.log(10 / 9))).sqrt())
