"""SHA-256 of files, folders, models and settings: what tells that something has changed."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def digest_of(path: str | Path) -> str:
    """Of a file's bytes; of a folder's names and bytes.

    Raises:
        OSError: it can't be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _remembered(str(path), *stamp_of(path))
    found = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(f"{file.relative_to(path).as_posix()}\0{digest_of(file)}\n".encode())
    return found.hexdigest()


def stamp_of(path: Path) -> tuple[int, int]:
    """Bytes and time of change (ns) of a file; of a folder those of its files, added and newest."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    found = [file.stat() for file in files]
    return sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)


@lru_cache(4096)
def _remembered(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_model(name: str) -> str:
    """Of a shipped model, a file or a folder; of another name (a hub's) the name itself."""
    if name in (shipped := _shipped()):
        return shipped[name]
    return digest_of(name) if Path(name).exists() else name


@lru_cache(1)
def _shipped() -> dict[str, str]:
    from toolbox.api import models

    return {info.name: info.sha256 for info in models()}


def digest_of_settings(settings: Any) -> str:
    """Of JSON's kinds of values; a path that exists counts by what it holds."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, Path) or (isinstance(value, str) and 0 < len(value) < 1000):
            return digest_of(value) if Path(value).is_file() else str(value)
        return value

    text = json.dumps(plain(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
