"""Large pictures window by window: what a restoration decides from nearby pixels alone, done for
one part at a time, so that only one part's arrays are held.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from restoration.task import Part, Restored, Watch
from restoration.wrappers.tiling import tile_starts, tile_weight

Window = tuple[slice, slice]  # rows and columns
LARGE = 4_000_000  # pixels of a picture; below, its arrays take less room than the network's


def windows(size: Sequence[int], tile: int, overlap: int) -> list[Window]:
    """Windows that cover a picture ``(H, W)``: the tiles that its network is asked for.

    Args:
        tile, overlap: of the tiles, in pixels.
    """
    rows, columns = (
        [slice(start, min(start + tile, length)) for start in tile_starts(length, tile, overlap)]
        for length in size
    )
    return list(itertools.product(rows, columns))


def are_smaller(size: Sequence[int], tile: int) -> bool:
    """Whether a picture ``(..., H, W)`` is large and its windows of such tiles are not."""
    return tile**2 < LARGE < math.prod(size[-2:])


def by_windows(
    restore: Callable[[Window], Restored | None],
    image: Tensor,
    tile: int,
    overlap: int,
    factor: int = 1,
    callback: Watch | None = None,
) -> Restored:
    """A picture restored in windows, blended where those overlap.

    Args:
        restore: gives a window's result; None: the window stays as it is.
        image: ``(C, H, W)``.
        tile, overlap: of the tiles, in pixels of the image.
        factor: how many times larger results are.
        callback: called after each window with 0 and how far the work is.
    """
    began, nfe, squares, pixels, warning = time.perf_counter(), 0, 0.0, 0, None
    height, width = (factor * n for n in image.shape[1:])
    total, weights = image.new_zeros(len(image), height, width), image.new_zeros(height, width)
    chosen = windows(image.shape[1:], tile, overlap)
    for k, window in enumerate(chosen):
        part, found = image[:, *window], restore(window)
        if found is not None:
            part, nfe = found.mean.to(part), max(nfe, found.nfe)
            if found.misfit is not None:
                squares, pixels = squares + part.numel() * found.misfit**2, pixels + part.numel()
            warning = warning or found.warning
        rows, columns = (slice(factor * axis.start, factor * axis.stop) for axis in window)
        weight = (
            tile_weight(rows.start, part.shape[1], height, factor * overlap)[:, None]
            * tile_weight(columns.start, part.shape[2], width, factor * overlap)
        ).to(image)
        for channel, values in zip(total, part, strict=True):
            channel[rows, columns] += weight * values
        weights[rows, columns] += weight
        if callback is not None:
            callback(0, Part(k + 1, len(chosen)))
    mean = total.div_(weights).cpu()
    std, seconds = mean.new_zeros(()).expand(mean.shape), time.perf_counter() - began
    misfit = math.sqrt(squares / pixels) if pixels else None
    return Restored(mean[None], mean, std, nfe, seconds, misfit=misfit, warning=warning)


def all_near(known: Tensor, reach: int) -> bool:
    """Whether every missing pixel of a mask ``(H, W)`` has a known one within ``reach`` rows and
    columns.
    """
    around = known[None, None]
    for size in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        around = F.max_pool2d(around, size, stride=1, padding=(size[0] // 2, size[1] // 2))
    return bool(around.all())
