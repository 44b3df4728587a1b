"""Fill missing pixels of photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.jobs.base import Job
from export.jobs.photo import InpaintingJob
from restoration.io.images import Photo, read_mask
from restoration.io.pictures.masks import feathered, grown, looks_inverse, traces
from restoration.metrics import gap
from restoration.photo.defects import PREFIX, found_defects
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.latent import STEPS as LATENT_STEPS
from restoration.photo.masks import KINDS, MISSING, make_mask, parse_mask
from solvers.denoiser import Denoiser
from toolbox.api import check_model, load
from toolbox.tasks.base import Restorer, Size, Source, Trial, with_numbers
from toolbox.tasks.classical import biharmonic, push_pull_fill, telea
from toolbox.tasks.options import Inpainting
from toolbox.tasks.photo.denoisers import cleaner_of
from toolbox.tasks.pictures import PictureTask, Reading, algorithm_settings, picture_of
from toolbox.tasks.settings import DEFAULT_MODEL, Prior, Settings

# masks that intervals are fitted on: two for each range of difficulties
HOLES: tuple[str, ...] = (
    *("text:0.1", "random:0.8", "strokes:0.25", "box:0.1", "box:0.22", "box:0.5"),
    *("random:0.5", "random:0.85", "random:0.92", "box:0.06", "box:0.28", "box:0.6"),
)


class Inpaint(PictureTask):
    """Fill missing pixels; ``image (C, H, W)`` and ``mask (H, W)``, 1 = known."""

    name = "inpaint"
    benched = ("push-pull", "biharmonic", "photo", DEFAULT_MODEL)
    settings = Settings(steps=1)
    sampling_steps = 5
    files = ("mask",)
    difficulties = (1.17, 1.5, 2.2, 3.5, 5.0, 8.0)

    def load(self, prior: Prior) -> Any:
        found = load(prior.model, **prior.place)
        run = getattr(found, "run", None)
        if run is not None and run.task == self.name:
            return found
        return check_model(found, self.name, prior.model)

    def read(self, photo: Photo, options: Inpainting, seed: int) -> Reading:
        height, width = photo.pixels.shape[1:]
        if options.feather and options.sigma != 0:
            raise ValueError("--feather keeps known pixels as they are; leave out --sigma")
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
        plain = options.mask_is == "missing" and options.mask_colour is None
        if plain and Path(options.mask).exists() and looks_inverse(known):
            missing["note"] = (
                f"{options.mask} marks {missing['missing']:.0%} of the pixels as missing; if it is"
                " white where they are known, add --mask-is known"
            )
        if options.mask == "alpha" and photo.alpha is not None:  # what is filled can be seen
            photo = replace(photo, alpha=np.maximum(photo.alpha, 1 - known))
        share = known if kept is None else kept
        return Reading(inputs, photo, options, (height, width), missing, kept, share)

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
        task = self.task(denoiser, settings)
        return lambda inputs, **draws: task(
            inputs["image"], _flat(inputs["mask"]), sigma=options.sigma, **draws
        )

    def job(self, denoiser: Denoiser, options: Any, settings: Settings, size: Size) -> Job:
        return InpaintingJob(self.task(denoiser, settings), size, options.sigma)

    def task(self, denoiser: Denoiser, settings: Settings) -> InpaintingTask:
        """The algorithm."""
        return InpaintingTask(
            denoiser, **algorithm_settings(settings, self.settings), cleaner=cleaner_of(denoiser)
        )

    def is_usual(self, options: Inpainting) -> bool:
        return options.sigma == 0

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        own = super().recorded_steps(denoiser)
        return own if denoiser.autoencoder is None else (LATENT_STEPS,)

    def simulated(
        self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any
    ) -> Inpainting:
        # latents are known where whole blocks of pixels are
        mask = "" if denoiser.autoencoder is None else f"strokes:{MISSING['strokes']}"
        return with_numbers(Inpainting(mask=mask), self.name, sigma, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Inpainting:
        """Holes from single pixels to half of the picture, in turn."""
        if denoiser.autoencoder is not None:
            return self.simulated(denoiser)
        return self.simulated(denoiser, mask=HOLES[k % len(HOLES)])

    def difficulty(self, inputs: Mapping[str, Tensor]) -> float:
        """How far missing pixels lie from known ones."""
        return gap(_flat(inputs["mask"]))

    def trial(self, source: Source, k: int, options: Inpainting) -> Trial:
        """Without a mask in the options its kinds take turns."""
        image = source.picture(k)
        kind, missing = KINDS[k % len(KINDS)], MISSING[KINDS[k % len(KINDS)]]
        if options.mask:
            kind, missing = parse_mask(options.mask)
        height, width = image.shape[-2:]
        mask = torch.from_numpy(make_mask(kind, height, width, missing, source.seed + k))
        noisy = (image + options.sigma * source.noise(k, image)).clamp(0, 1)
        return Trial({"image": noisy, "mask": mask[None]}, image, f"{kind} missing")

    def seen(self, trial: Trial) -> np.ndarray:
        return (trial.inputs["image"] * trial.inputs["mask"]).numpy()

    def baselines(self, options: Inpainting) -> dict[str, Callable[[Trial], Tensor]]:
        return {"push-pull": push_pull_fill, "biharmonic": biharmonic, "telea": telea}


def _mask(options: Inpainting, photo: Photo, seed: int) -> tuple[np.ndarray, int]:
    """A mask file, the photo's transparency, what is found in it, or a mask made from
    ``KIND:FRACTION``; and by how many pixels it is grown.

    A file that nobody says to grow is grown by the rings that hold traces of what it marks.
    """
    text, (height, width) = options.mask, photo.pixels.shape[1:]
    if Path(text).exists():
        marks: dict[str, Any] = {"white": options.mask_is, "colour": options.mask_colour}
        marks |= {"photo": photo.pixels}
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


def _flat(mask: Tensor) -> Tensor:
    """``(H, W)`` of ``(H, W)`` or ``(1, H, W)``."""
    return mask.reshape(mask.shape[-2:])
