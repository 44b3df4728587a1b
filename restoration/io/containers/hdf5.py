"""HDF5 files: only what lies in the file itself is read, and only after its size was checked; what
is written has its place on the disk first.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from solvers.files import reserve
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

# gzip packs at most 1032 bytes into one
_RAREST = 2000
_SLACK = 1 << 20
# a global heap, version 1: where values of variable length lie (HDF5 file format, III.E)
_HEAP = b"GCOL\x01\0\0\0"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The ``h5py.File``, for reading; what h5py raises in the block becomes an
    :class:`InputError`.
    """
    import h5py

    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def dataset(file: Any, name: str, path: Path, whole: bool = True) -> Any:
    """The array ``name`` (``group/name``) whose values lie in this very file and fit the memory:
    all at once, or else a part along the first axis.

    Raises:
        InputError: it is missing or a group, reached by a link, kept in another file, or was never
            written.
        ResourceError: too large.
    """
    import h5py

    place = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise InputError(
                f"{path}: {name} is {'missing' if link is None else 'a link'}; only data inside the"
                " file are read"
            )
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise InputError(f"{path}: {name} is a group, not an array")
    if place.external or place.is_virtual:
        raise InputError(
            f"{path}: {name} keeps its values in another file; only data inside the file are read"
        )
    if place.shape is None:
        raise InputError(f"{path}: {name} is empty")
    if _varies(place.dtype):
        _check_heaps(path)
    shape = place.shape if whole else (min(place.shape[:1], default=1) and 1, *place.shape[1:])
    check_array(f"{path}: {name}", shape, place.dtype.itemsize)
    stored, size = place.id.get_storage_size(), place.size * place.dtype.itemsize
    if size > _SLACK and size > _RAREST * stored:
        raise InputError(
            f"{path}: {name} has the shape {place.shape} but nearly none of its values were ever"
            f" written ({stored} bytes); write the file again"
        )
    return place


def attributes(place: Any, path: Path) -> Any:
    """What an ``h5py`` file, group or array says of itself.

    Raises:
        InputError: values of variable length that HDF5 would not come to the end of.
    """
    if any(_varies(place.attrs.get_id(name).dtype) for name in place.attrs):
        _check_heaps(path)
    return place.attrs


def _varies(dtype: Any) -> bool:
    """Whether values of this type have variable length, or parts that have."""
    import h5py

    if dtype.names is not None:
        return any(_varies(dtype[name]) for name in dtype.names)
    text = h5py.check_string_dtype(dtype)
    return h5py.check_vlen_dtype(dtype) is not None or (text is not None and text.length is None)


def _check_heaps(path: Path) -> None:
    """Refuse heaps that HDF5 would walk through without end.

    Raises:
        InputError: there is one.
    """
    state = path.stat()
    if not _heaps_end(path, state.st_mtime_ns, state.st_size):
        raise InputError(
            f"{path} is damaged: free space of no size lies among its values of variable length;"
            " copy or make it again"
        )


@lru_cache(maxsize=8)
def _heaps_end(path: Path, *_state: int) -> bool:
    """Whether no heap of a file in this state holds free space of no size."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def number(at: int, size: int) -> int:
            return int.from_bytes(content[at : at + size], "little")

        heap = content.find(_HEAP)
        while heap >= 0:
            at, end = heap + 16, min(heap + number(heap + 8, 8), len(content))
            while at + 16 <= end:
                size = number(at + 8, 8)
                step = 16 + -(-size // 8) * 8 if number(at, 2) else size
                if step == 0:
                    return False
                at += step
            heap = content.find(_HEAP, heap + 8)
    return True


@contextmanager
def created(path: Path, nbytes: int) -> Iterator[Any]:
    """A new ``h5py.File`` for ``nbytes`` of arrays, for writing.

    HDF5 doesn't survive a disk that gets full under it. So the disk gives the room before, and what
    isn't needed goes back at the end.

    Raises:
        OSError: the disk has no room for it.
    """
    import h5py

    with h5py.File(path, "w"):
        pass
    reserve(path, os.path.getsize(path) + nbytes + nbytes // 50 + _SLACK)
    with h5py.File(path, "r+") as file:
        yield file
