"""Named arrays of a file with what it says of each: NetCDF 3 and HDF 4. HDF 5, NumPy and MATLAB
have modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf4 import check_hdf4
from restoration.io.containers.packages import need
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

HDF4 = b"\x0e\x03\x13\x01"
NETCDF3 = (b"CDF\x01", b"CDF\x02")
NETCDF5 = b"CDF\x05"
# what HDF 4 calls its types
_TYPES = {20: "i1", 21: "u1", 22: "i2", 23: "u2", 24: "i4", 25: "u4", 5: "f4", 6: "f8"}


@dataclass(frozen=True)
class Variables:
    """The numeric arrays of an open file.

    Attributes:
        shapes: of each, by its name.
        read: one of them, its size checked before.
        says: its attributes, and those of any other one; of ``/`` the file's.
        names: of all of them, also those that hold no numbers.
        axes: the names of an array's axes; none where the file names none.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    says: Callable[[str], Mapping[str, Any]]
    names: Sequence[str] = ()
    axes: Callable[[str], tuple[str, ...]] = lambda name: ()


def head_of(path: Path) -> bytes:
    """The four bytes that tell these formats."""
    with path.open("rb") as file:
        return file.read(4)


@contextmanager
def netcdf3(path: Path) -> Iterator[Variables]:
    """A file of NetCDF's classic format, or of its 64-bit offsets, mapped into memory.

    Raises:
        InputError: damaged.
    """
    from scipy.io import netcdf_file

    with reading(path, "NetCDF 3"), netcdf_file(path, "r", mmap=True) as file:
        whole: Any = file
        found: dict[str, Any] = file.variables
        numeric = {k: v for k, v in found.items() if np.dtype(v.typecode()).kind in "iuf"}

        def read(name: str) -> np.ndarray:
            stored = numeric[name]
            check_array(f"{path}: {name}", stored.shape, stored.itemsize())
            # a copy, since the file is closed; numbers are stored from the high byte on
            return np.array(stored[:] if stored.shape else stored.data, np.dtype(stored.typecode()))

        shapes = {name: tuple(int(n) for n in v.shape) for name, v in numeric.items()}
        try:
            yield Variables(
                shapes,
                read,
                lambda name: (whole if name == "/" else found[name])._attributes,
                tuple(found),
                lambda name: tuple(found[name].dimensions),
            )
        finally:
            numeric.clear()  # what refers to the map would keep it open
            found.clear()


@contextmanager
def hdf4(path: Path) -> Iterator[Variables]:
    """The scientific data sets of a file of HDF 4.

    Raises:
        InputError: damaged, or data in another file.
        ImportError: pyhdf is missing.
    """
    sd = need("pyhdf.SD", "HDF 4 files", "hdf4")
    check_hdf4(path)
    with reading(path, "HDF 4"):
        file = sd.SD(str(path), sd.SDC.READ)
        try:
            found = {
                name: (tuple(np.atleast_1d(shape).tolist()), np.dtype(_TYPES[kind]))
                for name, (_, shape, kind, _) in file.datasets().items()
                if kind in _TYPES
            }

            def read(name: str) -> np.ndarray:
                shape, dtype = found[name]
                check_array(f"{path}: {name}", shape, dtype.itemsize)
                return np.asarray(file.select(name).get(), dtype).reshape(shape)

            shapes = {name: shape for name, (shape, _) in found.items()}
            yield Variables(
                shapes, read, lambda name: (file if name == "/" else file.select(name)).attributes()
            )
        finally:
            file.end()


def refuse_netcdf5(path: Path) -> None:
    """Classic NetCDF with numbers of 64 bits: no reader that is installed anyway knows it."""
    raise InputError(
        f"{path} is of NetCDF's format CDF-5, which is not read; convert it:"
        f" nccopy -k nc4 {path.name} {path.stem}-4.nc"
    )
