"""Hyperspectral cubes: ENVI, MATLAB (v5, v7.3), NumPy, HDF5 and multi-page TIFF; wavelengths kept, sizes checked before reading."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from restoration.io.envi import interleave_of, open_raw, read_header, write_envi
from restoration.io.images import replace_file

SUFFIXES = (".hdr", ".mat", ".npz", ".h5", ".hdf5", ".tif", ".tiff")
MAX_VALUES = 2_000_000_000  # of formats that are read whole
_WAVELENGTHS = ("wavelength_nm", "wavelengths", "wavelength", "wavelength_nm_approx", "lambda", "wl", "wvl")
_UNITS = {"nanometers": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1e3, "micrometer": 1e3, "microns": 1e3, "um": 1e3}


@dataclass(frozen=True, eq=False)
class Cube:
    """A cube as stored.

    Attributes:
        values: ``(B, H, W)`` in the file's own units; a read-only memory map for ENVI.
        wavelengths: ``(B,)`` in nanometres in the order of the bands (which need not be sorted), or None.
        no_data: the value that marks missing entries, or None. NaN and infinite entries are missing too.
        key: name of the array in the file (.mat, .npz, .h5), else "".
        header: fields of an ENVI header, else empty.
    """

    values: np.ndarray
    wavelengths: np.ndarray | None = None
    no_data: float | None = None
    key: str = ""
    header: dict[str, str] = field(default_factory=dict)

    def valid(self, rows: slice = slice(None)) -> np.ndarray:
        """Bool ``(B, h, W)`` of some rows: where the cube holds data."""
        block = self.values[:, rows]
        valid = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
        return valid if self.no_data is None else valid & (block != self.no_data)


def read_cube(path: str | Path, key: str | None = None, band_axis: int | None = None, max_values: int = MAX_VALUES) -> Cube:
    """Read a cube by its file's suffix (``.hdr`` for ENVI).

    Args:
        key: which array of a .mat, .npz or .h5 file; needed where it holds several three-dimensional ones.
        band_axis: which axis of that array (as MATLAB shows it, for .mat) holds the bands. By default the only one as long as the file's
            wavelengths, else the last one; pages of a TIFF are bands.
        max_values: most entries that are read into memory.

    Raises:
        FileNotFoundError: no such file, or no raw file beside an ENVI header.
        ValueError: another format, damaged, too large, no cube in it, or wavelengths that don't fit the bands.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: cubes end in one of {', '.join(SUFFIXES)} (for ENVI give the .hdr file)")
    if not path.is_file():
        raise FileNotFoundError(f"cube {path} does not exist")
    if suffix == ".hdr":
        return _read_envi(path)
    reader = {".mat": _read_mat, ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5}.get(suffix, _read_tiff)
    try:
        cube, axis = reader(path, key, max_values)
    except (OSError, KeyError, EOFError, struct.error, zipfile.BadZipFile, TypeError, NotImplementedError, IndexError) as error:
        raise ValueError(f"{path} can't be read: {(str(error).splitlines() or ['damaged'])[0]}") from error
    if cube.values.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds values of type {cube.values.dtype}; integers and real numbers are accepted")
    if band_axis is not None:
        if not -3 <= band_axis < 3:
            raise ValueError(f"band_axis must be 0, 1 or 2; got {band_axis}")
        axis = band_axis
    elif cube.wavelengths is not None and cube.values.shape.count(len(cube.wavelengths)) == 1:
        axis = cube.values.shape.index(len(cube.wavelengths))
    values = np.moveaxis(cube.values, axis, 0)
    if cube.wavelengths is not None and len(cube.wavelengths) != values.shape[0]:
        raise ValueError(f"{path} has {values.shape[0]} bands but {len(cube.wavelengths)} wavelengths")
    return Cube(values, cube.wavelengths, cube.no_data, cube.key)


def write_cube(path: str | Path, like: Cube, rows: Callable[[slice], np.ndarray], block: int = 64) -> None:
    """Write a cube of the shape, type, wavelengths and missing entries of ``like``; the suffix gives the format.

    Args:
        like: what the new values replace. Entries that it lacks keep what they hold there, to the bit.
        rows: called with slices of rows, gives the new ``(B, h, W)`` values of them. Integer types are rounded and clipped to the type.
        block: rows at a time.

    Raises:
        ValueError: unknown suffix, or ENVI would overwrite the raw file that ``like`` is mapped from.
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
                top_value = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
                new = np.minimum(new, top_value)
            out[:, part] = np.where(like.valid(part), new.astype(dtype), like.values[:, part])

    if path.suffix.lower() == ".hdr":
        return write_envi(path, _header(like), shape, dtype, fill)
    out = np.empty(shape, dtype)
    fill(out)
    key, last = like.key or "cube", np.ascontiguousarray(out.transpose(1, 2, 0))
    extra = {} if like.wavelengths is None else {"wavelength_nm": np.asarray(like.wavelengths)}
    extra |= {} if like.no_data is None else {"no_data": np.asarray(float(like.no_data))}
    suffix = path.suffix.lower()
    if suffix == ".mat":
        from scipy.io import savemat

        if last.nbytes >= 2**31:
            raise ValueError("MATLAB v5 files hold arrays of less than 2 GiB; write .h5 or .hdr")
        replace_file(path, lambda p: savemat(p, {key: last, **extra}, appendmat=False, do_compression=True))
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

        note = {} if like.wavelengths is None else {"wavelength_nm": [float(v) for v in like.wavelengths]}
        note |= {} if like.no_data is None else {"no_data": float(like.no_data)}
        options = {"photometric": "minisblack", "metadata": None, "description": json.dumps(note), "bigtiff": out.nbytes > 2**31}
        replace_file(path, lambda p: tifffile.imwrite(p, out[:, None] if len(out) == 1 else out, **options))


def check_cube_writable(path: str | Path, like: Cube) -> None:
    """Raise before any work is done if ``like`` can't be written to ``path``.

    Raises:
        ValueError: unknown suffix, or the place of the raw file that ``like`` is mapped from.
        OSError: no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output {path} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the output does not exist")
    mapped = getattr(_base(like.values), "filename", None)
    if mapped is not None and path.suffix.lower() == ".hdr" and path.with_suffix(".raw").absolute() == Path(mapped).absolute():
        raise ValueError(f"output {path} would overwrite the cube that is read; give another name")


def _base(values: np.ndarray):
    while not isinstance(values, np.memmap) and isinstance(values.base, np.ndarray):
        values = values.base
    return values


# -- ENVI -----------------------------------------------------------------------------------------------------------


def _read_envi(path: Path) -> Cube:
    header = read_header(path)
    values = open_raw(path, header)
    wavelengths = None
    if "wavelength" in header:
        wavelengths = _numbers(path, "wavelength", header["wavelength"])
        if len(wavelengths) != len(values):
            raise ValueError(f"{path} has {len(values)} bands but {len(wavelengths)} wavelengths")
        scale = _UNITS.get(header.get("wavelength units", "").strip().lower())
        # without a unit: nothing below 50 is a wavelength in nanometres
        wavelengths = wavelengths * (scale if scale else 1e3 if wavelengths.max() < 50 else 1.0)
    text = header.get("data ignore value")
    no_data = None if text in (None, "") else float(_numbers(path, "data ignore value", text)[0])
    return Cube(values, wavelengths, None if no_data is not None and math.isnan(no_data) else no_data, header=header)


def _header(like: Cube) -> dict[str, str]:
    header = dict(like.header)
    if like.wavelengths is not None and "wavelength" not in header:
        header |= {"wavelength": ", ".join(f"{v:g}" for v in like.wavelengths), "wavelength units": "Nanometers"}
    if like.no_data is not None and "data ignore value" not in header:
        header["data ignore value"] = f"{like.no_data:.17g}"
    if header:
        interleave_of(Path("header"), {"interleave": "bsq"} | header)
    return header


def _numbers(path: Path, name: str, text: str) -> np.ndarray:
    try:
        return np.array([float(v) for v in text.replace("\n", " ").split(",") if v.strip()] or [float("x")])
    except ValueError as error:
        raise ValueError(f"{path}: {name} must be numbers separated by commas; got {text[:60]!r}") from error


# -- arrays in containers ---------------------------------------------------------------------------------------------


def _choose(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]], max_values: int) -> str:
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
        raise ValueError(f"{path} has no three-dimensional array {key!r}; it has {', '.join(cubes) or 'none'}")
    _check_size(path, shapes[key], max_values)
    return key


def _check_size(path: Path, shape: tuple[int, ...], max_values: int) -> None:
    if min(shape) < 1 or math.prod(shape) > max_values:
        raise ValueError(f"{path} has shape {shape}; from 1 to {max_values:,} values are accepted (memory-map larger cubes as ENVI)")


def _cube(path: Path, values: np.ndarray, key: str, shapes: dict, read: Callable[[str], np.ndarray]) -> tuple[Cube, int]:
    name = next((n for wanted in _WAVELENGTHS for n in shapes if n.lower() == wanted), None)
    wavelengths = None
    if name is not None and math.prod(shapes[name]) <= 100_000:
        wavelengths = np.asarray(read(name), np.float64).ravel()
        wavelengths = wavelengths * 1e3 if wavelengths.size and wavelengths.max() < 50 else wavelengths
    no_data = float(np.asarray(read("no_data")).ravel()[0]) if math.prod(shapes.get("no_data", (0,))) == 1 else None
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
        return _cube(path, loadmat(path, variable_names=[key])[key], key, shapes, lambda n: loadmat(path, variable_names=[n])[n])
    except (MatReadError, ValueError, OSError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no readable MATLAB file: {error}") from error


def _read_hdf5(path: Path, key: str | None, max_values: int, turned: bool = False) -> tuple[Cube, int]:
    import h5py

    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
                shapes[name] = item.shape[::-1] if turned else item.shape

        file.visititems(note)
        key = _choose(path, key, shapes, max_values)
        values = file[key][()]
        return _cube(path, values.transpose() if turned else values, key, shapes, lambda n: file[n][()])


def _read_npz(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shapes[name[:-4]] = read(file)[0]
    key = _choose(path, key, shapes, max_values)
    with np.load(path, allow_pickle=False) as file:
        return _cube(path, file[key], key, shapes, lambda n: file[n])


def _read_tiff(path: Path, key: str | None, max_values: int) -> tuple[Cube, int]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages = list(file.pages)
            first = pages[0]
            if any(p.shape != first.shape or p.dtype != first.dtype for p in pages):
                raise ValueError(f"{path}: its pages differ in size or type; bands must be alike")
            _check_size(path, (len(pages), *first.shape), max_values)
            if len(first.shape) == 3 and len(pages) > 1:
                raise ValueError(f"{path}: several pages of several channels each; save one band per page")
            values = np.stack([p.asarray() for p in pages]) if len(first.shape) == 2 else first.asarray()
            planar = len(first.shape) == 2 or first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            note = _note(first.description)
            bad = file.pages[0].tags.get(42113)  # GDAL_NODATA
    except tifffile.TiffFileError as error:
        raise ValueError(f"{path} is no readable TIFF file: {error}") from error
    wavelengths = np.asarray(note["wavelength_nm"], np.float64) if "wavelength_nm" in note else None
    no_data = note.get("no_data")
    if no_data is None and bad is not None:
        no_data = _numbers(path, "GDAL_NODATA", str(bad.value).strip("\0 "))[0]
    return Cube(values, wavelengths, None if no_data is None or math.isnan(no_data) else float(no_data)), 0 if planar else 2


def _note(description: str) -> dict:
    try:
        content = json.loads(description)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
