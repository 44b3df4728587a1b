"""Photographs in colour, for a denoiser that is told the noise level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolbox.training.patches import Patches
from toolbox.training.recipe import TrainingRecipe

# short sides, in pixels: photos at about the detail of pictures that are looked at as a whole
SIDES = (416, 320, 240)
EXPOSED, EXPOSURES = 0.3, (0.7, 1.3)  # a share of the patches is brighter or darker


class ColourExamples:
    """Colour patches: their channels belong together, so none are swapped."""

    channels, condition_channels = 3, 0

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe = recipe
        self.patches = Patches(folder, recipe.patch_size, exclude, sides=SIDES, swap=False)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Images in [0, 1]; where a brighter one leaves them it is cut off, as cameras do."""
        gain = np.where(rng.random(count) < EXPOSED, rng.uniform(*EXPOSURES, count), 1.0)
        scale = torch.from_numpy(gain.astype(np.float32))[:, None, None, None]
        return ((scale * self.patches.draw(count, rng)).clamp(0, 1),)

    def times(self, count: int, rng: np.random.Generator) -> Tensor:
        """Levels spread evenly in the logarithm of the noise."""
        return self.recipe.noise.times(self.recipe.process.process(), count, rng)
