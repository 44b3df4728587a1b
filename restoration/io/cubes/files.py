"""Hyperspectral cubes: ENVI, MATLAB (v5, v7.3), NumPy, HDF5 and multi-page TIFF; wavelengths kept,
sizes checked before reading.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from restoration.io.cubes.containers import read_container, write_container
from restoration.io.cubes.cube import Cube, numbers
from restoration.io.cubes.envi import interleave_of, open_raw, read_header, write_envi
from solvers.inputs.errors import InputError, reading

SUFFIXES = (".hdr", ".mat", ".npz", ".h5", ".hdf5", ".tif", ".tiff")
_UNITS = {
    "nanometers": 1.0,
    "nanometer": 1.0,
    "nm": 1.0,
    "micrometers": 1e3,
    "micrometer": 1e3,
    "microns": 1e3,
    "um": 1e3,
}


def read_cube(
    path: str | os.PathLike[str], key: str | None = None, band_axis: int | None = None
) -> Cube:
    """Read a cube by its file's suffix (``.hdr`` for ENVI).

    Args:
        key: which array of a .mat, .npz or .h5 file; needed where it holds several
            three-dimensional ones.
        band_axis: which axis of that array (as MATLAB shows it, for .mat) holds the bands. By
            default the only one as long as the file's wavelengths, else the last one; pages of a
            TIFF are bands.

    Raises:
        FileNotFoundError: no such file, or no raw file beside an ENVI header.
        InputError: another format, damaged, no cube in it, or wavelengths that don't fit the bands.
        ResourceError: too large for the memory (:mod:`solvers.inputs.memory`); ENVI cubes are
            mapped, and may be larger.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: cubes end in one of {', '.join(SUFFIXES)} (for ENVI give the .hdr file)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"cube {path} does not exist")
    if suffix == ".hdr":
        if key is not None or band_axis is not None:
            raise InputError(
                f"{path}: an ENVI header names its one array and its axes itself; leave out"
                " --key and --band-axis"
            )
        with reading(path, "an ENVI cube"):
            return _read_envi(path)
    cube, axis = read_container(path, key)
    if cube.values.dtype.kind not in "iuf":
        raise InputError(
            f"{path} holds values of type {cube.values.dtype}; integers and real numbers are"
            " accepted"
        )
    if band_axis is not None:
        if not -3 <= band_axis < 3:
            raise InputError(f"band_axis must be 0, 1 or 2; got {band_axis}")
        axis = band_axis
    elif cube.wavelengths is not None and cube.values.shape.count(len(cube.wavelengths)) == 1:
        axis = cube.values.shape.index(len(cube.wavelengths))
    values = np.moveaxis(cube.values, axis, 0)
    if cube.wavelengths is not None and len(cube.wavelengths) != values.shape[0]:
        raise InputError(
            f"{path} has {values.shape[0]} bands but {len(cube.wavelengths)} wavelengths"
        )
    _check_wavelengths(path, cube.wavelengths)
    return Cube(values, cube.wavelengths, cube.no_data, cube.key)


def write_cube(
    path: str | Path, like: Cube, rows: Callable[[slice], np.ndarray], block: int = 64
) -> None:
    """Write a cube of the shape, type, wavelengths and missing entries of ``like``; the suffix
    gives the format.

    Args:
        like: what the new values replace. Entries that it lacks keep what they hold there, to the
            bit.
        rows: called with slices of rows, gives the new ``(B, h, W)`` values of them. Integer types
            are rounded and clipped to the type.
        block: rows at a time.

    Raises:
        ValueError: unknown suffix, or ENVI would overwrite the raw file that ``like`` is mapped
            from.
    """
    path = Path(path)
    check_cube_writable(path, like)
    shape, dtype = like.values.shape, like.values.dtype.newbyteorder("=")

    def fill(out: np.ndarray) -> None:
        for top in range(0, shape[1], block):
            part = slice(top, min(top + block, shape[1]))
            new = np.asarray(rows(part))
            if dtype.kind in "iu":
                limits = np.iinfo(dtype)
                new = np.clip(np.rint(new.astype(np.float64)), limits.min, limits.max)
                top_value = (
                    np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
                )
                new = np.minimum(new, top_value)
            out[:, part] = np.where(like.valid(part), new.astype(dtype), like.values[:, part])

    if path.suffix.lower() == ".hdr":
        return write_envi(path, _header(like), shape, dtype, fill)
    out = np.empty(shape, dtype)
    fill(out)
    write_container(path, like, out)


def check_cube_writable(path: str | Path, like: Cube) -> None:
    """Raise before any work is done if ``like`` can't be written to ``path``.

    Raises:
        ValueError: unknown suffix, or the place of the raw file that ``like`` is mapped from.
        OSError: no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output {path} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the output does not exist")
    mapped = getattr(_base(like.values), "filename", None)
    if (
        mapped is not None
        and path.suffix.lower() == ".hdr"
        and path.with_suffix(".raw").absolute() == Path(mapped).absolute()
    ):
        raise InputError(f"output {path} would overwrite the cube that is read; give another name")


def _base(values: np.ndarray) -> np.ndarray:
    while not isinstance(values, np.memmap) and isinstance(values.base, np.ndarray):
        values = values.base
    return values


# -- ENVI ------------------------------------------------------------------------------------------


def _read_envi(path: Path) -> Cube:
    header = read_header(path)
    values = open_raw(path, header)
    wavelengths = None
    if "wavelength" in header:
        wavelengths = numbers(path, "wavelength", header["wavelength"])
        if len(wavelengths) != len(values):
            raise InputError(f"{path} has {len(values)} bands but {len(wavelengths)} wavelengths")
        _check_wavelengths(path, wavelengths)
        scale = _UNITS.get(header.get("wavelength units", "").strip().lower())
        # without a unit: nothing below 50 is a wavelength in nanometres
        wavelengths = wavelengths * (scale if scale else 1e3 if wavelengths.max() < 50 else 1.0)
    text = header.get("data ignore value")
    no_data = None if text in (None, "") else float(numbers(path, "data ignore value", text)[0])
    return Cube(
        values,
        wavelengths,
        None if no_data is not None and math.isnan(no_data) else no_data,
        header=header,
    )


def _check_wavelengths(path: Path, wavelengths: np.ndarray | None) -> None:
    if wavelengths is not None and not (np.isfinite(wavelengths) & (wavelengths > 0)).all():
        raise InputError(f"{path} has wavelengths that are no positive numbers; correct them")


def _header(like: Cube) -> dict[str, str]:
    header = dict(like.header)
    if like.wavelengths is not None and "wavelength" not in header:
        header |= {
            "wavelength": ", ".join(f"{v:g}" for v in like.wavelengths),
            "wavelength units": "Nanometers",
        }
    if like.no_data is not None and "data ignore value" not in header:
        header["data ignore value"] = f"{like.no_data:.17g}"
    if header:
        interleave_of(Path("header"), {"interleave": "bsq"} | header)
    return header
