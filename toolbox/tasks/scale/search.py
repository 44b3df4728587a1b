"""What is to be restored: the measurements of files, folders, globs and lists."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from restoration.io.video import is_video
from solvers.inputs.errors import InputError
from toolbox.tasks.base import Task
from toolbox.tasks.pictures import check_no_scene
from toolbox.tasks.scale.items import LISTS, Found, Item
from toolbox.tasks.scale.lists import read_list


def is_single(task: Task, inputs: list[Path]) -> bool:
    """Whether this is one measurement, as it always was: a file, or a folder that is one."""
    if len(inputs) != 1:
        return False
    path = inputs[0]
    if path.suffix.lower() in LISTS or (path.is_dir() and not task.is_one(path)):
        return False
    return path.exists() or not glob.has_magic(str(path))


def find_items(task: Task, inputs: Iterable[Path], out: Path) -> Found:
    """The measurements of files, folders (with their subfolders), globs and lists.

    Args:
        out: the folder of results, in which nothing is searched for.

    Raises:
        InputError: nothing found, a list that can't be read, two measurements of one name, or
            videos.
        FileNotFoundError: no such file.
    """
    found, here = Found(), os.path.realpath(out)
    for given in inputs:
        if given.suffix.lower() in LISTS and given.is_file():
            found.items += read_list(task, given)
        elif given.is_dir() and not task.is_one(given):
            if task.is_picture:
                check_no_scene(task, given)
            before = len(found.items)
            found.items += _below(task, given, given, here, found.others)
            if len(found.items) == before:
                raise InputError(
                    f"the folder {given} holds nothing that restobox restore {task.name} takes"
                    f" ({', '.join(task.suffixes)})"
                )
        elif given.exists():
            found.items.append(_item(given, given.parent))
        elif glob.has_magic(str(given)):
            found.items += _matching(task, given, here)
        else:
            raise FileNotFoundError(f"input {given} does not exist")
    _check_names(found.items)
    for item in found.items:
        if is_video(item.path) and item.path.suffix.lower() not in task.suffixes:
            raise InputError(
                f"{item.path} is a video; restore {task.name} takes one at a time, as its only"
                f" input, with -o {item.path.stem}-restored{item.path.suffix}"
                if task.is_picture
                else f"{item.path} is a video; restore {task.name} takes none"
            )
    return found


def _item(path: Path, root: Path) -> Item:
    return Item(path.relative_to(root).as_posix(), Path(os.path.abspath(path)))


def _below(task: Task, folder: Path, root: Path, out: str, others: Counter[str]) -> Iterator[Item]:
    """Hidden files and folders are left out, and links to folders, which may lead in a circle."""
    if folder != root and task.is_one(folder):
        yield _item(folder, root)
        return
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if os.path.realpath(path) != out:
                yield from _below(task, path, root, out, others)
        elif entry.is_file() and entry.name.lower().endswith(task.suffixes):
            yield _item(path, root)
        elif entry.is_file():
            others[path.suffix.lower() or "no suffix"] += 1


def _matching(task: Task, pattern: Path, out: str) -> Iterator[Item]:
    """Named from the pattern's first part with a wildcard on."""
    parts = pattern.parts
    fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    root, matches = Path(*parts[:fixed]), sorted(glob.glob(str(pattern), recursive=True))
    some = False
    for path in map(Path, matches):
        inside = out in map(
            str, (Path(os.path.realpath(path)), *Path(os.path.realpath(path)).parents)
        )
        if not inside and (path.is_file() or task.is_one(path)):
            some = True
            yield _item(path, root)
    if not some:
        raise InputError(f"nothing matches {pattern}; give a folder, files, or another pattern")


def _check_names(items: list[Item]) -> None:
    paths: dict[str, Item] = {}
    for item in items:
        other = paths.setdefault(item.name, item)
        if other is item:
            continue
        if other.path == item.path:
            raise InputError(f"{item.path} is given twice; give it once")
        raise InputError(
            f"{other.path} and {item.path} would both be named {item.name}; give the folder that"
            " holds both, or a list with a column out"
        )
