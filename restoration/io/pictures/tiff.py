"""TIFF pictures that Pillow cuts or doesn't read: grey and RGB of more than 8 bits, floats."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from restoration.io.containers.tiff import (
    NO_DATA,
    Tags,
    lacks_codec,
    opened_tiff,
    place_of,
    planes_of,
)
from restoration.io.containers.validity import of_all, parted, valid_of
from restoration.io.pictures.notes import ORIENTATION, Notes, exif_of_tiff, notes_of, notes_of_tags
from restoration.io.pictures.values import check_size, opened, unit, without_padding
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

DNG = 50706  # the tag of its version
MINISWHITE, PALETTE = 0, 3
ASSOCIATED = 1  # an extra sample that the colours were multiplied by
PLAIN = ("I;16", "I;16L", "I;16B")  # greys of 16 bits, as Pillow calls them
UNKNOWN = (33003, 33005, 34712, 34887, 50001, 50002)  # JPEG 2000, LERC, WebP, JPEG XL
DEPTHS = {2**n for n in range(9, 17)}


def decode(
    path: Path, max_pixels: int, last: bool = False
) -> tuple[np.ndarray, int, int, Notes] | None:
    """Values ``(H, W, C)`` in [0, 1], bits, orientation and notes; None for what Pillow reads.

    Args:
        last: Pillow doesn't read it.

    Raises:
        InputError: several pages, or a kind of pixels that is not accepted.
    """
    import tifffile

    with opened_tiff(path) as file:
        page = _picture(path, file)
        kinds = tifffile.PHOTOMETRIC
        known = page.photometric in (kinds.MINISBLACK, kinds.MINISWHITE, kinds.RGB)
        bits, simple = page.bitspersample, page.compression in (1, 8, 32946)  # without a codec
        # signed numbers, floats, and a channel of no known meaning, which Pillow drops
        odd = page.sampleformat in (2, 3) or (simple and bits == 8 and page.extrasamples == (0,))
        # what Pillow doesn't know: alpha in a plane of its own, and codecs
        apart = page.planarconfig == 2 and bool(page.extrasamples)
        odd = odd or (bits == 8 and (apart or page.compression in UNKNOWN))
        if not known or not (8 < bits <= 16 or odd or (last and bits == 8)):
            if last:
                raise InputError(_strange(path, page))
            return None
        check_size(path, page.imagewidth, page.imagelength, max_pixels)
        check_array(path, page.shape, 4)
        array = _packed(path, page, bits) if 8 < bits < 16 else _page(path, page)
        if array.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            array = np.moveaxis(array, 0, -1)
        array = array.reshape(page.imagelength, page.imagewidth, -1)
        colours = 3 if page.photometric == kinds.RGB else 1
        if array.shape[2] > colours + 1 or array.shape[2] < colours:
            raise InputError(_strange(path, page))
        values = unit(path, array, _white(page, array, bits))
        if page.photometric == kinds.MINISWHITE:
            values[..., :1] = 1 - values[..., :1]
        if array.shape[2] == colours + 1 and page.extrasamples[:1] == (ASSOCIATED,):
            values[..., :-1] /= np.maximum(values[..., -1:], 1e-6)
            values = values.clip(0, 1)
        elif array.shape[2] == colours + 1 and page.extrasamples[:1] in ((), (0,)):
            values = without_padding(values, colours)
        tag = page.tags.get(ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
        words = {tag.code: tag.value for tag in page.tags}
    depth = 32 if array.dtype.kind == "f" else 8 if bits == 8 else 16
    return values, depth, orientation, _notes(path, words).of_channels(values.shape[2])


def is_raw(path: Path) -> bool:
    """Whether a file that is built like a TIFF is a camera's, whatever its name: DNG, or a small
    picture before what the sensor saw.
    """
    with opened_tiff(path) as file:
        page: Any = file.pages.first
        return DNG in page.tags or bool(page.is_reduced and page.subifds)


def is_dng(path: Path) -> bool:
    """Whether it says its numbers of black and white itself."""
    with opened_tiff(path) as file:
        return DNG in file.pages.first.tags


def index_of(path: Path) -> int:
    """Which page of a TIFF is its one picture, the others being overviews and masks.

    Raises:
        InputError: there are several pictures.
    """
    with opened_tiff(path) as file:
        page = _picture(path, file)
        return [p.offset for p in file.pages].index(page.offset)


def ground(path: Path, values: np.ndarray) -> tuple[np.ndarray | None, Tags]:
    """What GDAL keeps of a picture ``values (H, W, C)``: bool ``(H, W)``, where a page that is a
    mask, or else the number of no data, says that pixels hold something (None: all do); and the
    tags of its place.
    """
    with opened_tiff(path) as file:
        page, masks = _picture(path, file), parted(list(file.pages))[1]
        found = valid_of(path, masks, (page.imagelength, page.imagewidth))
        if not masks and (missing := page.tags.get(NO_DATA)) is not None:
            found = _told(page, values, str(missing.value).strip("\0 "))
        return None if found is None else of_all(found), place_of(page)


def _told(page: Any, values: np.ndarray, missing: str) -> np.ndarray | None:
    """Where not all colours hold the number of no data, which is one of the file's numbers."""
    floats = page.sampleformat == 3
    white = 1.0 if floats else 2.0**page.bitspersample - 1
    kinds = (MINISWHITE, PALETTE)
    if page.photometric in kinds or 281 in page.tags:  # other numbers than the values are made of
        return None
    try:
        wanted = float(missing) / white
    except ValueError:
        return None
    colours = 1 if values.shape[2] <= 2 else 3
    off = np.abs(values[..., :colours] - wanted)
    found = np.asarray((off > (1e-6 if floats else 0.4 / white)).any(-1))
    return found if found.any() and not found.all() else None


def _picture(path: Path, file: Any) -> Any:
    pages, _ = parted(list(file.pages))
    count = len(pages) * planes_of(file)
    if count != 1:
        raise InputError(
            f"{path} holds {count} pages; save the one to be restored as a file of its own"
        )
    return pages[0]


def _white(page: Any, array: np.ndarray, bits: int) -> float | None:
    """The number of white, by the depth that the file states, which need not be that of its
    numbers.
    """
    if array.dtype != np.uint16:
        return None
    most = page.tags.get(281) or page.tags.get(341)  # MaxSampleValue, SMaxSampleValue
    stated = int(np.max(most.value)) if most is not None else 2**bits - 1
    said = re.search(r'\bSignificantBits="(\d{1,2})"', str(page.description or ""))  # OME's
    stated = 2 ** int(said[1]) - 1 if said is not None else stated
    # only a depth: images store their brightest number there, too
    top = float(stated if stated + 1 in DEPTHS else 2**bits - 1)
    return 65535.0 if int(array.max()) > top else top


def _strange(path: Path, page: Any) -> str:
    def named(value: Any) -> str:
        return str(getattr(value, "name", value))

    return (
        f"{path} is a TIFF of {page.samplesperpixel} samples of {page.bitspersample} bits"
        f" ({named(page.photometric)}, {named(page.compression)}); grey and RGB of 8 to 16 bits or"
        " floats, with or without alpha, and palettes, CMYK, YCbCr and Lab of 8 bits are accepted:"
        " save it as one of these"
    )


def notes_of_file(path: Path) -> Notes:
    """Of a file that is built like a TIFF, whatever its pixels; nothing where it is damaged."""
    with contextlib.suppress(Exception), opened_tiff(path) as file:
        return _notes(path, {tag.code: tag.value for tag in file.pages.first.tags})
    return Notes()


def _notes(path: Path, words: dict[int, Any]) -> Notes:
    """By Pillow, or by the tags themselves where it doesn't know this kind of TIFF."""
    try:
        with opened(path) as image:
            found = notes_of(image)
    except (OSError, ValueError, SyntaxError):
        found = notes_of_tags(words)
    return replace(found, exif=exif_of_tiff(path))


def _page(path: Path, page: Any) -> np.ndarray:
    try:
        found: np.ndarray = page.asarray()
        return found
    except (ValueError, ImportError) as error:
        if not (said := lacks_codec(path, page, error)):
            raise
        with contextlib.suppress(OSError, SyntaxError), opened(path) as image:
            # Pillow knows LZW and others, but no colours of so many bits, and turns floats around
            plain = image.mode in PLAIN or (image.mode == "F" and page.parent.byteorder == "<")
            tag = page.tags.get(ORIENTATION)
            turned = tag is not None and int(tag.value) != 1  # which Pillow does by itself
            if plain and not turned and getattr(image, "n_frames", 1) == 1:
                return np.asarray(image).astype(page.dtype)
        raise InputError(
            f"{said} (pip install 'restobox[tiff]'); or save it with ZIP or none, and without"
            " predictor"
        ) from error


def _packed(path: Path, page: Any, bits: int) -> np.ndarray:
    """Numbers of 9 to 15 bits that follow one another bit by bit, each row from a new byte."""
    if page.compression != 1 or page.is_tiled:
        return _page(path, page)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    row = page.imagewidth * samples
    size = -(-row * bits // 8)
    planes = []
    with path.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            planes.append(np.frombuffer(file.read(count), np.uint8))
    rows = np.concatenate(planes).reshape(-1, size)
    # from the high bit of each byte on, or (FillOrder 2) from the low one
    order: Literal["little", "big"] = "little" if page.fillorder == 2 else "big"
    flags = np.unpackbits(rows, axis=1, bitorder=order)[:, : row * bits].reshape(-1, row, bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    array: np.ndarray = (flags * weights.astype(np.uint16)).sum(-1, dtype=np.uint16)
    return array.reshape(page.shape)
