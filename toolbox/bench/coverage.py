"""How often the truth lies in the interval that samples tell: as they spread, and calibrated on
other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import Tensor

from restoration.metrics.intervals import conformal_factor, least_slices, shrunk
from solvers.denoiser import Denoiser
from toolbox.api import keeping_models, load_for
from toolbox.bench.options import Extent, Intervals
from toolbox.bench.shares import shared
from toolbox.support.cards import Spread, keep_spread
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Progress, Source, Task, silent
from toolbox.tasks.settings import Settings


@dataclass(frozen=True)
class Drawn:
    """The samples ``(n, C, H, W)`` of one trial, its truth, of what kind it is, the run's standard
    deviation (None: that of the samples), and the end of the range that its difficulty lies in
    (None: the task tells none).
    """

    samples: Tensor
    truth: Tensor
    kind: str
    std: Tensor | None = None
    end: float | None = None


@dataclass(frozen=True)
class Guess:
    """Errors, shrunk spreads and plain ones of what is guessed in a trial, and the factor that its
    interval takes.
    """

    error: np.ndarray
    spread: np.ndarray
    std: np.ndarray
    drawn: Drawn
    factor: float = 0.0


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
    kind of measurement. Where the task tells how difficult measurements are, each range of that has
    a factor of its own; rows show their mean.

    ``coverage_gaussian`` reads the samples' spread as it is, with q from the normal distribution
    (1.645 for 90 %); ``coverage`` has the factor fitted on ``calibration``; both are means over
    pictures. Widths are half of an interval's. ``correlation`` is that of a pixel's error with its
    std: how well the map tells where in a picture errors are large.

    Args:
        data, calibration: what the task's trials are made of, other pictures in each.
        settings: solver, steps and correction of the run.
        extent: trials of ``data``, and the most samples of each.
        intervals: their level and side, trials of ``calibration``, and whether the factors are
            written into the model's card.

    Raises:
        ValueError, OSError: files that don't fit, fewer calibration trials than the level needs,
            or a range of difficulties of it, fewer than 2 samples, or runs whose samples are all
            the same.
    """
    task, level = task_by_name(name), intervals.level
    if not task.spreads:
        raise ValueError(f"the samples of {name} have no truth to compare their spread with")
    if extent.samples < 2:
        raise ValueError(f"a spread needs at least 2 samples; got {extent.samples}")
    count = (intervals.calibration_limit or 40 * max(len(task.difficulties), 1), extent.limit or 20)
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
    lie = [_range(task, denoiser, sources[number], k) for number, k in turns]
    _check_ranges(lie[: count[0]], lie[count[0] :], level)
    drawn: tuple[list[Drawn], list[Drawn]] = ([], [])
    with keeping_models({}):
        draw = partial(_drawn, name, model, settings, extent, sources)
        found = shared(draw, turns, extent.workers)
        for (number, _), one, end in zip(turns, found, lie, strict=True):
            drawn[number].append(replace(one, end=end))
            progress(sum(map(len, drawn)), len(turns))
    rows, spreads = [], []
    numbers = sorted({n for n in (2, 4, 8, 16) if n < extent.samples} | {extent.samples})
    for n in numbers:
        known, unknown = ([g for one in part if (g := _guess(task, one, n))] for part in drawn)
        held, fitted = _held(known, unknown, n, level)
        spreads += fitted
        rows.append({"case": "all", "samples": n} | _row(held, level))
    cases: dict[str, list[Guess]] = {}
    for g in held:
        cases.setdefault(g.drawn.kind, []).append(g)
        if g.drawn.end is not None:
            cases.setdefault(f"difficulty up to {g.drawn.end:g}", []).append(g)
    for case, part in sorted(cases.items()) if len(cases) > 1 else ():
        rows.append({"case": case, "samples": numbers[-1]} | _row(part, level))
    run = {"solver": settings.solver, "steps": settings.steps, "correction": settings.correction}
    if intervals.write:
        keep_spread(model, name, run, spreads)
    head = {"task": name, "model": model} | run
    return [head | row | {"level": level, "calibrated_on": len(known)} for row in rows]


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
        std = result.std if task.own_spread(denoiser) else None
        yield Drawn(result.samples, trial.known, trial.name, std)


def _range(task: Task, denoiser: Denoiser, source: Source, k: int) -> float | None:
    """The end of the range that the difficulty of trial k lies in; infinite: beyond all. None: the
    task tells none.
    """
    if not task.difficulties:
        return None
    hard = task.difficulty(task.trial(source, k, task.mixed(denoiser, k)).inputs)
    return None if hard is None else next((e for e in task.difficulties if hard <= e), math.inf)


def _check_ranges(
    calibration: Sequence[float | None], test: Sequence[float | None], level: float
) -> None:
    """Refuse too few trials of a range that is tested, before any is restored.

    Raises:
        ValueError: says that.
    """
    least = least_slices(level)
    for end in {end for end in test if end not in (None, math.inf)}:
        if calibration.count(end) < least:
            raise ValueError(
                f"intervals of {level:.0%} need at least {least} pictures to calibrate on with a"
                f" difficulty up to {end:g}; got {calibration.count(end)}: raise"
                " --calibration-limit"
            )


def _held(
    known: Sequence[Guess], unknown: Sequence[Guess], count: int, level: float
) -> tuple[list[Guess], list[Spread]]:
    """Guesses of other pictures with the factors that are fitted on known ones, in each range that
    both are of; and these factors.
    """
    held: list[Guess] = []
    spreads: list[Spread] = []
    for end in sorted({g.drawn.end for g in unknown}, key=lambda end: end or 0):
        fitted = [g for g in known if g.drawn.end == end]
        if end == math.inf:  # nothing is fitted beyond the last range, and nothing told
            continue
        factor = conformal_factor([g.error for g in fitted], [g.spread for g in fitted], level)
        tested = [replace(g, factor=factor) for g in unknown if g.drawn.end == end]
        coverage = _row(tested, level)["coverage"]
        spreads.append(Spread(count, level, round(factor, 4), coverage, len(fitted), end))
        held += tested
    if not held:
        raise ValueError("nothing is guessed in these trials: there is no spread to compare")
    return held, spreads


def _guess(task: Task, one: Drawn, count: int) -> Guess | None:
    """That with so many samples; None where nothing was to be guessed."""
    samples, truth, counts = task.guessed(one.samples[:count], one.truth)
    std = samples.std(0) if one.std is None else one.std.reshape(truth.shape)
    error = samples.double().mean(0).to(samples) - truth
    counts = counts & ((std > 0) | (error != 0))
    # where samples agree and are wrong no factor helps
    spread = shrunk(std).clamp(min=1e-9)
    parts = (error[counts].abs().numpy(), spread[counts].numpy(), std[counts].numpy())
    return Guess(*parts, one) if parts[0].size else None


def _row(guesses: Sequence[Guess], level: float) -> dict[str, Any]:
    gaussian = NormalDist().inv_cdf(0.5 + level / 2)
    raw = [float(np.mean(g.error <= gaussian * g.std)) for g in guesses]
    held = [float(np.mean(g.error <= g.factor * g.spread)) for g in guesses]
    width = [g.factor * float(g.spread.mean()) for g in guesses]
    varied = [g for g in guesses if g.std.std() > 0 and g.error.std() > 0]
    where = [float(np.corrcoef(g.error, g.std)[0, 1]) for g in varied]
    return {
        "pictures": len(guesses),
        "factor": round(float(np.mean([g.factor for g in guesses])), 3),
        "coverage_gaussian": round(float(np.mean(raw)), 4),
        "coverage": round(float(np.mean(held)), 4),
        "coverage_worst": round(min(held), 4),
        "width_gaussian": round(gaussian * float(np.mean([g.std.mean() for g in guesses])), 5),
        "width": round(float(np.mean(width)), 5),
        "correlation": round(float(np.mean(where)), 3) if where else None,
    }
