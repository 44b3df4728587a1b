"""Trials restored in several ways: one loop, one table and one report for all tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from restoration.metrics import psnr
from restoration.task import Restored
from toolbox.support.html import picture
from toolbox.tasks.base import Restorer, Task, Trial
from toolbox.tasks.settings import Draws


@dataclass(frozen=True)
class Row:
    """One trial: what each method made of it, how good that is, its calls and seconds."""

    trial: Trial
    results: dict[str, np.ndarray]
    figures: dict[str, dict[str, float]]
    effort: dict[str, dict[str, float]] = field(default_factory=dict)

    def flat(self) -> dict[str, float | str]:
        """``case``, and the figures as ``psnr_METHOD``."""
        named = {f"{key}_{m}": v for m, f in self.figures.items() for key, v in f.items()}
        return {"case": self.trial.name, **named}

    def between(self, one: str, other: str) -> float:
        """PSNR of two methods' results, as pictures."""
        return psnr(self.results[one], self.results[other])


def compare(
    task: Task,
    trials: Iterable[Trial],
    methods: Mapping[str, Restorer],
    draws: Draws = Draws(),
    *,
    callback: Callable[[str, int, object], None] | None = None,
) -> Iterator[Row]:
    """Every trial restored by every method; sample j of trial k uses ``draws.seed + k + j``.

    Args:
        callback: called after each network call with the method's name, the sample and the step.

    Raises:
        ValueError: a trial without a truth.
    """
    for k, trial in enumerate(trials):
        results, figures, effort = {}, {}, {}
        for name, restore in methods.items():
            watch = None if callback is None else _named(callback, name)
            began = time.perf_counter()
            found: Restored = restore(
                trial.inputs, num_samples=draws.samples, seed=draws.seed + k, callback=watch
            )
            seconds = time.perf_counter() - began
            results[name] = task.picture(found.mean)
            figures[name] = task.quality(found.mean, trial.known)
            effort[name] = {"calls": found.nfe, "seconds": seconds}
        yield Row(trial, results, figures, effort)


def _named(callback: Callable[[str, int, object], None], name: str) -> Callable[..., None]:
    return lambda sample, step: callback(name, sample, step)


def means(rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
    """Of every figure, over rows."""
    keys = [key for key, value in rows[0].items() if not isinstance(value, str)]
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}


def panels(task: Task, row: Row) -> list[tuple[str, np.ndarray]]:
    """Titled pictures: the truth, what was measured, and every method's result."""
    found = [("original", task.picture(row.trial.known)), (row.trial.name, task.seen(row.trial))]
    for name, result in row.results.items():
        found.append((f"{name} {row.figures[name]['psnr']:.2f} dB", result))
    size = found[0][1].shape[-2:]
    return [(title, _fitted(picture, size)) for title, picture in found]


def _fitted(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """``(3, H, W)``; a smaller picture with its pixels as squares."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, picture.shape[-2:], strict=True))
    return np.broadcast_to(picture, (3, *picture.shape[1:]))[:, rows][:, :, columns]


def shown(sheets: dict[str, np.ndarray], task: Task, rows: Sequence[Row]) -> list[str]:
    """The HTML of all trials; their pictures go into ``sheets``."""
    return [picture(sheets, f"case-{k}.png", panels(task, row)) for k, row in enumerate(rows)]
