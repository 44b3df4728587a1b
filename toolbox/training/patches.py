"""Random patches of a folder's pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pictures, random_window


class Patches:
    """Random square patches of a folder's pictures at several scales, mirrored at random.

    Args:
        folder: searched recursively for pictures.
        size: side of a patch in pixels.
        exclude: names of files to leave out.
        swap: whether the channels of patches are swapped.
        turn: whether patches are turned by quarters.
        sides: short sides that pictures are reduced to; where there are none they are scaled.
        scales: large photos are soft at full size.

    Raises:
        ValueError: no picture of at least ``size`` pixels in the folder.
    """

    SCALES = (0.7, 0.5, 0.35, 0.25)

    def __init__(
        self,
        folder: str | Path,
        size: int,
        exclude: tuple[str, ...] = (),
        sides: tuple[int, ...] = (),
        swap: bool = True,
        turn: bool = True,
        scales: tuple[float, ...] = SCALES,
    ):
        self.size, self.swap, self.turn = size, swap, turn
        self.images: list[np.ndarray] = []
        for path in find_pictures(folder, exclude):
            pixels = np.broadcast_to((photo := read_image(path).pixels), (3, *photo.shape[1:]))
            image = Image.fromarray(np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8))
            for scale in [side / min(image.size) for side in sides] or scales:
                width, height = (round(s * scale) for s in image.size)
                if min(width, height) >= size:
                    self.images.append(
                        np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
                    )
        if not self.images:
            raise ValueError(f"{folder} holds no picture of at least {size} x {size} pixels")

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """``(count, 3, size, size)`` in [0, 1]."""
        out = np.empty((count, self.size, self.size, 3), np.uint8)
        for k, index in enumerate(rng.integers(len(self.images), size=count)):
            image = self.images[index]
            rows, columns = random_window(image.shape[:2], self.size, rng)
            patch = image[rows, columns]
            patch = np.rot90(patch, int(rng.integers(4))) if self.turn else patch
            patch = patch if rng.random() < 0.5 else patch[:, ::-1]
            out[k] = patch[..., rng.permutation(3)] if self.swap else patch
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def grey_patches(patches: Patches, count: int, cells: float, rng: np.random.Generator) -> Tensor:
    """``(count, 1, size, size)`` in [0, 1] for a denoiser of single planes: random mixtures of a
    picture's colours, also negative ones (as principal components are), and for a share ``cells``
    of the patches flat cells around random points (as fields are from above).
    """
    weight = rng.normal(size=(count, 3, 1, 1)).astype(np.float32)
    weight /= np.abs(weight).sum(1, keepdims=True)
    out = 0.5 + (torch.from_numpy(weight) * (patches.draw(count, rng) - 0.5)).sum(1, keepdim=True)
    grid = np.stack(np.meshgrid(np.arange(patches.size), np.arange(patches.size), indexing="ij"))
    for k in np.flatnonzero(rng.random(count) < cells):
        points = rng.uniform(0, patches.size, (rng.integers(4, 40), 2, 1, 1))
        stretch = rng.uniform(0.3, 1.0, (2, 1, 1))
        nearest = (np.abs(grid - points) * stretch).sum(1).argmin(0)
        shift = float(out[k].mean()) - 0.5
        # the picture stays as a faint texture
        out[k] = 0.15 * (out[k] - 0.5 - shift) + torch.from_numpy(
            rng.uniform(0, 1, len(points)).astype(np.float32)[nearest]
        )
    return out.clamp(0, 1)
