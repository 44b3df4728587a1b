"""Sliding patches and their way back into a picture: replace, average, or Hann-weighted average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MODES = ("replace", "average", "hann")


def patch_grid(
    shape: Sequence[int], size: Sequence[int], overlap: Sequence[int]
) -> tuple[range, range]:
    """First rows and columns of the patches that fit into ``shape (H, W)`` at the stride ``size -
    overlap``.

    Raises:
        ValueError: an overlap that is no smaller than the patch, or a patch larger than the
            picture.
    """
    if any(not 0 <= o < s for s, o in zip(size, overlap, strict=True)):
        raise ValueError(
            f"the overlap must be at least 0 and smaller than the patch; got {tuple(overlap)} of"
            f" {tuple(size)}"
        )
    if any(s > n for s, n in zip(size, shape, strict=True)):
        raise ValueError(
            f"patches of {tuple(size)} do not fit into a picture of {tuple(shape)} pixels (H, W)"
        )
    rows, columns = (
        range(0, n - s + 1, s - o) for n, s, o in zip(shape, size, overlap, strict=True)
    )
    return rows, columns


def cut(image: Tensor, size: Sequence[int], overlap: Sequence[int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, rows, columns, C, h, w)``: whole patches only; what is left at the
    far edges is not covered.
    """
    rows, columns = patch_grid(image.shape[-2:], size, overlap)
    patches = image.unfold(2, size[0], size[0] - overlap[0]).unfold(
        3, size[1], size[1] - overlap[1]
    )
    return patches[:, :, : len(rows), : len(columns)].permute(0, 2, 3, 1, 4, 5)


def stitch(patches: Tensor, overlap: Sequence[int], mode: str = "hann") -> Tensor:
    """``(B, rows, columns, C, h, w)`` to the picture ``(B, C, H, W)`` that the patches cover.

    ``replace``: later patches (row by row) overwrite; ``average``: equal weights; ``hann``: weights
    ``hann(h) x hann(w)`` (symmetric, zeros replaced by 1e-8).

    Raises:
        ValueError: an unknown mode, or an overlap that is no smaller than the patch.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; known: {', '.join(MODES)}")
    batch, rows, columns, channels, *size = patches.shape
    stride = [s - o for s, o in zip(size, overlap, strict=True)]
    shape = [(n - 1) * step + s for n, step, s in zip((rows, columns), stride, size, strict=True)]
    tops, lefts = patch_grid(shape, size, overlap)
    weight = patches.new_ones(size)
    if mode == "hann":
        row, column = (
            torch.hann_window(s, periodic=False, dtype=patches.dtype, device=patches.device)
            for s in size
        )
        weight = row[:, None] * column
        weight = torch.where(weight == 0, torch.full_like(weight, 1e-8), weight)
    total, weights = patches.new_zeros(batch, channels, *shape), patches.new_zeros(shape)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            if mode == "replace":
                total[place], weights[place] = patches[:, i, j], 1
            else:
                total[place] += weight * patches[:, i, j]
                weights[place] += weight
    return total / weights
