"""Single planes, for a denoiser that is told the noise level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from toolbox.training.patches import Patches, grey_patches
from toolbox.training.recipe import TrainingRecipe


class GreyExamples:
    """Single planes with noise: an unconditional denoiser."""

    channels, condition_channels = 1, 0

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Images in [0, 1]."""
        return (grey_patches(self.patches, count, self.recipe.noise.cells, rng),)

    def times(self, count: int, rng: np.random.Generator) -> Tensor:
        """Levels spread evenly in the logarithm of the noise."""
        return self.recipe.noise.times(self.recipe.process.process(), count, rng)
