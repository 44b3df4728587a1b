"""The ends of an 8-bit grid that lose least of what was counted: clipping against rounding.

E(low, high) = sum_v n(v) e(v)^p
e(v)^p = |v|^p                       below half a step, which becomes 0
         (step/2)^p / (p + 1)        inside, the mean over a step
         |v - end|^p                 beyond an end
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

SYMMETRIC, UNSIGNED = "symmetric", "unsigned"
LEVELS = 255


@dataclass(frozen=True)
class Counts:
    """How often values were met.

    Args:
        values: magnitudes ``(bins,)``.
        counts: of negative and of positive values, ``(2, bins)``.
    """

    values: np.ndarray
    counts: np.ndarray


def least_error(ends: np.ndarray, seen: Counts, power: float, grid: str) -> np.ndarray:
    """Of ends shrunken towards 0, those with the least expected ``|error|^power``.

    Args:
        ends: the smallest and the largest value, 0 between them, ``(2,)``.
        grid: ``symmetric``: both ends shrink alike, in steps of a hundredth, and a step is 1/127
            of an end; ``unsigned``: each by itself in steps of a twentieth, 255 steps in all.

    Returns:
        Ends, as they were given.
    """
    shares: list[tuple[float, float]]
    if grid == SYMMETRIC:
        shares = [(k / 100, k / 100) for k in range(1, 101)]
    else:
        each = [k / 20 for k in range(1, 21)]
        shares = list(itertools.product(each, each))

    def error(share: tuple[float, float]) -> float:
        (low, high), values = np.multiply(ends, share), seen.values
        step = high / 127 if grid == SYMMETRIC else (high - low) / LEVELS
        return sum(
            _expected(end, step, values, counts, power)
            for end, counts in zip((-low, high), seen.counts, strict=True)
        )

    return np.multiply(ends, min(shares, key=error))


def _expected(
    end: float, step: float, values: np.ndarray, counts: np.ndarray, power: float
) -> float:
    error = np.where(values < step / 2, values**power, (step / 2) ** power / (power + 1))
    error = np.where(values > end, np.abs(values - end) ** power, error)
    return float((counts * error).sum())
