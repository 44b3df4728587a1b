"""Cubes in .mat (v5, v7.3), .npy, .npz, HDF4, HDF5 and NetCDF files: arrays among others, sizes
checked before they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.arrays import arrays_of, read_array
from restoration.io.containers.hdf5 import attributes, dataset, opened
from restoration.io.containers.matlab import Matlab, is_hdf5
from restoration.io.containers.variables import (
    HDF4,
    NETCDF3,
    NETCDF5,
    Variables,
    hdf4,
    head_of,
    netcdf3,
    refuse_netcdf5,
)
from restoration.io.cubes.cube import Cube
from restoration.io.cubes.grids import Tags, grid_of, places_of, text
from restoration.io.cubes.meaning import Meant, fills_of, meant
from restoration.io.cubes.products import as_hyperion, as_neon, is_neon, is_prisma, read_prisma
from restoration.io.cubes.tiff import read_tiff
from restoration.io.cubes.wavelengths import nanometres
from solvers.inputs.errors import InputError, reading

_WAVELENGTHS = (
    "wavelength_nm",
    "wavelengths",
    "wavelength",
    "wavelength_nm_approx",
    "lambda",
    "wl",
    "wvl",
    *(f"{c}_wavelength{s}" for c in ("center", "centre", "central") for s in ("", "s")),
    "band_centers",
    "band_centres",
)


HDF5 = (".h5", ".hdf5", ".he5")
NETCDF = ".nc"
READ_ONLY = (".hdf", ".hdf4", ".l1r")  # HDF of either version
MASK = "valid_mask"
FEW = 4  # bands that a picture may have
_GOOD = ("good_bands", "good_wavelengths", "bbl")
# names of an axis of bands
_BANDS = re.compile(
    r"(?:^|[/_])n?(?:bands?|wavelengths?|channels?|wl|wvl|lambda|spectral)(?:$|_)", re.I
)


def read_container(path: Path, key: str | None) -> tuple[Cube, int]:
    """A cube as the file holds it, and which of its axes are bands if nothing else tells.

    Raises:
        InputError: damaged, or no cube in it.
        ResourceError: too large.
    """
    readers: dict[str, Callable[[Path, str | None], tuple[Cube, int]]]
    readers = dict.fromkeys((*HDF5, *READ_ONLY, NETCDF), _read_any_hdf)
    readers |= {".mat": _read_mat, ".npz": _read_npz, ".npy": _read_npy}
    with reading(path, "a cube"):
        return readers.get(path.suffix.lower(), read_tiff)(path, key)


def _choose(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    """The name of the cube among the arrays of a file, by its shape alone."""
    cubes = [name for name, s in shapes.items() if len(s) == 3 and _last(name) != MASK]
    if key is None and len(cubes) > 1:  # others are pictures in colour, flags ...
        wave = _named(_WAVELENGTHS, shapes)
        bands = 0 if wave is None else math.prod(shapes[wave])
        likely = [n for n in cubes if (bands in shapes[n] if bands else min(shapes[n]) > FEW)]
        cubes = likely if len(likely) == 1 else cubes
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


def _cube(path: Path, values: np.ndarray, key: str, file: Variables) -> tuple[Cube, int]:
    shapes, read = file.shapes, file.read
    name = _named(_WAVELENGTHS, shapes)
    wavelengths = None
    if name is not None and math.prod(shapes[name]) <= 100_000:
        wavelengths = _centres(np.asarray(read(name), np.float64))
        unit = text(file.says(name).get("units", ""))
        wavelengths = nanometres(path, wavelengths, unit) if wavelengths.size else wavelengths
    else:
        told = [_told(file.says(place), shapes[key]) for place in (key, "/")]
        found = next((one for one in told if one is not None), None)
        wavelengths = None if found is None else nanometres(path, found, "")
    no_data = (
        float(np.asarray(read("no_data")).ravel()[0])
        if math.prod(shapes.get("no_data", (0,))) == 1
        else None
    )
    good, bad = _named(_GOOD, shapes), None
    if good is not None and math.prod(shapes[good]) in shapes[key]:
        bad = np.asarray(read(good)).ravel() == 0
    mask = _mask(file, key)
    places = places_of(file, key)
    return Cube(values, wavelengths, no_data, key, bad=bad, places=places, mask=mask), 2


def _centres(wavelengths: np.ndarray) -> np.ndarray:
    """One wavelength for each band, where a file tells them for each column of the detector too."""
    if wavelengths.ndim != 2 or min(wavelengths.shape) == 1:
        return wavelengths.ravel()
    bands = int(np.argmax([np.ptp(wavelengths.mean(1 - axis)) for axis in (0, 1)]))
    return np.asarray(wavelengths.mean(1 - bands))


def _told(says: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Wavelengths that an attribute of an array (HICO) or of its file tells."""
    found = next((np.asarray(says[w]) for w in _WAVELENGTHS if w in says), np.zeros(0))
    fits = found.dtype.kind in "iuf" and found.ndim == 1 and found.size in shape
    return found.astype(np.float64) if fits else None


def _mask(file: Variables, key: str) -> np.ndarray | None:
    """The mask of valid pixels beside a cube, as outputs have it: one for all bands, or with the
    cube's axes.
    """
    name, shape = _named((MASK,), file.shapes), file.shapes[key]
    if name is None or file.shapes[name] not in (shape, shape[:2], shape[1:], shape[::2]):
        return None
    return np.asarray(file.read(name)) != 0


def _named(wanted: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The array of one of these names, in whatever group it lies."""
    return next((n for w in wanted for n in shapes if _last(n) == w), None)


def _last(name: str) -> str:
    """A name without its group."""
    return name.lower().rpartition("/")[2]


def _read_npy(path: Path, key: str | None) -> tuple[Cube, int]:
    if key is not None:
        raise InputError(f"{path} holds one array, which has no name; leave out --key")
    values = read_array(path, "cube")
    if values.ndim != 3:
        raise InputError(f"{path} has shape {values.shape}; a cube has three axes")
    return Cube(values), 2


def _read_mat(path: Path, key: str | None) -> tuple[Cube, int]:
    if is_hdf5(path):  # v7.3; MATLAB stores the axes in the opposite order
        return _read_hdf5(path, key, turned=True)
    content = Matlab(path)
    found: dict[str, np.ndarray] = {}  # of structs
    if all(len(shape) != 3 for shape in content.shapes.values()):
        for name in [n for n, shape in content.shapes.items() if math.prod(shape) == 1]:
            fields = content.read(name) if content.is_struct(name) else {}
            found |= {f"{name}/{k}": v for k, v in fields.items() if isinstance(v, np.ndarray)}
    shapes = content.shapes | {name: value.shape for name, value in found.items()}

    def read(name: str) -> np.ndarray:
        return found[name] if name in found else np.asarray(content.read(name))

    key = _choose(path, key, shapes)
    return _cube(path, read(key), key, Variables(shapes, read, _nothing))


def _read_any_hdf(path: Path, key: str | None) -> tuple[Cube, int]:
    """HDF 4, HDF 5 and all that is called NetCDF, by the file's first bytes."""
    head = head_of(path)
    if head == NETCDF5:
        refuse_netcdf5(path)
    if head in NETCDF3:
        with netcdf3(path) as file:
            cube, axis = _read_variables(path, key, file)
            return replace(cube, geo=_geo(file, cube, axis)), axis
    if head == HDF4:
        with hdf4(path) as file:
            # of scales HDF 4 says no more than that there are some
            return as_hyperion(path, *_read_variables(path, key, file, scaled=False))
    return _read_hdf5(path, key)


def _read_variables(
    path: Path, key: str | None, file: Variables, scaled: bool = True
) -> tuple[Cube, int]:
    key = _choose(path, key, file.shapes)
    stored, says = file.read(key), file.says(key)
    found = Meant(stored, next(iter(fills_of(says)), None))
    if scaled:
        found = meant(path, stored, says, path.suffix.lower() == NETCDF)
    cube, axis = _cube(path, found.values, key, file)
    if found.no_data is not None:
        cube = replace(cube, no_data=found.no_data)
    if found.valid is not None:
        cube = replace(cube, mask=_both(found.valid, cube.mask))
    named = [k for k, name in enumerate(file.axes(key)) if _BANDS.search(name)]
    return cube, named[0] if len(named) == 1 else axis


def _both(valid: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Entries of a cube that are valid by themselves and by a mask beside it."""
    if mask is None:
        return valid
    if mask.ndim == 3:
        return valid & mask
    missing = [k for k in range(3) if mask.shape == valid.shape[:k] + valid.shape[k + 1 :]]
    return valid & np.expand_dims(mask, missing[-1])


def _read_hdf5(path: Path, key: str | None, turned: bool = False) -> tuple[Cube, int]:
    import h5py

    with opened(path) as file:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str, item: Any) -> None:
            numeric = isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf"
            if numeric and item.shape is not None and not _is_mere_axis(item, path):
                shapes[name] = item.shape[::-1] if turned else item.shape

        if key is None and is_prisma(file):
            return read_prisma(path, file)
        names = []
        for name, item in _items(file):
            names.append(name)
            note(name, item)

        def read(name: str) -> np.ndarray:
            found: np.ndarray = dataset(file, name, path)[()]
            return found.transpose() if turned else found

        def axes(name: str) -> tuple[str, ...]:
            if turned or "DIMENSION_LIST" not in attributes(file[name], path):
                return ()
            return tuple(str(d[0].name) if len(d) else str(d.label) for d in file[name].dims)

        content = Variables(shapes, read, lambda name: attributes(file[name], path), names, axes)
        cube, axis = _read_variables(path, key, content)
        if is_neon(content, cube.key):
            return as_neon(content, cube), axis
        return replace(cube, geo=_geo(content, cube, axis)), axis


def _is_mere_axis(item: Any, path: Path) -> bool:
    """Whether an array only gives its name to an axis, as NetCDF writes such into HDF 5."""
    says = attributes(item, path)
    return "CLASS" in says and text(says.get("NAME", "")).startswith("This is a netCDF dimension")


def _geo(file: Variables, cube: Cube, axis: int) -> Tags:
    def size() -> tuple[int, int]:
        shape = cube.values.shape
        bands = axis if cube.wavelengths is None else band_axis_of(shape, len(cube.wavelengths))
        height, width = (n for k, n in enumerate(shape) if k != (axis if bands is None else bands))
        return height, width

    return grid_of(file, cube.key, size)


def band_axis_of(shape: tuple[int, ...], count: int) -> int | None:
    """The only axis as long as the wavelengths; None where several are, or none."""
    return shape.index(count) if shape.count(count) == 1 else None


def _items(group: Any, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """What a group of HDF5 and those in it hold, with names as paths; not what links lead to.

    HDF5's own walk (``visititems``) never ends on some damaged files; asked for the number of links
    it sees the damage.
    """
    import h5py

    if not len(group) or (place := h5py.h5o.get_info(group.id).addr) in seen:
        return  # seen: a group that holds itself
    for name in sorted(group):
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            item = group[name]
            yield name, item
            if isinstance(item, h5py.Group):
                yield from ((f"{name}/{k}", v) for k, v in _items(item, seen | {place}))


def _read_npz(path: Path, key: str | None) -> tuple[Cube, int]:
    with arrays_of(path) as arrays:
        key = _choose(path, key, arrays.shapes)
        return _cube(path, arrays.read(key), key, Variables(arrays.shapes, arrays.read, _nothing))


def _nothing(name: str) -> dict[str, Any]:
    """Attributes of an array in a file that knows none."""
    return {}
