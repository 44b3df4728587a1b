"""Bands that hold nothing of the scene."""

from __future__ import annotations

import numpy as np

FAR = 10.0  # times the usual range of a band, from which on one is suspect
EXPLAINED = 0.25  # share of a suspect band's ranks that the others must explain
COMPONENTS, PIXELS = 6, 4096


def garbage_bands(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Bool ``(B,)``: bands whose numbers go far beyond those of the others and have nothing to do
    with them (not calibrated, saturated, filled with whatever was there).

    White noise of any size costs nothing: such a band is weighted by it. What several of these
    bands share does cost, since it passes for spectra. Suspect is a band whose range between the
    quantiles of 0.5 and 99.5 % is :data:`FAR` times the median of all bands' (impulses alone don't
    reach it). It is garbage if less than :data:`EXPLAINED` of the variance of its ranks is
    explained by the principal components of the bands that aren't suspect. A strong band of the
    scene follows them; ranks are not moved by outliers.

    Args:
        values: ``(B, h, W)``.
        valid: bool, the same shape.
    """
    bands = len(values)
    none = np.zeros(bands, bool)
    flat, known = values.reshape(bands, -1), valid.reshape(bands, -1)
    step = -(-flat.shape[1] // PIXELS)
    flat, known = flat[:, ::step].astype(np.float64), known[:, ::step]
    ranges, filled = np.zeros(bands), np.zeros(flat.shape)
    for b in range(bands):
        held = flat[b, known[b]]
        if len(held) < 64:
            continue
        low, middle, high = np.quantile(held, (0.005, 0.5, 0.995))
        ranges[b] = high - low
        filled[b] = np.where(known[b], flat[b], middle)
    usual = ranges[ranges > 0]
    if not usual.size:
        return none
    suspect = ranges > FAR * np.median(usual)
    plain = ~suspect & (ranges > 0)
    if not suspect.any() or plain.sum() < 3 or suspect.sum() > bands / 2:
        return none
    z = filled[plain] - filled[plain].mean(1, keepdims=True)
    z /= np.maximum(z.std(1, keepdims=True), 1e-30)
    axes = np.linalg.eigh(z @ z.T)[1][:, ::-1][:, : min(COMPONENTS, int(plain.sum()))]
    design = np.concatenate([np.ones((1, z.shape[1])), axes.T @ z])
    found = none.copy()
    for b in np.flatnonzero(suspect).tolist():
        here = known[b]
        ranks = _ranks(flat[b, here])
        x = design[:, here]
        fit = np.linalg.lstsq(x.T, ranks, rcond=None)[0] @ x
        spread = float(ranks.var())
        found[b] = spread == 0 or 1 - float((ranks - fit).var()) / spread < EXPLAINED
    return found


def _ranks(x: np.ndarray) -> np.ndarray:
    """From 0 to 1; equal values have the same."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    found: np.ndarray = middle[place] / len(x)
    return found
