"""Photographs sharpened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from restoration.io.images import Photo, read_image
from restoration.operators.separable import SceneBlur, gaussian_kernel
from restoration.photo.linear import LinearTask
from restoration.photo.start import deblurring_level
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Size, Trial, with_numbers
from toolbox.tasks.classical import plain, wiener
from toolbox.tasks.options import Deblurring
from toolbox.tasks.photo.denoisers import denoiser_of
from toolbox.tasks.photo.errors import check_error, error_of
from toolbox.tasks.photo.linear import LinearPictureTask
from toolbox.tasks.pictures import Reading, check_no_scene
from toolbox.tasks.settings import COLOUR, GREY, Prior, Settings


class Deblur(LinearPictureTask):
    """Sharpen what a Gaussian blurred."""

    name = "deblur"
    benched = ("plain", "wiener", GREY, COLOUR)
    prior = Prior(GREY)
    settings = Settings(steps=8)
    sampling_solver = "ddpm"
    calibration_sigma = exported_sigma = 0.01

    def model_for(self, path: Path, options: Deblurring) -> str:
        check_no_scene(self, path)
        return denoiser_of(read_image(path).pixels)

    def operator(self, size: Size, options: Deblurring) -> SceneBlur:
        return SceneBlur(size, gaussian_kernel(options.blur).tolist())

    def read(self, photo: Photo, options: Deblurring, seed: int) -> Reading:
        reading = super().read(photo, options, seed)
        check_error(float(reading.options.sigma))
        return reading

    def estimated(self, options: Deblurring, image: Tensor) -> float:
        return error_of(image, options.blur)

    def refined(self, reading: Reading, options: Deblurring, denoiser: Any) -> Reading:
        if options.sigma != "auto" or not isinstance(denoiser, Denoiser):
            return reading
        sigma = error_of(reading.inputs["image"], options.blur, denoiser)
        known = replace(reading.options, sigma=sigma)
        return replace(reading, options=known, found={"sigma": sigma})

    def task(self, denoiser: Denoiser, options: Deblurring, settings: Settings) -> LinearTask:
        made = super().task(denoiser, options, settings)
        return replace(made, start_level=_level(options) or None)

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Deblurring:
        """The command's run, from its start level, where the data have noise to regularize by."""
        level = self.calibration_sigma if sigma is None else sigma
        start = None if level > 0 else 0.0
        return with_numbers(Deblurring(1.6, str(level), start), self.name, None, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Deblurring:
        """Blurs of 1, 1.6 and 2.4 pixels, in turn."""
        return self.simulated(denoiser, blur=(1.0, 1.6, 2.4)[k % 3])

    def is_usual(self, options: Deblurring) -> bool:
        return options.start_level is None

    def record(self, options: Deblurring) -> dict[str, str | float]:
        return {"blur": options.blur, "start_level": _level(options)}

    def baselines(self, options: Deblurring) -> dict[str, Callable[[Trial], Tensor]]:
        kernel = np.asarray(gaussian_kernel(options.blur))

        def with_wiener(trial: Trial) -> Tensor:
            return wiener(trial, kernel, self.sigma(options, trial.inputs["image"]))

        return {"plain": plain, "wiener": with_wiener}


def _level(options: Deblurring) -> float:
    """Where a run starts; 0: from noise."""
    if options.start_level is not None:
        return options.start_level
    return deblurring_level(options.blur, 0 if options.sigma == "auto" else float(options.sigma))
