"""Intervals that hold what they promise: split-conformal calibration of the uncertainty map, with
pictures (slices of a scan) as the unit.

Lee, Barber & Willett 2023 ("Distribution-free inference with hierarchical data", hierarchical
conformal prediction); with one pixel per slice it is the split-conformal quantile of Vovk et al.
2005.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor


def least_slices(level: float) -> int:
    """How many calibration slices an interval of this level needs: ``level/(1 - level)``, rounded
    up (9 for 90 %).
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1; got {level}")
    return max(1, math.ceil(level / (1 - level) - 1e-9))


def conformal_factor(
    error: Sequence[np.ndarray], std: Sequence[np.ndarray], level: float = 0.9
) -> float:
    """The factor q for which ``estimate +- q std`` holds the truth with probability ``level``,
    fitted on slices whose truth is known.

    The guarantee: if the calibration slices and a new slice are exchangeable, a pixel drawn from
    the new slice lies in its interval with probability ``level`` or more, whatever the errors'
    distribution and however wrong ``std`` is. Pixels of one slice are *not* exchangeable with those
    of another: a slice is hard or easy as a whole. So K slices count as K observations, not as
    millions: each has the weight ``1/(K + 1)``, shared by its pixels, and the new slice's share
    counts as infinitely wrong. q is the ``level`` quantile of that, which is the ``level (K +
    1)/K`` quantile of the known scores ``|error|/std``. The price of few slices is an interval
    wider than need be: with 9 of them it covers the largest error of all.

    The average over slices is promised, not every slice, and not every pixel: fine structure lies
    outside more often than plain tissue. Slices of another scanner, organ or acceleration are not
    exchangeable with these.

    Args:
        error: one array per slice: estimate minus truth, over the pixels that count. Shapes may
            differ between slices.
        std: like ``error``, positive: the spread of the samples (see :func:`shrunk`).
        level: probability in (0, 1).

    Raises:
        ValueError: too few slices for the level (:func:`least_slices`), shapes that differ, a slice
            without pixels, or values that are not finite or not positive.
    """
    if len(error) != len(std):
        raise ValueError(
            f"every slice needs its errors and its spread; got {len(error)} and {len(std)} slices"
        )
    count, least = len(error), least_slices(level)
    if count < least:
        raise ValueError(
            f"intervals of {level:.0%} need at least {least} calibration slices; got {count}: give"
            " more, or lower the level"
        )
    scores, weights = [], []
    for k, (e, s) in enumerate(zip(error, std, strict=True)):
        e, s = (np.asarray(v, dtype=np.float64).ravel() for v in (e, s))
        if e.shape != s.shape or e.size == 0:
            raise ValueError(
                f"slice {k}: errors and spread must be of one size, at least one pixel; got"
                f" {e.size} and {s.size}"
            )
        if not (np.isfinite(e).all() and np.isfinite(s).all() and (s > 0).all()):
            raise ValueError(
                f"slice {k}: errors must be finite and the spread positive; give the spread a floor"
            )
        scores.append(np.abs(e) / s)
        weights.append(np.full(e.size, 1 / ((count + 1) * e.size)))
    score, weight = np.concatenate(scores), np.concatenate(weights)
    order = np.argsort(score, kind="stable")
    below = np.cumsum(weight[order])
    index = int(np.searchsorted(below, level - 1e-12))
    return float(score[order][min(index, len(order) - 1)])


def gap(mask: Tensor | np.ndarray) -> float:
    """How far the missing pixels of a mask lie from known ones: the harmonic mean of the distances
    in pixels, to which the edges of holes count most. At least 1; 0 where nothing is missing.

    Args:
        mask: ``(H, W)``, 0 = missing.

    Raises:
        ValueError: a mask that knows nothing.
    """
    from scipy.ndimage import distance_transform_edt

    missing = np.asarray(mask) == 0
    if missing.all():
        raise ValueError("the mask knows nothing: no distance to it is defined")
    distances = distance_transform_edt(missing)[missing]
    return float(1 / np.mean(1 / distances)) if distances.size else 0.0


def shrunk(std: Tensor) -> Tensor:
    """``sqrt(std^2 + mean(std)^2)`` where the samples differ at all, else 0: few samples may agree
    on a pixel by chance, but none is known so much better than the others of its picture.

    Measured on pictures, intervals of 90 % are a third narrower by it with four samples, and a
    fifth as wide with two.

    Args:
        std: of the samples of one picture, of any shape.
    """
    guessed = std > 0
    mean = std[guessed].mean() if guessed.any() else std.new_zeros(())
    return torch.where(guessed, (std**2 + mean**2).sqrt(), std)


def interval_std(std: Tensor, factor: float, level: float = 0.9) -> Tensor:
    """The spread of samples as the standard deviation of a normal distribution whose interval of
    this level holds the truth as often as that: ``mean +- 1.645 std`` for 90 %.

    Args:
        std: of the samples of one picture.
        factor: of :func:`conformal_factor` for :func:`shrunk` spreads.
    """
    return shrunk(std) * (factor / NormalDist().inv_cdf(0.5 + level / 2))
