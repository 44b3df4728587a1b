"""Activation ranges of every layer in one pass over the calibration set.

Inputs are counted per timestep in histograms of log2 |x|, negative and positive values apart (32
bins per octave: ends are good to 2 %), which need no range in advance, add up over batches and
timesteps, and answer all estimators afterwards. The ends of every channel of inputs and outputs
are kept too: clipping outputs loses more than finer steps gain, and inputs may have a grid for each
channel (:mod:`quant.ranges.channels`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quant.ranges.least_error import SYMMETRIC, UNSIGNED, Counts, least_error

LOW, HIGH, PER_OCTAVE = -24, 16, 32
BINS = (HIGH - LOW) * PER_OCTAVE
POWERS = {"mse": 2.0, "p2.4": 2.4}


@dataclass(frozen=True)
class Ranges:
    """Statistics of the inputs of some layers.

    Attributes:
        layers: names, in network order.
        timesteps: noisiest first.
        ends: smallest and largest value, 0 among them, ``(layers, timesteps, 2)``.
        histogram: counts of log2 |x| of negative and of positive values, ``(layers, timesteps, 2,
            BINS)``.
        channels: the ends of each channel over all timesteps, by layer.
        powers: the mean square of each channel, one array ``(C,)`` per layer.
    """

    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    ends: np.ndarray
    histogram: np.ndarray
    channels: tuple[ChannelEnds, ...]
    powers: tuple[np.ndarray, ...]

    @property
    def amax(self) -> np.ndarray:
        """Largest |x|, ``(layers, timesteps)``."""
        return np.abs(self.ends).max(-1)

    def threshold(self, layer: str, method: str, percentile: float = 99.99) -> float:
        """The largest |x| that a symmetric 8-bit grid of this layer shall hold, over all timesteps.

        Args:
            method: ``max``; ``mean`` or ``min`` of the timesteps' maxima (``min`` is ModelOpt's
                step-aware calibrator: it clips the noisy steps on purpose); ``percentile`` of |x|;
                or the threshold with the least expected |error|^p: ``mse`` (p = 2, relative to each
                timestep's own power) or ``p2.4`` (PTQ4DM, EDA-DM).
        """
        k = self.layers.index(layer)
        steps = self.amax[k][self.amax[k] > 0]
        top = float(self.amax[k].max())
        counts = self.histogram[k].sum((0, 1)).astype(np.float64)
        if method in ("mean", "min") and len(steps):
            return float(steps.mean() if method == "mean" else steps.min())
        if method == "max" or top == 0 or counts.sum() == 0:
            return top
        if method == "percentile":
            return min(top, _quantile(counts, counts.sum() * percentile / 100))
        ends = np.array([-top, top])
        return float(least_error(ends, self._counts(k, method), _power(method), SYMMETRIC)[1])

    def interval(self, layer: str, method: str, percentile: float = 99.99) -> tuple[float, float]:
        """The two ends, 0 between them, of an unsigned 8-bit grid with a zero point; the methods
        are :meth:`threshold`'s, for each end.
        """
        k = self.layers.index(layer)
        ends = self.ends[k]
        low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        counts = self.histogram[k].sum(0).astype(np.float64)
        if method in ("mean", "min"):
            seen = ends[np.abs(ends).max(1) > 0]
            if len(seen):
                low, high = (
                    seen.mean(0) if method == "mean" else (seen[:, 0].max(), seen[:, 1].min())
                )
            return float(low), float(high)
        if method == "max" or low == high or counts.sum() == 0:
            return low, high
        if method == "percentile":
            beyond = counts.sum() * (1 - percentile / 100)
            below, above = (_quantile(side, side.sum() - beyond) for side in counts)
            return max(low, -below), min(high, above)
        low, high = least_error(
            np.array([low, high]), self._counts(k, method), _power(method), UNSIGNED
        )
        return float(low), float(high)

    def _counts(self, k: int, method: str) -> Counts:
        """Of all timesteps; for ``mse`` each counts relative to its own power, so that loud ones
        don't set the step of quiet ones.
        """
        edges = 2.0 ** (LOW + np.arange(1, BINS + 1) / PER_OCTAVE)
        values, counts = edges * 2.0 ** (-0.5 / PER_OCTAVE), self.histogram[k].astype(float)
        if method == "mse":
            powers = (counts * values**2).sum((1, 2), keepdims=True)
            counts = np.divide(counts, powers, out=np.zeros_like(counts), where=powers > 0)
        return Counts(values, counts.sum(0))


def _quantile(counts: np.ndarray, below: float) -> float:
    """Where so many counts lie below; the first bin's edge where none has to."""
    edges = 2.0 ** (LOW + np.arange(1, BINS + 1) / PER_OCTAVE)
    return float(edges[min(int(np.searchsorted(np.cumsum(counts), below)), BINS - 1)])


def _power(method: str) -> float:
    if method not in POWERS:
        raise ValueError(
            f"range {method!r} is unknown; known: max, mean, min, percentile, mse, p2.4"
        )
    return POWERS[method]


@dataclass
class ChannelEnds:
    """The ends of a layer's inputs or outputs, channel by channel.

    Attributes:
        ends: smallest and largest value, 0 among them, ``(C, 2)``.
        count: inputs that were seen.
        total, squares: sums over them of each one's own ends and of their squares, ``(C, 2)``.
    """

    ends: np.ndarray
    count: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def nothing(cls) -> ChannelEnds:
        zeros = np.zeros((1, 2))
        return cls(zeros.astype(np.float32), 0, zeros, zeros)

    @property
    def tops(self) -> np.ndarray:
        """Largest magnitudes ``(C,)``."""
        return np.abs(self.ends).max(1)

    def see(self, ends: np.ndarray) -> None:
        """Take in ``(inputs, C, 2)``."""
        self.ends = _wider(self.ends, np.stack([ends[..., 0].min(0), ends[..., 1].max(0)], -1))
        self.count += len(ends)
        self.total = self.total + ends.sum(0, dtype=float)
        self.squares = self.squares + np.square(ends, dtype=float).sum(0)

    def reaching(self, spreads: float) -> np.ndarray:
        """Ends ``(C, 2)`` further out by so many standard deviations of the inputs' own ends; one
        input shows none, and half of its ends stands for it.
        """
        if self.count < 2:
            return 1.5 * self.ends
        power = self.squares - np.square(self.total) / self.count
        spread = np.sqrt(np.maximum(power, 0) / (self.count - 1)).astype(np.float32)
        return self.ends + spreads * spread * np.array([-1, 1], np.float32)


@torch.no_grad()
def measure_ranges(
    network: nn.Module, layers: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Ranges, dict[str, ChannelEnds]]:
    """Run ``network`` over ``(x (B, C, h, w), t (B,))`` batches and return the ranges of the
    layers' inputs, and by layer the ends of each channel of its outputs.

    Each batch holds one timestep.
    """
    layers = tuple(layers)
    device = next(network.parameters()).device
    tables: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    current = [0.0]
    channels, outputs = ([ChannelEnds.nothing() for _ in layers] for _ in range(2))
    squares: list[np.ndarray] = [np.zeros(1)] * len(layers)
    places = np.zeros(len(layers))

    def hook(row: int):
        def see(_, inputs, output):
            ends, histogram = tables[current[0]]
            value = _by_channel(inputs[0])
            found = _each(inputs[0])
            ends[row] = _wider(ends[row], np.array([found[..., 0].min(), found[..., 1].max()]))
            channels[row].see(found)
            squares[row] = squares[row] + value.square().sum(1).double().cpu().numpy()
            places[row] += value.shape[1]
            histogram[row] += _histogram(value)
            outputs[row].see(_each(output))

        return see

    handles = [
        network.get_submodule(name).register_forward_hook(hook(row))
        for row, name in enumerate(layers)
    ]
    try:
        for x, t in batches:
            current[0] = float(t[0])
            if current[0] not in tables:
                tables[current[0]] = (
                    np.zeros((len(layers), 2)),
                    np.zeros((len(layers), 2, BINS), np.float32),
                )
            network(x.to(device), t.to(device))
    finally:
        for handle in handles:
            handle.remove()
    times = tuple(sorted(tables, reverse=True))
    ends, histogram = (np.stack([tables[t][k] for t in times], axis=1) for k in (0, 1))
    powers = tuple(total / max(count, 1) for total, count in zip(squares, places, strict=True))
    found = Ranges(layers, times, ends, histogram, tuple(channels), powers)
    return found, dict(zip(layers, outputs, strict=True))


def _by_channel(value: Tensor) -> Tensor:
    """``(C, N)``."""
    return value.detach().float().movedim(1 if value.ndim == 4 else -1, 0).flatten(1)


def _each(value: Tensor) -> np.ndarray:
    """Smallest and largest, and 0, of each input's channels, ``(B, C, 2)``."""
    low, high = torch.stack([_by_channel(one[None]) for one in value]).aminmax(dim=2)
    return torch.stack([low.clamp(max=0), high.clamp(min=0)], 2).cpu().numpy()


def _wider(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([np.minimum(a[..., 0], b[..., 0]), np.maximum(a[..., 1], b[..., 1])], -1)


def _histogram(value: Tensor) -> np.ndarray:
    """Counts of log2 |x| of negative and of positive values, ``(2, BINS)``."""
    found = []
    for side in (-value, value):
        logs = side[side > 0].log2().clamp(LOW, HIGH - 1e-3)
        found.append(torch.histc(logs, BINS, LOW, HIGH).cpu().numpy())
    return np.stack(found)
