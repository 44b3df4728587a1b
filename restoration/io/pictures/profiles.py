"""Colour profiles for pictures that state their colours by numbers alone, as PNG's gAMA, cHRM and
cICP.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from solvers.inputs.errors import InputError

# chromaticities x, y of red, green and blue; of the white point D65
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
REC2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE, ADOBE_GAMMA = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256
D65 = (0.3127, 0.3290)
D50 = np.array([0.9642, 1.0, 0.8249])  # that profiles are relative to
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# numbers of ITU-T H.273: primaries, and curves, None: sRGB's, also for those of television
_PRIMARIES = {1: SRGB, 9: REC2020, 12: DISPLAY_P3}
_CURVES = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_HDR = {16: "PQ", 18: "HLG"}
USUAL = 2.2  # the gamma that programs write for sRGB
NEAR = 0.1
Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def of_code_points(path: Path, primaries: int, curve: int, grey: bool) -> bytes | None:
    """A profile of colours that are stated by the numbers of ITU-T H.273; None where they are
    sRGB's, or unknown.

    Raises:
        InputError: high dynamic range.
    """
    if curve in _HDR:
        raise InputError(
            f"{path} holds high dynamic range ({_HDR[curve]}), which is not accepted; convert it to"
            " sRGB or Display P3"
        )
    if primaries not in _PRIMARIES or curve not in _CURVES:
        return None
    return of_numbers(_PRIMARIES[primaries], D65, _CURVES[curve], grey)


def of_numbers(
    primaries: Primaries, white: tuple[float, float], gamma: float | None, grey: bool
) -> bytes | None:
    """A profile, or None where it would be sRGB's, or the numbers are of no colours."""
    usual = gamma is None or abs(gamma - USUAL) < NEAR
    alike = np.abs(np.array([*primaries, white]) - np.array([*SRGB, D65])).max() < 0.002
    if usual and (grey or alike):
        return None
    try:
        return grey_profile(gamma) if grey else rgb_profile(primaries, white, gamma)
    except ValueError:  # numbers of no colours say nothing
        return None


def rgb_profile(primaries: Primaries, white: tuple[float, float], gamma: float | None) -> bytes:
    """A profile (ICC, version 2.4) of three primaries and one curve.

    Args:
        primaries, white: chromaticities.
        gamma: of the curve; None: sRGB's.

    Raises:
        ValueError: chromaticities of no colours.
    """
    columns = np.array([_xyz(p) for p in primaries]).T
    light = _xyz(white)
    if abs(np.linalg.det(columns)) < 1e-6:
        raise ValueError("primaries that lie on a line")
    columns = columns * np.linalg.solve(columns, light)
    cones = np.diag((_BRADFORD @ D50) / (_BRADFORD @ light))
    adapted = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns
    tags = [(f"{c}XYZ", _tag_xyz(adapted[:, k])) for k, c in enumerate("rgb")]
    return _profile(b"RGB ", [*tags, *((f"{c}TRC", _curve(gamma)) for c in "rgb")])


def grey_profile(gamma: float | None) -> bytes:
    """Of grey pictures with one curve."""
    return _profile(b"GRAY", [("kTRC", _curve(gamma))])


def _xyz(place: tuple[float, float]) -> np.ndarray:
    x, y = place
    if not (0 <= x <= 1 and 0 < y <= 1):
        raise ValueError(f"a chromaticity of {x:g}, {y:g}")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in numbers)


def _tag_xyz(place: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*place)


def _curve(gamma: float | None) -> bytes:
    if gamma is None:
        parts = _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + parts
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: bytes, tags: list[tuple[str, bytes]]) -> bytes:
    name = b"as the picture states"
    words = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(79)
    all_tags = [
        ("desc", words + bytes(-len(words) % 4)),
        ("cprt", b"text" + bytes(4) + b"CC0\0"),
        ("wtpt", _tag_xyz(D50)),
        *tags,
    ]
    offset, index, data = 132 + 12 * len(all_tags), b"", b""
    for kind, content in all_tags:
        index += struct.pack(">4sII", kind.encode(), offset + len(data), len(content))
        data += content
    head = struct.pack(
        ">I4s4s4s4s4s", offset + len(data), b"none", b"\2\x40\0\0", b"mntr", space, b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*D50)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(all_tags)) + index + data
