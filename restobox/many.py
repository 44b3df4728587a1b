"""Many measurements: folders, lists and globs, on one process or on many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from toolbox.tasks import task_by_name
from toolbox.tasks.options import OPTIONS, Draws, Many, Output, Prior, Settings
from toolbox.tasks.scale.engine import Tally, restore_all
from toolbox.tasks.scale.items import LISTS
from toolbox.tasks.scale.job import Job

Place = str | os.PathLike[str]
_FIXED = ("out", "as_json", "dry_run", "timesteps", "whole")


def map(
    task: str,
    inputs: Place | Iterable[Place],
    out: Place,
    *,
    model: Place | None = None,
    seed: int = 0,
    num_samples: int = 1,
    told: Callable[[Tally], None] = lambda tally: None,
    **options: Any,
) -> Tally:
    """Restore files, folders, globs and lists (``.csv``, ``.jsonl``) into a folder, as ``restobox
    restore TASK INPUTS... -o OUT/`` does: ``restobox.map("denoise", "scans", "clean", workers=8)``.

    A script that asks for ``workers`` must guard what it runs by ``if __name__ == "__main__":``,
    since each of them imports it.

    Args:
        task: ``denoise``, ``inpaint``, ``superresolve``, ``deblur``, ``dehaze``, ``paired``,
            ``mri``, ``hsi`` or ``ultrasound``.
        inputs: one or several.
        out: a folder, which keeps a manifest of what was done.
        model: a name, a file or a folder; None: as the command takes.
        seed: of the run: an item's comes from it and from the item's name.
        num_samples: posterior samples of each item.
        told: called whenever an item has ended, with what is done so far.
        options: as the command's, with underscores: ``workers``, ``scheduler``, ``resume``,
            ``suffix``, ``sheet``; ``steps``, ``solver``, ``device`` ...; the task's ``sigma``,
            ``mask`` ...

    Returns:
        What was done: ``done``, ``failed``, ``kept``, ``reasons``, ``metrics``. That an item failed
        raises nothing: look at ``failed``.

    Raises:
        TypeError: an option that the task doesn't have, or one that it needs and nobody gives.
        ValueError, OSError: inputs, values or a folder of results that the run can't begin with.
    """
    own, left = task_by_name(task), {k: v for k, v in options.items() if v is not None}

    def taken(kind: type) -> dict[str, Any]:
        names = {f.name for f in fields(kind)} - {*_FIXED}
        return {name: left.pop(name) for name in names & set(left)}

    if task not in OPTIONS:
        raise ValueError(f"task {task!r} restores no files; known: {', '.join(OPTIONS)}")
    mine = taken(OPTIONS[task])
    many, output, place, asked = taken(Many), taken(Output), taken(Prior), taken(Settings)
    if left:
        raise TypeError(
            f"{task} knows no option {next(iter(left))!r}; it has"
            f" {', '.join(f.name for f in fields(OPTIONS[task]))}, and those of every task"
        )
    missing = [f.name for f in fields(OPTIONS[task]) if f.default is MISSING]
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    several = [Path(path) for path in given]
    listed = any(path.suffix.lower() in LISTS for path in several)
    for name in missing:
        if name not in mine and not listed:
            raise TypeError(f"{task} needs {name}")
    steps = None if own.sampling_steps else own.settings.steps  # of one sample, or of several
    settings = replace(own.settings, **{"steps": steps} | asked)
    chosen = "" if model is None else os.fspath(model)
    if model is None and task not in ("denoise", "deblur", "superresolve"):
        chosen = own.prior.model
    job = Job(
        task,
        Output(Path(out), **_as_the_command_has(Output, output)),
        OPTIONS[task](**dict.fromkeys(missing) | _as_the_command_has(OPTIONS[task], mine)),
        Prior(chosen, **place),
        settings,
        Draws(seed, num_samples),
        frozenset(asked),
    )
    return restore_all(job, several, Many(**_as_the_command_has(Many, many)), told)


def _as_the_command_has(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Paths where files are named, and words where the command line takes words."""
    types = get_type_hints(kind)

    def said(name: str, value: Any) -> Any:
        if types[name] in (Path, Path | None):
            return Path(value)
        return str(value) if types[name] in (str, str | None) else value

    return {name: said(name, value) for name, value in options.items()}


__all__ = ["Tally", "map"]
