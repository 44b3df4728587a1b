"""Photographs: fill, denoise, enlarge, sharpen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.jobs.base import Job
from export.jobs.photo import InpaintingJob, LinearJob
from restoration.io.images import MAX_PIXELS, Photo, read_mask
from restoration.io.pictures.masks import feathered, grown, traces
from restoration.metrics import noise_level
from restoration.operators import linear
from restoration.operators.linear import LinearOperator
from restoration.operators.separable import Bicubic, BlockMean, Blur, Separable, gaussian_kernel
from restoration.photo.defects import PREFIX, found_defects
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from restoration.photo.masks import KINDS, MISSING, make_mask, parse_mask
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.api import check_model, load
from toolbox.tasks.base import Restorer, Size, Source, Trial, with_numbers
from toolbox.tasks.classical import (
    biharmonic,
    bm3d,
    by_planes,
    cbm3d,
    lanczos,
    non_local_means,
    plain,
    push_pull_fill,
    telea,
    wiener,
)
from toolbox.tasks.options import (
    COLOUR,
    DEFAULT_MODEL,
    GREY,
    Deblurring,
    Denoising,
    Enlarging,
    Inpainting,
    Prior,
    Settings,
)
from toolbox.tasks.pictures import PictureTask, Reading, picture_of


class Inpaint(PictureTask):
    """Fill missing pixels; ``image (C, H, W)`` and ``mask (H, W)``, 1 = known."""

    name = "inpaint"
    benched = ("push-pull", "biharmonic", "photo", DEFAULT_MODEL)
    settings = Settings(steps=1)
    sampling_steps = 5

    def inputs_of(self, options: Inpainting) -> list[Any]:
        return [options.mask]

    def load(self, prior: Prior) -> Any:
        found = load(prior.model, device=prior.device)
        run = getattr(found, "run", None)
        if run is not None and run.task == self.name:
            return found
        return check_model(found, self.name, prior.model)

    def read(self, photo: Photo, options: Inpainting, seed: int) -> Reading:
        height, width = photo.pixels.shape[1:]
        known, rings = _mask(options, photo, seed)
        kept = known if options.sigma == 0 else None
        if options.feather:
            kept = feathered(known == 0, options.feather)
            known = 1 - grown(known == 0, options.feather).astype(np.float32)
            if not known.any():
                raise ValueError(f"--feather {options.feather} leaves no pixel known; take less")
        inputs = {"image": picture_of(photo.pixels), "mask": torch.from_numpy(known)}
        missing: dict[str, Any] = {"missing": round(float(1 - known.mean()), 4)}
        missing |= {"grown": rings} if rings else {}
        if options.mask.startswith(PREFIX):
            missing["note"] = (
                f"{missing['missing']:.1%} of the pixels were taken for"
                f" {options.mask.removeprefix(PREFIX)}; such detectors miss some and take others"
                " for it: look at --sheet, and paint a mask where they are wrong"
            )
        if options.mask == "alpha" and photo.alpha is not None:  # what is filled can be seen
            photo = replace(photo, alpha=np.maximum(photo.alpha, 1 - known))
        return Reading(inputs, photo, options, (height, width), missing, kept)

    def restorer(self, denoiser: Denoiser, options: Inpainting, settings: Settings) -> Restorer:
        run = getattr(denoiser, "run", None)
        if run is not None and run.sigma != options.sigma:
            raise ValueError(
                f"this restoration was exported for noise of sigma {run.sigma:g}; got --sigma"
                f" {options.sigma:g}"
            )
        if run is not None:
            whole: Any = denoiser
            return lambda inputs, **draws: whole(inputs["image"], _flat(inputs["mask"]), **draws)
        task = InpaintingTask(denoiser, **_settings(settings, self.settings))
        return lambda inputs, **draws: task(
            inputs["image"], _flat(inputs["mask"]), sigma=options.sigma, **draws
        )

    def job(self, denoiser: Denoiser, options: Any, settings: Settings, size: Size) -> Job:
        task = InpaintingTask(denoiser, **_settings(settings, self.settings))
        return InpaintingJob(task, size, options.sigma)

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Inpainting:
        return with_numbers(Inpainting(mask=""), self.name, sigma, numbers)

    def trial(self, source: Source, k: int, options: Inpainting) -> Trial:
        """Without a mask in the options its kinds take turns."""
        image = source.picture(k)
        kind, missing = KINDS[k % len(KINDS)], MISSING[KINDS[k % len(KINDS)]]
        if options.mask:
            kind, missing = parse_mask(options.mask)
        mask = torch.from_numpy(make_mask(kind, *_size(image), missing, source.seed + k))
        noisy = (image + options.sigma * source.noise(k, image)).clamp(0, 1)
        return Trial({"image": noisy, "mask": mask[None]}, image, f"{kind} missing")

    def seen(self, trial: Trial) -> np.ndarray:
        return (trial.inputs["image"] * trial.inputs["mask"]).numpy()

    def baselines(self, options: Inpainting) -> dict[str, Callable[[Trial], Tensor]]:
        return {"push-pull": push_pull_fill, "biharmonic": biharmonic, "telea": telea}


class LinearPictureTask(PictureTask):
    """``image``: what a linear operator measured of a picture. Subclasses have the operator."""

    @abstractmethod
    def operator(self, size: Size, options: Any) -> LinearOperator:
        """That measured a picture whose measurement has ``size (H, W)``."""

    def sigma(self, options: Any, image: Tensor) -> float:
        """Noise of the measurement."""
        return float(options.sigma)

    def read(self, photo: Photo, options: Any, seed: int) -> Reading:
        image = picture_of(photo.pixels)
        sigma = self.sigma(options, image)
        size = _result_size(self.operator(_size(image), options), image)
        if size != _size(image) and photo.alpha is not None:
            alpha = torch.from_numpy(photo.alpha)[None, None].float()
            factor = size[0] // alpha.shape[2]
            photo = replace(photo, alpha=enlarge(alpha, factor, size)[0, 0].clamp(0, 1).numpy())
        known = replace(options, sigma=sigma)
        return Reading({"image": image}, photo, known, size, {"sigma": sigma})

    def task(self, denoiser: Denoiser, options: Any, settings: Settings) -> LinearTask:
        """The algorithm."""
        # where the noise decides the times, not the grid
        times = settings.timesteps if settings.correction is None else ()
        return LinearTask(denoiser, **_settings(settings, self.settings), timesteps=times)

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
        task = LinearPictureTask.task(self, denoiser, options, settings)
        record = {"operator": type(operator).__name__} | self.record(options)
        sigma = self.sigma(options, torch.zeros(0))
        return LinearJob(task, operator, size, sigma, self.name, record)


class Denoise(LinearPictureTask):
    """Remove white noise."""

    name = "denoise"
    benched = ("plain", GREY, COLOUR)
    prior = Prior(GREY)
    settings = Settings(steps=1)
    sampling_steps = 5
    calibration_sigma = 0.1

    def operator(self, size: Size, options: Denoising) -> LinearOperator:
        return linear.Denoising()

    def task(self, denoiser: Denoiser, options: Denoising, settings: Settings) -> LinearTask:
        return replace(super().task(denoiser, options, settings), whole_grid=options.whole)

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

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Denoising:
        level = self.calibration_sigma if sigma is None else sigma
        return with_numbers(Denoising(), self.name, level, numbers)

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

    def operator(self, size: Size, options: Enlarging) -> Separable:
        return enlargement(size, options.factor, options.kernel)

    def measuring(self, size: Size, options: Enlarging) -> LinearOperator:
        return enlargement(
            (size[0] // options.factor, size[1] // options.factor), options.factor, options.kernel
        )

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Enlarging:
        # networks that are shown a lift were trained on means of blocks
        kernel = "block" if denoiser.condition_channels else "bicubic"
        return with_numbers(Enlarging(kernel=kernel), self.name, sigma, numbers)

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

    def operator(self, size: Size, options: Deblurring) -> Blur:
        return Blur(size, gaussian_kernel(options.blur).tolist())

    def task(self, denoiser: Denoiser, options: Deblurring, settings: Settings) -> LinearTask:
        made = super().task(denoiser, options, settings)
        return replace(made, start_level=options.start_level or None)

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Deblurring:
        return with_numbers(Deblurring(1.6, 0.0, 0.0), self.name, sigma, numbers)

    def record(self, options: Deblurring) -> dict[str, str | float]:
        return {"blur": options.blur}

    def baselines(self, options: Deblurring) -> dict[str, Callable[[Trial], Tensor]]:
        kernel = np.asarray(gaussian_kernel(options.blur))
        return {"plain": plain, "wiener": lambda trial: wiener(trial, kernel, options.sigma)}


def denoiser_of(pixels: np.ndarray) -> str:
    """The shipped denoiser for a picture ``(C, H, W)``: of colours, or of planes where all channels
    are one, noise too.
    """
    return GREY if (pixels == pixels[:1]).all() else COLOUR


def enlargement(size: Size, factor: float, kernel: str) -> Separable:
    """The operator that made a picture of ``size (H, W)`` from one ``factor`` times as large.

    Raises:
        ValueError: a factor or a kernel that is not known, or a result that is too large.
    """
    if factor != int(factor) or not 2 <= factor <= 8:
        raise ValueError(f"the factor must be a whole number from 2 to 8; got {factor:g}")
    if kernel not in ("block", "bicubic"):
        raise ValueError(f"kernel {kernel!r} is unknown; known: block, bicubic")
    height, width = (int(factor) * n for n in size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"the result would have {height * width:,} pixels; at most {MAX_PIXELS:,} are accepted"
        )
    return {"block": BlockMean, "bicubic": Bicubic}[kernel]((height, width), int(factor))


def _settings(settings: Settings, own: Settings) -> dict[str, Any]:
    """What the tasks of :mod:`restoration.photo` take."""
    return {
        "solver": solver_by_name(settings.solver),
        "num_inference_steps": own.steps if settings.steps is None else settings.steps,
        "grid": settings.grid,
        "correction": settings.correction,
        "tile": settings.tile,
        "symmetries": settings.symmetries,
    }


def _mask(options: Inpainting, photo: Photo, seed: int) -> tuple[np.ndarray, int]:
    """A mask file, the photo's transparency, what is found in it, or a mask made from
    ``KIND:FRACTION``; and by how many pixels it is grown.

    A file that nobody says to grow is grown by the rings that hold traces of what it marks.
    """
    text, (height, width) = options.mask, photo.pixels.shape[1:]
    if Path(text).exists():
        marks: dict[str, Any] = {"white": options.mask_is, "colour": options.mask_colour}
        known = read_mask(text, height, width, **marks, grow=options.grow or 0)
        if options.grow is not None:
            return known, options.grow
        missing = grown(known == 0, rings := traces(photo.pixels, known == 0))
        return (known, 0) if missing.all() else (1 - missing.astype(np.float32), rings)
    if text.startswith(PREFIX):
        found = found_defects(photo.pixels, text.removeprefix(PREFIX))
        missing = grown(found, options.grow or 0)
    elif text == "alpha":
        if photo.alpha is None:
            raise ValueError("--mask alpha needs a photo with transparency; this one has none")
        missing = grown(photo.alpha < 0.5, options.grow or 0)
    else:
        kind, fraction = parse_mask(text)
        missing = grown(make_mask(kind, height, width, fraction, seed) == 0, options.grow or 0)
    if not missing.any() or missing.all():
        raise ValueError(
            f"mask {text} came out with {'everything' if missing.all() else 'nothing'} missing;"
            " choose another fraction or seed"
        )
    return 1 - missing.astype(np.float32), options.grow or 0


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _result_size(operator: LinearOperator, image: Tensor) -> Size:
    if isinstance(operator, Separable):
        return operator.size
    return _size(image)


def _flat(mask: Tensor) -> Tensor:
    """``(H, W)`` of ``(H, W)`` or ``(1, H, W)``."""
    return mask.reshape(mask.shape[-2:])
