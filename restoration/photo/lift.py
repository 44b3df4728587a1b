"""Lifts: the cheapest good image that a measurement allows, where the diffusion then
starts (docs/design.md, "Lift, then diffuse").
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def thin_plate(image: Tensor, mask: Tensor, steps: int = 5) -> Tensor:
    """Bend the filled pixels towards the smoothest surface through the known ones: ``min |Laplacian
    x|^2`` over the missing pixels.

    A few conjugate gradient steps from :func:`push_pull`. They bring thin gaps to the biharmonic
    solution, and leave wide holes near the push-pull fill, which is the better guess there (the
    biharmonic one overshoots).

    Args:
        image: ``(B, C, H, W)``; values where the mask is 0 are ignored.
        mask: ``(B or 1, 1, H, W)``, 1 = known, 0 = missing.
        steps: of conjugate gradients; a fixed number, so that the run can be part of an exported
            graph.

    Returns:
        ``(B, C, H, W)``: known pixels unchanged, missing ones filled; all zeros where no pixel is
            known at all.
    """
    x, hole = push_pull(image, mask), 1 - mask.to(image)
    residual = -hole * _laplacian(_laplacian(x))
    direction, power = residual, _mean_square(residual, residual)
    for _ in range(steps):
        bent = hole * _laplacian(_laplacian(direction))
        # the bounds also hold in half precision; nothing is left to bend when they act
        step = power / _mean_square(direction, bent).clamp(min=1e-7)
        x, residual = x + step * direction, residual - step * bent
        before, power = power, _mean_square(residual, residual)
        direction = residual + power / before.clamp(min=1e-7) * direction
    return x


def _laplacian(x: Tensor) -> Tensor:
    """Five points; pixels beyond the edge repeat it, which makes the map symmetric."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:] - 4 * x


def _mean_square(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).mean((1, 2, 3), keepdim=True)


def enlarge(means: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of ``(B, C, h, w)`` means of ``factor x factor`` blocks to ``size (H,
    W)``.
    """
    return F.interpolate(means, scale_factor=factor, mode="bicubic", align_corners=False)[
        ..., : size[0], : size[1]
    ]


def push_pull(image: Tensor, mask: Tensor, sweeps: int = 2) -> Tensor:
    """Fill missing pixels from a pyramid of averages of the known ones (Gortler et al. 1996), then
    smooth the filled ones.

    Plain tensor operations only, so it can be part of an exported graph.

    Args:
        image: ``(B, C, H, W)``; values where the mask is 0 are ignored.
        mask: ``(B or 1, 1, H, W)``, 1 = known, 0 = missing.
        sweeps: smoothing passes per level over the filled pixels.

    Returns:
        ``(B, C, H, W)``: known pixels unchanged, missing ones filled; all zeros where no pixel is
            known at all.
    """
    mask = mask.to(image).expand(image.shape[0], -1, -1, -1)
    return _fill(image * mask, mask, sweeps)


def _fill(image: Tensor, mask: Tensor, sweeps: int) -> Tensor:
    """``image`` is zero wherever ``mask`` is; ``mask`` may be fractional (the weight of a coarse
    pixel).
    """
    height, width = image.shape[-2:]
    if min(height, width) <= 2:
        total = mask.sum((-2, -1), keepdim=True)
        coarse = (image * mask).sum((-2, -1), keepdim=True) / total.clamp(min=1e-6)
    else:
        pad = (0, width % 2, 0, height % 2)
        weight = F.avg_pool2d(F.pad(mask, pad), 2)
        mean = F.avg_pool2d(F.pad(image * mask, pad), 2) / weight.clamp(min=1e-6)
        # one known pixel of four is enough evidence for a coarse pixel
        coarse = _fill(mean, (4 * weight).clamp(max=1), sweeps)
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[
            ..., :height, :width
        ]
    filled = mask * image + (1 - mask) * coarse
    for _ in range(sweeps):
        smooth = (
            F.avg_pool2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            if min(height, width) > 1
            else filled
        )
        filled = mask * image + (1 - mask) * smooth
    return filled
