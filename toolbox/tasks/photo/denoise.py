"""White noise off photographs, and scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration.io.images import read_image
from restoration.io.mri import suffix
from restoration.io.scenes import is_scene, open_scene
from restoration.metrics import noise_level
from restoration.operators import linear
from restoration.operators.counting import Counting
from restoration.operators.linear import LinearOperator
from restoration.photo.linear import LinearTask
from restoration.photo.patterns import given_back
from restoration.task import Restored
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Progress, Size, Trial, silent, with_numbers
from toolbox.tasks.classical import bm3d, by_planes, cbm3d, non_local_means, plain
from toolbox.tasks.options import Denoising
from toolbox.tasks.photo.denoisers import denoiser_of, noise_of
from toolbox.tasks.photo.linear import LinearPictureTask
from toolbox.tasks.pictures import PictureTask, Reading
from toolbox.tasks.scale.scenes import denoise_scene
from toolbox.tasks.settings import COLOUR, GREY, Prior, Request, Settings

# of noise, that a denoiser is calibrated at: spread in log-SNR, so that runs of several steps from
# any of them find as many below; every 25th, 20th ... makes a run of 5, 6 ... steps of that grid
LEVELS = 101


class Denoise(LinearPictureTask):
    """Remove white noise."""

    name = "denoise"
    benched = ("plain", GREY, COLOUR)
    prior = Prior(GREY)
    settings = Settings(steps=1)
    sampling_steps, sampling_solver = 5, "ddpm"
    calibration_sigma = 0.1
    recorded_grid = "log-snr"

    suffixes = (*PictureTask.suffixes, ".hdr", ".nii", ".nii.gz")

    def is_one(self, folder: Path) -> bool:
        """A Zarr folder."""
        return is_scene(folder)

    def ending(self, path: Path) -> str:
        """Scenes keep their kind of file."""
        if path.is_dir():
            return ""
        return suffix(path) if is_scene(path) else super().ending(path)

    def model_for(self, path: Path, options: Denoising) -> str:
        if is_scene(path):
            return COLOUR if open_scene(path).channels == 3 else GREY
        return denoiser_of(read_image(path).pixels)

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        """Pictures, and scenes of any size by parts."""
        if not is_scene(request.path):
            return super().restore(request, progress)
        sigma = (
            None if request.options.sigma == "auto" else self.sigma(request.options, torch.zeros(0))
        )
        settings = replace(request.settings, steps=self.steps(request.settings, 1))
        task = self.task(self.load(request.prior), request.options, settings)
        return denoise_scene(task, request, sigma, progress)

    def operator(self, size: Size, options: Denoising) -> LinearOperator:
        return Counting(options.gain) if options.gain else linear.Denoising()

    def task(self, denoiser: Denoiser, options: Denoising, settings: Settings) -> LinearTask:
        return replace(super().task(denoiser, options, settings), whole_grid=options.whole)

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        """So many levels that the noise of any picture is near one, and a run of several steps
        finds as many.
        """
        return (min(LEVELS, denoiser.process.levels or LEVELS),)

    def deployed(self, options: Denoising, settings: Settings) -> tuple[Any, Settings]:
        """A run that visits the whole grid."""
        return super().deployed(replace(options, whole=True), settings)

    def estimated(self, options: Denoising, image: Tensor) -> float:
        found = noise_level(image.numpy())
        if not found > 1e-4:
            raise ValueError("the picture shows no noise to estimate; give --sigma")
        return found

    def refined(self, reading: Reading, options: Denoising, denoiser: Any) -> Reading:
        if options.sigma != "auto" or not isinstance(denoiser, Denoiser):
            return reading
        image = reading.inputs["image"]
        law = noise_of(denoiser, image, float(reading.options.sigma))
        known = replace(reading.options, sigma=law.sigma, gain=law.gain)
        found: dict[str, Any] = {"sigma": law.sigma} | ({"gain": law.gain} if law.gain else {})
        if law.coloured:
            found["note"] = "the noise is not white: taken off as if it were, of this sigma"
        return replace(reading, options=known, found=found)

    def completed(self, result: Restored, reading: Reading) -> Restored:
        """With the patterns that were taken for noise."""
        return given_back(result, reading.inputs["image"])

    def is_usual(self, options: Denoising) -> bool:
        return options.gain == 0

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Denoising:
        level = self.calibration_sigma if sigma is None else sigma
        return with_numbers(Denoising(), self.name, level, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Denoising:
        """Noise of 10, 25 and 50 of 255, in turn."""
        return self.simulated(denoiser, (10, 25, 50)[k % 3] / 255)

    def baselines(self, options: Denoising) -> dict[str, Callable[[Trial], Tensor]]:
        def noise(trial: Trial) -> float:
            return self.sigma(options, trial.inputs["image"])

        return {
            "plain": plain,
            "nlm": lambda trial: by_planes(trial, non_local_means, noise(trial)),
            "bm3d": lambda trial: by_planes(trial, bm3d, noise(trial)),
            "cbm3d": lambda trial: cbm3d(trial, noise(trial)),
        }
