"""Photographs and what files hold of them when they were made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from restoration.io.pictures.values import after_jpeg
from restoration.photo.lift import enlarge
from solvers.denoiser import Denoiser
from toolbox.training.examples.colour import SIDES
from toolbox.training.patches import Patches
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import Reduction, needed

KERNELS = {
    "block": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class EnlargedExamples:
    """Patches, and small pictures of them: softened or not, reduced by one of several kernels, with
    or without noise, as JPEG or not, in 8 bits.
    """

    channels, condition_channels = 3, 4

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.reduction = recipe, needed(recipe.reduction)
        self.patches = Patches(folder, recipe.patch_size, exclude, sides=SIDES, swap=False)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images ``(count, 3, size, size)`` and small ones, in [0, 1]."""
        images = self.patches.draw(count, rng)
        pixels = np.rint(255 * images.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
        small = np.stack([reduced(p, self.reduction, rng) for p in pixels])
        return images, torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255

    @staticmethod
    def show(denoiser: Denoiser, image: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, the enlarged picture with the share of a pixel that was
        measured, and that nothing of the image is known.
        """
        factor = image.shape[-1] // small.shape[-1]
        lift = enlarge(denoiser.from_unit(small), factor, image.shape[-2:])
        share = torch.full_like(lift[:, :1], 1 / factor**2)
        return denoiser.from_unit(image), torch.cat([lift, share], dim=1), torch.ones_like(share)


def reduced(pixels: np.ndarray, how: Reduction, rng: np.random.Generator) -> np.ndarray:
    """One small picture ``(h, w, 3)`` of 8 bits, drawn as ``how`` says."""
    picture = Image.fromarray(pixels)
    if rng.random() < how.softened:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, how.blur)))
    kernel = how.kernels[int(rng.integers(len(how.kernels)))]
    width, height = picture.size
    picture = picture.resize((width // how.factor, height // how.factor), KERNELS[kernel])
    if rng.random() < how.noisy:
        noise = rng.uniform(0, how.sigma) * rng.standard_normal((*picture.size[::-1], 3))
        values = np.rint(np.asarray(picture) + noise).clip(0, 255)
        picture = Image.fromarray(values.astype(np.uint8))
    if rng.random() < how.jpeg:
        return after_jpeg(np.asarray(picture), int(rng.integers(how.quality, 96)))
    return np.asarray(picture)
