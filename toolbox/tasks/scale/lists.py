"""Lists of measurements: CSV with a header, or JSON lines; a column is an option of the task."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from solvers.inputs.errors import InputError, first_line
from toolbox.tasks.base import Task
from toolbox.tasks.options import OPTIONS
from toolbox.tasks.scale.items import Item
from toolbox.tasks.settings import Draws, Output

INPUT, OUT = "input", "out"
MOST = 1e12  # of numbers without limits of their own


def columns_of(task: Task) -> dict[str, Any]:
    """The options that an item may have of its own, with their types as the command has them."""
    own = get_type_hints(OPTIONS[task.name], include_extras=True)
    # outputs of a run are no inputs of an item
    own = {name: kind for name, kind in own.items() if name not in ("sheet", *task.further)}
    seed, truth = (get_type_hints(k, include_extras=True) for k in (Draws, Output))
    return own | {"seed": seed["seed"], "reference": truth["reference"]}


def read_list(task: Task, path: Path) -> list[Item]:
    """The items of a ``.csv`` or ``.jsonl`` file.

    ``input`` is needed; ``out`` is the result's path below the folder of results; others are
    options of the task (``mask``, ``sigma``, ``seed``, ``reference`` ...). Paths count from the
    list's folder. An empty cell (JSON: null) is not given.

    Raises:
        InputError: no list of that kind, an unknown column, a value of another type or range.
    """
    known, items = columns_of(task), []
    for number, row in _rows(path):
        line = f"{path}, line {number}"
        given = {key: value for key, value in row.items() if value not in (None, "")}
        if not isinstance(given.get(INPUT), str):
            raise InputError(f"{line}: the column {INPUT} must name a file")
        if unknown := [key for key in given if key not in (INPUT, OUT, *known)]:
            raise InputError(
                f"{line}: {unknown[0]!r} is no column of {task.name}; known: {INPUT}, {OUT},"
                f" {', '.join(known)}"
            )
        source = path.parent / given.pop(INPUT)
        place = given.pop(OUT, None)
        if place is not None:
            place = PurePosixPath(str(place))
            if place.is_absolute() or ".." in place.parts:
                raise InputError(f"{line}: out must be a path below the folder of results")
        own = {
            key: _value(key, known[key], value, path.parent, line) for key, value in given.items()
        }
        name = source.name if place is None else str(place)
        inside = os.path.relpath(source, path.parent)
        if place is None and not inside.startswith(".."):
            name = Path(inside).as_posix()
        items.append(Item(name, Path(os.path.abspath(source)), place and Path(place), own, line))
    if not items:
        raise InputError(f"the list {path} is empty; it needs a line for each measurement")
    return items


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The list's lines and their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the list {path} is not UTF-8: {error}") from error
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {rows.line_num}: another number of cells than the header has"
                    )
                yield rows.line_num, dict(row)
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is no JSON: {first_line(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} must be a JSON object; got {line[:60]}")
        yield number, row


def _value(key: str, kind: Any, value: Any, folder: Path, line: str) -> Any:
    """As the command line takes it; a file is searched for beside the list."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config={"coerce_numbers_to_str": True})
    try:
        found = adapter.validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InputError(f"{line}: {key} is {value!r}: {said.lower()}") from error
    limits = kind.__metadata__[0]  # typer's
    low = -MOST if limits.min is None else limits.min
    high = MOST if limits.max is None else limits.max
    if isinstance(found, (int, float)) and not low <= found <= high:
        raise InputError(f"{line}: {key} is {value!r}; it must lie between {low:g} and {high:g}")
    if isinstance(found, Path):
        return folder / found
    if isinstance(found, str) and (folder / found).is_file():  # a mask, or coil maps
        return str(folder / found)
    return found
