"""Complete files and folders take their places: all of them, or none."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Swap:
    """A complete file or folder and the place it goes to; ``free`` names the files of the folder
    that it replaces, or refuses to.
    """

    temporary: Path
    target: Path
    free: Callable[[], tuple[str, ...]] | None = None
    names: tuple[str, ...] = ()
    old: Path | None = None

    def begin(self) -> None:
        if self.free is not None:
            self.names = self.free()  # others may have come since this was asked first
            if self.target.exists():
                self.old = beside(self.target)
                os.replace(self.target, self.old)
        elif self.target.exists():
            self.old = beside(self.target)
            try:
                os.link(self.target, self.old)
            except OSError:  # a file system without links
                shutil.copy2(self.target, self.old)
        os.replace(self.temporary, self.target)

    def undo(self) -> None:
        if self.target.exists() and not self.temporary.exists():
            os.replace(self.target, self.temporary)  # drop() removes it
        if self.old is not None and self.old.exists():
            os.replace(self.old, self.target)
            if not self.target.is_dir():
                # a rename between two names of one file does nothing
                self.old.unlink(missing_ok=True)

    def end(self) -> None:
        """Remove what was replaced: the files that are ours, and folders that are empty then."""
        sync(self.target.parent)
        if self.old is None:
            return
        if not self.old.is_dir():
            self.old.unlink()
            return
        for name in self.names:
            (self.old / name).unlink(missing_ok=True)
        for path in sorted((p for p in self.old.rglob("*") if p.is_dir()), reverse=True):
            path.rmdir()
        self.old.rmdir()

    def drop(self) -> None:
        if self.temporary.is_dir():
            remove(self.temporary)
        else:
            self.temporary.unlink(missing_ok=True)


def swap_all(swaps: list[Swap]) -> None:
    """All of the swaps, or none; what is left of those that failed is for the caller to drop."""
    begun: list[Swap] = []
    with _undisturbed(), _one_by_one({swap.target.parent for swap in swaps if swap.free}):
        try:
            for swap in swaps:
                begun.append(swap)
                swap.begin()
        except BaseException:
            for swap in reversed(begun):
                swap.undo()
            raise
        for swap in swaps:
            swap.end()


@contextlib.contextmanager
def _one_by_one(parents: set[Path]) -> Iterator[None]:
    """Folders are replaced by two renames: no other process makes its own between them, where the
    system has locks.
    """
    with contextlib.ExitStack() as held:
        for parent in sorted(parents):
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                handle = os.open(parent, os.O_RDONLY)
                held.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block. Python runs their handlers in the main
    thread alone: others are never disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for kind, handler in before.items():
            if handler is not None:  # of another language, which can't be put back
                signal.signal(kind, lambda number, _: held.append(number))
        yield
    finally:
        for kind, handler in before.items():
            if handler is not None:
                signal.signal(kind, handler)
    for number in held[:1]:
        signal.raise_signal(number)


def remove(folder: Path) -> None:
    """A folder of ours; libraries that failed in one thread may be writing in others still."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
        if not folder.exists():
            return


def beside(target: Path) -> Path:
    """A hidden name that no other call takes."""
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")


def parts_of(targets: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """The files and folders with a name by :func:`beside` that are there, each with its target."""
    hidden = re.compile(r"\.(.*)\.[0-9a-f]{12}\.part", re.DOTALL)
    places: dict[Path, dict[str, Path]] = {}
    for target in targets:
        places.setdefault(target.parent, {})[target.name[:100]] = target
    for folder, known in places.items():
        for name in os.listdir(folder) if folder.is_dir() else ():
            found = hidden.fullmatch(name)
            if found is not None and found[1] in known:
                yield folder / name, known[found[1]]


def sync(path: Path) -> None:
    """To the disk before the name changes; where a file system can't, the rename alone must do."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
