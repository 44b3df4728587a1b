"""Quantiles by operators that graphs have: what a run measures of its data is part of its graph."""

from __future__ import annotations

import math

from torch import Tensor


def ordered(values: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 0) of each row of ``(B, n)``."""
    n = values.shape[1]
    return (
        values.topk(n - k, dim=1).values[:, -1]
        if k >= n // 2
        else -(-values).topk(k + 1, dim=1).values[:, -1]
    )


def median(values: Tensor) -> Tensor:
    """``torch.median`` of each row of ``(B, n)``: the lower of two."""
    return ordered(values, (values.shape[1] - 1) // 2)


def quantile(values: Tensor, q: float) -> Tensor:
    """``torch.quantile`` of each row of ``(B, n)``, of any length."""
    place = q * (values.shape[1] - 1)
    low, high = ordered(values, math.floor(place)), ordered(values, math.ceil(place))
    return low + (place - math.floor(place)) * (high - low)
