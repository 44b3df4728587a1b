"""Cubes in TIFF files: a page for each band, or all of them as samples of one page (GeoTIFF)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.containers.tiff import (
    check_last_page,
    check_one_axis,
    lacks_codec,
    opened_tiff,
    place_of,
    planes_of,
)
from restoration.io.containers.validity import TRANSPARENCY, of_all, parted, valid_of
from restoration.io.cubes.cube import Cube, numbers
from restoration.io.cubes.georeference import GDAL, has_place, tags_of
from restoration.io.cubes.grids import tags_of_places
from restoration.io.cubes.products import enmap_wavelengths, told_wavelengths
from solvers.files import replace_file
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array
from solvers.inputs.strict_json import parse_object

ALPHA = (1, 2)  # what TIFF calls a sample that is opacity
MASK = 4  # NewSubfileType of a page that is the mask of another one


def read_tiff(path: Path, key: str | None) -> tuple[Cube, int]:
    """A cube as the file holds it, and which of its axes are bands. Tags of its georeference are
    kept as they are.

    Raises:
        InputError: damaged, or no cube in it.
        ResourceError: too large.
    """
    import tifffile

    with opened_tiff(path) as file:
        check_last_page(path, file)
        pages, masks = parted(list(file.pages))
        if not pages:
            raise InputError(f"{path} holds nothing but masks of valid pixels; bands are needed")
        first = pages[0]
        check_one_axis(path, file)
        if first.imagedepth > 1:
            raise InputError(
                f"{path} holds a volume of depth {first.imagedepth} in one page, which is not read;"
                " save one band per page"
            )
        if any(p.shape != first.shape or p.dtype != first.dtype for p in pages):
            raise InputError(f"{path}: its pages differ in size or type; bands must be alike")
        if len(first.shape) not in (2, 3) or (len(first.shape) == 3 and len(pages) > 1):
            raise InputError(
                f"{path}: {len(pages)} pages of shape {first.shape}; save one band per page, or all"
                " in one"
            )
        if first.dtype is None:
            raise InputError(f"{path} has values of no known type")
        planes = planes_of(file)
        check_array(path, (len(pages) * planes, *first.shape), first.dtype.itemsize)
        if planes > 1 and len(first.shape) == 2:
            values = file.series[0].asarray().reshape(planes, *first.shape)
        elif planes > 1:
            raise InputError(f"{path} holds {planes} pictures in colour; bands are needed")
        else:
            values = _values(path, pages)
        mask = valid_of(path, masks, (first.imagelength, first.imagewidth))
        planar = len(first.shape) == 2 or first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        note = _note(first.description)
        missing = first.tags.get(42113)  # GDAL_NODATA
        geo = place_of(first)
        words = str(first.tags[GDAL].value) if GDAL in first.tags else None
        # of GDAL, which knows bands that are masks; elsewhere it may be any band
        opacity = _opacity(first) if geo else None
    if opacity is not None:
        values, shown = _parted(values, 0 if planar else 2, opacity)
        mask = shown != 0 if mask is None else mask & (shown != 0)
        mask = None if mask.all() else mask
    bands = values.shape[0] if planar else values.shape[-1]
    if mask is not None and mask.ndim == 3:
        mask = mask[1:] if len(mask) == bands + 1 else mask  # the first one is of all of them
        mask = mask if planar else np.moveaxis(mask, 0, 2)
    wavelengths = np.asarray(note["wavelength_nm"], np.float64) if "wavelength_nm" in note else None
    if wavelengths is None and words is not None:
        wavelengths = told_wavelengths(path, words, bands)
    if wavelengths is None:
        wavelengths = enmap_wavelengths(path, bands)
    said = "" if opacity is None else f"band {opacity + 1} of {path} is opacity: taken for a mask"
    if wavelengths is None and len(first.shape) == 2 and len(values) > min(first.shape):
        said = (  # as programs write arrays whose last axis holds the bands
            f"{len(values)} pages of {path}, of {first.shape[0]} x {first.shape[1]} pixels, are"
            " taken for bands; if it is their last axis that holds the bands, give --band-axis 2"
        )
    no_data = note.get("no_data")
    if no_data is None and missing is not None:
        no_data = numbers(path, "GDAL_NODATA", str(missing.value).strip("\0 "))[0]
    good = note.get("good_bands")
    return Cube(
        values,
        wavelengths,
        None if no_data is None or math.isnan(no_data) else float(no_data),
        bad=None if good is None else np.asarray(good) == 0,
        geo=geo,
        words=words,
        mask=mask,
        note=said,
    ), (0 if planar else 2)


def _opacity(page: Any) -> int | None:
    """Which sample of a page is opacity, as the page says; None where none is, or several are."""
    extra = page.extrasamples
    found = [k for k, kind in enumerate(extra) if kind in ALPHA]
    if len(found) != 1 or len(page.shape) != 3:
        return None
    return int(page.samplesperpixel) - len(extra) + found[0]


def _parted(values: np.ndarray, axis: int, one: int) -> tuple[np.ndarray, np.ndarray]:
    """The bands but one, and that."""
    return np.delete(values, one, axis), np.take(values, one, axis)


def _values(path: Path, pages: list[Any]) -> np.ndarray:
    """As the first page has its axes; by rasterio where tifffile lacks the decoder."""
    try:
        if len(pages[0].shape) == 2:
            return np.stack([page.asarray() for page in pages])
        found: np.ndarray = pages[0].asarray()
        return found
    except (ValueError, ImportError) as error:
        if not (said := lacks_codec(path, pages[0], error)):
            raise
    try:
        rasterio = need("rasterio", "", "geo")
    except ImportError as error:
        raise InputError(f"{said}, or rasterio: pip install 'restobox[geo]'") from error
    if len(pages) > 1:
        raise InputError(f"{said}: pip install 'restobox[tiff]'")
    with rasterio.open(path) as source:
        values: np.ndarray = source.read()
    shape = pages[0].shape
    if len(shape) == 2:
        return values
    return values if values.shape == shape else np.moveaxis(values, 0, -1)


def write_tiff(path: Path, like: Cube, out: np.ndarray) -> None:
    """Write ``out (B, H, W)``: one page for each band; of a cube with a place, or with words of
    GDAL's, one page with all of them. A mask of valid pixels becomes a page of its own; masks of
    single bands follow the one of all of them.
    """
    import tifffile

    note: dict[str, Any] = {}
    if like.wavelengths is not None:
        note["wavelength_nm"] = np.asarray(like.wavelengths).tolist()
    if like.no_data is not None:
        note["no_data"] = float(like.no_data)
    if like.bad is not None:
        note["good_bands"] = (~like.bad).astype(int).tolist()
    options: dict[str, Any] = {
        "photometric": "minisblack",
        "metadata": None,
        "description": json.dumps(note),
    }
    geo = like.geo or (tags_of(like.header) if has_place(like.header) else ())
    if not geo and like.places is not None:
        geo = tags_of_places(*like.places)
    tags = [(*tag, True) for tag in geo]
    if like.words is not None:
        tags.append((GDAL, 2, len(like.words.encode()) + 1, like.words, True))
    one = bool(tags)  # page with all bands, as GDAL has it
    if one:
        if like.no_data is not None:
            text = f"{like.no_data:.17g}"
            tags.append((42113, 2, len(text) + 1, text, True))
        options |= {"extratags": tags, "planarconfig": "separate"}
    single = len(out) == 1
    pages = out[0] if one and single else out[:, None] if single else out
    options = {k: v for k, v in options.items() if not (single and k == "planarconfig")}

    def save(temporary: Path) -> None:
        with tifffile.TiffWriter(temporary, bigtiff=out.nbytes > 2**31) as file:
            file.write(pages, **options)
            masks = [] if like.mask is None else [of_all(like.mask)]  # which is all that GDAL reads
            masks += [] if like.mask is None or like.mask.ndim == 2 else list(like.mask)
            for mask in masks:
                file.write(mask, photometric=TRANSPARENCY, subfiletype=MASK, metadata=None)

    replace_file(path, save)


def _note(description: str) -> dict[str, Any]:
    try:
        return parse_object(description, "description")
    except InputError:
        return {}
