"""Joint spatial-spectral restoration: all eigen-images of a cube are one latent, restored together
by one network.

A three-stage latent diffusion model after Vyse et al. 2024 (arXiv 2406.10724: spectral compression,
diffusion on clean latents, fine-tuning on striped and dead-pixelled cubes; their code is not
public, so this is a design of ours):

1. Autoencoder: linear, fitted to each cube in a second (:mod:`restoration.hyperspectral.subspace`),
   for any number of bands. In units of the noise its latents ``w`` have noise of size 1 in every
   channel, whatever sensor they come from.
2. Diffusion on clean latents. Channels differ in strength by factors of hundreds, so each is
   divided by its own standard deviation: the denoiser's ``data_std`` is one number per channel.
   What was measured is the state of the process at the time whose ``b/a`` is 1.
3. Fine-tuning on what simulated noise, stripes and dead pixels leave of a cube, with
   :func:`measured_features` as the condition.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.denoiser import Denoiser

CHANNELS = 8  # of the latent that the network sees at once
CONDITION_CHANNELS = 2 * CHANNELS + 1
WEAKEST = 0.2  # smallest strength of a channel, in units of its noise


def strengths(latent: Tensor, variance: Tensor) -> Tensor:
    """Standard deviation of the clean part of ``latent (C, H, W)``, given the noise variance ``(C,
    H, W)``; in units of noise.
    """
    level = variance.flatten(1).median(1).values.sqrt()
    signal = (latent.flatten(1).var(1) - level**2).clamp(min=0).sqrt()
    return (signal / level).clamp(min=WEAKEST)


def measured_features(latent: Tensor, std: Tensor, variance: Tensor) -> Tensor:
    """The condition ``(1, 17, H, W)``: strength of each channel, its fine structure in units of
    noise, and where data were missing.

    In a strong channel noise is a thousandth of the picture. The fine structure (less the mean of 5
    x 5 pixels, compressed by ``asinh``) shows it at unit size.

    Args:
        latent: ``(8, H, W)`` as measured, in units of noise, without its mean.
        std: ``(8,)`` strengths.
        variance: ``(8, H, W)`` of the noise, 1 where nothing is missing.
    """
    mean = F.avg_pool2d(F.pad(latent[None], (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    fine = torch.asinh(latent[None] - mean)
    strength = (std.log() / 3)[None, :, None, None].expand_as(fine)
    missing = variance.amax(0).clamp(1, 1e4).log()[None, None] / 3
    return torch.cat([strength, fine, missing], dim=1)


def prior_features(std: Tensor, height: int, width: int) -> Tensor:
    """The condition of a latent that nothing is measured of: the strengths alone."""
    blank = std.new_zeros(1, CONDITION_CHANNELS, height, width)
    blank[:, : len(std)] = (std.log() / 3)[None, :, None, None]
    return blank


def shown(denoiser: Denoiser, condition: Tensor, std: Tensor) -> Denoiser:
    """A copy of ``denoiser`` for latents whose channels have the standard deviations ``std (8,)``
    or ``(B, 8)``.
    """
    other = denoiser.conditioned(condition)
    other.data_std = std[..., None, None]
    return other


def groups(std: np.ndarray) -> list[tuple[list[int], int]]:
    """Channels that are restored together, and how many of them were already: those are shown
    again, for their structure.

    The strongest eight first; after that four at a time beside the four strongest of all.
    """
    order = np.argsort(-std, kind="stable").tolist()
    half = CHANNELS // 2
    rest = [(order[:half] + order[k : k + half], half) for k in range(CHANNELS, len(order), half)]
    return [(order[:CHANNELS], 0), *rest]


def pad_channels(x: Tensor, value: float = 0.0) -> Tensor:
    """``(c, ...)`` filled up to eight channels; a missing channel is a latent without signal and
    noise.
    """
    return (
        torch.cat([x, x.new_full((CHANNELS - len(x), *x.shape[1:]), value)])
        if len(x) < CHANNELS
        else x
    )
