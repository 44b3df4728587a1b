"""Scans, simulated or undersampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.mri.consistency import Alternation, Slice
from restoration.mri.estimate import CONDITION_CHANNELS
from solvers.denoiser import Denoiser
from toolbox.training.examples.fastmri import MeasuredScans
from toolbox.training.examples.scans import KeptScans, Scans
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import needed
from toolbox.training.unrolled import Measured


class MRIExamples:
    """Patches of multi-coil scans, simulated from images or undersampled from a folder of full
    ones.
    """

    channels, condition_channels = 2, CONDITION_CHANNELS

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, size, seed = recipe, recipe.patch_size, recipe.seed
        self.scans: KeptScans = (
            Scans(folder, needed(recipe.simulation), size, seed, exclude)
            if recipe.fastmri is None
            else MeasuredScans(folder, recipe.fastmri, size, seed, exclude)
        )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Complex images in two channels, in units of the scan's scale, and what the network is
        shown.
        """
        return self.scans.draw(count, rng)

    @staticmethod
    def show(denoiser: Denoiser, image: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image, shown, torch.ones_like(image[:, :1])

    def measured(self, denoiser: Denoiser, rng: np.random.Generator) -> list[Measured]:
        """Whole scans, which differ in size: each by itself."""
        batch = []
        for _ in range(self.recipe.batch_size):
            x0, shown, m = self.scans.simulate(rng)
            x0, shown, y = (v.to(denoiser.device) for v in (x0, shown, m.y))
            operator: Any = m.operator
            missing = torch.ones_like(x0[:, :1])
            data = Slice(operator, y, m.sigma)
            batch.append(Measured(x0, shown, missing, _alternating(data)))
        return batch


def _alternating(data: Slice) -> Callable[[Denoiser], Alternation]:
    return lambda d: Alternation(d, data, float(d.data_std))
