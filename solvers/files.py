"""Outputs that are whole or not there, and that never take anything of the user's with them.

Everything is written under a hidden name beside its place and renamed when it is complete. Inside
:func:`together` the renames wait for the end of the block, so that files that belong together
appear together.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from solvers.inputs.errors import FullDiskError, InputError

MARK = ".restobox.json"  # says which files of a folder are ours, where its own format doesn't

# how safetensors, NumPy and torch say that a disk is full
_FULL = (
    *("No space left", "File too large", " requested and ", "unexpected pos", "failed writing"),
    "iostream error",
)

# the only way to ask for it, and only here: other threads may be making files later
_UMASK = os.umask(0o077)
os.umask(_UMASK)

_waiting: ContextVar[list[_Swap] | None] = ContextVar("_waiting", default=None)


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
    temporary = _beside(target)
    try:
        with room_for(path):
            write(temporary)
            temporary.chmod(_mode(target, 0o666))
            _sync(temporary)
        _commit(_Swap(temporary, target))
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
    temporary = _beside(target)
    try:
        with room_for(folder):
            temporary.mkdir()
            write(temporary)
            for path in temporary.rglob("*"):
                path.chmod(_mode(None, 0o777 if path.is_dir() else 0o666))
                _sync(path)
            temporary.chmod(_mode(target, 0o777))
        _commit(_Swap(temporary, target, lambda: check_free(folder, kind, ours)))
    except BaseException:
        _remove(temporary)
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

    replace_folder(folder, write_marked, kind, _marked(kind))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What :func:`replace_file` and :func:`replace_folder` write in this block appears at its end:
    everything, or nothing.
    """
    if _waiting.get() is not None:  # an outer block does it
        yield
        return
    swaps: list[_Swap] = []
    try:
        _waiting.set(swaps)
        yield
        _swap_all(swaps)
        _waiting.set(None)
    except BaseException:
        _waiting.set(None)
        for swap in swaps:
            swap.drop()
        raise


# -- checks before any work is done ----------------------------------------------------------------


def check_folder(path: str | Path) -> None:
    """Raise before any work is done if files can't be written into the folder ``path`` (which need
    not exist yet).

    Raises:
        OSError: ``path`` or a parent is a file, or the nearest existing folder is not writable.
    """
    path = Path(path)
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file; give a folder to write to")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"the folder {nearest} is not writable")


def check_file(path: str | Path) -> None:
    """Raise before any work is done if a file can't be written to ``path``, whose folder need not
    exist yet.

    Raises:
        OSError: ``path`` is a folder, a device or write-protected, or its folder can't be made or
            written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file name")
    check_replaceable(path)
    check_folder(path.absolute().parent)


def check_replaceable(path: Path, name: str | Path | None = None) -> None:
    """Raise if what lies at ``path`` can't be replaced by a file: a rename would also replace one
    that its owner has protected.

    Args:
        name: as the user gave it; the path by default.

    Raises:
        OSError: a folder or device, or a protected file.
    """
    name = path if name is None else name
    if path.exists() and not path.is_file():
        raise OSError(f"output {name} exists and is no file; give another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"output {name} is write-protected; allow it, or give another name")


def check_free(
    folder: str | Path, kind: str, ours: Callable[[Path], Iterable[str] | None]
) -> tuple[str, ...]:
    """Raise before any work is done if a ``kind`` can't become ``folder``; the names of the files
    that it would replace.

    Free is what doesn't exist, is empty, or holds a folder of this kind and nothing else.

    Raises:
        OSError: ``folder`` is a file, a link, the current folder or a parent of it, or holds
            anything else.
    """
    folder = Path(folder)
    check_folder(folder.absolute().parent)
    if folder.is_symlink():
        raise FileExistsError(f"output {folder} is a link; give the folder itself, or another name")
    if not folder.exists():
        return ()
    if not folder.is_dir():
        raise NotADirectoryError(f"output {folder} is a file; give the name of a folder")
    here = Path.cwd().resolve()
    if folder.resolve() in (here, *here.parents):
        raise FileExistsError(
            f"output {folder} is the current folder or holds it; give the name of a new folder"
        )
    top = sorted(path.name for path in folder.iterdir())
    if not top:
        return ()
    names = ours(folder)
    if names is None:
        raise FileExistsError(
            f"output {folder} exists and is no {kind} (it holds {_listed(top)}); give the name of a"
            " new folder"
        )
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    if others := sorted(set(found) - set(names)):
        raise FileExistsError(
            f"output {folder} holds {_listed(others)} beside a {kind}; move that away, or give the"
            " name of a new folder"
        )
    return tuple(found)


def check_marked(folder: str | Path, kind: str) -> None:
    """:func:`check_free` for what :func:`replace_marked_folder` writes."""
    check_free(folder, kind, _marked(kind))


def check_outputs(
    outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None] = ()
) -> None:
    """Raise before any work is done if an output would take the place of an input or of another
    output. None and names are skipped.

    Raises:
        InputError: an output is an input, a file of an input folder, a folder that an input lies
            in, or another output.
    """
    places = [Path(output) for output in outputs if output is not None]
    given = [Path(name) for name in inputs if name is not None and os.path.lexists(name)]
    for k, place in enumerate(places):
        out = Path(os.path.realpath(place))
        for source in given:
            real = Path(os.path.realpath(source))
            same = out == real or (out.exists() and os.path.samefile(out, real))
            if same or out in real.parents or (real in out.parents and out.exists()):
                where = (
                    "is the same as" if same else "holds" if out in real.parents else "is a file of"
                )
                raise InputError(
                    f"output {place} {where} the input {source}, which would be lost; give another"
                    " name"
                )
        if any(out == Path(os.path.realpath(other)) for other in places[:k]):
            raise InputError(f"two outputs have the name {place}; give each its own")


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


# -- how it is done --------------------------------------------------------------------------------


@dataclass
class _Swap:
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
                self.old = _beside(self.target)
                os.replace(self.target, self.old)
        elif self.target.exists():
            self.old = _beside(self.target)
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
        _sync(self.target.parent)
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
            _remove(self.temporary)
        else:
            self.temporary.unlink(missing_ok=True)


def _commit(swap: _Swap) -> None:
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(swap)
    else:
        _swap_all([swap])


def _swap_all(swaps: list[_Swap]) -> None:
    """All of the swaps, or none; what is left of those that failed is for the caller to drop."""
    begun: list[_Swap] = []
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


def _remove(folder: Path) -> None:
    """A folder of ours; libraries that failed in one thread may be writing in others still."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
        if not folder.exists():
            return


def _beside(target: Path) -> Path:
    """A hidden name that no other call takes."""
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")


def _mode(replaced: Path | None, default: int) -> int:
    """Permissions of what is replaced, else those that the process gives new files (libraries make
    some of them private).
    """
    if replaced is not None and replaced.exists():
        return replaced.stat().st_mode & 0o7777
    return default & ~_UMASK


def _sync(path: Path) -> None:
    """To the disk before the name changes; where a file system can't, the rename alone must do."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _marked(kind: str) -> Callable[[Path], Iterable[str] | None]:
    def ours(folder: Path) -> Iterable[str] | None:
        try:
            content = json.loads((folder / MARK).read_text(encoding="utf-8"))
            return [*map(str, content["files"]), MARK] if content["kind"] == kind else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    return ours


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
