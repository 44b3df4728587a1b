"""What is special about HEIC, AVIF and JPEG 2000: numbers of more than 8 bits, which Pillow cuts,
and colours that the file states by code points, or by a profile that Pillow doesn't give.

Reference: ISO/IEC 23008-12 (HEIF); ISO/IEC 14496-12, ColourInformationBox; AV1 Codec ISO Media File
Format Binding, AV1CodecConfigurationBox; ISO/IEC 15444-1, A.5.1 (image and tile size).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restoration.io.pictures.profiles import of_code_points
from solvers.inputs.errors import InputError

BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
HEAD = 2**20  # bytes in which the pictures are described


def is_heic(head: bytes) -> bool:
    """By a file's first bytes; AVIF, which may begin alike, is Pillow's own."""
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS and b"avif" not in head


def register(path: Path) -> None:
    """Make Pillow read HEIC.

    Raises:
        InputError: the package is missing.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f"{path} is a HEIC picture, which needs a package: pip install 'restobox[heif]'"
        ) from error
    register_heif_opener()


def bits_of(path: Path, image: Image.Image) -> int:
    """Bits of the numbers in a file that Pillow has opened; 8 of formats that hold no more."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format not in ("AVIF", "JPEG2000"):
        return 8
    with path.open("rb") as file:
        head = file.read(HEAD)
    if image.format == "AVIF":
        said = re.search(rb"av1C\x81.(.)", head, re.DOTALL)
        flags = 0 if said is None else said[1][0]
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    size = re.search(rb"\xff\x4f\xff\x51.{36}(..)(.{3,48})", head, re.DOTALL)
    if size is None:
        return 8
    depths = size[2][: 3 * int.from_bytes(size[1], "big") : 3]
    return max((depth & 0x7F) + 1 for depth in depths) if depths else 8


def deep_pixels(path: Path, image: Image.Image, bits: int) -> tuple[np.ndarray, float] | None:
    """Numbers ``(H, W, C)`` of a file of more than 8 bits, and the number of white; None where the
    package is missing without which Pillow's 8 bits must do.

    Raises:
        InputError: JPEG 2000 in colour without the package, which Pillow cuts wrongly (white
            becomes black), or of a kind that is not accepted.
    """
    white = 2.0**bits - 1
    if image.format == "HEIF":
        import pillow_heif

        found: Any = pillow_heif.open_heif(
            str(path), convert_hdr_to_8bit=False, hdr_to_16bit=False, bgr_mode=False
        )
        return _planes(found), white
    if image.format == "JPEG2000" and image.mode == "I;16":
        return _planes(image) >> (16 - bits), white
    try:
        import imagecodecs
    except ImportError as error:
        if image.format == "AVIF":
            return None
        raise InputError(
            f"{path} is JPEG 2000 of {bits} bits in colour, which needs a package: pip install"
            " 'restobox[tiff]'"
        ) from error
    if image.format == "AVIF":
        return _planes(imagecodecs.avif_decode(path.read_bytes())), white
    if bits > 16 or image.mode not in ("LA", "RGB", "RGBA"):
        raise InputError(
            f"{path} is JPEG 2000 of {bits} bits ({image.mode}); grey and RGB of 8 to 16 bits, with"
            " or without alpha, are accepted: save it as PNG or TIFF"
        )
    return _planes(imagecodecs.jpeg2k_decode(path.read_bytes())), white


def _planes(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array.reshape(*array.shape[:2], -1)


def profile(path: Path, grey: bool) -> bytes | None:
    """A profile of the colours that the file states by numbers, or JPEG 2000's own; None where they
    are sRGB's.

    Raises:
        InputError: high dynamic range.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    own = re.search(rb"(....)colr[\x02\x03]..", head[:HEAD], re.DOTALL)
    if own is not None and head[4:8] == b"jP  ":
        return head[own.end() : own.start() + int.from_bytes(own[1], "big")]
    said = re.search(rb"colrnclx(....)", head, re.DOTALL)
    if said is None:
        return None
    primaries, curve = struct.unpack(">HH", said[1])
    return of_code_points(path, primaries, curve, grey)
