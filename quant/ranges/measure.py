"""Activation ranges of every layer at every timestep, in one pass over the calibration set.

Each layer keeps a histogram of log2 |x| (32 bins per octave: thresholds are good to 2 %), which
needs no range in advance, adds up over batches and timesteps, and answers all estimators
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

LOW, HIGH, PER_OCTAVE = -24, 16, 32
BINS = (HIGH - LOW) * PER_OCTAVE


@dataclass(frozen=True)
class Ranges:
    """Statistics of the inputs (or outputs) of some layers.

    Attributes:
        layers: names, in network order.
        timesteps: noisiest first.
        amax: largest |x|, ``(layers, timesteps)``.
        histogram: counts of log2 |x|, ``(layers, timesteps, BINS)``.
        channels: largest |x| of each channel over all timesteps, one array ``(C,)`` per layer.
    """

    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    amax: np.ndarray
    histogram: np.ndarray
    channels: tuple[np.ndarray, ...]

    def threshold(self, layer: str, method: str, percentile: float = 99.99) -> float:
        """The largest |x| that layer's 8-bit grid shall hold, over all timesteps.

        Args:
            method: ``max``; ``mean`` or ``min`` of the timesteps' maxima (``min`` is ModelOpt's
                step-aware calibrator: it clips the noisy steps on purpose); ``percentile`` of |x|;
                or the threshold with the least expected |error|^p of an 8-bit symmetric grid:
                ``mse`` (p = 2) or ``p2.4`` (PTQ4DM, EDA-DM).
        """
        k = self.layers.index(layer)
        steps = self.amax[k][self.amax[k] > 0]
        top = float(self.amax[k].max())
        counts = self.histogram[k].sum(0).astype(np.float64)
        if method in ("mean", "min") and len(steps):
            return float(steps.mean() if method == "mean" else steps.min())
        if method == "max" or top == 0 or counts.sum() == 0:
            return top
        edges = 2.0 ** (LOW + np.arange(1, BINS + 1) / PER_OCTAVE)
        if method == "percentile":
            return min(
                top,
                float(edges[np.searchsorted(np.cumsum(counts), counts.sum() * percentile / 100)]),
            )
        power = {"mse": 2.0, "p2.4": 2.4}.get(method)
        if power is None:
            raise ValueError(
                f"range {method!r} is unknown; known: max, mean, min, percentile, mse, p2.4"
            )
        centers = edges * 2.0 ** (-0.5 / PER_OCTAVE)
        candidates = top * np.linspace(0.01, 1.0, 100)
        return float(min(candidates, key=lambda thr: _expected_error(thr, centers, counts, power)))


def _expected_error(
    threshold: float, values: np.ndarray, counts: np.ndarray, power: float = 2.0
) -> float:
    """|error|^p of a grid of step threshold/127: (step/2)^p/(p+1) inside, |x|^p below half a step,
    the excess^p above the end.
    """
    step = threshold / 127
    error = np.where(values < step / 2, values**power, (step / 2) ** power / (power + 1))
    error = np.where(values > threshold, np.abs(values - threshold) ** power, error)
    return float((counts * error).sum())


@torch.no_grad()
def measure_ranges(
    network: nn.Module, layers: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Ranges, Ranges]:
    """Run ``network`` over ``(x (B, C, h, w), t (B,))`` batches and return the ranges of the
    layers' inputs and outputs.

    Each batch holds one timestep.
    """
    layers = tuple(layers)
    device = next(network.parameters()).device
    tables: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    current = [0.0]
    channels: list[list[Tensor | None]] = [[None, None] for _ in layers]

    def hook(row: int):
        def see(_, inputs, output):
            amax, histogram = tables[current[0]]
            for side, value in enumerate((inputs[0], output)):
                value = value.detach().abs()
                top = value.movedim(1 if value.ndim == 4 else -1, 0).flatten(1).amax(1).cpu()
                amax[row, side] = max(amax[row, side], float(top.max()))
                channels[row][side] = (
                    top if channels[row][side] is None else torch.maximum(channels[row][side], top)
                )
                logs = value[value > 0].log2().clamp(LOW, HIGH - 1e-3)
                histogram[row, side] += torch.histc(logs, BINS, LOW, HIGH).cpu().numpy()

        return see

    handles = [
        network.get_submodule(name).register_forward_hook(hook(row))
        for row, name in enumerate(layers)
    ]
    try:
        for x, t in batches:
            current[0] = float(t[0])
            if current[0] not in tables:
                tables[current[0]] = np.zeros((len(layers), 2)), np.zeros((len(layers), 2, BINS))
            network(x.to(device), t.to(device))
    finally:
        for handle in handles:
            handle.remove()
    times = tuple(sorted(tables, reverse=True))
    amax = np.stack([tables[t][0] for t in times], axis=-1)
    histogram = np.stack([tables[t][1] for t in times], axis=-2)
    inputs, outputs = (
        Ranges(
            layers,
            times,
            amax[:, side],
            histogram[:, side],
            tuple(
                np.zeros(0) if top is None else top.numpy() for top in (r[side] for r in channels)
            ),
        )
        for side in (0, 1)
    )
    return inputs, outputs


def _array(top: Tensor | None) -> np.ndarray:
    return np.zeros(0) if top is None else top.numpy()
