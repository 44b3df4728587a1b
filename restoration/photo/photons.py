"""How the noise of a picture grows with brightness: its variance is ``gain x + sigma^2`` where the
clean picture is ``x``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from restoration.operators.counting import Counting
from restoration.photo.level import MOST, left_over, probed, windows
from solvers.denoiser import Denoiser
from solvers.inputs.errors import UncalibratedError

BINS = 8  # of brightness that noise is compared in
ENOUGH, LEAST = 0.25, 0.05  # shares of values, and of noise in them, where bins tell something
WHOLE = 0.5  # share of noise that is not cut off
ROUNDS = 3
SILENT = 1e-4  # less noise than this is none
GROWS = 1.5  # variance in bright parts over that in dark ones, from which on noise grows
FLATTER = 0.5  # how much less noise differs between bins, transformed


@torch.no_grad()
def noise_law(denoiser: Denoiser, picture: Tensor, sigma: float) -> tuple[float, float]:
    """``(gain, sigma)`` of a picture's noise, whose variance is ``gain x + sigma^2``; gain 0 where
    white noise, of the given sigma, explains it as well.

    The noise that the network finds likeliest (:mod:`restoration.photo.level`) is compared between
    bins of brightness, and the law fitted to it, in turns: the next comparison is of the picture
    that the law makes white.

    Args:
        picture: ``(C, H, W)`` in [0, 1].
        sigma: of white noise.
    """
    parts, found = windows(picture.float()), (0.0, sigma)
    try:
        brightness, variance = _by_brightness(denoiser, parts, *found)
        white = _spread(variance / sigma**2)
        best, least = found, math.inf
        for _ in range(ROUNDS):
            found = _fitted(brightness, variance)
            if found[0] * float(brightness[-1] - brightness[0]) < (GROWS - 1) * (
                found[0] * float(brightness[0]) + found[1] ** 2
            ):
                break
            brightness, variance = _by_brightness(denoiser, parts, *found)
            spread = _spread(variance / (found[0] * brightness + found[1] ** 2))
            if spread < least:
                best, least = found, spread
    except (UncalibratedError, _Unclear):
        return 0.0, sigma
    return best if least < FLATTER * white else (0.0, sigma)


class _Unclear(Exception):
    """Too little of a picture tells its noise."""


def _by_brightness(
    denoiser: Denoiser, parts: list[Tensor], gain: float, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and variance of the noise in bins, as far as a picture that the law makes white
    shows them.
    """
    model = Counting(gain) if gain else None
    shown, level = parts, sigma
    if model:
        shown = [model.stabilized(part, sigma)[0] for part in parts]
        level = model.stabilized(parts[0], sigma)[1]
    if not SILENT < level < MOST:
        raise _Unclear
    y, clean, slope = probed(denoiser, shown, level)
    bright = model.restored(clean, sigma) if model else clean
    # noise that files cut off; of counted photons nothing is below black
    left = torch.ones_like(clean)
    if sigma > 0 and min(float(part.min()) for part in parts) <= 0:
        left = left_over(bright / sigma)
    if max(float(part.max()) for part in parts) >= 1:
        left = left + left_over((1 - clean) / level) - 1
    whole = left > WHOLE
    if whole.double().mean() < ENOUGH:
        raise _Unclear
    bright, error, share = (
        v[whole] for v in (bright, (y - clean) ** 2 / level**2, left * (1 - slope))
    )
    found = []
    for chosen in bright.argsort().tensor_split(BINS):
        if not (float(share[chosen].mean()) >= LEAST and float(error[chosen].mean()) > 0):
            raise _Unclear  # flat white too, which holds no noise
        ratio = float(error[chosen].mean() / share[chosen].mean())
        found.append((float(bright[chosen].mean()), ratio))
    brightness, ratios = np.array(found).T
    return brightness, ratios * (gain * brightness + sigma**2)


def _fitted(brightness: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Gain and sigma of the law that is nearest to the variances, relative to these."""
    law = np.stack([brightness, np.ones_like(brightness)], 1) / variance[:, None]
    gain, square = nnls(law, np.ones_like(variance))[0]
    return float(gain), math.sqrt(square)


def _spread(ratios: np.ndarray) -> float:
    """How far bins lie from one level, as the standard deviation of the logarithm."""
    return float(np.log(ratios).std())
