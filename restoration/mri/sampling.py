"""Sampling masks of accelerated Cartesian MRI: fastMRI's column masks to the draw, and Poisson
discs for two phase-encoding axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from restoration.mri.espirit import MINIMUM_REGION

# of ``numpy.random.RandomState``
Seed = int | Sequence[int] | None

MASKS = ("random", "equispaced", "equispaced-fraction", "poisson", "partial")
CALIBRATION = 24  # largest side of a drawn centre
COLUMNS = ("random", "equispaced", "equispaced-fraction", "partial")


def volume_seed(name: str) -> tuple[int, ...]:
    """fastMRI's seed of a volume: the characters of its file name, so that all of its slices share
    one mask.
    """
    return tuple(map(ord, name))


def centre_lines(width: int, center_fraction: float) -> tuple[int, int]:
    """First column and number of columns of the fully sampled centre: ``round(W f)`` from ``(W - n
    + 1) // 2``.
    """
    count = round(width * center_fraction)
    return (width - count + 1) // 2, count


def column_mask(
    kind: str, width: int, acceleration: float, center_fraction: float, seed: Seed
) -> Tensor:
    """``(W,)``: one of fastMRI's masks, with its order of random draws.

    - ``random``: each column with probability ``(W/R - n)/(W - n)``, joined with the n centre
      columns.
    - ``equispaced``: every R-th column from a random offset, joined with the centre: more than
      ``W/R`` columns in all.
    - ``equispaced-fraction``: a wider, fractional step, so that about ``W/R`` columns are sampled
      in all.
    - ``partial``: the last ``W/R`` columns, one half of k-space and the centre's other side
      (partial Fourier); R is below 2.

    fastMRI first draws which of its (centre, acceleration) pairs to use; with one pair that draw is
    made too, and has no effect on the choice.

    Args:
        seed: an int or a tuple of ints (:func:`volume_seed`), for ``numpy.random.RandomState``.

    Raises:
        ValueError: an unknown kind, acceleration below 1, or a centre that alone exceeds ``W/R``
            columns.
    """
    if kind not in COLUMNS:
        raise ValueError(f"column mask {kind!r} is unknown; known: {', '.join(COLUMNS)}")
    if not acceleration >= 1 or not 0 <= center_fraction < 1:
        raise ValueError(
            f"acceleration must be at least 1 and center_fraction in [0, 1); got {acceleration} and"
            f" {center_fraction}"
        )
    if kind == "partial" and not acceleration < 2:
        raise ValueError(
            "a partial mask samples more than one half of k-space, for instance 5/8 at"
            f" acceleration 1.6; got acceleration {acceleration:g}"
        )
    start, count = centre_lines(width, center_fraction)
    if kind in ("random", "equispaced-fraction") and count > width / acceleration:
        raise ValueError(
            f"the centre alone has {count} of {width} columns, more than the"
            f" {width / acceleration:.1f} that acceleration {acceleration:g} allows: lower"
            " center_fraction or the acceleration"
        )
    mask = np.zeros(width, dtype=np.float32)
    if kind == "partial":
        mask[width - round(width / acceleration) :] = 1
        return torch.from_numpy(mask)
    rng = np.random.RandomState(seed)
    rng.randint(1)
    if kind == "random":
        mask[rng.uniform(size=width) < (width / acceleration - count) / (width - count)] = 1
    elif kind == "equispaced":
        every = max(1, round(acceleration))
        mask[rng.randint(0, high=every) :: every] = 1
    elif count * acceleration == width:
        pass  # the centre is all there is
    else:
        step = acceleration * (count - width) / (count * acceleration - width)
        positions = np.arange(rng.randint(0, high=max(1, round(step))), width - 1, step)
        mask[np.around(positions).astype(int)] = 1
    mask[start : start + count] = 1
    return torch.from_numpy(mask)


def poisson_mask(
    height: int, width: int, acceleration: float, calibration: int, seed: Seed
) -> Tensor:
    """``(H, W)``: variable-density Poisson discs for two phase-encoding directions, density falling
    as ``1/(1 + s r)`` squared.

    Points are visited in random order; one is kept if no kept point lies within its radius ``1 + s
    r`` (r: distance from the centre, 1 at the edge). The slope s is found by bisection, as in
    sigpy, whose draws differ. The corners beyond r = 1 are not sampled.

    Args:
        calibration: side of the fully sampled square in the centre.

    Raises:
        ValueError: acceleration below 1, a calibration square beyond the image or alone more than
            ``H W / R`` points.
    """
    if not acceleration >= 1:
        raise ValueError(f"acceleration must be at least 1; got {acceleration}")
    if not 0 <= calibration <= min(height, width) or calibration**2 > height * width / acceleration:
        raise ValueError(
            f"a calibration square of {calibration} does not fit {height} x {width} points at"
            f" acceleration {acceleration:g}"
        )
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    r = np.hypot((y - height // 2) / max(1, height / 2), (x - width // 2) / max(1, width / 2))
    top, left = (height - calibration + 1) // 2, (width - calibration + 1) // 2
    centre = np.zeros((height, width), bool)
    centre[top : top + calibration, left : left + calibration] = True
    if acceleration == 1:
        return torch.ones(height, width)
    order = rng.permutation(np.flatnonzero(r.ravel() <= 1))
    low, high = 0.0, float(max(height, width))
    best, least = centre, math.inf
    for _ in range(14):
        slope = (low + high) / 2
        mask = centre | _discs(order, (1 + slope * r) / 2 * 2, height, width)
        gap = abs(mask.sum() - height * width / acceleration)
        if gap < least:
            best, least = mask, gap
        if mask.size / mask.sum() < acceleration:
            low = slope
        else:
            high = slope
    return torch.from_numpy(best.astype(np.float32))


def _discs(order: np.ndarray, radius: np.ndarray, height: int, width: int) -> np.ndarray:
    """Greedy dart throwing: keep a point unless a kept one forbids it; each kept point forbids the
    disc of its own radius.
    """
    free = np.ones((height, width), bool)
    kept = np.zeros((height, width), bool)
    for index in order:
        i, j = divmod(int(index), width)
        if not free[i, j]:
            continue
        kept[i, j] = True
        reach = radius[i, j]
        n = int(reach)
        top, left = max(0, i - n), max(0, j - n)
        rows, cols = np.ogrid[top : min(height, i + n + 1), left : min(width, j + n + 1)]
        block = free[top : top + rows.shape[0], left : left + cols.shape[1]]
        block &= (rows - i) ** 2 + (cols - j) ** 2 >= reach**2
    return kept


def make_sampling(
    kind: str, size: tuple[int, ...], acceleration: float, center_fraction: float | None, seed: Seed
) -> Tensor:
    """A mask ``(W,)``, or ``(H, W)`` for ``poisson``; the centre is fastMRI's share for the
    acceleration unless given (0.32/R).

    Raises:
        ValueError: an unknown kind, or a centre that doesn't fit.
    """
    if kind not in MASKS:
        raise ValueError(f"mask {kind!r} is neither a file nor a kind; kinds: {', '.join(MASKS)}")
    if kind == "poisson":
        # at most half of the points lie in the centre
        half = int((size[0] * size[1] / (2 * acceleration)) ** 0.5)
        return poisson_mask(size[0], size[1], acceleration, min(CALIBRATION, half, *size), seed)
    # in small images no fewer columns than sensitivities are estimated from
    least = MINIMUM_REGION / size[1]
    share = max(0.32 / acceleration, least if least < 1 / acceleration else 0.0)
    share = share if center_fraction is None else center_fraction
    return column_mask(kind, size[1], acceleration, share, seed)
