"""An array of planes that is never held as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from solvers.inputs.errors import InputError, reading

Layer = tuple[int, ...]
STRIP = 2**24  # values that are looked at together for the range


@dataclass(frozen=True)
class Scene:
    """Planes in a file or folder.

    Attributes:
        path: where they are.
        array: with ``shape``, ``dtype`` and slices, such as a memory map or a Zarr array.
        axes: what its axes are: ``y`` and ``x``, ``c`` for red, green and blue, which are restored
            together, and any other letters, along which each plane is restored by itself.
        low, high: the values of black and white.
        no_data: the value of entries that hold nothing and stay as they are, or None. NaN does too.
        kind: of the file: ``zarr``, ``tiff``, ``envi`` or ``nifti``.
        head: what its writer needs to know of the file.
        note: what was left out in reading, for the user; else empty.
    """

    path: Path
    array: Any
    axes: str
    low: float = 0.0
    high: float = 1.0
    no_data: float | None = None
    kind: str = ""
    head: Any = None
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of a plane."""
        return self._along("y"), self._along("x")

    @property
    def channels(self) -> int:
        """1, or 3 for colours."""
        return 3 if "c" in self.axes else 1

    @property
    def layers(self) -> Iterator[Layer]:
        """What is restored by itself: its place along the axes other than ``y``, ``x`` and
        ``c``.
        """
        others = [self._along(a) for a in self.axes if a not in "yxc"]
        return itertools.product(*(range(n) for n in others))

    def _along(self, axis: str) -> int:
        return int(self.array.shape[self.axes.index(axis)])

    @property
    def _part_axes(self) -> tuple[list[str], list[str]]:
        """Of a layer: as they are in the array, and in the order of a part."""
        return [a for a in self.axes if a in "cyx"], [a for a in "cyx" if a in self.axes]

    def index(self, layer: Layer, rows: slice, columns: slice) -> tuple[int | slice, ...]:
        """Where a part of a layer is in the array."""
        others, places = iter(layer), {"y": rows, "x": columns, "c": slice(None)}
        return tuple(places[a] if a in places else next(others) for a in self.axes)

    def stored(self, layer: Layer, rows: slice, columns: slice) -> np.ndarray:
        """A part ``(C, h, w)`` as it is in the array."""
        with reading(self.path, "a scene"):
            found = np.asarray(self.array[self.index(layer, rows, columns)])
        stored, order = self._part_axes
        found = found.transpose([stored.index(a) for a in order])
        return found if "c" in order else found[None]

    def read(self, layer: Layer, rows: slice, columns: slice) -> np.ndarray:
        """A part ``(C, h, w)`` float32 in [0, 1]; entries without data are black."""
        found = self.stored(layer, rows, columns)
        valid = self.valid(found)
        scaled = (found.astype(np.float64) - self.low) / (self.high - self.low)
        return np.where(valid, scaled, 0).astype(np.float32)

    def valid(self, values: np.ndarray) -> np.ndarray:
        """Where stored values hold data."""
        valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        return valid if self.no_data is None else valid & (values != self.no_data)

    def write(self, target: Any, layer: Layer, rows: slice, columns: slice, part: Any) -> None:
        """Put a restored part ``(C, h, w)`` in [0, 1] into an array of the same shape and type."""
        before = self.stored(layer, rows, columns)
        values = np.asarray(part, np.float64).clip(0, 1) * (self.high - self.low) + self.low
        if before.dtype.kind in "iu":
            limits = np.iinfo(before.dtype)
            values = np.rint(values).clip(limits.min, limits.max)
        values = np.where(self.valid(before), values.astype(before.dtype), before)
        stored, order = self._part_axes
        values = values if "c" in order else values[0]
        values = values.transpose([order.index(a) for a in stored])
        target[self.index(layer, rows, columns)] = values

    def ranged(self) -> Scene:
        """With black and white at the least and the largest value; 8 bits, and floats that lie in
        [0, 1], have theirs.

        Raises:
            InputError: nothing but one value, or no data at all.
        """
        dtype = np.dtype(self.array.dtype)
        if dtype == np.uint8:
            return replace(self, low=0.0, high=255.0)
        low, high = np.inf, -np.inf
        height, width = self.size
        step = max(1, STRIP // (width * self.channels))
        for layer in self.layers:
            for top in range(0, height, step):
                part = self.stored(layer, slice(top, min(top + step, height)), slice(0, width))
                part = part[self.valid(part)]
                if part.size:
                    low, high = min(low, float(part.min())), max(high, float(part.max()))
        if dtype.kind == "f" and low >= 0 and high <= 1:
            return replace(self, low=0.0, high=1.0)
        if not low < high:
            raise InputError(f"{self.path} holds nothing but one value")
        return replace(self, low=low, high=high)
