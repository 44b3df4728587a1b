"""Hyperspectral cubes: ENVI, MATLAB (v5, v7.3), NumPy, HDF, NetCDF, (Geo)TIFF, folders of bands;
wavelengths, bad bands and places kept, sizes checked before reading.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.containers.validity import valid_beside
from restoration.io.cubes.containers import HDF5, NETCDF, READ_ONLY, band_axis_of, read_container
from restoration.io.cubes.cube import Cube, numbers
from restoration.io.cubes.envi import (
    interleave_of,
    left_over,
    open_raw,
    raw_file,
    read_header,
    write_envi,
)
from restoration.io.cubes.georeference import fields_of, has_place, tags_of
from restoration.io.cubes.grids import tie_points
from restoration.io.cubes.outputs import write_container
from restoration.io.cubes.products import (
    BAND,
    HYPERION_BANDS,
    band_files,
    hyperion_bad,
    hyperion_wavelengths,
)
from restoration.io.cubes.tiff import read_tiff
from restoration.io.cubes.wavelengths import nanometres
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

TIFF = (".tif", ".tiff")
SUFFIXES = (".hdr", ".mat", ".npy", ".npz", *HDF5, NETCDF, *TIFF)
# to nanometres; None: the numbers are no lengths


def read_cube(
    path: str | os.PathLike[str], key: str | None = None, band_axis: int | None = None
) -> Cube:
    """Read a cube by its file's suffix (``.hdr`` for ENVI); or a folder of TIFF files that hold a
    band each, as Hyperion's L1T products.

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
    if path.is_dir():
        with reading(path, "a folder of bands"):
            return _read_folder(path)
    if suffix not in (*SUFFIXES, *READ_ONLY):
        beside = [p for p in (path.with_suffix(".hdr"), Path(f"{path}.hdr")) if p.is_file()]
        hint = f"give {beside[0]}" if beside else "for ENVI give the .hdr file"
        raise InputError(
            f"{path}: cubes end in one of {', '.join((*SUFFIXES, *READ_ONLY))} ({hint})"
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
    elif cube.wavelengths is not None:
        found = band_axis_of(cube.values.shape, len(cube.wavelengths))
        axis = axis if found is None else found
    values = np.moveaxis(cube.values, axis, 0)
    if cube.wavelengths is not None and len(cube.wavelengths) != values.shape[0]:
        raise InputError(
            f"{path} has {values.shape[0]} bands but {len(cube.wavelengths)} wavelengths"
        )
    _check_wavelengths(path, cube.wavelengths)
    bad = _checked_bad(path, cube.bad, len(values))
    places = cube.places  # of another picture, if the bands lie elsewhere than was thought
    places = None if places is None or places[0].shape != values.shape[1:] else places
    mask = cube.mask
    mask = np.moveaxis(mask, axis, 0) if mask is not None and mask.ndim == 3 else mask
    known = replace(cube, values=values, bad=bad, axis=axis % 3, places=places, mask=mask)
    return _masked(path, known, path)


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
    suffix = path.suffix.lower()
    if suffix in (*TIFF, NETCDF) and not like.geo and has_place(like.header):
        tags_of(like.header)  # or says why not
    if suffix == ".hdr" and like.geo and not has_place(like.header):
        fields_of(like.geo)
    if suffix == NETCDF:
        need("h5netcdf", "NetCDF outputs", "geo")
        if like.geo or has_place(like.header):
            need("rasterio", "places in NetCDF outputs", "geo")
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
    if header.get("wavelength"):
        wavelengths = numbers(path, "wavelength", header["wavelength"])
        if len(wavelengths) != len(values):
            raise InputError(f"{path} has {len(values)} bands but {len(wavelengths)} wavelengths")
        _check_wavelengths(path, wavelengths)
        wavelengths = nanometres(path, wavelengths, header.get("wavelength units", ""))
    text = header.get("data ignore value")
    no_data = None if text in (None, "") else float(numbers(path, "data ignore value", text)[0])
    bad = None
    if header.get("bbl"):
        bad = _checked_bad(path, numbers(path, "bbl", header["bbl"]) == 0, len(values))
    cube = Cube(
        values,
        wavelengths,
        None if no_data is not None and math.isnan(no_data) else no_data,
        header=header,
        bad=bad,
        note=left_over(path, header, values),
    )
    return _masked(path, cube, raw_file(path) or path)


def _masked(path: Path, cube: Cube, file: Path) -> Cube:
    """With the mask of valid pixels that lies beside a file, or in it."""
    bands, height, width = cube.values.shape
    beside = valid_beside(file, (height, width))
    mask = cube.mask if beside is None else beside
    if mask is not None and mask.shape not in ((height, width), (bands, height, width)):
        raise InputError(
            f"{path} has a mask of valid pixels of shape {mask.shape} for a cube of {bands} bands"
            f" of {height} x {width} pixels; one for all bands, or one for each, is accepted"
        )
    return replace(cube, mask=mask)


def _checked_bad(path: Path, bad: np.ndarray | None, bands: int) -> np.ndarray | None:
    """Flags of bands; None where none is bad."""
    if bad is None:
        return None
    if len(bad) != bands:
        raise InputError(f"{path} has {bands} bands, but its list of bad ones (bbl) has {len(bad)}")
    if bad.all():
        raise InputError(f"{path}: its list of bad bands (bbl) marks all of them as bad")
    return bad if bad.any() else None


def _read_folder(path: Path) -> Cube:
    """Hyperion's bands, or others that are numbered alike."""
    files = band_files(path)
    first, _ = read_tiff(files[0], None)
    if len(first.values) != 1:
        raise InputError(f"{files[0]} has shape {first.values.shape}; one band is expected")
    size = first.values.shape[1:]
    check_array(path, (len(files), *size), first.values.dtype.itemsize + 1)
    values = np.empty((len(files), *size), first.values.dtype)
    masks = np.ones(values.shape, bool)
    for k, file in enumerate(files):
        band = read_tiff(file, None)[0]
        one = band.values
        if one.shape != (1, *size) or one.dtype != values.dtype:
            raise InputError(
                f"{file} holds {one.dtype} of shape {one.shape}; {files[0].name} holds"
                f" {values.dtype} of shape {(1, *size)}"
            )
        values[k] = one[0]
        if (mask := _masked(file, band, file).mask) is not None:
            masks[k] = mask
    numbers_ = np.array([int(BAND.search(f.name)[1]) for f in files])  # type: ignore[index]
    hyperion = files[0].name.upper().startswith("EO1H") and numbers_.max() <= HYPERION_BANDS
    return Cube(
        values,
        hyperion_wavelengths(numbers_) if hyperion else None,
        first.no_data,
        bad=_checked_bad(path, hyperion_bad(numbers_), len(files)) if hyperion else None,
        geo=first.geo,
        mask=None if masks.all() else masks[0] if (masks == masks[0]).all() else masks,
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
    if like.bad is not None:
        header["bbl"] = ", ".join(str(int(not b)) for b in like.bad)
    if like.geo and not has_place(header):
        header |= fields_of(like.geo)
    elif like.places is not None and not has_place(header):
        points = tie_points(*like.places)  # counted from 1, at the middle of a pixel's number
        header["geo points"] = ", ".join(
            f"{c + 1.5}, {r + 1.5}, {lat:.9g}, {lon:.9g}" for r, c, lat, lon in points
        )
    if like.no_data is not None and "data ignore value" not in header:
        header["data ignore value"] = f"{like.no_data:.17g}"
    if header:
        interleave_of(Path("header"), {"interleave": "bsq"} | header)
    return header
