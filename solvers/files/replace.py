"""Everything is written under a hidden name beside its place and renamed when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from solvers.files.checks import MARK, check_free, check_replaceable, marked
from solvers.files.swaps import Swap, beside, parts_of, remove, swap_all, sync
from solvers.inputs.errors import FullDiskError, InputError

# how safetensors, NumPy and torch say that a disk is full
_FULL = (
    *("No space left", "File too large", " requested and ", "unexpected pos", "failed writing"),
    "iostream error",
)

# the only way to ask for it, and only here: other threads may be making files later
_UMASK = os.umask(0o077)
os.umask(_UMASK)

_waiting: ContextVar[list[Swap] | None] = ContextVar("_waiting", default=None)


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and rename it: readers see the old file or the new
    one, never half of one.

    A file that is replaced hands on its permissions; a link stays, and what it points to is
    replaced.

    Raises:
        OSError: the place can't be written, or holds something that is no file.
        FullDiskError: the disk is full.
    """
    target = Path(os.path.realpath(path))
    check_replaceable(target, path)
    temporary = beside(target)
    try:
        with room_for(path):
            write(temporary)
            temporary.chmod(_mode(target, 0o666))
            sync(temporary)
        _commit(Swap(temporary, target))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(
    folder: str | Path,
    write: Callable[[Path], object],
    kind: str,
    ours: Callable[[Path], Iterable[str] | None],
) -> None:
    """Let ``write`` fill a folder beside ``folder`` and rename it; a folder of the same kind that
    is already there is replaced.

    Args:
        kind: what it is, in words.
        ours: names the files that a folder of this kind consists of, or says None of any other
            folder.

    Raises:
        OSError: the place can't be written, or is not free (:func:`check_free`).
        FullDiskError: the disk is full.
    """
    folder = Path(folder)
    check_free(folder, kind, ours)
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = folder.absolute()
    temporary = beside(target)
    try:
        with room_for(folder):
            temporary.mkdir()
            write(temporary)
            for path in temporary.rglob("*"):
                path.chmod(_mode(None, 0o777 if path.is_dir() else 0o666))
                sync(path)
            temporary.chmod(_mode(target, 0o777))
        _commit(Swap(temporary, target, lambda: check_free(folder, kind, ours)))
    except BaseException:
        remove(temporary)
        raise


def replace_marked_folder(folder: str | Path, write: Callable[[Path], object], kind: str) -> None:
    """:func:`replace_folder` for folders of pictures and the like: a list of the files, kept in the
    folder, says that it is ours.
    """

    def write_marked(place: Path) -> None:
        write(place)
        files = sorted(
            path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()
        )
        (place / MARK).write_text(json.dumps({"kind": kind, "files": files}), encoding="utf-8")

    replace_folder(folder, write_marked, kind, marked(kind))


@contextlib.contextmanager
def room_beside(target: Path) -> Iterator[Path]:
    """A folder for what leads to a result, on the disk that it goes to; removed at the end."""
    room = beside(target)
    room.mkdir(mode=0o700)
    try:
        yield room
    finally:
        remove(room)


def clear_parts(places: Iterable[Path]) -> None:
    """Remove what killed processes left half written beside these places; nobody may be writing to
    them. A folder is left where its place is empty: it may hold what was to be replaced.
    """
    for part, place in parts_of(Path(os.path.realpath(path)) for path in places):
        if not part.is_dir():
            part.unlink(missing_ok=True)
        elif place.exists():
            remove(part)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What :func:`replace_file` and :func:`replace_folder` write in this block appears at its end:
    everything, or nothing.
    """
    if _waiting.get() is not None:  # an outer block does it
        yield
        return
    swaps: list[Swap] = []
    try:
        _waiting.set(swaps)
        yield
        swap_all(swaps)
        _waiting.set(None)
    except BaseException:
        _waiting.set(None)
        for swap in swaps:
            swap.drop()
        raise


def reserve(path: str | Path, nbytes: int) -> None:
    """Make a file ``nbytes`` long, with the room for all of it on the disk.

    What is mapped into memory, and HDF5, don't survive a disk that gets full under them.

    Raises:
        OSError: the disk has no such room.
    """
    with Path(path).open("r+b" if Path(path).exists() else "xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """In this block this process alone writes to the folder, which is made if need be; where the
    system has no such locks, whoever comes.

    Raises:
        InputError: another process is in such a block.
        OSError: the folder can't be made.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever had it may have taken the folder away meanwhile
            free = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        except BlockingIOError:
            free = False
        except OSError:  # a file system without locks
            free = True
        if not free:
            raise InputError(
                f"another call is writing to {folder}; wait for its end, or give another output"
            )
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def room_for(output: str | Path) -> Iterator[None]:
    """A full disk in one sentence, by whatever library it is met."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG)
        if not full and not any(words in str(error) for words in _FULL):
            raise
        raise FullDiskError(
            f"the disk has no room for the output {output}; nothing was written: free some, or give"
            " another place"
        ) from error


def _commit(swap: Swap) -> None:
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(swap)
    else:
        swap_all([swap])


def _mode(replaced: Path | None, default: int) -> int:
    """Permissions of what is replaced, else those that the process gives new files (libraries make
    some of them private).
    """
    if replaced is not None and replaced.exists():
        return replaced.stat().st_mode & 0o7777
    return default & ~_UMASK
