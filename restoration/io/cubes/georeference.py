"""Where a cube lies on the ground: tags of a TIFF, fields of an ENVI header, and the one from the
other by GDAL (rasterio, in the extra ``geo``). Between files of one kind they are kept as they are.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.containers.tiff import place_of
from restoration.io.cubes.envi import read_header
from solvers.inputs.errors import InputError

GDAL = 42112  # GDAL_METADATA
FIELDS = ("map info", "coordinate system string", "projection info")
TINY = 2  # pixels a side of the pictures that GDAL is shown


def has_place(header: dict[str, str]) -> bool:
    """Whether an ENVI header says where the cube lies."""
    return bool(header.get("map info"))


def tags_of(header: dict[str, str]) -> tuple[tuple[int, int, int, Any], ...]:
    """Tags of a TIFF that say what an ENVI header says.

    Raises:
        InputError: fields that GDAL can't read.
        ImportError: rasterio is missing.
    """
    with _folder() as (rasterio, folder):
        text = f"ENVI\nsamples = {TINY}\nlines = {TINY}\nbands = 1\ndata type = 1\n"
        text += "header offset = 0\ninterleave = bsq\nbyte order = 0\n"
        text += "".join(f"{n} = {{{header[n]}}}\n" for n in FIELDS if header.get(n))
        (folder / "a.hdr").write_text(text, encoding="utf-8")
        (folder / "a.raw").write_bytes(bytes(TINY * TINY))
        with rasterio.open(folder / "a.raw") as source:
            crs, transform = source.crs, source.transform
        if crs is None or transform.is_identity:
            raise InputError(
                f"the header's map info {{{header['map info'][:80]}}} names no known projection;"
                " write .hdr, which keeps it as it is, or correct it"
            )
        return _tags(rasterio, folder, crs, transform)


def tags_of_crs(
    words: str, transform: tuple[float, float, float, float, float, float]
) -> tuple[tuple[int, int, int, Any], ...]:
    """Tags of a TIFF for a grid in a system that is described in WKT.

    Args:
        transform: x, its steps along columns and rows, y and its steps, as GDAL has them.

    Raises:
        ImportError: rasterio is missing.
    """
    with _folder() as (rasterio, folder):
        crs = rasterio.crs.CRS.from_wkt(words)
        return _tags(rasterio, folder, crs, rasterio.transform.Affine.from_gdal(*transform))


def _tags(
    rasterio: Any, folder: Path, crs: Any, transform: Any
) -> tuple[tuple[int, int, int, Any], ...]:
    import tifffile

    _write(rasterio, folder / "b.tif", "GTiff", crs, transform)
    with tifffile.TiffFile(folder / "b.tif") as file:
        page: Any = file.pages.first
        return place_of(page)


def fields_of(tags: Sequence[tuple[int, int, int, Any]]) -> dict[str, str]:
    """Fields of an ENVI header that say what a TIFF's tags say; none where they name no place.

    Raises:
        ImportError: rasterio is missing.
    """
    with _folder() as (rasterio, folder):
        if (place := _place(rasterio, folder, tags)) is None:
            return {}
        _write(rasterio, folder / "b.raw", "ENVI", *place)
        header = read_header(folder / "b.hdr")
    return {name: header[name] for name in FIELDS if name in header}


def mapping_of(tags: Sequence[tuple[int, int, int, Any]]) -> dict[str, str]:
    """Attributes of a NetCDF variable that say what a TIFF's tags say; none where they name no
    place.

    Raises:
        ImportError: rasterio is missing.
    """
    with _folder() as (rasterio, folder):
        place = _place(rasterio, folder, tags)
    if place is None:
        return {}
    crs, transform = place
    words = crs.to_wkt()
    numbers = " ".join(f"{v:.17g}" for v in transform.to_gdal())
    return {"spatial_ref": words, "crs_wkt": words, "GeoTransform": numbers}


def _place(rasterio: Any, folder: Path, tags: Sequence[tuple[int, int, int, Any]]) -> Any:
    """Reference system and transform; None where the tags name no place."""
    import tifffile

    pixels = np.zeros((TINY, TINY), np.uint8)
    extra = [(*tag, True) for tag in tags]
    tifffile.imwrite(folder / "a.tif", pixels, metadata=None, extratags=extra)
    with rasterio.open(folder / "a.tif") as source:
        named = source.crs is not None and not source.transform.is_identity
        return (source.crs, source.transform) if named else None


def _write(rasterio: Any, path: Path, driver: str, crs: Any, transform: Any) -> None:
    size = {"width": TINY, "height": TINY, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver=driver, crs=crs, transform=transform, **size) as target:
        target.write(np.zeros((1, TINY, TINY), np.uint8))


@contextmanager
def _folder() -> Iterator[tuple[Any, Path]]:
    rasterio = need("rasterio", "georeferences from one format to another", "geo")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a picture has no place is told by its fields
        yield rasterio, Path(folder)
