"""Lifts: the cheapest good image that a measurement allows, where the diffusion then starts (DESIGN 3.5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def push_pull(image: Tensor, mask: Tensor, sweeps: int = 2) -> Tensor:
    """Fill missing pixels from a pyramid of averages of the known ones (Gortler et al. 1996), then smooth the filled ones.

    Plain tensor operations only, so it can be part of an exported graph.

    Args:
        image: ``(B, C, H, W)``; values where the mask is 0 are ignored.
        mask: ``(B or 1, 1, H, W)``, 1 = known, 0 = missing.
        sweeps: smoothing passes per level over the filled pixels.

    Returns:
        ``(B, C, H, W)``: known pixels unchanged, missing ones filled; all zeros where no pixel is known at all.
    """
    mask = mask.to(image).expand(image.shape[0], -1, -1, -1)
    return _fill(image * mask, mask, sweeps)


def _fill(image: Tensor, mask: Tensor, sweeps: int) -> Tensor:
    """``image`` is zero wherever ``mask`` is; ``mask`` may be fractional (the weight of a coarse pixel)."""
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
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    filled = mask * image + (1 - mask) * coarse
    for _ in range(sweeps):
        smooth = F.avg_pool2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, stride=1) if min(height, width) > 1 else filled
        filled = mask * image + (1 - mask) * smooth
    return filled
