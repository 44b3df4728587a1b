"""NumPy's ``.npy`` and ``.npz`` files, read by their headers: no pickle, nothing larger than the
memory, no array that hides behind the name of another.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array


class Arrays:
    """The arrays of an open ``.npz`` file.

    Attributes:
        shapes: of each array, by its name.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise InputError(f"{path} holds two arrays of one name; write it again")
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    self.shapes[name.removesuffix(".npy")] = _header(path, file)[0]

    def read(self, name: str) -> np.ndarray:
        """One of them.

        Raises:
            InputError: no array of this name.
            ResourceError: too large.
        """
        if name not in self.shapes:
            known = ", ".join(self.shapes) or "none"
            raise InputError(f"{self._path} holds no array {name!r}; it holds {known}")
        with self._archive.open(f"{name}.npy") as file:
            return _values(self._path, file)


@contextmanager
def arrays_of(path: str | Path) -> Iterator[Arrays]:
    """Open an ``.npz`` file.

    Raises:
        FileNotFoundError: no such file.
        InputError: another kind of file, or a damaged one.
    """
    path = Path(path)
    with reading(path, ".npz"), zipfile.ZipFile(path) as archive:
        yield Arrays(path, archive)


def read_array(path: str | Path, name: str) -> np.ndarray:
    """The array of an ``.npy`` file, or of an ``.npz`` file the one of this name, else its only
    one.

    Raises:
        FileNotFoundError: no such file.
        InputError: another kind of file, a damaged one, or several arrays of other names.
        ResourceError: too large.
    """
    path = Path(path)
    with reading(path, ".npy or .npz"):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _values(path, file)
        with arrays_of(path) as arrays:
            found = [name] if name in arrays.shapes else list(arrays.shapes)
            if len(found) != 1:
                raise InputError(
                    f"{path} should hold one array {name}; it holds"
                    f" {', '.join(arrays.shapes) or 'none'}"
                )
            return arrays.read(found[0])


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects (pickle); arrays of numbers are accepted")
    return shape, fortran, dtype


def _values(path: Path, file: IO[bytes]) -> np.ndarray:
    shape, fortran, dtype = _header(path, file)
    check_array(path, shape, dtype.itemsize)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    values = np.empty(size, np.uint8)
    found = file.readinto(values.data)  # type: ignore[attr-defined]  # files of both kinds have it
    if found != size or file.read(1):
        raise InputError(
            f"{path} has an array of {size} bytes by its header, but {found} follow or more; it was"
            " cut short or changed: write it again"
        )
    return values.view(dtype).reshape(shape, order="F" if fortran else "C")
