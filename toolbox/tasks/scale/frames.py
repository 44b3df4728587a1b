"""The frames of a clip, in their order: the same noise for all, and what does not change is not
restored again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.images import read_image
from solvers.files import replace_file, together
from solvers.inputs.errors import InputError
from toolbox.tasks.scale.digests import digest_of, stamp_of
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.manifest import place_below
from toolbox.tasks.scale.worker import restore_item
from toolbox.tasks.settings import Many


def as_clip(job: Job, items: list[Item], many: Many) -> list[Item]:
    """The items in the order of the numbers in their names, with one seed.

    Raises:
        InputError: measurements that are no pictures, or workers, which would take them in any
            order.
    """
    if not job.one.is_picture:
        raise InputError(f"--clip is for pictures; a clip of {job.task} is one measurement")
    if many.scheduler is not None or (many.workers or 1) > 1:
        raise InputError("the frames of a clip follow one another: leave --workers out")
    found = [replace(item, own={"seed": job.draws.seed} | dict(item.own)) for item in items]
    return sorted(found, key=lambda item: _natural(item.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """``frame2`` before ``frame10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


@dataclass
class _Last:
    """The frame before."""

    given: np.ndarray
    result: np.ndarray


@dataclass
class _Source:
    """The frame whose result is repeated."""

    job: Job
    given: np.ndarray
    record: dict[str, Any]


def restored_frames(job: Job, items: Iterator[Item], many: Many) -> Iterator[dict[str, Any]]:
    """The records of frames. Each tells how much the result and what was given changed since the
    frame before, the mean of absolute differences: ``flicker`` and ``flicker_input``.

    A frame of which no pixel differs by more than ``many.still`` from the last one that was
    restored gets that one's result, at most ``many.refresh`` times in a row.
    """
    last: _Last | None = None
    source: _Source | None = None
    repeated = 0
    for item in items:
        own, given = job.of(item), _pixels(item.path)
        record = None
        if source is not None and given is not None and repeated < many.refresh:
            record = _repeated(item, own, given, source, many, job.output.out)
        if record is None:
            record, repeated = restore_item(job, item), 0
            source = None
            if record["status"] == "done" and given is not None:
                source = _Source(own, given, record)
        else:
            repeated += 1
        result = _pixels(own.output.out) if record["status"] == "done" else None
        if given is None or result is None:
            last = None
        else:
            if last is not None and last.given.shape == given.shape:
                changes = {"flicker": float(np.abs(result - last.result).mean())}
                changes["flicker_input"] = float(np.abs(given - last.given).mean())
                record["metrics"] = record["metrics"] | changes
            last = _Last(given, result)
        yield record


def _pixels(path: Path) -> np.ndarray | None:
    try:
        return read_image(path).pixels
    except (ValueError, OSError):  # the restoration says what is wrong
        return None


def _repeated(
    item: Item, own: Job, given: np.ndarray, source: _Source, many: Many, folder: Path
) -> dict[str, Any] | None:
    """The record of a frame that got the result of the source; None where it must be restored."""
    job, before, record = source.job, source.given, source.record
    if given.shape != before.shape or float(np.abs(given - before).max()) > many.still:
        return None
    places, results = own.outputs(), job.outputs()
    if own.digest() != job.digest() or len(places) != len(results):
        return None
    try:
        with together():
            for result, place in zip(results, places, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                replace_file(place, partial(shutil.copyfile, result))
    except (OSError, ValueError):  # restoring it will say what is wrong
        return None
    names = [place_below(place, folder) for place in places]
    found = record | {"item": item.name, "input": str(item.path), "nfe": 0, "seconds": 0.0}
    found |= {"input_sha256": digest_of(item.path), "input_stamp": list(stamp_of(item.path))}
    found |= {"same_as": record["item"], "out": names, "restoring": 0.0}
    found["out_sha256"] = dict(zip(names, record["out_sha256"].values(), strict=True))
    kept = ("flicker", "flicker_input")
    found["metrics"] = {n: v for n, v in record["metrics"].items() if n not in kept}
    return found
