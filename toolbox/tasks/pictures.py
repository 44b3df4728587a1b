"""What tasks share whose measurement and result are picture files."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.io.images import LOSSY, Photo, check_writable, read_image, write_image
from restoration.metrics import LPIPSUnavailable, lpips, psnr, ssim
from restoration.task import Restored
from solvers.files import check_outputs, together
from toolbox.api import load_for
from toolbox.support.sheets import heat
from toolbox.tasks.base import Progress, Size, Task, silent
from toolbox.tasks.options import Prior, Request


@dataclass(frozen=True)
class Reading:
    """A picture as a measurement.

    Attributes:
        inputs: as a restorer takes them.
        photo: as read; of the result's size, and what is written back beside the result.
        options: with numbers in place of what was to be found from the file.
        found: for the figures.
    """

    inputs: dict[str, Tensor]
    photo: Photo
    options: Any
    size: Size
    found: dict[str, Any]


class PictureTask(Task):
    """A picture file in, a picture file out. Subclasses say what the picture measures
    (:meth:`read`), and which of their options are files (:meth:`inputs_of`).
    """

    @abstractmethod
    def read(self, photo: Photo, options: Any, seed: int) -> Reading:
        """The measurement that a picture file holds."""

    def inputs_of(self, options: Any) -> list[Any]:
        """Files among the options, which no output may replace."""
        return []

    def load(self, prior: Prior) -> Any:
        """What is restored with, made for this task."""
        return load_for(self.name, prior.model, device=prior.device)

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        output, options, prior = request.output, request.options, request.prior
        settings, draws, path = request.settings, request.draws, request.path
        out = output.out
        spread = out.with_name(f"{out.stem}-std.png") if output.std else None
        check_writable(out)
        files = [path, output.reference, prior.model, *self.inputs_of(options)]
        check_outputs([out, spread], files)
        if output.std and draws.samples < 2:
            raise ValueError("--std needs at least two samples: add -n 4")
        photo = read_image(path)
        reading = self.read(photo, options, draws.seed)
        shape = (len(photo.pixels), *reading.size)
        truth = _truth(output.reference, shape)
        if photo.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
            raise ValueError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
        if spread is not None:
            check_writable(spread)
        denoiser = self.load(prior)
        run = getattr(denoiser, "run", None)  # a whole restoration, which has settings of its own
        settings = replace(settings, steps=self.steps(settings, draws.samples))
        ran = settings if run is None else run
        solver, steps = ran.solver, ran.steps
        done, total = itertools.count(1), (steps or 1) * draws.samples
        result = self.restorer(denoiser, reading.options, settings)(
            reading.inputs,
            num_samples=draws.samples,
            seed=draws.seed,
            callback=lambda *_: progress(next(done), total),
        )
        figures: dict[str, Any] = {"task": self.name, "image": str(path), "out": str(out)}
        figures |= {"size": [shape[2], shape[1]], **reading.found, "model": prior.model}
        figures |= {"solver": solver, "steps": steps, "seed": draws.seed, "samples": draws.samples}
        figures |= {"nfe": result.nfe, "seconds": round(result.seconds, 2)}
        if result.misfit is not None:
            figures["misfit"] = round(result.misfit, 5)
        if result.warning is not None:
            figures["warning"] = result.warning
        figures |= _write(out, spread, reading.photo, result, output.quality)
        return figures | (
            {} if truth is None else compared(result.mean.numpy(), truth, photo.pixels)
        )


def _truth(reference: Path | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if reference is None:
        return None
    truth = read_image(reference).pixels
    if truth.shape != shape:
        ours, theirs = (
            f"{'grey' if s[0] == 1 else 'colour'}, {s[2]} x {s[1]} pixels"
            for s in (shape, truth.shape)
        )
        raise ValueError(f"reference {reference} is {theirs}; the result is {ours}")
    if min(shape[1:]) < 11:
        raise ValueError(
            "--reference needs pictures of at least 11 x 11 pixels (the window of SSIM)"
        )
    return truth


def _write(
    out: Path, spread: Path | None, photo: Photo, result: Restored, quality: int
) -> dict[str, Any]:
    """Write the pictures; what there is to say of them."""
    coloured, top = heat(result.std.mean(0).numpy())
    with together():
        write_image(out, replace(photo, pixels=result.mean.numpy()), quality)
        if spread is not None:
            write_image(spread, Photo(coloured))
    note = f"{out.suffix} changes all pixels a little, known ones too; PNG and TIFF keep them"
    found = {"note": note} if out.suffix.lower() in LOSSY else {}
    if spread is None:
        return found
    mean = round(float(result.std.mean()), 5)
    return found | {"std": str(spread), "std_mean": mean, "std_white": round(top, 4)}


def compared(restored: np.ndarray, truth: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of a result ``(C, H, W)``; the first two also of what was given, where
    that is a picture of the same size.
    """
    found: dict[str, Any] = {
        "psnr": round(psnr(restored, truth), 3),
        "ssim": round(ssim(restored, truth), 4),
    }
    if given.shape == truth.shape:
        found |= {
            "psnr_input": round(psnr(given, truth), 3),
            "ssim_input": round(ssim(given, truth), 4),
        }
    try:
        ours, true = (np.broadcast_to(v, (3, *v.shape[1:])) for v in (restored, truth))
        found["lpips"] = round(lpips(ours, true), 4)
    except LPIPSUnavailable as error:
        found["lpips"] = str(error)
    return found


def picture_of(pixels: np.ndarray) -> Tensor:
    """The tensor of a picture's pixels."""
    return torch.from_numpy(np.ascontiguousarray(pixels))
