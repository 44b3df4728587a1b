"""What networks are trained on: an example generator per task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from restoration.io.images import read_image
from restoration.mri.consistency import Alternation
from restoration.mri.estimate import CONDITION_CHANNELS
from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean
from restoration.paired.task import HAZE, haze_condition
from restoration.photo.lift import enlarge, thin_plate
from restoration.photo.masks import make_mask
from restoration.posterior.ddnm import DDNM
from solvers.denoiser import Denoiser
from toolbox.training.examples.fastmri import MeasuredScans
from toolbox.training.examples.hyperspectral import LatentExamples
from toolbox.training.examples.mri import Scans
from toolbox.training.examples.paired import PairExamples, kept, make_hazy
from toolbox.training.examples.ultrasound import UltrasoundExamples
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.unrolled import Measured


class Patches:
    """Random square patches of a folder's pictures at several scales, with flips, turns and channel
    swaps.

    Args:
        folder: searched recursively for JPEG, PNG and WebP files.
        size: side of a patch in pixels.
        exclude: names of files to leave out.
        sides: short sides that pictures are reduced to; by default they are scaled by ``SCALES``:
            large photos are soft at full size.

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
    ):
        self.size = size
        self.images: list[np.ndarray] = []
        for path in sorted(Path(folder).rglob("*")):
            if (
                path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"}
                or path.name in exclude
            ):
                continue
            pixels = np.broadcast_to((photo := read_image(path).pixels), (3, *photo.shape[1:]))
            image = Image.fromarray(np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8))
            for scale in [side / min(image.size) for side in sides] or self.SCALES:
                width, height = (round(s * scale) for s in image.size)
                if min(width, height) >= size:
                    self.images.append(
                        np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
                    )
        if not self.images:
            raise ValueError(
                f"{folder} holds no picture of at least {size} x {size} pixels (JPEG, PNG, WebP)"
            )

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """``(count, 3, size, size)`` in [0, 1]."""
        out = np.empty((count, self.size, self.size, 3), np.uint8)
        for k, index in enumerate(rng.integers(len(self.images), size=count)):
            image = self.images[index]
            top = rng.integers(0, image.shape[0] - self.size + 1)
            left = rng.integers(0, image.shape[1] - self.size + 1)
            patch = np.rot90(image[top : top + self.size, left : left + self.size], rng.integers(4))
            out[k] = (patch if rng.random() < 0.5 else patch[:, ::-1])[..., rng.permutation(3)]
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


BLOCKS = (2, 3, 4)


def draw_known(
    count: int,
    size: int,
    kinds: list[str],
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
            kind = kinds[rng.integers(len(kinds))]
            if kind == "blocks":
                masks[k] = 1 / factors[rng.integers(len(factors))] ** 2
                continue
            missing = rng.uniform(0.3, 0.97) if kind == "random" else rng.uniform(0.05, 0.4)
            masks[k, 0] = make_mask(kind, size, size, missing, rng)
    return torch.from_numpy(masks)


class PhotoExamples:
    """Photo patches of which some pixels are known, or the means of blocks."""

    channels, condition_channels = 3, 4

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and what is known of them."""
        c = self.recipe.condition
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
        condition, size, count = (
            self.recipe.condition,
            self.recipe.patch_size,
            self.recipe.batch_size,
        )
        kinds, factors = condition.kinds, condition.factors
        if rng.random() < condition.drop:
            nothing = torch.zeros(count, 1, size, size, device=denoiser.device)
            return [
                Measured(
                    *self.show(denoiser, self.patches.draw(count, rng).to(nothing), nothing),
                    correct=None,
                )
            ]
        blocks = kinds[rng.integers(len(kinds))] == "blocks"
        factor = factors[rng.integers(len(factors))]
        if blocks:
            known, operator = (
                torch.full((count, 1, size, size), 1 / factor**2, device=denoiser.device),
                BlockMean((size, size), factor),
            )
        else:
            known = draw_known(count, size, [k for k in kinds if k != "blocks"], 0.0, rng).to(
                denoiser.device
            )
            operator = Inpainting(known)
        x0, condition, missing = self.show(denoiser, self.patches.draw(count, rng).to(known), known)
        measurement = Measurement(operator, operator.A(x0))
        return [Measured(x0, condition, missing, lambda d: DDNM(d, measurement))]


class MRIExamples:
    """Patches of multi-coil scans, simulated from images or undersampled from a folder of full
    ones.
    """

    channels, condition_channels = 2, CONDITION_CHANNELS

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        kind, settings = (
            (Scans, recipe.simulation)
            if recipe.fastmri is None
            else (MeasuredScans, recipe.fastmri)
        )
        self.recipe, self.scans = (
            recipe,
            kind(folder, settings, recipe.patch_size, recipe.seed, exclude),
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
            measurement = Measurement(m.operator, y, m.sigma)
            batch.append(
                Measured(
                    x0,
                    shown,
                    torch.ones_like(x0[:, :1]),
                    lambda d, m=measurement: Alternation(d, m, prior_std=d.data_std),
                )
            )
        return batch


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


class HazeExamples:
    """Clear pictures and the same ones in made-up haze."""

    channels, condition_channels = 3, HAZE
    # of a patch: nearly whole pictures, as haze is told from the look of a scene
    SIDES = (1.0, 1.2, 1.45, 1.8)

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        sides = tuple(round(share * recipe.patch_size) for share in self.SIDES)
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude, sides)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clear and hazy pictures in [0, 1], and 0 where the condition is dropped."""
        drawn = self.patches.draw(2 * count, rng)
        pairs = [
            make_hazy(picture, drawn[count:], self.recipe.haze, rng) for picture in drawn[:count]
        ]
        clear, hazy = (torch.stack(part) for part in zip(*pairs, strict=True))
        return clear, (hazy * 255).round() / 255, kept(count, self.recipe.haze.drop, rng)

    @staticmethod
    def show(
        denoiser: Denoiser, clear: Tensor, hazy: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            denoiser.from_unit(clear),
            keep * denoiser.from_unit(haze_condition(hazy)),
            torch.ones_like(clear[:, :1]),
        )


EXAMPLES = {
    "inpaint": PhotoExamples,
    "mri": MRIExamples,
    "denoise": GreyExamples,
    "dehaze": HazeExamples,
    "paired": PairExamples,
    "hsi": LatentExamples,
    "ultrasound": UltrasoundExamples,
}
