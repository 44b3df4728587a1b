"""Cubes in .mat (v5, v7.3), .npz, HDF5 and TIFF files: arrays among others, sizes checked before
they are read.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.cube import Cube, numbers
from solvers.files import first_line, replace_file

_WAVELENGTHS = (
    "wavelength_nm",
    "wavelengths",
    "wavelength",
    "wavelength_nm_approx",
    "lambda",
    "wl",
    "wvl",
)


def read_container(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    """A cube as the file holds it, and which of its axes are bands if nothing else tells.

    Raises:
        ValueError: damaged, too large, or no cube in it.
    """
    reader = {".mat": _read_mat, ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5}.get(
        path.suffix.lower(), _read_tiff
    )
    try:
        return reader(path, key, max_values)
    except (
        OSError,
        KeyError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
        TypeError,
        NotImplementedError,
        IndexError,
    ) as error:
        raise ValueError(f"{path} can't be read: {first_line(error)}") from error


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
            raise ValueError("MATLAB v5 files hold arrays of less than 2 GiB; write .h5 or .hdr")
        replace_file(
            path, lambda p: savemat(p, {key: last, **extra}, appendmat=False, do_compression=True)
        )
    elif suffix == ".npz":

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **{key: last, **extra})

        replace_file(path, save)
    elif suffix in (".h5", ".hdf5"):
        import h5py

        def save(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                for name, content in {key: last, **extra}.items():
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


def _choose(
    path: Path, key: str | None, shapes: dict[str, tuple[int, ...]], max_values: int
) -> str:
    """The name of the cube among the arrays of a file, checked by its shape alone."""
    cubes = [name for name, shape in shapes.items() if len(shape) == 3]
    if key is None:
        named = [name for name in cubes if name.lower() in ("cube", "data")]
        if len(cubes) != 1 and len(named) != 1:
            raise ValueError(
                f"{path} holds {'several cubes' if cubes else 'no cube'}; name the array with key: "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        key = cubes[0] if len(cubes) == 1 else named[0]
    if key not in cubes:
        raise ValueError(
            f"{path} has no three-dimensional array {key!r}; it has {', '.join(cubes) or 'none'}"
        )
    _check_size(path, shapes[key], max_values)
    return key


def _check_size(path: Path, shape: tuple[int, ...], max_values: int) -> None:
    if min(shape) < 1 or math.prod(shape) > max_values:
        raise ValueError(
            f"{path} has shape {shape}; from 1 to {max_values:,} values are accepted (memory-map"
            " larger cubes as ENVI)"
        )


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


def _read_mat(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    import h5py

    if h5py.is_hdf5(path):  # v7.3; MATLAB stores the axes in the opposite order
        return _read_hdf5(path, key, max_values, turned=True)
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        key = _choose(path, key, shapes, max_values)
        return _cube(
            path,
            loadmat(path, variable_names=[key])[key],
            key,
            shapes,
            lambda n: loadmat(path, variable_names=[n])[n],
        )
    except (MatReadError, ValueError, OSError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no readable MATLAB file: {error}") from error


def _read_hdf5(
    path: Path, key: str | None, max_values: int, turned: bool = False
) -> tuple[Cube, int]:
    import h5py

    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
                shapes[name] = item.shape[::-1] if turned else item.shape

        file.visititems(note)
        key = _choose(path, key, shapes, max_values)
        values = file[key][()]
        return _cube(
            path, values.transpose() if turned else values, key, shapes, lambda n: file[n][()]
        )


def _read_npz(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[name[:-4]] = read(file)[0]
    key = _choose(path, key, shapes, max_values)
    with np.load(path, allow_pickle=False) as file:
        return _cube(path, file[key], key, shapes, lambda n: file[n])


def _read_tiff(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages = list(file.pages)
            first = file.pages.first
            if any(p.shape != first.shape or p.dtype != first.dtype for p in pages):
                raise ValueError(f"{path}: its pages differ in size or type; bands must be alike")
            _check_size(path, (len(pages), *first.shape), max_values)
            if len(first.shape) == 3 and len(pages) > 1:
                raise ValueError(
                    f"{path}: several pages of several channels each; save one band per page"
                )
            values = (
                np.stack([p.asarray() for p in pages]) if len(first.shape) == 2 else first.asarray()
            )
            planar = len(first.shape) == 2 or first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            note = _note(first.description)
            bad = first.tags.get(42113)  # GDAL_NODATA
    except tifffile.TiffFileError as error:
        raise ValueError(f"{path} is no readable TIFF file: {error}") from error
    wavelengths = np.asarray(note["wavelength_nm"], np.float64) if "wavelength_nm" in note else None
    no_data = note.get("no_data")
    if no_data is None and bad is not None:
        no_data = numbers(path, "GDAL_NODATA", str(bad.value).strip("\0 "))[0]
    return Cube(
        values, wavelengths, None if no_data is None or math.isnan(no_data) else float(no_data)
    ), (0 if planar else 2)


def _note(description: str) -> dict[str, Any]:
    try:
        content = json.loads(description)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
