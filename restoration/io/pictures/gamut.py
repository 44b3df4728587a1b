"""Wide-gamut pictures: colours by a profile of three primaries and curves (Display P3, Adobe RGB,
ProPhoto ...) as sRGB, which networks are made for, and back.

Own arithmetic in floating point, since the colour management that Pillow binds cuts colours to 8
bits and to the gamut of sRGB. Profiles of tables, which printers and scanners have, are left alone.

Reference: ICC.1:2022, sections 8.3 and 10.6, 10.18, 10.31.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# linear sRGB to XYZ of white point D50, as profiles have it
SRGB = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
GRID = np.linspace(0, 1, 2**16)
ROWS = 256  # at a time
ALIKE = 0.004  # colours that differ less from sRGB's, one of 255, are taken for them


@dataclass(frozen=True)
class Gamut:
    """The colours of a profile.

    Attributes:
        curves: ``(3, 65536)``, light of the numbers from 0 to 1 in each channel, growing.
        matrix: ``(3, 3)``, from it to the light of sRGB.
    """

    curves: np.ndarray
    matrix: np.ndarray

    def to_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """``(3, H, W)`` in [0, 1]; colours outside sRGB go beyond [0, 1]."""

        def convert(part: np.ndarray) -> np.ndarray:
            light = [np.interp(x, GRID, curve) for x, curve in zip(part, self.curves, strict=True)]
            return _encoded(np.tensordot(self.matrix, np.stack(light), 1))

        return _by_rows(convert, pixels)

    def from_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse; what the profile can't hold is cut."""
        back = np.linalg.inv(self.matrix)

        def convert(part: np.ndarray) -> np.ndarray:
            light = np.tensordot(back, _decoded(part.astype(np.float64)), 1)
            both = zip(light, self.curves, strict=True)
            return np.stack([np.interp(x, curve, GRID) for x, curve in both])

        return _by_rows(convert, pixels)


def gamut_of(icc: bytes | None) -> Gamut | None:
    """Of a profile; None where there is none, it is of another kind, or its colours are sRGB's."""
    if icc is None:
        return None
    try:
        tags = _tags(icc)
        if icc[16:20] != b"RGB " or icc[20:24] != b"XYZ " or "A2B0" in tags:
            return None
        primaries = np.stack([_xyz(tags[f"{c}XYZ"]) for c in "rgb"], 1)
        with np.errstate(all="ignore"):
            curves = np.stack([_curve(tags[f"{c}TRC"]) for c in "rgb"])
    except (KeyError, ValueError, IndexError, ArithmeticError, struct.error):
        return None
    if not (np.isfinite(curves).all() and (np.diff(curves) >= 0).all()):
        return None
    if abs(np.linalg.det(primaries)) < 1e-4 or not (curves[:, -1] > curves[:, 0]).all():
        return None
    matrix = np.linalg.inv(SRGB) @ primaries
    white = matrix.sum(1, keepdims=True)
    if np.abs(white - 1).max() < 0.01:  # rounded numbers: greys stay grey
        matrix = matrix / white
    found = Gamut(curves, matrix)
    corners = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 3, indexing="ij")).reshape(3, 1, -1)
    return None if np.abs(found.to_srgb(corners) - corners).max() < ALIKE else found


@dataclass(frozen=True, eq=False)
class View:
    """A picture as networks are shown it, and the way back to its own colours.

    Attributes:
        given: ``(C, H, W)`` in [0, 1], as the file has it.
        gamut: its colours; None: sRGB's, or colours that are left as they are.
    """

    given: np.ndarray
    gamut: Gamut | None

    @cached_property
    def shown(self) -> np.ndarray:
        """``(C, H, W)`` in [0, 1], what lies outside sRGB cut."""
        return self.given if self.gamut is None else self._wide.clip(0, 1)

    def back(self, found: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """A restored picture ``(C, h, w)``, perhaps enlarged, in the colours of the one that was
        given. What lies outside sRGB is put back, and what was made up stays inside.

        Args:
            known: ``(H, W)``, the share of each pixel that was given; None: all of it.
        """
        if self.gamut is None:
            return found
        beyond = self._wide - self.shown
        beyond = beyond if known is None else beyond * known
        if beyond.shape != found.shape:
            rows, columns = (
                np.arange(new) * old // new
                for new, old in zip(found.shape[1:], beyond.shape[1:], strict=True)
            )
            beyond = beyond[:, rows][:, :, columns]
        return self.gamut.from_srgb(found + beyond)

    @cached_property
    def _wide(self) -> np.ndarray:
        assert self.gamut is not None
        return self.gamut.to_srgb(self.given)


def view_of(pixels: np.ndarray, icc: bytes | None) -> View:
    """Of a picture ``(C, H, W)`` in [0, 1] with this profile."""
    return View(pixels, gamut_of(icc) if len(pixels) == 3 else None)


def _by_rows(convert: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    found = np.empty(pixels.shape, np.float32)
    for top in range(0, pixels.shape[1], ROWS):
        found[:, top : top + ROWS] = convert(pixels[:, top : top + ROWS])
    return found


def _encoded(light: np.ndarray) -> np.ndarray:
    """sRGB's numbers of light; below 0 mirrored."""
    size = np.abs(light)
    curve = np.where(size <= 0.0031308, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055)
    return np.sign(light) * curve


def _decoded(numbers: np.ndarray) -> np.ndarray:
    size = np.abs(numbers)
    light = np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return np.sign(numbers) * light


def _tags(icc: bytes) -> dict[str, bytes]:
    (count,) = struct.unpack(">I", icc[128:132])
    found = {}
    for k in range(min(count, 200)):
        name, offset, size = struct.unpack(">4sII", icc[132 + 12 * k : 144 + 12 * k])
        found[name.decode("latin-1")] = icc[offset : offset + size]
    return found


def _fixed(data: bytes, count: int) -> list[float]:
    return [v / 65536 for v in struct.unpack(f">{count}i", data[: 4 * count])]


def _xyz(tag: bytes) -> np.ndarray:
    if tag[:4] != b"XYZ ":
        raise ValueError
    return np.array(_fixed(tag[8:], 3))


def _curve(tag: bytes) -> np.ndarray:
    if tag[:4] == b"curv":
        (count,) = struct.unpack(">I", tag[8:12])
        if count == 0:
            return GRID
        table = np.frombuffer(tag[12 : 12 + 2 * count], ">u2").astype(float)
        if len(table) != count:
            raise ValueError
        if count == 1:
            return GRID ** (table[0] / 256)
        return np.interp(GRID, np.linspace(0, 1, count), table / 65535)
    if tag[:4] != b"para":
        raise ValueError
    (kind,) = struct.unpack(">H", tag[8:10])
    g, a, b, c, d, e, f = [*_fixed(tag[12:], (1, 3, 4, 5, 7)[kind]), *[0.0] * 6][:7]
    if kind == 0:
        return GRID**g
    if kind in (1, 2):  # c is what is added everywhere
        return np.where(-b / a <= GRID, np.maximum(a * GRID + b, 0) ** g + c, c)
    return np.where(d <= GRID, np.maximum(a * GRID + b, 0) ** g + e, c * GRID + f)
