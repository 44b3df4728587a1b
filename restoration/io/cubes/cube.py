"""A hyperspectral cube with what its file says about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from solvers.inputs.errors import InputError

HUGE = 1e30  # beyond all that is measured


@dataclass(frozen=True, eq=False)
class Cube:
    """A cube as stored.

    Attributes:
        values: ``(B, H, W)`` in the file's own units; a read-only memory map for ENVI.
        wavelengths: ``(B,)`` in nanometres in the order of the bands (which need not be sorted), or
            None.
        no_data: the value that marks missing entries, or None. NaN and infinite entries are missing
            too.
        key: name of the array in the file (.mat, .npz, .h5), else "".
        header: fields of an ENVI header, else empty.
        bad: bool ``(B,)``, bands that the file says hold nothing of use, or None: none of their
            entries is valid.
        axis: of the bands in the file's array.
        geo: tags of a TIFF that say where the picture lies, ``(code, type, count, value)``.
        words: what GDAL says in a TIFF (names of bands, scales), in XML, or None.
        places: latitude and longitude ``(H, W)`` of its pixels in degrees, where the file holds
            them, or None.
        mask: bool ``(H, W)``, or ``(B, H, W)`` for each band: where pixels hold data by a mask in
            the file or beside it, or None.
        note: what was left out in reading, for the user; else empty.
    """

    values: np.ndarray
    wavelengths: np.ndarray | None = None
    no_data: float | None = None
    key: str = ""
    header: dict[str, str] = field(default_factory=dict)
    bad: np.ndarray | None = None
    axis: int = 2
    geo: tuple[tuple[int, int, int, Any], ...] = ()
    words: str | None = None
    places: tuple[np.ndarray, np.ndarray] | None = None
    mask: np.ndarray | None = None
    note: str = ""

    def valid(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Bool ``(B, h, W)`` of some rows: where the cube holds data."""
        block = self.values[:, rows]
        valid = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
        if self.bad is not None:
            valid &= ~self.bad[:, None, None]
        if self.mask is not None:
            valid &= self.mask[..., rows, :]
        if self.no_data is None:
            return valid
        if (
            block.dtype.kind == "f" and abs(self.no_data) > HUGE
        ):  # whose last digits files leave out
            return valid & ~(block * math.copysign(1, self.no_data) > 0.9999 * abs(self.no_data))
        return valid & (block != self.no_data)


def numbers(path: Path, name: str, text: str) -> np.ndarray:
    """Numbers of a text, separated by commas.

    Raises:
        ValueError: something else between them, or none.
    """
    try:
        return np.array(
            [float(v) for v in text.replace("\n", " ").split(",") if v.strip()] or [float("x")]
        )
    except ValueError as error:
        raise InputError(
            f"{path}: {name} must be numbers separated by commas; got {text[:60]!r}"
        ) from error
