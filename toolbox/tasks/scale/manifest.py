"""The manifest of a folder of results: JSON lines, appended and flushed as things happen.

The first line names the format. An item has a line when it is ``begun``, which claims its places,
and one when it is ``done`` or ``failed``; the contact ``sheet`` has one too. The last line of an
item counts. An item that failed tells what lies at its places, and claims the others no more. What
a stopped machine left half written at the end is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, TypeAdapter
from typing_extensions import TypedDict

from solvers.files import check_folder
from solvers.inputs.errors import FullDiskError, InputError
from solvers.inputs.strict_json import finite
from toolbox.tasks.scale.digests import digest_of

NAME = "restobox-manifest.jsonl"
HEAD = {"restobox": "manifest", "version": 1}


class Begun(TypedDict):
    """An item whose places are claimed."""

    item: str
    status: Literal["begun"]
    out: list[str]


class Done(TypedDict):
    """An item whose results are there; what :mod:`toolbox.tasks.scale.plan` compares."""

    item: str
    status: Literal["done"]
    input: str
    input_sha256: str
    input_stamp: list[int]
    settings_sha256: str
    models: dict[str, str]
    out: list[str]
    out_bytes: list[int]
    out_sha256: dict[str, str]


class Failed(TypedDict):
    """An item without a result of this run."""

    item: str
    status: Literal["failed"]
    out: NotRequired[list[str]]
    out_sha256: NotRequired[dict[str, str]]


class Sheet(TypedDict):
    """The contact sheet."""

    item: str
    status: Literal["sheet"]
    out: list[str]
    out_sha256: dict[str, str]


# of a line; records hold more, which nobody relies on
RECORD = TypeAdapter[Any](Annotated[Begun | Done | Failed | Sheet, Discriminator("status")])


@dataclass
class Manifest:
    """What a folder's manifest tells.

    Attributes:
        folder: of the results.
        items: the last ``done`` or ``failed`` record of each item, by name.
        written: SHA-256 by place (below the folder) of what runs wrote; None where one was begun
            and not ended.
    """

    folder: Path
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder; an empty one where there is none.

        Raises:
            InputError: a file of that name which is no manifest.
        """
        found, path = cls(folder), folder / NAME
        if not path.exists():
            return found
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    break  # half of a line
                try:
                    record = json.loads(line)
                    if number > 1:
                        RECORD.validate_python(record, strict=True)
                        found.take(record)
                except (ValueError, RecursionError):
                    record = None
                if record is None or (number == 1 and record != HEAD):
                    raise InputError(
                        f"{path}, line {number}, is none of a manifest of results; move the file"
                        " away, or give another folder"
                    )
        return found

    def take(self, record: Mapping[str, Any]) -> None:
        """Remember a line."""
        status, known = record["status"], record.get("out_sha256", {})
        for place in record.get("out", ()) if status == "failed" else record["out"]:
            if status == "failed" and place not in known:
                self.written.pop(place, None)  # what comes there is the user's
            else:
                self.written[place] = known.get(place)
        if status in ("done", "failed"):
            self.items[record["item"]] = dict(record)

    def place(self, out: Path) -> str:
        """A result's path as the manifest tells it."""
        return place_below(out, self.folder)

    def is_ours(self, place: Path) -> bool:
        """Whether a run left this result, and nobody changed it since."""
        name = self.place(place)
        if name not in self.written or place.is_symlink():
            return False
        known = self.written[name]
        return known is None or digest_of(place) == known

    def left(self, places: Sequence[str]) -> dict[str, Any]:
        """For the record of an item that failed: what lies now at the places that it claimed, such
        as an earlier result. The others are given up.
        """
        paths = {place: self.folder / place for place in places}
        known = {place: digest_of(path) for place, path in paths.items() if path.exists()}
        return {"out": list(places), "out_sha256": known}

    # -- writing -----------------------------------------------------------------------------------

    def __enter__(self) -> Manifest:
        """Open it for writing, for this run alone.

        Raises:
            InputError: another run writes to it.
            OSError: the folder can't be written.
        """
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / NAME, "ab", buffering=0)
        try:
            _lock(self._file, self.folder)
            self._file.seek(0, os.SEEK_END)
            if size := self._file.tell():
                self._file.truncate(_whole_lines(self.folder / NAME, size))
            if not self._file.tell():
                self._line(HEAD)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and remember it.

        Raises:
            FullDiskError: no room for it.
        """
        self._line(record)
        if record["status"] == "begun":
            # a claim must outlast the machine as a result does, or the result would be a stranger
            os.fsync(self._file.fileno())
        self.take(record)

    def _line(self, content: Mapping[str, Any]) -> None:
        left = memoryview((json.dumps(finite(dict(content)), allow_nan=False) + "\n").encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise FullDiskError(
                f"{self.folder / NAME} can't be written ({error.strerror}); free some room and run"
                " again with --resume"
            ) from error


def place_below(out: Path, folder: Path) -> str:
    """A path as seen from the folder of results, with ``/``."""
    return Path(os.path.relpath(out, folder)).as_posix()


def _whole_lines(path: Path, size: int) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        while size:
            start = max(0, size - 2**16)
            file.seek(start)
            if (end := file.read(size - start).rfind(b"\n")) >= 0:
                return start + end + 1
            size = start
    return 0


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"another run writes its results to {folder}; wait for it, or give another folder"
        ) from error
