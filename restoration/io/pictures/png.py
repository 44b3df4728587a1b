"""What is special about PNG: 16 bits in colour, which Pillow cuts; the depth (sBIT) and the colours
(gAMA, cHRM, cICP) that a file states.

Reference: W3C, Portable Network Graphics (third edition).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.pictures.profiles import D65, SRGB, of_code_points, of_numbers
from restoration.io.pictures.values import opened

WANTED = (b"sBIT", b"gAMA", b"cHRM", b"cICP", b"sRGB", b"iCCP")


def chunks(path: Path) -> dict[bytes, bytes]:
    """Those before the pixels that say what these mean."""
    found: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        file.seek(8)
        while len(begin := file.read(8)) == 8:
            size, kind = int.from_bytes(begin[:4], "big"), begin[4:]
            if kind in (b"IDAT", b"IEND") or size > 2**31:
                break
            if kind in WANTED and size <= 64:
                found[kind] = file.read(size)
            else:
                found.setdefault(kind, b"")
                file.seek(size, os.SEEK_CUR)
            file.seek(4, os.SEEK_CUR)
    return found


def deep_pixels(path: Path) -> np.ndarray:
    """16 bits per channel ``(H, W, 2 to 4)``.

    In colour Pillow gives the high bytes. Here it gives the low ones too, as what it takes for the
    high bytes of little-endian numbers: torchvision's decoder, which gives both, ends the process
    where a file is damaged.
    """
    with opened(path) as check:
        check.verify()  # checksums

    def plain(kind: str, mode: str | None = None) -> np.ndarray:
        image: Any
        with opened(path) as image:
            image._mode = mode or image.mode
            image.tile = [tile._replace(args=kind) for tile in image.tile]
            return np.asarray(image).astype(np.uint16)

    image: Any
    with opened(path) as image:
        kind, colour = str(image.tile[0].args), image.info.get("transparency")
    if kind == "LA;16B":  # as many bytes as four channels of 8 bits
        bytes_ = plain("RGBA", "RGBA")
        return bytes_[..., ::2] << 8 | bytes_[..., 1::2]
    found = plain(kind) << 8 | plain(kind.replace("16B", "16L"))
    if isinstance(colour, tuple):  # this one is transparent
        alpha = 65535 * (found != np.array(colour)).any(-1, keepdims=True)
        found = np.concatenate([found, alpha.astype(np.uint16)], axis=-1)
    return found


def white_of(array: np.ndarray, sbit: bytes, transparent: bool) -> np.ndarray | None:
    """The number of white of each channel of pixels ``(H, W, C)``, where the file says that fewer
    bits count than their type has; None: what the type holds.

    The standard has numbers scaled to all bits. Files of scanners and microscopes often hold them
    as they are: then no number is larger, and they don't have the low bits that scaling leaves.

    Args:
        sbit: bits that count, a byte for each channel of the file.
        transparent: the last channel was made of a colour that counts as transparent.
    """
    room = 8 * array.dtype.itemsize
    own = array[..., :-1] if transparent else array
    bits = np.frombuffer(sbit, np.uint8).astype(int)
    if (
        len(bits) != own.shape[-1]
        or (bits >= room).all()
        or not ((bits > 0) & (bits <= room)).all()
    ):
        return None
    tops = 2**bits - 1
    if (own.reshape(-1, len(bits)).max(0) > tops).any():
        return None
    left = room - bits
    high = own >> left
    low = own - (high << left)
    scaled = (low == 0) | (low == high >> np.maximum(bits - left, 0))
    if scaled.all():
        return None
    return np.append(tops, 2**room - 1) if transparent else tops


def profile(path: Path, said: dict[bytes, bytes], grey: bool) -> bytes | None:
    """A profile of the colours that the file states by numbers; None where it has one, or states
    sRGB's.

    Raises:
        InputError: high dynamic range.
    """
    if code := said.get(b"cICP"):
        return of_code_points(path, code[0], code[1], grey) if len(code) == 4 else None
    if b"iCCP" in said or b"sRGB" in said or len(said.get(b"gAMA", b"")) != 4:
        return None
    inverse = struct.unpack(">I", said[b"gAMA"])[0] / 100_000
    if not 0.1 <= inverse <= 10:
        return None
    places = struct.unpack(">8I", said[b"cHRM"]) if len(said.get(b"cHRM", b"")) == 32 else None
    if places is None:
        return of_numbers(SRGB, D65, 1 / inverse, grey)
    white, red, green, blue = ((x / 1e5, y / 1e5) for x, y in zip(*[iter(places)] * 2, strict=True))
    return of_numbers((red, green, blue), white, 1 / inverse, grey)
