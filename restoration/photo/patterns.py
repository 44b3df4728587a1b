"""Patterns that a denoiser took for noise: what it took off holds waves, which noise doesn't."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.task import Restored

SIDE = 32  # of the frames that waves are looked for in, which overlap by half
CELL = 8  # sides of the parts of a frame's spectrum that noise is taken to be alike in
CLEARLY = 12.0  # power over that of the noise around it, where waves begin to stand out


def patterns(residual: Tensor) -> Tensor:
    """The waves in a residual ``(C, H, W)`` that stand out of the noise, as large as it holds them.

    A wave's power is compared with the medians of those of nearly its frequency, in each frame by
    itself, so that noise may have any level and colour. What stands out twelve times is a twelfth
    noise: giving it back to the picture lowers the squared error.
    """
    height, width = residual.shape[1:]
    step = SIDE // 2
    # whole frames, an even number of them in a row, half a frame around the picture
    rows, columns = (math.ceil((n + step) / SIDE) * SIDE + step for n in (height, width))
    x = F.pad(residual, (step, columns - width, step, rows - height))
    window = torch.hann_window(SIDE, dtype=x.dtype).sqrt()
    window = (window[:, None] * window).to(x.device)
    found = torch.zeros_like(x)
    for top in range(0, rows + step - SIDE + 1, step):
        frames = x[:, top : top + SIDE].unfold(2, SIDE, step).transpose(1, 2) * window
        kept = _outstanding(frames) * window  # (C, frames, SIDE, SIDE)
        for first in (0, 1):  # frames of which none overlap
            part = kept[:, first::2].transpose(1, 2).flatten(2)
            left = first * step
            found[:, top : top + SIDE, left : left + part.shape[2]] += part
    return found[:, step : step + height, step : step + width]


def given_back(found: Restored, noisy: Tensor) -> Restored:
    """A denoised picture ``(C, H, W)`` with the patterns that were taken off with the noise."""
    kept = patterns(noisy.cpu().to(found.mean.dtype) - found.mean)
    if not kept.any():
        return found
    mean, samples = ((picture + kept).clamp(0, 1) for picture in (found.mean, found.samples))
    misfit = float((noisy.cpu() - mean).square().mean().sqrt())
    return replace(found, mean=mean, samples=samples, misfit=misfit)


def _outstanding(frames: Tensor) -> Tensor:
    """What of frames ``(..., SIDE, SIDE)`` is waves."""
    waves = torch.fft.fft2(frames)
    power = waves.abs().square()
    found = torch.zeros_like(frames)
    some = (power > CLEARLY * _noise(power)).flatten(-2).any(-1)
    if not some.any():
        return found
    waves, power = waves[some], power[some]
    around = _noise(power)
    # the largest of four cells that a wave lies in, since the noise's power may rise towards it
    for shift in ((0, CELL // 2), (CELL // 2, 0), (CELL // 2, CELL // 2)):
        moved = _noise(power.roll(shift, (-2, -1)))
        around = torch.maximum(around, moved.roll([-n for n in shift], (-2, -1)))
    share = (power / (CLEARLY * around) - 1).clamp(
        0, 1
    )  # without a step: nothing hangs on rounding
    found[some] = torch.fft.ifft2(share.nan_to_num(1) * waves).real
    return found


def _noise(power: Tensor) -> Tensor:
    """The power of the noise at each frequency, by cells."""
    cells = power.unfold(-2, CELL, CELL).unfold(-2, CELL, CELL)
    mean = cells.flatten(-2).median(-1).values / math.log(2)  # of powers of noise
    return mean.repeat_interleave(CELL, -2).repeat_interleave(CELL, -1)
