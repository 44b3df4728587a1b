"""Photographs enlarged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.io.images import MAX_PIXELS, Photo
from restoration.io.pictures.values import after_jpeg
from restoration.operators.linear import LinearOperator
from restoration.operators.separable import Bicubic, BlockMean, UnknownReduction
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Size, Source, Trial, with_numbers
from toolbox.tasks.classical import lanczos
from toolbox.tasks.options import Enlarging
from toolbox.tasks.photo.denoisers import cleaner_of
from toolbox.tasks.photo.errors import noise_of_small
from toolbox.tasks.photo.linear import LinearPictureTask
from toolbox.tasks.pictures import Reading
from toolbox.tasks.settings import DEFAULT_MODEL, SMALL_PICTURES, Settings

Reduction = BlockMean | Bicubic | UnknownReduction
REDUCTIONS: dict[str, type[Reduction]] = {
    "any": UnknownReduction,
    "block": BlockMean,
    "bicubic": Bicubic,
}


class Superresolve(LinearPictureTask):
    """Enlarge."""

    name = "superresolve"
    benched = ("plain", "lanczos", DEFAULT_MODEL)
    settings = Settings(steps=1)
    sampling_steps = 5

    def model_for(self, path: Path, options: Enlarging) -> str:
        return enlarger(options.factor)

    def operator(self, size: Size, options: Enlarging) -> Reduction:
        return enlargement(size, options.factor, options.kernel)

    def estimated(self, options: Enlarging, image: Tensor) -> float:
        return noise_of_small(image, options.factor)

    def read(self, photo: Photo, options: Enlarging, seed: int) -> Reading:
        reading = super().read(photo, options, seed)
        if options.sigma != "auto" or reading.options.sigma == 0:
            return reading
        note = "the small picture's errors are taken off first, as noise of this sigma"
        return replace(reading, found=reading.found | {"note": note})

    def measuring(self, size: Size, options: Enlarging) -> LinearOperator:
        return enlargement(
            (size[0] // options.factor, size[1] // options.factor), options.factor, options.kernel
        )

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Enlarging:
        # what else a network needs is the correction, which wants to know
        kernel = "any" if denoiser.condition_channels else "bicubic"
        return with_numbers(Enlarging(kernel=kernel, sigma="0"), self.name, sigma, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Enlarging:
        """Factors 2 and 3 in turn; 4 for networks that see 4 x 4 pixels as one."""
        factor = 4 if denoiser.fold >= 4 else (2, 3)[k % 2]
        return self.simulated(denoiser, factor=factor)

    def measured(self, image: Tensor, options: Any, source: Source, k: int) -> Trial:
        if options.kernel != "any":
            return super().measured(image, options, source, k)
        y, image = files_reduction(image, options.factor)
        sigma = 0.0 if options.sigma == "auto" else float(options.sigma)
        return Trial({"image": y + sigma * source.noise(k, y)}, image, self.name)

    def task(self, denoiser: Denoiser, options: Enlarging, settings: Settings) -> LinearTask:
        return replace(super().task(denoiser, options, settings), cleaner=cleaner_of(denoiser))

    def deployed(self, options: Enlarging, settings: Settings) -> tuple[Any, Settings]:
        return options, settings

    def is_usual(self, options: Enlarging) -> bool:
        return options.sigma == "auto" or float(options.sigma) == 0

    def record(self, options: Enlarging) -> dict[str, str | float]:
        return {"factor": float(options.factor)}

    def baselines(self, options: Enlarging) -> dict[str, Callable[[Trial], Tensor]]:
        def plain(trial: Trial) -> Tensor:
            y = trial.inputs["image"][None]
            size = tuple(options.factor * n for n in y.shape[-2:])
            return enlarge(y, options.factor, size)[0].clamp(0, 1)

        return {"plain": plain, "lanczos": lambda trial: lanczos(trial, options.factor)}


def enlarger(factor: int) -> str:
    """The shipped network that enlarges best."""
    return SMALL_PICTURES if factor == 4 else DEFAULT_MODEL


def files_reduction(image: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A picture ``(C, H, W)`` as files hold it when it was made small (Lanczos, JPEG of quality 75,
    8 bits), and the picture itself, cut to whole pixels of that.
    """
    height, width = (n // factor * factor for n in image.shape[1:])
    image = image[:, :height, :width]
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)
    small = picture.resize((width // factor, height // factor), Image.Resampling.LANCZOS)
    found = after_jpeg(np.asarray(small), 75).reshape(height // factor, width // factor, -1)
    return torch.from_numpy(found).permute(2, 0, 1).float() / 255, image


def enlargement(size: Size, factor: float, kernel: str) -> Reduction:
    """The operator that made a picture of ``size (H, W)`` from one ``factor`` times as large.

    Raises:
        ValueError: a factor or a kernel that is not known, or a result that is too large.
    """
    if factor != int(factor) or not 2 <= factor <= 8:
        raise ValueError(f"the factor must be a whole number from 2 to 8; got {factor:g}")
    if kernel not in REDUCTIONS:
        raise ValueError(f"kernel {kernel!r} is unknown; known: {', '.join(REDUCTIONS)}")
    height, width = (int(factor) * n for n in size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"the result would have {height * width:,} pixels; at most {MAX_PIXELS:,} are accepted"
        )
    return REDUCTIONS[kernel]((height, width), int(factor))
