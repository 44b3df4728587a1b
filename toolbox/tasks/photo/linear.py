"""What the tasks of linear operators share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from export.jobs.base import Job
from export.jobs.photo import LinearJob
from restoration.io.images import Photo
from restoration.metrics import noise_level
from restoration.operators.linear import LinearOperator
from restoration.operators.separable import SceneBlur
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from restoration.task import Restored
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Restorer, Size, Source, Trial
from toolbox.tasks.pictures import PictureTask, Reading, algorithm_settings, picture_of, visible
from toolbox.tasks.settings import Settings


class LinearPictureTask(PictureTask):
    """``image``: what a linear operator measured of a picture. Subclasses have the operator."""

    @abstractmethod
    def operator(self, size: Size, options: Any) -> LinearOperator:
        """That measured a picture whose measurement has ``size (H, W)``."""

    def sigma(self, options: Any, image: Tensor) -> float:
        """Noise of the measurement."""
        if options.sigma == "auto":
            return self.estimated(options, image)
        try:
            return float(options.sigma)
        except ValueError:
            raise ValueError(f"--sigma must be a number or auto; got {options.sigma!r}") from None

    def estimated(self, options: Any, image: Tensor) -> float:
        """The same, where nobody tells it."""
        return noise_level(image)

    def read(self, photo: Photo, options: Any, seed: int) -> Reading:
        sigma = self.sigma(options, picture_of(photo.pixels))
        image, kept = visible(photo)
        size = _result_size(self.operator(_size(image), options), image)
        if size != _size(image) and photo.alpha is not None:
            alpha = torch.from_numpy(photo.alpha)[None, None].float()
            factor, kept = size[0] // alpha.shape[2], None
            photo = replace(photo, alpha=enlarge(alpha, factor, size)[0, 0].clamp(0, 1).numpy())
        known = replace(options, sigma=sigma)
        return Reading({"image": image}, photo, known, size, {"sigma": sigma}, kept)

    def task(self, denoiser: Denoiser, options: Any, settings: Settings) -> LinearTask:
        """The algorithm."""
        # where the noise decides the times, not the grid
        times = settings.timesteps if settings.correction is None else ()
        return LinearTask(denoiser, **algorithm_settings(settings, self.settings), timesteps=times)

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        task = self.task(denoiser, options, settings)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            y = inputs["image"]
            operator, sigma = self.operator(_size(y), options), self.sigma(options, y)
            fitting = task
            if options.sigma == "auto":
                fitting = self.task(denoiser, replace(options, sigma=sigma), settings)
            return fitting(y, operator, sigma=sigma, **draws)

        return run

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        return self.measured(source.picture(k), options, source, k)

    def measured(self, image: Tensor, options: Any, source: Source, k: int) -> Trial:
        """What is measured of a picture ``(C, H, W)``, cut to whole blocks, with noise k."""
        operator = self.measuring(_size(image), options)
        height, width = _result_size(operator, image)
        image = image[:, :height, :width]
        # what was beyond a picture nobody knows: it is mirrored
        scene = operator.mirrored(image) if isinstance(operator, SceneBlur) else image
        y = operator.A(scene[None])[0]
        sigma = self.sigma(options, y)
        return Trial({"image": y + sigma * source.noise(k, y)}, image, self.name)

    def measuring(self, size: Size, options: Any) -> LinearOperator:
        """The operator that measures a picture of ``size (H, W)``."""
        return self.operator(size, options)

    def deployed(self, options: Any, settings: Settings) -> tuple[Any, Settings]:
        name = "diffpir" if self.sigma(options, torch.zeros(0)) > 0 else "ddnm"
        return options, replace(settings, correction=settings.correction or name)

    def record(self, options: Any) -> dict[str, str | float]:
        """The operator's numbers, for a bundle."""
        return {}

    def job(self, denoiser: Denoiser, options: Any, settings: Settings, size: Size) -> Job:
        operator = self.measuring(size, options)
        task = self.task(denoiser, options, settings)
        record = {"operator": type(operator).__name__} | self.record(options)
        sigma = self.sigma(options, torch.zeros(0))
        return LinearJob(task, operator, size, sigma, self.name, record)


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _result_size(operator: LinearOperator, image: Tensor) -> Size:
    if isinstance(operator, SceneBlur):
        return operator.frame
    size: Size = getattr(operator, "size", _size(image))
    return size
