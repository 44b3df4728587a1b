"""Products of imaging spectrometers, by their public descriptions: what is special about PRISMA,
EnMAP, DESIS, NEON and Hyperion. EMIT and AVIRIS follow the rules of NetCDF and ENVI.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import attributes, dataset
from restoration.io.containers.variables import Variables
from restoration.io.cubes.cube import Cube
from restoration.io.cubes.grids import prisma_grid, text
from restoration.io.cubes.wavelengths import nanometres
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

SWATHS = "HDFEOS/SWATHS"
HYPERION_BANDS = 242
BAND = re.compile(r"_B(\d{3})(?=[_.])", re.IGNORECASE)


# -- PRISMA ----------------------------------------------------------------------------------------


def is_prisma(file: Any) -> bool:
    """Whether an HDF5 file holds both cubes of PRISMA."""
    return _prisma_fields(file) is not None and "List_Cw_Vnir" in file.attrs


def _prisma_fields(file: Any) -> str | None:
    swaths = file.get(SWATHS)
    for name in swaths if hasattr(swaths, "keys") else ():
        place = f"{SWATHS}/{name}/Data Fields"
        if f"{place}/VNIR_Cube" in file and f"{place}/SWIR_Cube" in file:
            return place
    return None


def read_prisma(path: Path, file: Any) -> tuple[Cube, int]:
    """Both cubes as one of growing wavelengths, in radiance (L1) or reflectance (L2), float32.

    They lie as (rows, bands, columns) of numbers from 0 to 65535; each has its own scale. Bands
    whose flag is 0 hold nothing.

    Reference: ASI, PRISMA Products Specification, issue 2.3.
    """
    place, says = _prisma_fields(file), attributes(file, path)
    parts, waves, good = [], [], []
    for name in ("Vnir", "Swir"):
        key = f"{place}/{name.upper()}_Cube"
        stored = dataset(file, key, path)
        if stored.ndim != 3:
            raise InputError(f"{path}: {key} has shape {stored.shape}; three axes are expected")
        check_array(f"{path}: {key}", stored.shape, 8)
        wave = np.ravel(says[f"List_Cw_{name}"]).astype(float)
        if len(wave) != stored.shape[1]:
            raise InputError(
                f"{path}: {key} has {stored.shape[1]} bands, but List_Cw_{name} {len(wave)}"
            )
        flags = np.ravel(says.get(f"List_Cw_{name}_Flags", np.ones(len(wave))))
        values = stored[()].astype(np.float32)
        if f"L2Scale{name}Min" in says:
            low, high = (float(says[f"L2Scale{name}{end}"]) for end in ("Min", "Max"))
            values = low + values * ((high - low) / 65535)
        elif f"ScaleFactor_{name}" in says:
            values = values / float(says[f"ScaleFactor_{name}"])
            values -= float(says.get(f"Offset_{name}", 0.0))
        parts.append(values)
        waves.append(wave)
        good.append((flags != 0) & (wave > 0))
    wave, keep = np.concatenate(waves), np.concatenate(good)
    order = np.argsort(wave, kind="stable")
    values = np.concatenate(parts, 1)[:, order]
    wave, keep = wave[order], keep[order]
    # unused bands state a wavelength of 0
    wave = np.where(wave > 0, wave, np.nan)
    if np.isnan(wave).any() and keep.any():
        first = float(wave[keep][0])
        wave = np.where(np.isnan(wave), first, wave)
    bad = None if keep.all() else ~keep
    size = values.shape[0], values.shape[2]
    geo = prisma_grid(says, size)
    return Cube(
        values.astype(np.float32),
        wave,
        key="cube",
        bad=bad,
        geo=geo,
        places=None if geo else _prisma_places(path, file, place, size),
    ), 1


def _prisma_places(
    path: Path, file: Any, place: str | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Latitude and longitude, which the first detector's pixels stand for."""
    found = []
    for name in ("Latitude", "Longitude"):
        keys = [
            f"{str(place).rpartition('/')[0]}/Geolocation Fields/{name}{end}"
            for end in ("", "_VNIR")
        ]
        key = next((k for k in keys if k in file), None)
        if key is None or file[key].shape != size:
            return None
        found.append(np.asarray(dataset(file, key, path)[()], np.float64))
    return found[0], found[1]


# -- EnMAP, and what GDAL writes -------------------------------------------------------------------


def enmap_wavelengths(path: Path, bands: int) -> np.ndarray | None:
    """Centres in nanometres by the METADATA.XML beside a picture of EnMAP or DESIS; None where
    there is none.

    Reference: DLR, EnMAP HSI Level 1B/1C/2A Product Specification; DESIS Product Guide.
    """
    name = re.sub(r"SPECTRAL_IMAGE(_VNIR|_SWIR|_COG)*$", "METADATA", path.stem)
    places = (path.with_name(name + ending) for ending in (".XML", ".xml"))
    beside = next((place for place in places if place.is_file()), None)
    if name == path.stem or beside is None or beside.stat().st_size > 64_000_000:
        return None
    text = beside.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"<wavelengthCenterOfBand>\s*([\d.eE+-]+)\s*<", text)
    if len(found) != bands:
        raise InputError(
            f"{path} has {bands} bands, but {beside.name} tells {len(found)} wavelengths; they"
            " belong to different products"
        )
    return np.array([float(v) for v in found])


def told_wavelengths(path: Path, words: str, bands: int) -> np.ndarray | None:
    """Nanometres ``(bands,)`` by a TIFF's GDAL_METADATA (``wavelength`` or
    ``CENTRAL_WAVELENGTH_UM`` of each band); None where it doesn't tell.

    Raises:
        InputError: a unit that is not known.
    """
    found = np.full(bands, np.nan)
    said = re.search(r'<Item name="wavelength_units?"[^>]*>\s*([^<]*?)\s*<', words, re.IGNORECASE)
    unit = "" if said is None else said[1]
    for item in re.finditer(r"<Item ([^>]*)>\s*([\d.eE+-]+)\s*<", words):
        says = dict(re.findall(r'(\w+)="([^"]*)"', item[1]))
        name, sample = says.get("name", "").lower(), says.get("sample", "")
        if name not in ("wavelength", "central_wavelength_um") or not sample.isdigit():
            continue
        unit = unit if name == "wavelength" else "um"
        if int(sample) < bands:
            found[int(sample)] = float(item[2])
    return None if np.isnan(found).any() else nanometres(path, found, unit)


# -- NEON ------------------------------------------------------------------------------------------


def is_neon(file: Variables, key: str) -> bool:
    """Whether an array of HDF5 is the reflectance of NEON's airborne spectrometer."""
    return f"{key.rpartition('/')[0]}/Metadata/Coordinate_System/Map_Info" in file.names


def as_neon(file: Variables, cube: Cube) -> Cube:
    """With its place, which is said in ENVI's words, and the windows of bands in which water vapour
    leaves nothing to measure.

    Reference: NEON.DOC.001288, NEON imaging spectrometer radiance to reflectance ATBD, and the
    attributes of the product DP3.30006.001.
    """
    group = cube.key.rpartition("/")[0]
    place = f"{group}/Metadata/Coordinate_System"
    words = {"map info": "Map_Info", "coordinate system string": "Coordinate_System_String"}
    header = {
        field: text(file.read(f"{place}/{name}"))
        for field, name in words.items()
        if f"{place}/{name}" in file.names
    }
    wave, bad, says = cube.wavelengths, cube.bad, file.says(group)
    for k in (1, 2):
        window = np.ravel(says.get(f"Band_Window_{k}_Nanometers", ()))
        if wave is not None and window.size == 2:
            inside = (wave >= window[0]) & (wave <= window[1])
            bad = inside if bad is None else bad | inside
    return replace(cube, header=header, bad=bad)


# -- Hyperion --------------------------------------------------------------------------------------


def hyperion_wavelengths(band: np.ndarray) -> np.ndarray:
    """Nanometres of bands counted from 1: those of each detector lie evenly.

    Reference: USGS, EO-1 Hyperion spectral coverage (band 8: 426.82, 57: 925.41, 77: 912.45, 224:
    2395.50).
    """
    visible = 426.82 + (band - 8) * (925.41 - 426.82) / 49
    infrared = 912.45 + (band - 77) * (2395.50 - 912.45) / 147
    return np.where(band <= 70, visible, infrared)


def hyperion_bad(band: np.ndarray) -> np.ndarray:
    """Bands that are not calibrated and hold zeros: 1 to 7, 58 to 76, 225 to 242."""
    return (band < 8) | ((band > 57) & (band < 77)) | (band > 224)


def as_hyperion(path: Path, cube: Cube, axis: int) -> tuple[Cube, int]:
    """A cube of Hyperion's L1R product: 242 bands between lines and samples, as their numbers say.
    Others stay as they are.
    """
    named = path.name.upper().startswith("EO1H") or cube.key.upper().startswith("EO1H")
    if not named or cube.wavelengths is not None or cube.values.shape.count(HYPERION_BANDS) != 1:
        return cube, axis
    band = np.arange(1, HYPERION_BANDS + 1)
    known = replace(cube, wavelengths=hyperion_wavelengths(band), bad=hyperion_bad(band))
    return known, cube.values.shape.index(HYPERION_BANDS)


def band_files(folder: Path) -> list[Path]:
    """The TIFF files of a folder that hold one band each, by the numbers in their names (``..._B001
    ...``).

    Raises:
        InputError: none, or two of one number.
    """
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = BAND.search(file.name)
        if match is None or file.suffix.lower() not in (".tif", ".tiff"):
            continue
        if int(match[1]) in found:
            raise InputError(
                f"{folder} holds band {int(match[1])} twice: {found[int(match[1])].name} and"
                f" {file.name}; leave one scene in it"
            )
        found[int(match[1])] = file
    if not found:
        raise InputError(
            f"{folder} holds no bands; a folder of TIFF files with their numbers in their names"
            " (..._B001_...) is accepted"
        )
    return [found[k] for k in sorted(found)]
