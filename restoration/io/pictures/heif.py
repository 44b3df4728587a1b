"""What is special about HEIC and AVIF: numbers of 10 and 12 bits, and colours that the file states
by code points.

Reference: ISO/IEC 23008-12 (HEIF); ISO/IEC 14496-12, ColourInformationBox; AV1 Codec ISO Media File
Format Binding, AV1CodecConfigurationBox.
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


def deep_pixels(path: Path, image: Image.Image) -> tuple[np.ndarray, float] | None:
    """Numbers ``(H, W, C)`` of a HEIC file of more than 8 bits, which Pillow would cut, and the
    number of white; None of 8 bits.
    """
    bits = int(image.info.get("bit_depth", 8))
    if bits <= 8:
        return None
    import pillow_heif

    found: Any = pillow_heif.open_heif(
        str(path), convert_hdr_to_8bit=False, hdr_to_16bit=False, bgr_mode=False
    )
    array = np.asarray(found)
    return array.reshape(*array.shape[:2], -1), 2.0**bits - 1


def avif_bits(path: Path) -> int:
    """Bits of the numbers in an AVIF file: 8, 10 or 12."""
    with path.open("rb") as file:
        said = re.search(rb"av1C\x81.(.)", file.read(HEAD), re.DOTALL)
    flags = 0 if said is None else said[1][0]
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def avif_pixels(path: Path, bits: int) -> tuple[np.ndarray, float] | None:
    """As :func:`deep_pixels`; None without imagecodecs: Pillow gives the high 8 bits."""
    try:
        import imagecodecs
    except ImportError:
        return None
    array = np.asarray(imagecodecs.avif_decode(path.read_bytes()))
    return array.reshape(*array.shape[:2], -1), 2.0**bits - 1


def profile(path: Path, grey: bool) -> bytes | None:
    """A profile of the colours that the file states by numbers; None where they are sRGB's.

    Raises:
        InputError: high dynamic range.
    """
    with path.open("rb") as file:
        said = re.search(rb"colrnclx(....)", file.read(HEAD), re.DOTALL)
    if said is None:
        return None
    primaries, curve = struct.unpack(">HH", said[1])
    return of_code_points(path, primaries, curve, grey)
