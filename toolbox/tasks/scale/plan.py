"""Which items a run restores, and where their results go. Nothing is written here.

What lies in the folder of results and is not known by its manifest stays as it is: a run that would
have to replace it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from solvers.inputs.errors import InputError
from toolbox.tasks.base import Task
from toolbox.tasks.scale.digests import digest_of, digest_of_model, stamp_of
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.manifest import Manifest


@dataclass
class Plan:
    """What a run does.

    Attributes:
        todo: items with the places of their results, in order.
        kept: names of the items whose results are there and up to date.
        refused: items that can't be begun, and why.
    """

    todo: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[tuple[Item, str]] = field(default_factory=list)


def result_name(task: Task, path: Path, name: str, suffix: str | None) -> Path:
    """Where a measurement's result goes, below the folder of results: the name and format kept.

    Args:
        name: the item's, with its subfolders.
        suffix: ``.tif`` (another format), ``-clean`` (before the format), ``-clean.tif``; or None.

    Raises:
        InputError: a suffix that is no end of a name.
    """
    ending, inside = task.ending(path), Path(name)
    stem = inside.name if path.is_dir() else inside.stem
    if name.lower().endswith(".nii.gz"):
        stem = inside.name[: -len(".nii.gz")]
    if suffix is None:
        return inside.with_name(stem + ending)
    if not suffix or set(suffix) & set("/\\\0") or suffix.endswith("."):
        raise InputError(
            f"--suffix is the end of a name, such as .tif, -clean or -clean.tif; got {suffix!r}"
        )
    return inside.with_name(stem + suffix + ("" if "." in suffix else ending))


def plan(
    job: Job, items: Iterable[Item], manifest: Manifest, suffix: str | None, resume: bool
) -> Plan:
    """Decide for each item.

    Raises:
        InputError: a result would replace a measurement, another result, or what no earlier run
            wrote; or results are there and ``resume`` is not asked for.
    """
    found, out = Plan(), Path(os.path.abspath(job.output.out))
    placed = [_placed(job.one, item, out, suffix) for item in items]
    inputs = {os.path.realpath(item.path) for item in placed}
    around = {str(parent) for path in inputs for parent in Path(path).parents}
    taken: dict[str, str] = {}
    for item in placed:
        try:
            own = job.of(item)
        except InputError as error:
            found.refused.append((item, str(error)))
            continue
        for place in own.outputs():
            real = os.path.realpath(place)
            if (
                real in inputs
                or real in around
                or not inputs.isdisjoint(map(str, Path(real).parents))
            ):
                raise InputError(
                    f"the result {place} of {item.name} would take the place of an input; give"
                    " another folder, or --suffix"
                )
            if (other := taken.setdefault(real, item.name)) != item.name:
                raise InputError(
                    f"{other} and {item.name} would both be written to {place}; give a list with a"
                    " column out, or leave --suffix out"
                )
        before = manifest.items.get(item.name)
        if resume and before is not None and _is_current(own, item, before, manifest):
            found.kept.append(item.name)
            continue
        _check_free(own, item, before, manifest, resume)
        found.todo.append(item)
    return found


def _placed(task: Task, item: Item, out: Path, suffix: str | None) -> Item:
    place = item.out or result_name(task, item.path, item.name, suffix)
    return replace(item, out=out / place)


def _is_current(own: Job, item: Item, before: dict[str, Any], manifest: Manifest) -> bool:
    """Whether an earlier result is what this run would make, and is there."""
    if before["status"] != "done" or before["settings_sha256"] != own.digest():
        return False
    places = [manifest.place(place) for place in own.outputs()]
    if places != before["out"] or not all((manifest.folder / p).exists() for p in places):
        return False
    if [stamp_of(manifest.folder / p)[0] for p in places] != before["out_bytes"]:
        return False
    try:
        same = list(stamp_of(item.path)) == before["input_stamp"]
        if not same and digest_of(item.path) != before["input_sha256"]:
            return False
        return all(digest_of_model(name) == known for name, known in before["models"].items())
    except OSError:
        return False


def _check_free(
    own: Job, item: Item, before: dict[str, Any] | None, manifest: Manifest, resume: bool
) -> None:
    """Refuse to replace what is not ours."""
    there = [place for place in own.outputs() if os.path.lexists(place)]
    if not there:
        return
    if strange := [place for place in there if not manifest.is_ours(place)]:
        raise InputError(
            f"{strange[0]} is there already and no earlier run left it like this: nothing is"
            " replaced; move it away, or give another folder"
        )
    if not resume:
        raise InputError(
            f"{there[0]} is there already, from an earlier run: --resume restores what is missing"
            " or changed; or give another folder"
        )
    if before is not None and before["status"] == "done" and before["input"] != str(item.path):
        raise InputError(
            f"{there[0]} is the result of {before['input']}, not of {item.path}; give another"
            " folder"
        )


def lines_of(found: Plan) -> Iterator[tuple[str, str, str]]:
    """What ``--dry-run`` shows: name, what is done, the result's place."""
    for item in found.todo:
        yield item.name, "restore", str(item.out)
    for name in found.kept:
        yield name, "keep", ""
    for item, reason in found.refused:
        yield item.name, "fail", reason
