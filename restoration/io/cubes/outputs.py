"""Cubes to files other than ENVI, and what a format can't keep of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import created
from restoration.io.containers.packages import need
from restoration.io.cubes.containers import HDF5, MASK, NETCDF
from restoration.io.cubes.cube import Cube
from restoration.io.cubes.georeference import has_place, mapping_of, tags_of
from restoration.io.cubes.tiff import write_tiff
from solvers.files import replace_file
from solvers.inputs.errors import InputError

# what gives numbers and bands their meaning: in GDAL's words, in an ENVI header
WORDS = r'role="(scale|offset|description|unittype)"'
FIELDS = (
    *("reflectance scale factor", "data gain values", "data offset values"),
    *("band names", "fwhm", "rpc info", "geo points"),
)


def lost(path: str | Path, like: Cube) -> str:
    """What a file of this name can't hold of a cube, in one sentence; nothing where it holds all
    that counts.
    """
    path, grid = Path(path), has_place(like.header) or bool(like.geo)
    suffix = path.suffix.lower()
    carried = suffix in (".tif", ".tiff") or (suffix == ".hdr" and has_place(like.header))
    told = not carried and suffix in (*HDF5, NETCDF, ".hdr") and bool(_mapping_of(like))
    placeless = not (carried or told)
    bare = suffix == ".npy"
    gone = {
        "place on the ground": (grid and placeless) or (like.places is not None and bare),
        "wavelengths": like.wavelengths is not None and bare,
        "list of bad bands": like.bad is not None and bare,
        "no-data value": like.no_data is not None and bare,
        "mask of valid pixels": like.mask is not None and suffix in (".npy", ".hdr"),
        "scales and names of bands": suffix not in (".tif", ".tiff")
        and re.search(WORDS, like.words or "") is not None,
    }
    names = [name for name, is_gone in gone.items() if is_gone]
    names += [name for name in FIELDS if like.header.get(name) and suffix != ".hdr"]
    if not names:
        return ""
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    better = ".hdr" if like.header and like.mask is None else ".tif"
    hint = f"; {better} keeps more" if suffix != better else ""
    return f"{path} can't hold the cube's {listed}{hint}"


def write_container(path: Path, like: Cube, out: np.ndarray) -> None:
    """Write the values ``out (B, H, W)`` with the key, axis of bands, wavelengths, good bands,
    no-data value, mask of valid pixels and place of ``like``, as far as the format holds them
    (:func:`lost`).

    Raises:
        ValueError: more than a MATLAB v5 file holds.
    """
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        return write_tiff(path, like, out)
    key = like.key if suffix != ".mat" else like.key.rpartition("/")[2]  # a name of MATLAB's
    key, values = key or "cube", np.ascontiguousarray(np.moveaxis(out, 0, like.axis))
    extra = _beside(like)
    if suffix == ".mat":
        from scipy.io import savemat

        if values.nbytes >= 2**31:
            raise InputError("MATLAB v5 files hold arrays of less than 2 GiB; write .h5 or .hdr")
        contents = {key: values, **extra}
        replace_file(path, lambda p: savemat(p, contents, appendmat=False, do_compression=True))
    elif suffix in (".npz", ".npy"):

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                if suffix == ".npy":
                    np.save(file, values)
                else:
                    np.savez_compressed(file, **{key: values, **extra})

        replace_file(path, save)
    elif suffix == NETCDF:
        replace_file(path, lambda p: _write_netcdf(p, key.rpartition("/")[2], values, like))
    else:
        mapping = _mapping_of(like)

        def save(temporary: Path) -> None:
            contents = {key: values, **extra}
            with created(temporary, sum(c.nbytes for c in contents.values())) as file:
                for name, content in contents.items():
                    file[name] = content
                if mapping:  # as NetCDF has it
                    file["crs"] = np.int32(0)
                    file["crs"].attrs.update(mapping)
                    file[key].attrs["grid_mapping"] = "crs"

        replace_file(path, save)


def _beside(like: Cube) -> dict[str, Any]:
    """Arrays that stand beside a cube's."""
    found: dict[str, Any] = {}
    if like.wavelengths is not None:
        found["wavelength_nm"] = np.asarray(like.wavelengths)
    if like.bad is not None:
        found["good_bands"] = (~like.bad).astype(np.uint8)
    if like.no_data is not None:
        found["no_data"] = np.asarray(float(like.no_data))
    if like.mask is not None:
        found[MASK] = _laid(like.mask, like.axis)
    if like.places is not None:
        found |= dict(zip(("latitude", "longitude"), like.places, strict=True))
    return found


def _laid(mask: np.ndarray, axis: int) -> np.ndarray:
    """A mask ``([B,] H, W)`` with the axes of the cube's array."""
    return (np.moveaxis(mask, 0, axis) if mask.ndim == 3 else mask).astype(np.uint8)


def _mapping_of(like: Cube) -> dict[str, str]:
    """The place as NetCDF says it; nothing where it isn't known, or can't be told."""
    try:
        geo = like.geo or (tags_of(like.header) if has_place(like.header) else ())
        return mapping_of(geo) if geo else {}
    except (ImportError, InputError):  # which outputs that promise a place have asked before
        return {}


def _write_netcdf(path: Path, key: str, values: np.ndarray, like: Cube) -> None:
    """NetCDF 4 with names of axes, wavelengths in nanometres, the fill value and the place."""
    h5netcdf = need("h5netcdf", "NetCDF outputs", "geo")
    axes = ["y", "x"]
    axes.insert(like.axis, "bands")
    with h5netcdf.File(path, "w") as file:
        file.dimensions = dict(zip(axes, values.shape, strict=True))
        stored = file.create_variable(
            key, tuple(axes), values.dtype, data=values, fillvalue=like.no_data
        )
        stored.attrs["restobox"] = "restored"
        if like.wavelengths is not None:
            file.create_variable("wavelengths", ("bands",), data=np.asarray(like.wavelengths))
            file.variables["wavelengths"].attrs["units"] = "nm"
        if like.bad is not None:
            file.create_variable("good_wavelengths", ("bands",), data=(~like.bad).astype(np.uint8))
        if like.mask is not None:
            named = ("y", "x") if like.mask.ndim == 2 else tuple(axes)
            file.create_variable(MASK, named, data=_laid(like.mask, like.axis))
        words = {"latitude": "degrees_north", "longitude": "degrees_east"}
        for (name, unit), degrees in zip(words.items(), like.places or (), strict=False):
            file.create_variable(name, ("y", "x"), data=degrees).attrs["units"] = unit
            stored.attrs["coordinates"] = "latitude longitude"
        if mapping := _mapping_of(like):
            file.create_variable("crs", (), np.int32, data=0).attrs.update(mapping)
            stored.attrs["grid_mapping"] = "crs"
