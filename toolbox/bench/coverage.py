"""How often the truth lies in the interval that samples tell: as they spread, and calibrated on
other pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import Tensor

from restoration.metrics.intervals import conformal_factor, least_slices, shrunk
from toolbox.api import keeping_models, load_for
from toolbox.bench.options import Extent, Intervals
from toolbox.bench.shares import shared
from toolbox.support.cards import Spread, keep_spread
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Progress, Source, Task, silent
from toolbox.tasks.settings import Settings


@dataclass(frozen=True)
class Drawn:
    """The samples ``(n, C, H, W)`` of one trial, its truth, and of what kind it is."""

    samples: Tensor
    truth: Tensor
    kind: str


def run_coverage(
    name: str,
    data: Path,
    calibration: Path,
    model: str,
    settings: Settings,
    extent: Extent,
    intervals: Intervals,
    *,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each number of samples: the factor, and how much of what is guessed in the
    pictures of ``data`` lies in ``mean +- q shrunk(std)``; with the most samples also one for each
    kind of measurement.

    ``coverage_gaussian`` reads the samples' spread as it is, with q from the normal distribution
    (1.645 for 90 %); ``coverage`` has the factor fitted on ``calibration``; both are means over
    pictures. Widths are half of an interval's.

    Args:
        data, calibration: what the task's trials are made of, other pictures in each.
        settings: solver, steps and correction of the run.
        extent: trials of ``data``, and the most samples of each.
        intervals: their level and side, trials of ``calibration``, and whether the factors are
            written into the model's card.

    Raises:
        ValueError, OSError: files that don't fit, fewer calibration trials than the level needs,
            fewer than 2 samples, or runs whose samples are all the same.
    """
    task, level = task_by_name(name), intervals.level
    if not task.spreads:
        raise ValueError(f"the samples of {name} have no truth to compare their spread with")
    if extent.samples < 2:
        raise ValueError(f"a spread needs at least 2 samples; got {extent.samples}")
    count = (intervals.calibration_limit or 40, extent.limit or 20)
    if count[0] < least_slices(level):
        raise ValueError(
            f"intervals of {level:.0%} need at least {least_slices(level)} pictures to calibrate"
            f" on; got {count[0]}"
        )
    denoiser = load_for(name, model)
    settings = replace(settings, steps=task.steps(settings, extent.samples))
    places = (calibration, data)
    sources = [
        task.source(place, denoiser, intervals.side, extent.seed + number)
        for number, place in enumerate(places)
    ]
    turns = [(number, k) for number in (0, 1) for k in range(count[number])]
    drawn: tuple[list[Drawn], list[Drawn]] = ([], [])
    with keeping_models({}):
        draw = partial(_drawn, name, model, settings, extent, sources)
        for (number, _), one in zip(turns, shared(draw, turns, extent.workers), strict=True):
            drawn[number].append(one)
            progress(sum(map(len, drawn)), len(turns))
    rows, spreads = [], []
    numbers = sorted({n for n in (2, 4, 8, 16) if n < extent.samples} | {extent.samples})
    for n in numbers:
        known, unknown = ([_guess(task, one, n) for one in part] for part in drawn)
        fitted = [(e, s) for e, s, _ in known if e.size]
        factor = conformal_factor([e for e, _ in fitted], [s for _, s in fitted], level)
        row = _row(unknown, factor, level)
        rows.append({"case": "all", "samples": n} | row)
        spreads.append(Spread(n, level, round(factor, 4), row["coverage"], len(fitted)))
    kinds = sorted({one.kind for one in drawn[1]})
    for kind in kinds if len(kinds) > 1 else ():
        part = [g for g, one in zip(unknown, drawn[1], strict=True) if one.kind == kind]
        rows.append({"case": kind, "samples": numbers[-1]} | _row(part, factor, level))
    run = {"solver": settings.solver, "steps": settings.steps, "correction": settings.correction}
    if intervals.write:
        keep_spread(model, name, run, spreads)
    head = {"task": name, "model": model} | run
    return [head | row | {"level": level, "calibrated_on": len(fitted)} for row in rows]


def _drawn(
    name: str,
    model: str,
    settings: Settings,
    extent: Extent,
    sources: Sequence[Source],
    turns: Sequence[tuple[int, int]],
) -> Iterator[Drawn]:
    """The samples of some trials: which source's, which number."""
    task, denoiser = task_by_name(name), load_for(name, model)
    for number, k in turns:
        options = task.mixed(denoiser, k)
        trial = task.trial(sources[number], k, options)
        restore = task.restorer(denoiser, options, settings)
        seed = extent.seed + k * extent.samples
        result = restore(trial.inputs, num_samples=extent.samples, seed=seed)
        yield Drawn(result.samples, trial.known, trial.name)


def _guess(task: Task, one: Drawn, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, shrunk spreads and plain ones of what is guessed, with so many samples."""
    samples, truth, counts = task.guessed(one.samples[:count], one.truth)
    std, error = samples.std(0), samples.double().mean(0).to(samples) - truth
    counts = counts & ((std > 0) | (error != 0))
    # where samples agree and are wrong no factor helps
    spread = shrunk(std).clamp(min=1e-9)
    return error[counts].abs().numpy(), spread[counts].numpy(), std[counts].numpy()


def _row(
    guesses: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], factor: float, level: float
) -> dict[str, Any]:
    gaussian = NormalDist().inv_cdf(0.5 + level / 2)
    guesses = [g for g in guesses if g[0].size]
    raw = [float(np.mean(e <= gaussian * s)) for e, _, s in guesses]
    held = [float(np.mean(e <= factor * s)) for e, s, _ in guesses]
    widths = [(gaussian * float(s.mean()), factor * float(w.mean())) for _, w, s in guesses]
    return {
        "pictures": len(guesses),
        "factor": round(factor, 3),
        "coverage_gaussian": round(float(np.mean(raw)), 4),
        "coverage": round(float(np.mean(held)), 4),
        "coverage_worst": round(min(held), 4),
        "width_gaussian": round(float(np.mean([w for w, _ in widths])), 5),
        "width": round(float(np.mean([w for _, w in widths])), 5),
    }
