"""PGM, PPM, PAM and PFM: any white, text or bytes, floats. Bitmaps are Pillow's.

Reference: the formats' manual pages (netpbm.sourceforge.net/doc), and Debevec's PFM.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.pictures.values import check_size, unit
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

KINDS = (b"P2", b"P3", b"P5", b"P6", b"P7", b"PF", b"Pf")
HEAD = 4096  # bytes that a header may have
_GAP = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(
    rb"(P[2356Ff])"
    + _GAP
    + rb"(\d{1,9})"
    + _GAP
    + rb"(\d{1,9})"
    + _GAP
    + rb"(-?[\d.]+(?:[eE][+-]?\d+)?)(?:[ \t]*#[^\n]*\n|\s)"
)


def decode(path: Path, max_pixels: int) -> tuple[np.ndarray, int] | None:
    """Values ``(H, W, C)`` in [0, 1] and their bits; None for another file that begins so.

    Raises:
        InputError: too many pixels, a file that is cut short, several pictures, a white above
            65535, numbers above the white.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        if head[:3] == b"P7\n":
            width, height, channels, white, begin = _arbitrary(path, head)
            kind = b"P7"
        else:
            match = _HEADER.match(head)
            if match is None:  # or a damaged one: Pillow says
                return None
            kind, width, height = match[1], int(match[2]), int(match[3])
            channels, white = 3 if kind in (b"P3", b"P6", b"PF") else 1, float(match[4])
            begin = match.end()
        floats, plain = kind in (b"PF", b"Pf"), kind in (b"P2", b"P3")
        check_size(path, width, height, max_pixels)
        if not floats and not 1 <= white <= 65535:
            raise InputError(f"{path} states a white of {white:g}; 1 to 65535 is possible")
        wanted = width * height * channels
        whole, real = ">u1" if white < 256 else ">u2", "<f4" if white < 0 else ">f4"
        dtype: np.dtype[Any] = np.dtype(real if floats else whole)
        file.seek(begin)
        if plain:
            check_array(path, (height, width, channels), 8)
            data: np.ndarray = _numbers(path, file.read(12 * wanted), wanted)
        else:
            data = np.frombuffer(file.read(wanted * dtype.itemsize), dtype)
            if re.match(rb"\s*P[1-7Ff]\s", file.read(8)):
                raise InputError(
                    f"{path} holds several pictures; save the one to be restored as a file of its"
                    " own"
                )
    if len(data) < wanted:
        raise InputError(f"{path} ends after {len(data)} of {wanted} numbers; it is cut short")
    array = data.reshape(height, width, channels)
    if floats:
        return unit(path, array[::-1].astype(np.float32)), 32  # rows from the bottom up
    if int(array.max()) > white:
        raise InputError(
            f"{path} holds the number {int(array.max())}, but states a white of {white:g}; correct"
            " the header or the numbers"
        )
    depth = np.uint8 if white < 256 else np.uint16
    return unit(path, array.astype(depth), white), 8 if white < 256 else 16


def _arbitrary(path: Path, head: bytes) -> tuple[int, int, int, float, int]:
    """PAM's width, height, channels, white, and where its pixels begin."""
    begin = head.find(b"ENDHDR\n")
    lines = [line.split(None, 1) for line in head[:begin].splitlines()[1:]]
    said = {line[0].upper(): line[1] for line in lines if len(line) == 2 and line[0] != b"#"}
    try:
        numbers = [int(said[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
    except (KeyError, ValueError):
        numbers = []
    if begin < 0 or not numbers:
        raise InputError(f"{path} has a damaged header: WIDTH, HEIGHT, DEPTH and MAXVAL are needed")
    width, height, channels, white = numbers
    if not 1 <= channels <= 4:
        raise InputError(f"{path} has {channels} channels; 1 to 4 are accepted")
    return width, height, channels, float(white), begin + len(b"ENDHDR\n")


def _numbers(path: Path, text: bytes, wanted: int) -> np.ndarray:
    text = re.sub(rb"#[^\n]*\n", b" ", text)
    found = re.match(rb"[\d\s]*", text)
    if found is None or found.end() < len(text.rstrip()):
        raise InputError(f"{path} holds something else than whole numbers among its pixels")
    array: np.ndarray = np.fromstring(text, np.int64, sep=" ")
    return array[:wanted]
