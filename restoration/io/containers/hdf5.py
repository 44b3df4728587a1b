"""HDF5 files: only what lies in the file itself is read, and only after its size was checked; what
is written has its place on the disk first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solvers.files import reserve
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

# gzip packs at most 1032 bytes into one
_RAREST = 2000
_SLACK = 1 << 20


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
    shape = place.shape if whole else (min(place.shape[:1], default=1) and 1, *place.shape[1:])
    check_array(f"{path}: {name}", shape, place.dtype.itemsize)
    stored, size = place.id.get_storage_size(), place.size * place.dtype.itemsize
    if size > _SLACK and size > _RAREST * stored:
        raise InputError(
            f"{path}: {name} has the shape {place.shape} but nearly none of its values were ever"
            f" written ({stored} bytes); write the file again"
        )
    return place


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
