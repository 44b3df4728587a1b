"""What is checked of outputs before any work is done: that their places are free, and that nothing
of the user's would be lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from solvers.inputs.errors import InputError

MARK = ".restobox.json"  # says which files of a folder are ours, where its own format doesn't


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
    check_free(folder, kind, marked(kind))


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


def marked(kind: str) -> Callable[[Path], Iterable[str] | None]:
    """Names the files of a folder that says itself that it is of this kind."""

    def ours(folder: Path) -> Iterable[str] | None:
        try:
            content = json.loads((folder / MARK).read_text(encoding="utf-8"))
            return [*map(str, content["files"]), MARK] if content["kind"] == kind else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    return ours


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
