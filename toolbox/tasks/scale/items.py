"""A measurement among several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LISTS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
        name: its path below the input that it was found in, with ``/``; its seed comes from it.
        path: absolute.
        out: where the result goes: below the folder of results as a list says it, later absolute;
            None: beside its name.
        own: options that a list gives it, by the names of their fields.
        line: of the list, in words, for errors.
    """

    name: str
    path: Path
    out: Path | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""

    def failed(self, reason: str) -> dict[str, Any]:
        """Its record for the manifest, where it has no result."""
        found = {"item": self.name, "status": "failed", "input": str(self.path)}
        return found | {"reason": reason, "seconds": 0.0}


@dataclass
class Found:
    """The items of all inputs, and how many files of a folder are of other kinds, by suffix."""

    items: list[Item] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
