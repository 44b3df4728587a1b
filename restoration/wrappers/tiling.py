"""Large images in overlapping tiles, inside the sampling loop: every network call is tiled and
blended, so no seam can grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser, Network, begun, output_of

# sides of tiles, in image pixels
LEAST_TILE, MOST_TILE = 64, 512


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the fewest tiles of size ``tile`` that cover ``length`` with at least ``overlap``
    between neighbours.
    """
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tile_weight(start: int, size: int, length: int, overlap: int) -> Tensor:
    """Blending weight along one axis, ``(size,)``, positive: a ramp over ``overlap`` where a
    neighbour exists, else 1.
    """
    ramp = (torch.arange(size) + 0.5) / max(overlap, 1)
    weight = torch.ones(size)
    if start > 0:
        weight = torch.minimum(weight, ramp)
    if start + size < length:
        weight = torch.minimum(weight, ramp.flip(0))
    return weight


def tile_for(denoiser: Denoiser) -> int:
    """Side in image pixels of the tiles that suit a network: 512, and less where diffusers' config
    tells of attention, whose cost grows with the square of a tile's pixels: then the size that the
    network was trained on (``sample_size``), else the largest whose attention costs about as much
    as the convolutions around it.

    At C channels a residual block has about 18 C^2 products for each position, attention over N
    positions 2 N C: equal at N = 9 C.
    """
    config = getattr(getattr(denoiser, "network", None), "config", None)
    if not isinstance(config, Mapping):
        return MOST_TILE
    widths = config.get("block_out_channels") or ()
    kinds = config.get("down_block_types") or ()
    levels = [k for k, kind in enumerate(kinds[: len(widths)]) if "Attn" in kind]
    if widths and config.get("mid_block_type", "mid") and config.get("add_attention"):
        levels.append(len(widths) - 1)
    if not levels:
        return MOST_TILE
    side = min(2**k * int((9 * widths[k]) ** 0.5) for k in levels)
    trained = config.get("sample_size") or side
    side = denoiser.fold * (trained if isinstance(trained, int) else max(trained))
    unit = denoiser.fold * denoiser.multiple
    return -(-min(max(side, LEAST_TILE), MOST_TILE) // unit) * unit


def set_tile(task: Any) -> None:
    """Put :func:`tile_for` in the place of a new task's ``tile`` 0; of latents in pixels too."""
    if task.tile == 0:
        autoencoder = task.denoiser.autoencoder
        scale = 1 if autoencoder is None else autoencoder.fold
        object.__setattr__(task, "tile", scale * tile_for(task.denoiser))


class TiledNetwork(nn.Module):
    """``network(input, t)`` evaluated tile by tile; outputs are averaged with weights that fall off
    towards the tile's edge.

    Args:
        network: takes ``(B, C, h, w)`` of at most ``tile`` by ``tile`` and ``t (B,)``; its output
            has the input's height and width.
        tile: side of a tile at the network's resolution.
        overlap: pixels shared by neighbours, less than ``tile``.
    """

    def __init__(self, network: Network, tile: int, overlap: int):
        super().__init__()
        self.network, self.tile, self.overlap = network, tile, overlap

    def begin(self, times: Sequence[float]) -> TiledNetwork:
        """For a run over ``times``."""
        return TiledNetwork(begun(self.network, times), self.tile, self.overlap)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        height, width = z.shape[-2:]
        rows, columns = (
            tile_starts(height, self.tile, self.overlap),
            tile_starts(width, self.tile, self.overlap),
        )
        total = weights = z  # of the first tile's channels and type
        for top in rows:
            for left in columns:
                part = z[..., top : top + self.tile, left : left + self.tile]
                out = output_of(self.network(part, t))
                h, w = out.shape[-2:]
                weight = (
                    tile_weight(top, h, height, self.overlap)[:, None]
                    * tile_weight(left, w, width, self.overlap)
                ).to(out)
                if top == left == 0:
                    total = out.new_zeros(*out.shape[:2], height, width)
                    weights = out.new_zeros(height, width)
                total[..., top : top + h, left : left + w] += weight * out
                weights[top : top + h, left : left + w] += weight
        return total.div_(weights)


def in_tiles(denoiser: Denoiser, size: Sequence[int], tile: int, overlap: int) -> Denoiser:
    """``denoiser`` itself, or :func:`tiled` where pictures of ``size (..., H, W)`` are larger than
    a tile.

    Args:
        tile: side in image pixels, rounded down to what the network takes.
        overlap: image pixels that neighbours share; at most an eighth of a tile.
    """
    if max(size[-2:]) <= tile:
        return denoiser
    unit = denoiser.fold * denoiser.multiple
    side = max(tile // unit, 1) * unit
    return tiled(denoiser, side, min(overlap, side // 8) // denoiser.fold * denoiser.fold)


def tiled(denoiser: Denoiser, tile: int = 512, overlap: int = 64) -> Denoiser:
    """A copy of ``denoiser`` that calls its network on tiles of ``tile`` x ``tile`` image pixels.

    Raises:
        ValueError: sizes that are no multiple of what the network needs, or an overlap that is not
            smaller than half a tile.
    """
    unit = denoiser.fold * denoiser.multiple
    if tile < unit or tile % unit or overlap < 0 or overlap % denoiser.fold:
        raise ValueError(
            f"tile must be a multiple of {unit} and overlap a multiple of {denoiser.fold}; got"
            f" {tile} and {overlap}"
        )
    if 2 * overlap >= tile:
        raise ValueError(f"overlap must be less than half a tile; got {overlap} of {tile}")
    return denoiser.around(
        TiledNetwork(denoiser.network, tile // denoiser.fold, overlap // denoiser.fold)
    )
