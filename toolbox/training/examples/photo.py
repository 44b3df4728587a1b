"""What networks are trained on: an example generator per task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.operators.linear import Inpainting, LinearOperator
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean
from restoration.photo.lift import enlarge, thin_plate
from restoration.photo.masks import make_mask
from restoration.posterior.ddnm import DDNM
from solvers.denoiser import Denoiser
from toolbox.training.patches import Patches
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import needed
from toolbox.training.unrolled import Measured

BLOCKS = (2, 3, 4)


def draw_known(
    count: int,
    size: int,
    kinds: Sequence[str],
    drop: float,
    rng: np.random.Generator,
    factors: Sequence[int] = BLOCKS,
) -> Tensor:
    """``(count, 1, size, size)``: 1 = known, 0 = missing, ``1/f^2`` where the means of f x f blocks
    are; a share ``drop`` knows nothing.
    """
    masks = np.zeros((count, 1, size, size), np.float32)
    for k in range(count):
        if rng.random() >= drop:
            kind = kinds[int(rng.integers(len(kinds)))]
            if kind == "blocks":
                masks[k] = 1 / factors[int(rng.integers(len(factors)))] ** 2
                continue
            missing = rng.uniform(0.3, 0.97) if kind == "random" else rng.uniform(0.05, 0.4)
            masks[k, 0] = make_mask(kind, size, size, missing, rng)
    return torch.from_numpy(masks)


class PhotoExamples:
    """Photo patches of which some pixels are known, or the means of blocks."""

    channels, condition_channels = 3, 4

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude)
        self.condition = needed(recipe.condition)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and what is known of them."""
        c = self.condition
        return self.patches.draw(count, rng), draw_known(
            count, self.recipe.patch_size, c.kinds, c.drop, rng, c.factors
        )

    @staticmethod
    def show(denoiser: Denoiser, image: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, what the network is shown, and how much of each pixel is to
        be found out.
        """
        x0, mask = denoiser.from_unit(image), (known == 1).to(known)
        lift = thin_plate(x0 * mask, mask)
        for factor in BLOCKS:
            means = (known[:, 0, 0, 0] - 1 / factor**2).abs() < 1e-3
            if means.any():
                lift[means] = enlarge(F.avg_pool2d(x0[means], factor), factor, x0.shape[-2:])
        return x0, torch.cat([lift, known], dim=1), 1 - known

    def measured(self, denoiser: Denoiser, rng: np.random.Generator) -> list[Measured]:
        """A batch of which pixels are known, or the means of blocks, or (a share ``drop`` of the
        batches) nothing.
        """
        size, count = self.recipe.patch_size, self.recipe.batch_size
        kinds, factors = self.condition.kinds, self.condition.factors
        if rng.random() < self.condition.drop:
            nothing = torch.zeros(count, 1, size, size, device=denoiser.device)
            return [
                Measured(
                    *self.show(denoiser, self.patches.draw(count, rng).to(nothing), nothing),
                    correct=None,
                )
            ]
        operator: LinearOperator
        blocks = kinds[int(rng.integers(len(kinds)))] == "blocks"
        factor = factors[int(rng.integers(len(factors)))]
        if blocks:
            known = torch.full((count, 1, size, size), 1 / factor**2, device=denoiser.device)
            operator = BlockMean((size, size), factor)
        else:
            known = draw_known(count, size, [k for k in kinds if k != "blocks"], 0.0, rng).to(
                denoiser.device
            )
            operator = Inpainting(known)
        x0, condition, missing = self.show(denoiser, self.patches.draw(count, rng).to(known), known)
        measurement = Measurement(operator, operator.A(x0))
        return [Measured(x0, condition, missing, lambda d: DDNM(d, measurement))]
