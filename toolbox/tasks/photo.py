"""Photographs: denoise, enlarge, sharpen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.jobs.base import Job
from export.jobs.photo import LinearJob
from restoration.io.images import MAX_PIXELS, Photo, read_image
from restoration.io.mri import suffix
from restoration.io.pictures.values import after_jpeg
from restoration.io.scenes import is_scene, open_scene
from restoration.metrics import noise_level
from restoration.operators import linear
from restoration.operators.linear import LinearOperator
from restoration.operators.separable import (
    Bicubic,
    BlockMean,
    Blur,
    UnknownReduction,
    gaussian_kernel,
)
from restoration.photo.level import likely_level
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from restoration.photo.noise import Cleaner
from restoration.task import Restored
from solvers.denoiser import Denoiser
from toolbox.api import load
from toolbox.tasks.base import Progress, Restorer, Size, Source, Trial, silent, with_numbers
from toolbox.tasks.classical import bm3d, by_planes, cbm3d, lanczos, non_local_means, plain, wiener
from toolbox.tasks.options import Deblurring, Denoising, Enlarging
from toolbox.tasks.pictures import (
    PictureTask,
    Reading,
    algorithm_settings,
    check_no_scene,
    picture_of,
    visible,
)
from toolbox.tasks.scale.scenes import denoise_scene
from toolbox.tasks.settings import (
    COLOUR,
    DEFAULT_MODEL,
    GREY,
    SMALL_PICTURES,
    Prior,
    Request,
    Settings,
)

Reduction = BlockMean | Bicubic | UnknownReduction
REDUCTIONS: dict[str, type[Reduction]] = {
    "any": UnknownReduction,
    "block": BlockMean,
    "bicubic": Bicubic,
}
# of noise, that a denoiser is calibrated at: spread in log-SNR, so that runs of several steps from
# any of them find as many below; every 25th, 20th ... makes a run of 5, 6 ... steps of that grid
LEVELS = 101


class LinearPictureTask(PictureTask):
    """``image``: what a linear operator measured of a picture. Subclasses have the operator."""

    @abstractmethod
    def operator(self, size: Size, options: Any) -> LinearOperator:
        """That measured a picture whose measurement has ``size (H, W)``."""

    def sigma(self, options: Any, image: Tensor) -> float:
        """Noise of the measurement."""
        return float(options.sigma)

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
            operator = self.operator(_size(y), options)
            return task(y, operator, sigma=self.sigma(options, y), **draws)

        return run

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        return self.measured(source.picture(k), options, source, k)

    def measured(self, image: Tensor, options: Any, source: Source, k: int) -> Trial:
        """What is measured of a picture ``(C, H, W)``, cut to whole blocks, with noise k."""
        operator = self.measuring(_size(image), options)
        height, width = _result_size(operator, image)
        image = image[:, :height, :width]
        y = operator.A(image[None])[0]
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
        return linear.Denoising()

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

    def sigma(self, options: Denoising, image: Tensor) -> float:
        if options.sigma != "auto":
            try:
                return float(options.sigma)
            except ValueError:
                raise ValueError(
                    f"--sigma must be a number or auto; got {options.sigma!r}"
                ) from None
        found = noise_level(image.numpy())
        if not found > 1e-4:
            raise ValueError("the picture shows no noise to estimate; give --sigma")
        return found

    def refined(self, reading: Reading, options: Denoising, denoiser: Any) -> Reading:
        if options.sigma != "auto" or not isinstance(denoiser, Denoiser):
            return reading
        sigma = likely_level(denoiser, reading.inputs["image"], float(reading.options.sigma))
        known = replace(reading.options, sigma=sigma)
        return replace(reading, options=known, found={"sigma": sigma})

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

    def measuring(self, size: Size, options: Enlarging) -> LinearOperator:
        return enlargement(
            (size[0] // options.factor, size[1] // options.factor), options.factor, options.kernel
        )

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Enlarging:
        # what else a network needs is the correction, which wants to know
        kernel = "any" if denoiser.condition_channels else "bicubic"
        return with_numbers(Enlarging(kernel=kernel), self.name, sigma, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Enlarging:
        """Factors 2 and 3 in turn; 4 for networks that see 4 x 4 pixels as one."""
        factor = 4 if denoiser.fold >= 4 else (2, 3)[k % 2]
        return self.simulated(denoiser, factor=factor)

    def measured(self, image: Tensor, options: Any, source: Source, k: int) -> Trial:
        if options.kernel != "any":
            return super().measured(image, options, source, k)
        y, image = files_reduction(image, options.factor)
        return Trial({"image": y + options.sigma * source.noise(k, y)}, image, self.name)

    def task(self, denoiser: Denoiser, options: Enlarging, settings: Settings) -> LinearTask:
        return replace(super().task(denoiser, options, settings), cleaner=cleaner_of(denoiser))

    def deployed(self, options: Enlarging, settings: Settings) -> tuple[Any, Settings]:
        return options, settings

    def is_usual(self, options: Enlarging) -> bool:
        return options.sigma == 0

    def record(self, options: Enlarging) -> dict[str, str | float]:
        return {"factor": float(options.factor)}

    def baselines(self, options: Enlarging) -> dict[str, Callable[[Trial], Tensor]]:
        def plain(trial: Trial) -> Tensor:
            y = trial.inputs["image"][None]
            size = tuple(options.factor * n for n in y.shape[-2:])
            return enlarge(y, options.factor, size)[0].clamp(0, 1)

        return {"plain": plain, "lanczos": lambda trial: lanczos(trial, options.factor)}


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

    def operator(self, size: Size, options: Deblurring) -> Blur:
        return Blur(size, gaussian_kernel(options.blur).tolist())

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


def denoiser_of(pixels: np.ndarray) -> str:
    """The shipped denoiser for a picture ``(C, H, W)``: of colours, or of planes where all channels
    are one, noise too.
    """
    return GREY if (pixels == pixels[:1]).all() else COLOUR


def cleaner_of(denoiser: Denoiser) -> Cleaner:
    """What takes the noise off pictures that this network restores: the shipped denoiser for their
    colours, at 8 bits beside an exported network.
    """
    in_torch = isinstance(getattr(denoiser, "network", None), torch.nn.Module)

    def cleaner(picture: Tensor) -> Denoiser:
        name = denoiser_of(picture.cpu().numpy())
        if in_torch:
            return load(name, device=str(denoiser.device))
        return load(f"{name}-int8")

    return cleaner


def enlarger(factor: int) -> str:
    """The shipped network that enlarges best."""
    return SMALL_PICTURES if factor == 4 else DEFAULT_MODEL


def files_reduction(image: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A picture ``(C, H, W)`` as files hold it when it was made small (Lanczos, JPEG of quality 75,
    8 bits), and the picture itself, cut to whole pixels of that.
    """
    height, width = (n // factor * factor for n in _size(image))
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


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _result_size(operator: LinearOperator, image: Tensor) -> Size:
    size: Size = getattr(operator, "size", _size(image))
    return size
