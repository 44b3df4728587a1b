"""What tasks share whose measurement and result are picture files."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from restoration.io.images import (
    DICOM,
    LOSSY,
    MAX_PIXELS,
    SUFFIXES,
    Photo,
    check_writable,
    depth_of,
    left_out,
    read_image,
    write_image,
)
from restoration.io.pictures.gamut import view_of
from restoration.io.scenes import is_scene
from restoration.io.scenes.tiff import TIFF
from restoration.metrics import LPIPSUnavailable, lpips, psnr, ssim
from restoration.photo.latent import STEPS as LATENT_STEPS
from restoration.photo.lift import push_pull
from restoration.task import Part, Restored
from solvers import solver_by_name
from solvers.files import check_outputs, together
from solvers.inputs.errors import InputError
from toolbox.api import load_for
from toolbox.support.cards import Spread
from toolbox.support.sheets import heat, sheet
from toolbox.tasks.base import Progress, Size, Task, silent
from toolbox.tasks.settings import Output, Prior, Request, Settings


@dataclass(frozen=True)
class Reading:
    """A picture as a measurement.

    Attributes:
        inputs: as a restorer takes them.
        photo: as read; of the result's size, and what is written back beside the result.
        options: with numbers in place of what was to be found from the file.
        found: for the figures.
        kept: ``(H, W)``, the share of what was given in the result, 1 where it is known and exact;
            None: nothing.
        known: ``(H, W)``, 0 where what was given says nothing; None: it says something everywhere.
    """

    inputs: dict[str, Tensor]
    photo: Photo
    options: Any
    size: Size
    found: dict[str, Any]
    kept: np.ndarray | None = None
    known: np.ndarray | None = None


def check_no_scene(task: Task, path: Path) -> None:
    """Refuse a scene, for tasks that don't restore by parts.

    Raises:
        InputError: says what does.
    """
    if is_scene(path):
        raise InputError(
            f"{path} is a scene, which restore denoise alone takes (by parts); give"
            f" restore {task.name} pictures of at most {MAX_PIXELS // 10**6} megapixels"
        )


class PictureTask(Task):
    """A picture file in, a picture file out. Subclasses say what the picture measures
    (:meth:`read`).
    """

    suffixes: ClassVar[tuple[str, ...]] = (
        *SUFFIXES,
        ".bmp",
        ".pgm",
        ".ppm",
        ".pfm",
        ".avif",
        ".heic",
        ".heif",
        DICOM,
    )
    written = (*SUFFIXES, DICOM)
    is_picture = spreads = True

    @abstractmethod
    def read(self, photo: Photo, options: Any, seed: int) -> Reading:
        """The measurement that a picture file holds."""

    def refined(self, reading: Reading, options: Any, denoiser: Any) -> Reading:
        """With what a network tells of the picture better than the file did."""
        return reading

    def completed(self, result: Restored, reading: Reading) -> Restored:
        """With what no network finds, and no exported graph holds."""
        return result

    def outputs(self, output: Output, options: Any, samples: int) -> list[Path]:
        spread = [spread_file(output.out)] if output.std else []
        return super().outputs(output, options, samples) + spread

    def load(self, prior: Prior) -> Any:
        """What is restored with, made for this task."""
        return load_for(self.name, prior.model, **prior.place)

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        check_no_scene(self, request.path)
        output, options, prior = request.output, request.options, request.prior
        settings, draws, path = request.settings, request.draws, request.path
        out = output.out
        spread = spread_file(out) if output.std else None
        check_writable(out)
        own = (getattr(options, name, None) for name in self.files)
        files = [path, output.reference, prior.model, *own]
        drawn = output.sample_files(draws.samples)
        beside = getattr(options, "sheet", None)  # of tasks that show what they were given
        check_outputs([out, spread, beside, *drawn], files)
        if beside is not None:
            check_writable(beside)
        if output.std and draws.samples < 2:
            raise ValueError("--std needs at least two samples: add -n 4")
        photo = read_image(path)
        view = view_of(photo.pixels, photo.notes.icc)
        reading = self.read(replace(photo, pixels=view.shown), options, draws.seed)
        shape = (len(photo.pixels), *reading.size)
        truth = _truth(output.reference, shape)
        if photo.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
            raise ValueError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
        if spread is not None:
            check_writable(spread)
        denoiser = self.load(prior)
        reading = self.refined(reading, options, denoiser)
        run = getattr(denoiser, "run", None)  # a whole restoration, which has settings of its own
        steps = self.steps(settings, draws.samples)
        if settings.steps is None and getattr(denoiser, "autoencoder", None) is not None:
            steps = LATENT_STEPS
        settings = replace(settings, steps=steps)
        ran = settings if run is None else run
        solver, steps = ran.solver, ran.steps
        calls, total = itertools.count(1), (steps or 1) * draws.samples

        def watch(_: int, call: Any) -> None:
            progress(*((call.done, call.total) if isinstance(call, Part) else (next(calls), total)))

        with self.calibrated(settings):
            result = self.restorer(denoiser, reading.options, settings)(
                reading.inputs, num_samples=draws.samples, seed=draws.seed, callback=watch
            )
        result = self.completed(result, reading)

        hard, count = self.difficulty(reading.inputs) if output.std else None, draws.samples
        factors = (
            None if run is not None else self.spread(prior, settings, reading.options, count, hard)
        )
        result = result if factors is None else factors.applied(result)

        def finished(picture: Tensor) -> np.ndarray:
            """As it is written: in the file's own colours, with what is known as it was."""
            found = view.back(picture.numpy(), reading.known)
            if (kept := reading.kept) is not None:  # in place: pictures may be large
                for new, own in zip(found, photo.pixels, strict=True):
                    new[...] = kept * own + (1 - kept) * new
            return found

        figures: dict[str, Any] = {"task": self.name, "image": str(path), "out": str(out)}
        figures |= {"size": [shape[2], shape[1]], **reading.found, "model": prior.model}
        figures |= {"solver": solver, "steps": steps, "seed": draws.seed, "samples": draws.samples}
        if prior.device == "auto":
            figures["device"] = getattr(denoiser, "runs_on", None) or str(denoiser.device)
        figures |= {} if prior.cache is None else {"cache": prior.cache}
        figures |= {"nfe": result.nfe, "seconds": round(result.seconds, 2)}
        if result.misfit is not None:
            figures["misfit"] = round(result.misfit, 5)
        if result.warning is not None:
            figures["warning"] = result.warning
        with together():
            mean = finished(result.mean)
            said = _write(out, spread, reading.photo, mean, result.std, output.quality)
            said |= {} if spread is None else said_of(factors)
            notes = [v["note"] for v in (reading.found, said) if "note" in v]
            figures |= said | ({"note": "; ".join(notes)} if notes else {})
            if beside is not None:
                write_image(beside, Photo(_sheet(photo.pixels, reading.inputs, mean)))
            for place, sample in zip(drawn, result.samples if drawn else (), strict=True):
                write_image(place, replace(reading.photo, pixels=finished(sample)), output.quality)
        figures |= {"sample_files": [str(place) for place in drawn]} if drawn else {}
        return figures | ({} if truth is None else compared(mean, truth, photo.pixels))


def said_of(factors: Spread | None) -> dict[str, Any]:
    """What an uncertainty map means, for the figures."""
    if factors is None:
        return {"std_means": "the run's own spread, which nobody compared with errors"}
    z = NormalDist().inv_cdf(0.5 + factors.level / 2)
    return {
        "std_means": (
            f"of what is guessed {factors.coverage:.0%} lay within {z:.3g} std in other pictures,"
            f" made for {factors.level:.0%}"
        )
    }


def spread_file(out: Path) -> Path:
    """Where the picture of the samples' standard deviation goes."""
    return out.with_name(f"{out.stem}-std.png")


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
    out: Path, spread: Path | None, photo: Photo, pixels: np.ndarray, std: Tensor, quality: int
) -> dict[str, Any]:
    """Write the pictures; what there is to say of them."""
    with together():
        write_image(out, replace(photo, pixels=pixels), quality)
        if spread is not None:
            coloured, top = heat(std.mean(0).numpy())
            write_image(spread, Photo(coloured))
    notes, suffix = [photo.notes.lost] if photo.notes.lost else [], out.suffix.lower()
    if suffix in LOSSY:
        notes.append(
            f"{out.suffix} changes all pixels a little, known ones too; PNG and TIFF keep them"
        )
    if (held := depth_of(out, photo)) < photo.bits:
        what = "floats" if photo.bits == 32 else f"{photo.bits} bits"
        notes.append(f"{out.suffix} holds {held} bits where the picture has {what}; .tif keeps all")
    if lost := left_out(out, photo.notes):
        notes.append(f"left out {' and '.join(lost)}: larger than JPEG holds")
    if photo.notes.place is not None and suffix not in TIFF:
        notes.append(
            f"left out the place on the ground, which {out.suffix} can't hold; .tif keeps it"
        )
    found = {"note": "; ".join(notes)} if notes else {}
    if spread is None:
        return found
    mean = round(float(std.mean()), 5)
    return found | {"std": str(spread), "std_mean": mean, "std_white": round(top, 4)}


def _sheet(given: np.ndarray, inputs: dict[str, Tensor], restored: np.ndarray) -> np.ndarray:
    """Before, what is missing in red over it, and after."""
    panels = [("given", given)]
    if "mask" in inputs:
        grey = np.broadcast_to(given.mean(0), given.shape[1:])
        red = np.stack([np.ones_like(grey), 0 * grey, 0 * grey])
        known = inputs["mask"].numpy().reshape(grey.shape)
        panels.append(("taken to be missing", np.where(known > 0, grey, red)))
    return sheet([*panels, ("restored", restored)])


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
        found["lpips"] = round(perceived(restored, truth), 4)
    except LPIPSUnavailable as error:
        found["lpips"] = str(error)
    return found


def perceived(result: np.ndarray, truth: np.ndarray) -> float:
    """LPIPS of two pictures ``(1 or 3, H, W)`` in [0, 1].

    Raises:
        LPIPSUnavailable: they are too small for it.
    """
    one, other = (np.broadcast_to(v, (3, *v.shape[1:])) for v in (result, truth))
    return lpips(one, other)


def picture_of(pixels: np.ndarray) -> Tensor:
    """The tensor of a picture's pixels."""
    return torch.from_numpy(np.ascontiguousarray(pixels))


def visible(photo: Photo) -> tuple[Tensor, np.ndarray | None]:
    """A picture's tensor, in which what is transparent continues what can be seen: it has any
    colour, which would show at the edges. And where it is so, ``(H, W)`` of 1; None: nowhere.
    """
    image = picture_of(photo.pixels)
    if photo.alpha is None or photo.alpha.all():
        return image, None
    shown = torch.from_numpy(photo.alpha > 0)[None, None]
    return push_pull(image[None], shown)[0], (photo.alpha == 0).astype(np.float32)


def named_correction(text: str | None) -> tuple[str | None, dict[str, float]]:
    """A correction's name and its options, of ``NAME`` or ``NAME:OPTION=NUMBER,OPTION=NUMBER``.

    Raises:
        ValueError: options that are not written so.
    """
    name, colon, said = (text or "").partition(":")
    options: dict[str, float] = {}
    for part in said.split(",") if colon else ():
        option, _, number = part.partition("=")
        try:
            options[option.strip()] = int(number) if number.isdigit() else float(number)
        except ValueError:
            raise ValueError(
                f"the options of a correction are numbers, as in dps:scale=0.5; got {text!r}"
            ) from None
    return name or None, options


def algorithm_settings(settings: Settings, own: Settings) -> dict[str, Any]:
    """What the tasks of :mod:`restoration.photo` take."""
    correction, correction_options = named_correction(settings.correction)
    return {
        "solver": solver_by_name(settings.solver),
        "num_inference_steps": own.steps if settings.steps is None else settings.steps,
        "grid": settings.grid,
        "correction": correction,
        "correction_options": correction_options,
        "tile": settings.tile,
        "symmetries": settings.symmetries,
    }
