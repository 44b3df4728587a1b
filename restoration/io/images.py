"""Photo files: any depth, grey, colour, alpha, any orientation; what they say beside their pixels
is kept. Sizes are checked before decoding.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restoration.io.containers.packages import need
from restoration.io.pictures.decode import decode
from restoration.io.pictures.derived import Codes, Series, codes_like, derived, save
from restoration.io.pictures.gamut import view_of
from restoration.io.pictures.masks import changed, grown, missing_of
from restoration.io.pictures.notes import (
    Notes,
    add_directories,
    png_chunks,
    saving,
    sized,
    tiff_options,
    too_large,
)
from solvers.files import check_replaceable, replace_file
from solvers.inputs.errors import InputError, reading

MAX_PIXELS = 100_000_000
# of pictures that are found in folders, and that are written
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
DICOM = ".dcm"
DIFFERENCE = "difference"  # in place of the colour of a mask
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Photo:
    """A decoded picture.

    Attributes:
        pixels: ``(C, H, W)`` float32 in [0, 1], C = 1 (grey) or 3 (RGB).
        alpha: ``(H, W)`` float32 in [0, 1], or None.
        bits: the depth of the file, 8 or 16; 32: floats.
        notes: what the file says beside its pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    notes: Notes = field(default_factory=Notes)


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a picture file upright: anything Pillow knows; 9 to 16 bits and floats in [0, 1] in
    TIFF, PNG, PGM, PPM and PFM; HEIC and cameras' raw files with the extras ``heif`` and ``raw``.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a picture, damaged, several pictures in one file, more than ``max_pixels``
            pixels, or another kind of pixels.
        ResourceError: too large for the memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    with reading(path, "an image"):
        found = decode(path, max_pixels)
    values = _upright(found.values, found.orientation)
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise InputError(
            f"{path} has shape {values.shape}; grey or RGB pictures with or without alpha are"
            " accepted"
        )
    channels = 1 if values.shape[2] <= 2 else 3
    alpha = np.ascontiguousarray(values[..., channels]) if values.shape[2] > channels else None
    pixels = np.ascontiguousarray(values[..., :channels].transpose(2, 0, 1))
    notes = found.notes
    if found.orientation >= 5 and notes.dpi is not None:  # a quarter of a turn
        notes = replace(notes, dpi=notes.dpi[::-1])
    return Photo(pixels, alpha, found.bits, notes)


def read_mask(
    path: str | Path,
    height: int,
    width: int,
    *,
    white: str = "missing",
    colour: str | None = None,
    grow: int = 0,
    photo: np.ndarray | None = None,
) -> np.ndarray:
    """Read an inpainting mask (:func:`restoration.io.pictures.masks.missing_of`). Returns float32
    ``(H, W)`` with 1 = known, 0 = missing.

    Args:
        white: what white marks, ``missing`` or ``known``.
        colour: that missing pixels are painted in, over the photo or alone; ``difference``: any,
            over a copy of ``photo``.
        grow: pixels around the missing ones that are taken to be missing too.
        photo: ``(C, height, width)`` in [0, 1], in sRGB's colours where it has some.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a picture, another size than the image, a photograph, or nothing (or
            everything) marked as missing.
    """
    if white not in ("missing", "known"):
        raise InputError(f"white marks what is missing or known; got {white!r}")
    if colour == DIFFERENCE and photo is None:
        raise InputError("to find differences the photo is needed")
    path = Path(path)
    mask = read_image(path)
    if mask.pixels.shape[1:] != (height, width):
        size = f"{mask.pixels.shape[2]} x {mask.pixels.shape[1]}"
        raise InputError(
            f"mask {path} is {size} pixels but the image is {width} x {height}; they must be the"
            " same size"
        )
    pixels = view_of(mask.pixels, mask.notes.icc).shown
    if colour == DIFFERENCE and photo is not None:
        missing = changed(path, pixels, photo)
    else:
        missing = missing_of(path, pixels, mask.alpha, colour)
    missing = grown(missing if white == "missing" else ~missing, grow)
    if not missing.any():
        raise InputError(f"mask {path} marks nothing as missing; paint the missing pixels white")
    if missing.all():
        raise InputError(f"mask {path} marks every pixel as missing; leave what is known black")
    return 1 - missing.astype(np.float32)


def left_out(path: Path, notes: Notes) -> list[str]:
    """Which notes a file of this name can't hold, in words."""
    return too_large(notes, "JPEG") if path.suffix.lower() in (".jpg", ".jpeg") else []


def depth_of(path: Path, photo: Photo) -> int:
    """Bits of the numbers that a file of this name holds of a picture; 32: floats."""
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        return photo.bits
    # DICOM has a depth of its own in a file that was read, and colours of 8 bits
    colour = suffix == DICOM and len(photo.pixels) == 3 and photo.notes.origin is None
    return 8 if suffix in LOSSY or colour else min(photo.bits, 16)


def write_image(path: str | Path, photo: Photo, quality: int = 95) -> None:
    """Write PNG, JPEG, WebP, TIFF or DICOM by suffix, with the photo's depth where the format has
    it (PNG and DICOM 16 bits, TIFF also floats) and 8 bits elsewhere, and with its notes. A DICOM
    file is derived from the one that was read, in its units (:mod:`restoration.io.pictures
    .derived`).

    Args:
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ValueError: a suffix that is not known, or alpha in a JPEG.
        OSError: the place is not writable; nothing is left behind.
    """
    path = Path(path)
    check_writable(path)
    suffix, notes = path.suffix.lower(), sized(photo.notes, photo.pixels.shape[1:])
    pixels = photo.pixels
    if photo.alpha is not None:
        pixels = np.concatenate([pixels, photo.alpha[None]])
    values = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    if suffix in (".jpg", ".jpeg") and photo.alpha is not None:
        raise InputError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
    if suffix == DICOM:
        if photo.alpha is not None:
            raise InputError("DICOM holds no alpha channel; write PNG, WebP or TIFF")
        data = _derived(values, photo)
        replace_file(path, lambda p: save(data, p))
    elif suffix in (".tif", ".tiff"):
        import tifffile

        if photo.bits == 32:
            array = np.clip(values, 0, 1).astype(np.float32)
        else:
            array = _codes(values, np.uint8 if photo.bits == 8 else np.uint16)
        options = tiff_options(notes, values.shape[:2]) | {"compression": "zlib"}
        options |= {"photometric": "rgb" if photo.pixels.shape[0] == 3 else "minisblack"}
        options |= {} if photo.alpha is None else {"extrasamples": ["unassalpha"]}

        def write(temporary: Path) -> None:
            tifffile.imwrite(temporary, array, **options)
            add_directories(temporary, notes)

        replace_file(path, write)
    elif photo.bits > 8 and suffix == ".png":
        replace_file(path, lambda p: p.write_bytes(_png16(_codes(values, np.uint16), notes)))
    else:
        format = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix]
        options = saving(notes, format) | ({"quality": quality} if suffix in LOSSY else {})
        content = encoded(Image.fromarray(_codes(values, np.uint8)), format, **options)
        replace_file(path, lambda p: p.write_bytes(content))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """A picture's file. Pillow's own encoders don't notice, where they write to a file themselves,
    that the disk is full.
    """
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _derived(values: np.ndarray, photo: Photo) -> Any:
    """A DICOM dataset of values ``(H, W[, 3])``."""
    origin, colour = photo.notes.origin, values.ndim == 3
    if origin is None:
        bits = 16 if photo.bits > 8 and not colour else 8
        codes = Codes(_codes(values, np.uint16 if bits == 16 else np.uint8), bits, colour=colour)
        data = derived(None, codes, Series())
        if colour and photo.notes.icc is not None:
            data.ICCProfile = photo.notes.icc
        return data
    units = np.clip(values, 0, 1).astype(np.float64) * (origin.one - origin.zero) + origin.zero
    codes = codes_like(origin.head, units, origin.low, origin.high, origin.padding)
    return derived(origin.head, codes, Series(), frame=origin.frame)


def _codes(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Integers of values, cut to [0, 1]."""
    codes = np.empty(values.shape, dtype)
    for row, numbers in zip(codes, values, strict=True):  # a copy in floats would be as large
        row[...] = np.rint(np.clip(numbers, 0, 1) * np.iinfo(dtype).max)
    return codes


def check_writable(path: str | Path) -> None:
    """Raise before any work is done if an image can't be written to ``path``.

    Raises:
        ValueError: unknown suffix.
        OSError: the folder does not exist or is not writable, or ``path`` is a folder, a device or
            write-protected.
    """
    path = Path(path)
    if path.suffix.lower() not in (*SUFFIXES, DICOM):
        raise InputError(f"output {path} must end in one of {', '.join((*SUFFIXES, DICOM))}")
    if path.suffix.lower() == DICOM:
        need("pydicom", "DICOM files")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file name")
    check_replaceable(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the output does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is not writable")


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation (1 to 8) to ``(H, W, C)``."""
    turns = {
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (3, True),
        6: (3, False),
        7: (1, True),
        8: (1, False),
    }
    if orientation not in turns:
        return array
    quarter, mirror = turns[orientation]
    array = np.rot90(array, quarter)
    return array[:, ::-1] if mirror else array


def _png16(array: np.ndarray, notes: Notes | None = None) -> bytes:
    """A 16-bit PNG of ``(H, W)`` or ``(H, W, 2..4)`` uint16; none of the image libraries here
    writes one in colour.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    # each row begins with filter type 0
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 6)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*note) for note in png_chunks(notes or Notes()))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )
