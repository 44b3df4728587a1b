"""Cubes in .mat (v5, v7.3), .npz, HDF5 and TIFF files: arrays among others, sizes checked before
they are read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.arrays import arrays_of
from restoration.io.containers.hdf5 import created, dataset, opened
from restoration.io.containers.matlab import Matlab, is_hdf5
from restoration.io.cubes.cube import Cube, numbers
from solvers.files import replace_file
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array
from solvers.inputs.strict_json import parse_object

_WAVELENGTHS = (
    "wavelength_nm",
    "wavelengths",
    "wavelength",
    "wavelength_nm_approx",
    "lambda",
    "wl",
    "wvl",
)


def read_container(path: Path, key: str | None) -> tuple[Cube, int]:
    """A cube as the file holds it, and which of its axes are bands if nothing else tells.

    Raises:
        InputError: damaged, or no cube in it.
        ResourceError: too large.
    """
    reader = {".mat": _read_mat, ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5}.get(
        path.suffix.lower(), _read_tiff
    )
    with reading(path, "a cube"):
        return reader(path, key)


def write_container(path: Path, like: Cube, out: np.ndarray) -> None:
    """Write the values ``out (B, H, W)`` with key, wavelengths and no-data value of ``like``.

    Raises:
        ValueError: more than a MATLAB v5 file holds.
    """
    key, last = like.key or "cube", np.ascontiguousarray(out.transpose(1, 2, 0))
    extra: dict[str, Any] = (
        {} if like.wavelengths is None else {"wavelength_nm": np.asarray(like.wavelengths)}
    )
    if like.no_data is not None:
        extra["no_data"] = np.asarray(float(like.no_data))
    suffix = path.suffix.lower()
    if suffix == ".mat":
        from scipy.io import savemat

        if last.nbytes >= 2**31:
            raise InputError("MATLAB v5 files hold arrays of less than 2 GiB; write .h5 or .hdr")
        replace_file(
            path, lambda p: savemat(p, {key: last, **extra}, appendmat=False, do_compression=True)
        )
    elif suffix == ".npz":

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **{key: last, **extra})

        replace_file(path, save)
    elif suffix in (".h5", ".hdf5"):

        def save(temporary: Path) -> None:
            contents = {key: last, **extra}
            with created(temporary, sum(c.nbytes for c in contents.values())) as file:
                for name, content in contents.items():
                    file[name] = content

        replace_file(path, save)
    else:
        import tifffile

        note = {name: content.tolist() for name, content in extra.items()}
        options: dict[str, Any] = {
            "photometric": "minisblack",
            "metadata": None,
            "description": json.dumps(note),
            "bigtiff": out.nbytes > 2**31,
        }
        replace_file(
            path, lambda p: tifffile.imwrite(p, out[:, None] if len(out) == 1 else out, **options)
        )


def _choose(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    """The name of the cube among the arrays of a file, by its shape alone."""
    cubes = [name for name, shape in shapes.items() if len(shape) == 3]
    if key is None:
        named = [name for name in cubes if name.lower() in ("cube", "data")]
        if len(cubes) != 1 and len(named) != 1:
            raise InputError(
                f"{path} holds {'several cubes' if cubes else 'no cube'}; name the array with key: "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        key = cubes[0] if len(cubes) == 1 else named[0]
    if key not in cubes:
        raise InputError(
            f"{path} has no three-dimensional array {key!r}; it has {', '.join(cubes) or 'none'}"
        )
    return key


def _cube(
    path: Path,
    values: np.ndarray,
    key: str,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
) -> tuple[Cube, int]:
    name = next((n for wanted in _WAVELENGTHS for n in shapes if n.lower() == wanted), None)
    wavelengths = None
    if name is not None and math.prod(shapes[name]) <= 100_000:
        wavelengths = np.asarray(read(name), np.float64).ravel()
        wavelengths = (
            wavelengths * 1e3 if wavelengths.size and wavelengths.max() < 50 else wavelengths
        )
    no_data = (
        float(np.asarray(read("no_data")).ravel()[0])
        if math.prod(shapes.get("no_data", (0,))) == 1
        else None
    )
    return Cube(values, wavelengths, no_data, key), 2


def _read_mat(path: Path, key: str | None) -> tuple[Cube, int]:
    if is_hdf5(path):  # v7.3; MATLAB stores the axes in the opposite order
        return _read_hdf5(path, key, turned=True)
    content = Matlab(path)
    key = _choose(path, key, content.shapes)
    return _cube(path, content.read(key), key, content.shapes, content.read)


def _read_hdf5(path: Path, key: str | None, turned: bool = False) -> tuple[Cube, int]:
    import h5py

    with opened(path) as file:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str, item: Any) -> None:
            numeric = isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf"
            if numeric and item.shape is not None:
                shapes[name] = item.shape[::-1] if turned else item.shape

        file.visititems(note)
        key = _choose(path, key, shapes)
        values = dataset(file, key, path)[()]
        return _cube(
            path,
            values.transpose() if turned else values,
            key,
            shapes,
            lambda name: dataset(file, name, path)[()],
        )


def _read_npz(path: Path, key: str | None) -> tuple[Cube, int]:
    with arrays_of(path) as arrays:
        key = _choose(path, key, arrays.shapes)
        return _cube(path, arrays.read(key), key, arrays.shapes, arrays.read)


def _read_tiff(path: Path, key: str | None) -> tuple[Cube, int]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        _check_chain(path, file, pages)
        first = file.pages.first
        if any(p.shape != first.shape or p.dtype != first.dtype for p in pages):
            raise InputError(f"{path}: its pages differ in size or type; bands must be alike")
        if len(first.shape) not in (2, 3) or (len(first.shape) == 3 and len(pages) > 1):
            raise InputError(
                f"{path}: {len(pages)} pages of shape {first.shape}; save one band per page, or all"
                " in one"
            )
        if first.dtype is None:
            raise InputError(f"{path} has values of no known type")
        check_array(path, (len(pages), *first.shape), first.dtype.itemsize)
        values = (
            np.stack([p.asarray() for p in pages]) if len(first.shape) == 2 else first.asarray()
        )
        planar = len(first.shape) == 2 or first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        note = _note(first.description)
        bad = first.tags.get(42113)  # GDAL_NODATA
    wavelengths = np.asarray(note["wavelength_nm"], np.float64) if "wavelength_nm" in note else None
    no_data = note.get("no_data")
    if no_data is None and bad is not None:
        no_data = numbers(path, "GDAL_NODATA", str(bad.value).strip("\0 "))[0]
    return Cube(
        values, wavelengths, None if no_data is None or math.isnan(no_data) else float(no_data)
    ), (0 if planar else 2)


def _check_chain(path: Path, file: Any, pages: list[Any]) -> None:
    """The last page must say that it is the last: tifffile stops at a page that isn't there."""
    form, handle = file.tiff, file.filehandle
    handle.seek(pages[-1].offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    handle.seek(count * form.tagsize, 1)
    following = struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0]
    if following:
        raise InputError(
            f"{path} was cut short or is damaged: after page {len(pages)}, another should lie at"
            f" byte {following} of {handle.size}; copy or save it again"
        )


def _note(description: str) -> dict[str, Any]:
    try:
        return parse_object(description, "description")
    except InputError:
        return {}
