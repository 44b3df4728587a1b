"""A network's answers on a picture that is never held as a whole: the tiles of
:mod:`restoration.wrappers.tiling`, asked one by one and blended part by part, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.wrappers.tiling import tile_starts, tile_weight
from solvers.denoiser import Denoiser, output_of

Place = tuple[int, int]  # of a tile: its row and column in the grid of tiles


@dataclass(frozen=True)
class Sweep:
    """The tiles of a picture, in the pixels of the network's input.

    Args:
        denoiser: unconditional.
        size: ``(H, W)`` of the picture, in its own pixels.
        tile, overlap: in the picture's pixels, as of :func:`restoration.wrappers.tiling.tiled`.
    """

    denoiser: Denoiser
    size: tuple[int, int]
    tile: int
    overlap: int

    @property
    def unit(self) -> int:
        """Pixels of the picture that sides of parts must be multiples of."""
        return self.denoiser.fold * self.denoiser.multiple

    def starts(self, axis: int) -> list[int]:
        """Of the tiles along an axis."""
        fold = self.denoiser.fold
        return tile_starts(self._length(axis), self.tile // fold, self.overlap // fold)

    def _length(self, axis: int) -> int:
        """Of the padded picture."""
        return -(-self.size[axis] // self.unit) * self.unit // self.denoiser.fold

    def _extent(self, axis: int) -> int:
        return min(self.tile // self.denoiser.fold, self._length(axis))

    def part(self, place: Place) -> tuple[slice, slice]:
        """The rows and columns of the picture that a tile shows."""
        fold = self.denoiser.fold
        bounds = []
        for axis, k in enumerate(place):
            start = self.starts(axis)[k]
            end = (start + self._extent(axis)) * fold
            bounds.append(slice(start * fold, min(end, self.size[axis])))
        return bounds[0], bounds[1]

    def around(self, rows: slice, columns: slice) -> list[Place]:
        """The tiles that a part of the picture is blended of, in the order of their sum."""
        found = []
        for axis, part in enumerate((rows, columns)):
            low, high = self._inside(axis, part)
            reach, starts = self._extent(axis), self.starts(axis)
            found.append([k for k, s in enumerate(starts) if s < high and s + reach > low])
        return [(i, j) for i in found[0] for j in found[1]]

    def _inside(self, axis: int, part: slice) -> tuple[int, int]:
        """A part in the network's pixels, with the padding at the picture's end."""
        fold = self.denoiser.fold
        end = self._length(axis) if part.stop >= self.size[axis] else part.stop // fold
        return part.start // fold, end

    @torch.no_grad()
    def ask(self, x: Tensor, t: float) -> np.ndarray:
        """The network's raw answer ``(C', h, w)`` for the state ``x (1, C, H, W)`` of a tile."""
        asked = _Remembering(self.denoiser.network)
        self.denoiser.around(asked)(x, t)
        assert asked.output is not None
        return asked.output[0].float().cpu().numpy()

    def blended(self, rows: slice, columns: slice, answers: Mapping[Place, np.ndarray]) -> Denoiser:
        """The denoiser of a part, whose network gives what its tiles answered. Bounds of parts must
        be multiples of :attr:`unit`, or the picture's end.
        """
        (top, bottom), (left, right) = self._inside(0, rows), self._inside(1, columns)
        total = weights = torch.zeros(0)
        for n, place in enumerate(self.around(rows, columns)):
            out = torch.from_numpy(answers[place])
            if n == 0:
                total = out.new_zeros(len(out), bottom - top, right - left)
                weights = out.new_zeros(bottom - top, right - left)
            y, x = (self.starts(axis)[k] for axis, k in enumerate(place))
            h, w = out.shape[1:]
            ramp = self.overlap // self.denoiser.fold
            weight = tile_weight(y, h, self._length(0), ramp)[:, None]
            weight = weight * tile_weight(x, w, self._length(1), ramp)
            inner = (
                slice(max(top - y, 0), min(bottom - y, h)),
                slice(max(left - x, 0), min(right - x, w)),
            )
            outer = (
                slice(max(y - top, 0), min(y + h, bottom) - top),
                slice(max(x - left, 0), min(x + w, right) - left),
            )
            total[:, *outer] += (weight * out)[:, *inner]
            weights[outer] += weight[inner]
        return self.denoiser.around(_Known((total / weights)[None]))


class _Remembering:
    """A network that keeps its answer."""

    def __init__(self, network: Any):
        self.network = network
        self.output: Tensor | None = None

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        answer = self.output = output_of(self.network(z, t))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


class _Known:
    """A network whose answer is known already."""

    def __init__(self, answer: Tensor):
        self.answer = answer

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        return self.answer.to(z.device)


def parts(size: tuple[int, int], side: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """A picture in parts of ``side`` rows and columns, row by row."""
    for top in range(0, size[0], side[0]):
        for left in range(0, size[1], side[1]):
            yield (
                slice(top, min(top + side[0], size[0])),
                slice(left, min(left + side[1], size[1])),
            )


def noise_at(
    key: tuple[int, ...], rows: slice, columns: slice, channels: int, side: int = 256
) -> np.ndarray:
    """White noise ``(channels, h, w)`` float32 of the pixels of a part: what a pixel gets depends
    on ``key`` and its place alone, whatever part it is asked in.

    Args:
        key: numbers that name the draw, such as the run's seed and the step.
        side: of the squares that are drawn together.
    """
    found = np.empty((channels, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for i in range(rows.start // side, -(-rows.stop // side)):
        for j in range(columns.start // side, -(-columns.stop // side)):
            square = np.random.default_rng([*key, i, j]).standard_normal(
                (channels, side, side), np.float32
            )
            top, left = max(i * side, rows.start), max(j * side, columns.start)
            bottom, right = min((i + 1) * side, rows.stop), min((j + 1) * side, columns.stop)
            found[
                :,
                top - rows.start : bottom - rows.start,
                left - columns.start : right - columns.start,
            ] = square[:, top - i * side : bottom - i * side, left - j * side : right - j * side]
    return found
