"""Noise of hyperspectral cubes: the benchmark's cases, and blind estimates of what a cube holds."""

from __future__ import annotations

import math

import numpy as np

CASES = ("iid", "non-iid", "stripe", "deadline", "impulse", "mixture")
SIGMAS = (10 / 255, 30 / 255, 50 / 255, 70 / 255)
RATIOS = (0.1, 0.3, 0.5, 0.7)


def add_noise(cube: np.ndarray, case: str, seed: int, sigma: float | None = None) -> np.ndarray:
    """A noisy copy of ``cube (B, H, W)`` in [0, 1], by the cases of the QRNN3D benchmark (Wei et
    al. 2020) and its successors.

    ``iid``: Gaussian noise of ``sigma``. All others begin with Gaussian noise whose sigma is drawn
    per band from 10, 30, 50, 70 of 255 (``non-iid``); then, on a third of the bands (10 of the
    benchmark's 31), ``stripe`` subtracts an offset in [-0.25, 0.25] from 5 to 15 % of the columns,
    ``deadline`` sets as many columns to 0, ``impulse`` turns 10, 30, 50 or 70 % of the pixels to
    salt or pepper and clips the band to [0, 1]. ``mixture`` does all three on disjoint thirds.
    Nothing else is clipped.

    Raises:
        ValueError: another case, a cube that is not (B, H, W), or ``sigma`` missing (``iid``) or
            given (the others).
    """
    cube = np.asarray(cube)
    if cube.ndim != 3:
        raise ValueError(f"cube must be (B, H, W); got shape {cube.shape}")
    if case not in CASES:
        raise ValueError(f"noise case {case!r} is unknown; known: {', '.join(CASES)}")
    if (case == "iid") != (sigma is not None) or (sigma is not None and not 0 <= sigma < math.inf):
        raise ValueError(
            f"sigma is the standard deviation of case iid and of no other; got {sigma} for {case}"
        )
    rng = np.random.default_rng(seed)
    bands, _, width = cube.shape
    level = np.full(bands, sigma) if case == "iid" else rng.choice(SIGMAS, bands)
    noisy = cube + level[:, None, None] * rng.standard_normal(cube.shape)
    third = bands // 3 if case == "mixture" else max(1, bands // 3)
    order = rng.permutation(bands)
    parts = ("stripe", "deadline", "impulse") if case == "mixture" else (case,)
    for k, part in enumerate(parts):
        for band in order[k * third : (k + 1) * third]:
            if part == "impulse":
                _salt_and_pepper(noisy[band], rng.choice(RATIOS), rng)
            elif part in ("stripe", "deadline"):
                count = rng.integers(
                    math.ceil(0.05 * width), math.ceil(0.15 * width), endpoint=True
                )
                columns = rng.choice(width, count, replace=False)
                if part == "stripe":
                    noisy[band][:, columns] -= rng.uniform(-0.25, 0.25, count)
                else:
                    noisy[band][:, columns] = 0
    return noisy.astype(cube.dtype if cube.dtype.kind == "f" else np.float64)


def _salt_and_pepper(band: np.ndarray, ratio: float, rng: np.random.Generator) -> None:
    hit, salt = rng.random(band.shape) < ratio, rng.random(band.shape) < 0.5
    band[...] = np.where(hit, salt, band.clip(0, 1))


def dead_pixels(
    cube: np.ndarray, valid: np.ndarray | None = None, share: float = 0.005
) -> np.ndarray:
    """Bool ``(B, H, W)``: entries that can't be measurements.

    A column of a band that holds one value throughout is dead. So are a band's entries at its
    lowest or highest value where more than ``share`` of the band is exactly there and no other
    value is as frequent nearby: saturation, salt and pepper. Noise of any size puts next to nothing
    on a single value; integers of few levels do, so extremes must hold ten times the share of the
    next value.

    Args:
        valid: bool ``(B, H, W)``; entries outside are ignored (and not called dead).
    """
    valid = np.isfinite(cube) if valid is None else valid
    dead = np.zeros(cube.shape, bool)
    for band, known, out in zip(cube, valid, dead, strict=True):
        columns = np.where(known, band, np.inf).min(0) == np.where(known, band, -np.inf).max(0)
        values, counts = np.unique(band[known], return_counts=True)
        if len(values) < 2:  # a constant band is one, not a dead one
            continue
        if band.shape[0] >= 4:
            out |= columns & (known.sum(0) >= 4)
        for extreme, following in ((0, 1), (-1, -2)):
            # dead columns at the extreme do not make the rest of it suspect
            hits = int(((band == values[extreme]) & known & ~out).sum())
            if hits > share * known.sum() and hits >= 4 and hits > 10 * counts[following]:
                out |= band == values[extreme]
        out &= known
    return dead


def band_sigma(cube: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Blind noise level per band ``(B,)``: the median of the diagonal differences of each 2 x 2
    block, over 0.6745 (Donoho 1995).

    Robust to edges, lines and few outliers; fine texture is taken for noise, which
    :func:`restoration.hyperspectral.task.fit_subspace` then corrects from the other bands.

    Args:
        valid: bool ``(B, H, W)``; blocks with an entry outside are left out. NaN where a band has
            no block at all.
    """
    valid = np.isfinite(cube) if valid is None else valid
    sigma = np.full(len(cube), np.nan)
    for k, (band, known) in enumerate(zip(cube, valid, strict=True)):
        band = np.where(known, band, 0).astype(np.float64)
        whole = known[:-1, :-1] & known[:-1, 1:] & known[1:, :-1] & known[1:, 1:]
        high = (band[:-1, :-1] - band[:-1, 1:] - band[1:, :-1] + band[1:, 1:]) / 2
        if whole.any():
            sigma[k] = np.median(np.abs(high[whole])) / 0.6744897501960817
    return sigma
