"""First images from undersampled data: what the network is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.mri.sense import Sense

ITERATIONS = 12
QUANTILE = 0.99
CONDITION_CHANNELS = 5
SIGMA_UNIT = 0.05
SIGMA_FLOOR = 1e-3


def lift(operator: Sense, y: Tensor, sigma: float = 0.0) -> Tensor:
    """CG-SENSE with a fixed number of iterations, ``(1, 2, H, W)``; zero-filled for one coil.

    The Tikhonov weight is the noise variance over the mean signal power, which the zero-filled image tells up to a factor.
    """
    if operator.maps is None:
        return operator.A_adjoint(y)
    power = operator.A_adjoint(y).square().sum(1).mean().clamp(min=1e-12)
    return operator.sense(y, max(float(sigma**2 / power), 1e-4), ITERATIONS)


def image_scale(image: Tensor) -> float:
    """0.99 quantile of the magnitude of ``(1, 2, H, W)``; images are divided by it for the network.

    Raises:
        ValueError: an image of zeros.
    """
    magnitude = image.square().sum(1).sqrt().flatten()
    scale = float(torch.quantile(magnitude, QUANTILE))
    if scale <= 0:
        scale = float(magnitude.max())
    if scale <= 0:
        raise ValueError("the measured k-space holds only zeros")
    return scale


def condition(operator: Sense, y: Tensor, sigma: float) -> tuple[Tensor, float]:
    """What the network sees besides the state: lift (2 channels), zero-filled image (2), noise level (1); and the scale of them.

    Args:
        sigma: noise of the real part of ``y``, in its units.

    Returns:
        ``(1, 5, H, W)``, divided by the scale (the noise level by 0.05 of it), and the scale.
    """
    first = lift(operator, y, sigma)
    scale = image_scale(first)
    level = torch.full_like(first[:, :1], max(sigma / scale, SIGMA_FLOOR) / SIGMA_UNIT)
    return torch.cat([first / scale, operator.A_adjoint(y) / scale, level], dim=1), scale
