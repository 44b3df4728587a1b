"""Large pictures window by window: what a restoration decides from nearby pixels alone, done for
one part at a time, so that only one part's arrays are held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.task import Restored
from restoration.wrappers.tiling import tile_starts, tile_weight

Window = tuple[slice, slice]  # rows and columns


def windows(size: Sequence[int], tile: int, overlap: int, most: int) -> list[Window]:
    """Windows that cover a picture ``(H, W)``: ``most`` by ``most`` neighbouring tiles of it, so
    that they hold no more tiles in all than the picture.

    Args:
        tile, overlap: of the tiles, in pixels.
    """
    axes = []
    for length in size:
        starts = tile_starts(length, tile, overlap)
        axes.append(
            [
                slice(starts[k], min(starts[min(k + most, len(starts)) - 1] + tile, length))
                for k in range(0, len(starts), most)
            ]
        )
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def filled_by_windows(
    fill: Callable[[Tensor, Tensor, bool], Restored],
    image: Tensor,
    known: Tensor,
    parts: Sequence[Window],
    overlap: int,
) -> Restored:
    """A picture whose missing pixels are filled in windows, blended where those overlap. Windows
    that miss nothing are left as they are; known pixels stay to the bit.

    Args:
        fill: of a window's image and mask; whether it is the last one.
        image: ``(C, H, W)``.
        known: ``(H, W)``; 1 = known, 0 = missing.
        parts: the windows, of :func:`windows`.
        overlap: over which they are blended, in pixels.
    """
    began, nfe, misfit = time.perf_counter(), 0, 0.0
    total, weights = torch.zeros_like(image), torch.zeros_like(known)
    height, width = known.shape
    last = max((k for k, part in enumerate(parts) if not known[part].all()), default=-1)
    for k, (rows, columns) in enumerate(parts):
        part, mask = image[:, rows, columns], known[rows, columns]
        if not mask.all():
            found = fill(part, mask, k == last)
            part, nfe = found.mean.to(part), max(nfe, found.nfe)
            misfit = max(misfit, found.misfit or 0.0)
        weight = (
            tile_weight(rows.start, rows.stop - rows.start, height, overlap)[:, None]
            * tile_weight(columns.start, columns.stop - columns.start, width, overlap)
        ).to(image)
        total[:, rows, columns] += weight * part
        weights[rows, columns] += weight
    mean = torch.where(known > 0, image, total.div_(weights)).cpu()
    seconds = time.perf_counter() - began
    std = mean.new_zeros(()).expand(mean.shape)
    return Restored(mean[None], mean, std, nfe, seconds, misfit=misfit)


def all_near(known: Tensor, reach: int) -> bool:
    """Whether every missing pixel of a mask ``(H, W)`` has a known one within ``reach`` rows and
    columns.
    """
    around = known[None, None]
    for size in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        around = F.max_pool2d(around, size, stride=1, padding=(size[0] // 2, size[1] // 2))
    return bool(around.all())
