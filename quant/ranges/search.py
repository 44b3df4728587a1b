"""The range searches of PTQ4DM and EDA-DM: the clipping range with the least mean |error|^2.4.

Two grids. Ours is symmetric and deployable: codes ``[-q, q]`` (weights) or ``[-q-1, q]``
(activations), ``q = 2^(b-1)-1``, zero point 0. The released code's (``compat="released"``) has
unsigned codes ``0..2^b-1``, step ``(hi - lo)/(2^b - 1)`` and zero point ``round(-lo/step)``, which
for a symmetric range is ``round(127.5)``: 127 or 128 by float error. TensorRT accepts no such grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES, POWER, LEAST_STEP = 100, 2.4, 1e-8


@dataclass(frozen=True)
class AffineGrid:
    """``x ~ (clip(round(x/step) + zero_point, 0, 2^bits - 1) - zero_point) step``: one entry, or
    one per channel (axis 0).
    """

    step: Tensor
    zero_point: Tensor
    bits: int

    @classmethod
    def of_range(cls, low: Tensor, high: Tensor, bits: int) -> AffineGrid:
        top = 2**bits - 1
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low) / top).clamp(min=LEAST_STEP)
        return cls(step, (-torch.round(low / step)).clamp(0, top), bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Fake quantization."""
        step, zero = (_spread(v, x) for v in (self.step, self.zero_point))
        return ((torch.round(x / step) + zero).clamp(0, 2**self.bits - 1) - zero) * step


def search_symmetric_steps(
    x: Tensor, bits: int, *, per_channel: bool = False, narrow: bool = True, power: float = POWER
) -> Tensor:
    """Steps ``thr/q`` of the symmetric signed grid with the least mean ``|x_hat - x|^power``, of
    100 thresholds ``i/100 max|x|``.

    Args:
        x: any shape; channels on axis 0.
        bits: 2 to 16.
        per_channel: one step per channel ``(C,)``, otherwise a scalar.
        narrow: lowest code ``-q`` (weights), otherwise ``-q-1`` (activations).
    """
    _check_bits(bits)
    top = 2 ** (bits - 1) - 1
    peak = (x.flatten(1).abs().amax(1) if per_channel else x.abs().amax()).clamp(min=LEAST_STEP)
    best, least = peak / top, torch.full_like(peak, torch.inf)
    for i in range(1, CANDIDATES + 1):
        step = peak / CANDIDATES * i / top
        grid = _spread(step, x)
        error = _score(
            torch.round(x / grid).clamp(-top if narrow else -top - 1, top) * grid,
            x,
            per_channel,
            power,
        )
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def search_range(
    x: Tensor, bits: int, *, per_channel: bool = False, symmetric: bool = True
) -> tuple[Tensor, Tensor]:
    """The released search: ``(low, high)`` of the unsigned grid.

    One parameter for ``symmetric`` or one-sided data: ``[-thr, thr]``, ``[0, thr]`` where no value
    is negative, ``[-thr, 0]`` where none is positive. Otherwise two: 100 widths of the whole range
    times ``2^bits`` zero points.

    Raises:
        ValueError: ``bits`` outside 2..16.
    """
    _check_bits(bits)
    low, high = _extremes(x, per_channel)
    best_low, best_high, least = low, high, torch.full_like(low, torch.inf)
    sign = 1 if float(x.min()) >= 0 else -1 if float(x.max()) <= 0 else 0
    if symmetric or sign:
        peak = torch.maximum(low.abs(), high)
        thresholds = [peak / CANDIDATES * i for i in range(1, CANDIDATES + 1)]
        zero = torch.zeros_like(peak)
        candidates = ((zero if sign > 0 else -thr, zero if sign < 0 else thr) for thr in thresholds)
    else:
        width = high.clamp(min=0) - low.clamp(max=0)
        candidates = _windows(width, bits)
    for lo, hi in candidates:
        error = _score(AffineGrid.of_range(lo, hi, bits)(x), x, per_channel, POWER)
        better = error < least
        best_low, best_high = torch.where(better, lo, best_low), torch.where(better, hi, best_high)
        least = torch.where(better, error, least)
    return best_low, best_high


def released_grid(
    x: Tensor, bits: int, *, per_channel: bool = False, symmetric: bool = True
) -> AffineGrid:
    """The authors' grid for ``x``: :func:`search_range`, then step and zero point."""
    return AffineGrid.of_range(
        *search_range(x, bits, per_channel=per_channel, symmetric=symmetric), bits
    )


@dataclass
class RunningRange:
    """The released activation observer: each batch's searched range enters with weight 0.1, so the
    order of batches matters.

    Our own calibration reads all batches' histograms at once (:mod:`quant.ranges.measure`); this is
    for comparison with the papers.
    """

    bits: int
    symmetric: bool = True
    momentum: float = 0.9
    low: Tensor | None = None
    high: Tensor | None = None

    def see(self, x: Tensor) -> AffineGrid:
        """Take in one batch and return the grid so far."""
        low, high = search_range(x, self.bits, symmetric=self.symmetric)
        if self.low is not None and self.high is not None:
            low = self.momentum * self.low + (1 - self.momentum) * low
            high = self.momentum * self.high + (1 - self.momentum) * high
        self.low, self.high = low, high
        return AffineGrid.of_range(low, high, self.bits)


def _windows(width: Tensor, bits: int):
    for i in range(1, CANDIDATES + 1):
        span = width / CANDIDATES * i
        step = span / (2**bits - 1)
        for zero_point in range(2**bits):
            yield -zero_point * step, span - zero_point * step


def _extremes(x: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    low, high = x.flatten(1).aminmax(dim=1) if per_channel else x.aminmax()
    return low, high


def _score(approximation: Tensor, x: Tensor, per_channel: bool, power: float) -> Tensor:
    error = (approximation - x).abs().pow(power)
    return error.flatten(1).mean(1) if per_channel else error.mean()


def _spread(value: Tensor, x: Tensor) -> Tensor:
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 2 to 16; got {bits!r}")
