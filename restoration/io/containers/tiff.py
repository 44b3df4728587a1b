"""TIFF files, opened so that their pages can be counted; where their pictures lie on the ground."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from solvers.inputs.errors import InputError

Tags = tuple[tuple[int, int, int, Any], ...]  # code, type, count, value
# pixel scale, tie points, transformation, keys, and their numbers and words; a camera's model, as
# quotients of polynomials
SCALE, TIES, MATRIX, KEYS, MODEL = 33550, 33922, 34264, 34735, 50844
PLACE = (SCALE, TIES, MATRIX, KEYS, 34736, 34737, MODEL)
NO_DATA = 42113  # GDAL's tag


@contextlib.contextmanager
def opened_tiff(path: str | Path) -> Iterator[Any]:
    """A ``tifffile.TiffFile`` whose pages have an end: each names the next one, and in a damaged
    file they may go round for ever.

    Raises:
        InputError: they do.
        tifffile.TiffFileError, OSError: no TIFF.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        seen: set[int] = set()
        for page in file.pages:
            if page.offset in seen:
                raise InputError(
                    f"{path} is damaged: after {len(seen)} pages it names one of them as the next;"
                    " copy or make it again"
                )
            seen.add(page.offset)
        yield file


def lacks_codec(path: str | Path, page: Any, error: Exception) -> str:
    """What to say where tifffile raised this because a page's compression needs imagecodecs (of
    some it has a stand-in that only later versions of Python bring); nothing where it is another
    error.
    """
    import tifffile

    if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
        return ""
    name = tifffile.COMPRESSION(page.compression).name
    return f"{path}: compression {name} needs the package imagecodecs"


def check_last_page(path: str | Path, file: Any) -> None:
    """Refuse a file whose last page names another one, which isn't there: tifffile stops there as
    if it were the end.

    Args:
        file: as :func:`opened_tiff` gives it.

    Raises:
        InputError: it was cut short.
    """
    form, handle, last = file.tiff, file.filehandle, len(file.pages)
    handle.seek(file.pages[-1].offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    handle.seek(count * form.tagsize, 1)
    following = struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0]
    if following:
        raise InputError(
            f"{path} was cut short or is damaged: after page {last}, another should lie at byte"
            f" {following} of {handle.size}; copy or save it again"
        )


def planes_of(file: Any) -> int:
    """How many planes the values of a file's only page go on for: programs describe large stacks
    by their first page alone (ImageJ). 1 where there are more pages, or no more values.

    Args:
        file: as :func:`opened_tiff` gives it.
    """
    if len(file.pages) != 1 or not (file.is_imagej or file.is_shaped or file.is_stk):
        return 1
    page = file.pages.first
    return int(file.series[0].size // page.size) if page.size else 1


def check_one_axis(path: str | Path, file: Any) -> None:
    """Refuse stacks along several axes (channels, slices, moments), by what ImageJ and OME say.

    Raises:
        InputError: it is one.
    """
    words = str(file.pages.first.description or "")
    if file.is_imagej:
        found = re.findall(r"^(channels|slices|frames)=(\d+)", words, re.MULTILINE)
    elif file.is_ome:
        one = words.partition("</Image>")[0]
        found = re.findall(r'\bSize([CZT])="(\d+)"', one)
    else:
        return
    long = [f"{count} {name}" for name, count in found if int(count) > 1]
    if len(long) > 1:
        raise InputError(
            f"{path} is a stack along several axes ({', '.join(long)}); write one of them with all"
            " its planes to a file of its own"
        )


def place_of(page: Any) -> Tags:
    """The tags of a page that say where it lies (GeoTIFF 1.1)."""
    return tuple((t.code, int(t.dtype), t.count, t.value) for t in page.tags if t.code in PLACE)


def resized(place: Tags, rows: float, columns: float) -> Tags:
    """The same place of a picture with ``rows`` and ``columns`` times as many pixels."""
    found = {code: value for code, _, _, value in place}
    keys = np.ravel(found.get(KEYS, ())).reshape(-1, 4)
    # numbers of pixels stand for their middle or for their corner
    middle = 0.5 if any(key[0] == 1025 and key[3] == 2 for key in keys) else 0.0
    if SCALE in found:
        x, y, z = found[SCALE]
        found[SCALE] = (x / columns, y / rows, z)
    if TIES in found:
        points = np.array(found[TIES], float).reshape(-1, 6)
        points[:, :2] = (points[:, :2] + middle) * (columns, rows) - middle
        found[TIES] = tuple(points.ravel().tolist())
    if MATRIX in found:
        matrix = np.array(found[MATRIX], float).reshape(4, 4)
        shrunk = np.diag([1 / columns, 1 / rows, 1.0, 1.0])
        shrunk[:2, 3] = middle / columns - middle, middle / rows - middle
        found[MATRIX] = tuple((matrix @ shrunk).ravel().tolist())
    if MODEL in found:  # offset and scale of lines and samples, which are counted at their middles
        numbers = list(found[MODEL])
        for offset, scale, times in ((2, 7, rows), (3, 8, columns)):
            numbers[offset] = (numbers[offset] + 0.5) * times - 0.5
            numbers[scale] *= times
        found[MODEL] = tuple(numbers)
    return tuple((code, kind, count, found[code]) for code, kind, count, _ in place)
