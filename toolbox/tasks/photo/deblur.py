"""Photographs sharpened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from restoration.io.images import read_image
from restoration.operators.separable import SceneBlur, gaussian_kernel
from restoration.photo.linear import LinearTask
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Size, Trial, with_numbers
from toolbox.tasks.classical import plain, wiener
from toolbox.tasks.options import Deblurring
from toolbox.tasks.photo.denoisers import denoiser_of
from toolbox.tasks.photo.linear import LinearPictureTask
from toolbox.tasks.pictures import check_no_scene
from toolbox.tasks.settings import COLOUR, GREY, Prior, Settings


class Deblur(LinearPictureTask):
    """Sharpen what a Gaussian blurred."""

    name = "deblur"
    benched = ("plain", "wiener", GREY, COLOUR)
    prior = Prior(GREY)
    settings = Settings(steps=8)
    sampling_solver = "ddpm"
    calibration_sigma = exported_sigma = Deblurring.sigma

    def model_for(self, path: Path, options: Deblurring) -> str:
        check_no_scene(self, path)
        return denoiser_of(read_image(path).pixels)

    def operator(self, size: Size, options: Deblurring) -> SceneBlur:
        return SceneBlur(size, gaussian_kernel(options.blur).tolist())

    def task(self, denoiser: Denoiser, options: Deblurring, settings: Settings) -> LinearTask:
        made = super().task(denoiser, options, settings)
        return replace(made, start_level=options.start_level or None)

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Deblurring:
        """The command's run, from its start level, where the data have noise to regularize by."""
        level = self.calibration_sigma if sigma is None else sigma
        start = Deblurring.start_level if level > 0 else 0.0
        return with_numbers(Deblurring(1.6, level, start), self.name, None, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Deblurring:
        """Blurs of 1, 1.6 and 2.4 pixels, in turn."""
        return self.simulated(denoiser, blur=(1.0, 1.6, 2.4)[k % 3])

    def is_usual(self, options: Deblurring) -> bool:
        return options.start_level == Deblurring.start_level

    def record(self, options: Deblurring) -> dict[str, str | float]:
        return {"blur": options.blur, "start_level": options.start_level}

    def baselines(self, options: Deblurring) -> dict[str, Callable[[Trial], Tensor]]:
        kernel = np.asarray(gaussian_kernel(options.blur))
        return {"plain": plain, "wiener": lambda trial: wiener(trial, kernel, options.sigma)}
