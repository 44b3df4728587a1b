"""How often the truth lies in the uncertainty map's interval: raw, and calibrated on other
slices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from restoration.io.mri import read_maps, read_scan
from restoration.io.mri_scan import Scan
from restoration.mri.intervals import conformal_factor, floored, least_slices
from restoration.mri.task import MRITask
from solvers import solver_by_name
from toolbox.api import load
from toolbox.bench.mri import make_case
from toolbox.bench.options import Extent, Intervals, Scans

TISSUE = 0.05  # share of a slice's maximum above which a pixel counts


def run_mri_coverage(
    data: Path,
    calibration: Path,
    model: str = "mri",
    scans: Scans = Scans(),
    extent: Extent = Extent(samples=8),
    intervals: Intervals = Intervals(),
    *,
    steps: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """One row per mask: the conformal factor, and how many tissue pixels of ``data`` lie in
    ``|mean| +- q max(std, noise)``.

    Every slice is a scan of its own (mask, phase and noise drawn anew), so that slices of both
    files are exchangeable as far as their pictures are. ``coverage_gaussian`` has q from the normal
    distribution (1.645 for 90 %), ``coverage`` the factor fitted on ``calibration``; both are means
    over slices. Widths are half of an interval's, as a share of the slice's maximum.

    Args:
        calibration, data: magnitude images or fully sampled k-space: slices to fit the factor on,
            others to test it on.
        extent, intervals: use this many slices of each, evenly spread; None: all.

    Raises:
        ValueError, OSError: files that don't fit, fewer calibration slices than the level needs, or
            fewer than 2 samples.
    """
    num_samples, seed, limit = extent.samples, extent.seed, extent.limit
    kinds = scans.mask or ["equispaced-fraction", "poisson"]
    accelerations, level = scans.acceleration or [4.0, 8.0], intervals.level
    if num_samples < 2:
        raise ValueError(f"a spread needs at least 2 samples; got {num_samples}")
    known, unknown = (
        _slices(read_scan(calibration), intervals.calibration_limit),
        _slices(read_scan(data), limit),
    )
    if len(known) < least_slices(level):
        raise ValueError(
            f"{calibration}: intervals of {level:.0%} need at least {least_slices(level)} slices;"
            f" got {len(known)}"
        )
    sens = None if scans.coils is None else read_maps(scans.coils)
    task = MRITask(load(model), solver_by_name("ddim"), steps)
    done, total = 0, len(kinds) * len(accelerations) * (len(known) + len(unknown))
    gaussian = NormalDist().inv_cdf(0.5 + level / 2)
    rows = []
    for kind in kinds:
        for acceleration in accelerations:
            errors, spreads, peaks = [], [], []
            for k, (name, scan) in enumerate(
                [(calibration.name, s) for s in known] + [(data.name, s) for s in unknown]
            ):
                case = make_case(
                    scan, kind, acceleration, sens, scans.sigma, seed + k, f"{name}:{seed + k}"
                )
                result = task(
                    case.kspace[0],
                    case.mask,
                    case.maps[0],
                    sigma=case.sigma,
                    num_samples=num_samples,
                    seed=seed + k * num_samples,
                )
                truth = case.truth[0].numpy()
                tissue = truth > TISSUE * truth.max()
                errors.append((result.magnitude.numpy() - truth)[tissue])
                spreads.append(floored(result.std.numpy(), result.sigma)[tissue])
                peaks.append(float(truth.max()))
                done += 1
                progress(done, total)
            n = len(known)
            factor = conformal_factor(errors[:n], spreads[:n], level)
            tested = list(zip(errors[n:], spreads[n:], peaks[n:], strict=True))
            raw, held = (
                [float(np.mean(np.abs(e) <= q * s)) for e, s, _ in tested]
                for q in (gaussian, factor)
            )
            width = float(np.mean([s.mean() / peak for _, s, peak in tested]))
            rows.append(
                {
                    "mask": kind,
                    "acceleration": acceleration,
                    "model": model,
                    "steps": steps,
                    "samples": num_samples,
                    "level": level,
                    "calibration_slices": n,
                    "test_slices": len(unknown),
                    "factor": round(factor, 3),
                    "coverage_gaussian": round(float(np.mean(raw)), 4),
                    "coverage": round(float(np.mean(held)), 4),
                    "coverage_worst_slice": round(min(held), 4),
                    "width_gaussian": round(gaussian * width, 5),
                    "width": round(factor * width, 5),
                }
            )
    return rows


def _slices(scan: Scan, limit: int | None) -> list[Scan]:
    """Slices, evenly spread (neighbours are alike), as scans of one slice."""
    key = "magnitude" if scan.kspace is None else "kspace"
    stack = getattr(scan, key)
    count = len(stack) if limit is None else min(limit, len(stack))
    return [
        replace(scan, **{key: stack[k : k + 1]})
        for k in np.linspace(0, len(stack) - 1, count).round().astype(int)
    ]
