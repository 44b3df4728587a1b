"""Ultrasound clips, frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from restoration.io.images import SUFFIXES
from restoration.io.pictures.dicom import ENDINGS as DICOM
from restoration.io.pictures.folders import find_pictures, visible_files
from restoration.io.ultrasound import (
    DICOM_OUT,
    HDF5,
    PICTURES,
    check_clip_writable,
    read_clip,
    write_clip,
)
from restoration.io.ultrasound_signals import Clip
from restoration.io.video import KINDS as VIDEOS
from restoration.metrics import psnr, ssim
from restoration.task import Restored
from restoration.ultrasound.clip import restore_clip
from restoration.ultrasound.measures import cnr, gcnr, ks, read_regions
from restoration.ultrasound.shown import ShownFrameTask
from restoration.ultrasound.simulation import simulate_haze
from restoration.ultrasound.task import Dehazed, UltrasoundTask
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs, together
from solvers.inputs.memory import check_array
from toolbox.api import float_model, load_for
from toolbox.tasks.base import Progress, Restorer, Source, Task, Trial, silent, with_numbers
from toolbox.tasks.classical import of_haze
from toolbox.tasks.options import Frames
from toolbox.tasks.settings import Draws, Prior, Request, Settings

STRENGTHS = (0.5, 1.0, 2.0)
HAZE_PRIOR, SIGMA, PRIORS_STEPS = "ultrasound-haze", 0.02, 4  # beside a tissue prior


class Ultrasound(Task):
    """``frame (1, H, W)`` in [0, 1]: haze is taken out of it."""

    name = "ultrasound"
    suffixes = (*PICTURES, *HDF5, ".mat", *DICOM, *VIDEOS)
    written = (".h5", ".hdf5", DICOM_OUT, *VIDEOS, *SUFFIXES)
    prior = Prior("")  # two, among the options
    settings = Settings(steps=None)
    unused = ("grid",)
    files = ("regions",)
    roles = ("tissue", "haze")
    further: ClassVar[Mapping[str, str | None]] = {"haze_out": None}

    def is_one(self, folder: Path) -> bool:
        frames = (*PICTURES, *DICOM)
        return any(p.suffix.lower() in frames for p in visible_files(folder))

    def ending(self, path: Path) -> str:
        if path.is_dir():
            return ""
        suffix = path.suffix.lower()
        other = ".png" if suffix in PICTURES else DICOM_OUT if suffix in DICOM else ".h5"
        return suffix if suffix in self.written else other

    def task(
        self, tissue: Denoiser, haze: Denoiser | None, options: Frames, settings: Settings
    ) -> UltrasoundTask | ShownFrameTask:
        """The algorithm.

        Raises:
            ValueError: options that a network that is shown the frame has no use for.
        """
        solver = solver_by_name(settings.solver)
        if tissue.condition_channels == 0:
            assert haze is not None
            return UltrasoundTask(
                tissue,
                haze,
                strength=options.strength,
                sigma=SIGMA if options.sigma is None else options.sigma,
                solver=solver,
                num_inference_steps=PRIORS_STEPS if settings.steps is None else settings.steps,
                correction=settings.correction or "diffpir",
            )
        given = {
            "a haze prior (--haze)": options.haze,
            "--sigma": options.sigma,
            "--correction": settings.correction,
        }
        if unused := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                "the tissue network is shown the hazy frame, so it needs no"
                f" {' or '.join(unused).removeprefix('a ')}: leave it out, or take a tissue prior"
                " (--tissue ultrasound-tissue)"
            )
        return ShownFrameTask(tissue, options.strength, solver, settings.steps or 1)

    def partner(self, tissue: Denoiser, options: Frames, prior: Prior) -> Denoiser | None:
        """The haze prior, beside a tissue prior."""
        if options.haze is None and tissue.condition_channels:
            return None
        return load_for(self.name, options.haze or HAZE_PRIOR, **prior.place)

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        return (1, PRIORS_STEPS) if denoiser.condition_channels else (PRIORS_STEPS,)

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        path, options, draws = request.path, request.options, request.draws
        out, reference = request.output.out, request.output.reference
        haze_out, regions = options.haze_out, options.regions
        drawn = request.output.sample_files(draws.samples)
        inputs = [path, regions, reference, options.tissue, options.haze]
        check_outputs([out, haze_out, *drawn], inputs)
        if draws.samples > 1 and (options.warm_start is not None or options.stream):
            raise ValueError(
                "warm starts and stream batching give one sample per frame; leave out --samples"
            )

        def read(file: Path) -> Clip:
            return read_clip(
                file,
                dynamic_range=options.dynamic_range,
                grey=options.grey,
                sampling_rate=options.sampling_rate,
            )

        clip = read(path)
        if drawn:  # kept until all frames are done
            check_array(path, (len(drawn), len(clip), *clip.size), 4)
        for place in (out, haze_out, *drawn):
            if place is not None:
                check_clip_writable(place, len(clip), clip)
        truth = None if reference is None else read(reference)
        if truth is not None and (len(truth), truth.size) != (len(clip), clip.size):
            raise ValueError(
                f"reference {reference} has {len(truth)} frames of {truth.size}, the clip"
                f" {len(clip)} of {clip.size} (H, W)"
            )
        masks = None if regions is None else read_regions(regions, clip.size)
        if masks is not None and not {"tissue", "blood"} <= set(masks):
            raise ValueError(
                f"regions {regions} must name tissue and blood; found {', '.join(masks)}"
            )
        tissue = load_for(self.name, options.tissue, **request.prior.place)
        haze = self.partner(tissue, options, request.prior)
        settings = request.settings
        if draws.samples > 1 and settings.steps is None:
            settings = replace(settings, steps=PRIORS_STEPS)
        # checks its options before anything is written
        results = restored(self.task(tissue, haze, options, settings), clip, options, draws)
        figures: dict[str, list[float]] = {}
        hazes: list[np.ndarray] = []
        samples: list[np.ndarray] = []  # of all frames, (n, H, W)
        calls, began = 0, time.perf_counter()
        last: tuple[np.ndarray, np.ndarray] | None = None  # what was given, and its result

        def frames() -> Iterator[np.ndarray]:
            nonlocal calls, last
            for k, result in enumerate(results):
                calls += result.nfe
                image = result.image.numpy()
                if haze_out is not None:
                    hazes.append(np.clip(result.haze.numpy(), 0, 1))
                if drawn:
                    samples.append(result.samples.reshape(-1, *clip.size).numpy())
                true = None if truth is None else truth.frame(k)
                seen = clip.frame(k)
                _measure(figures, seen, image, true, masks)
                for name, one, at in (("flicker", image, 1), ("flicker_input", seen, 0)):
                    if last is not None:
                        change = float(np.abs(one - last[at]).mean())
                        figures.setdefault(name, []).append(change)
                last = seen, image
                progress(k + 1, len(clip))
                yield image

        with together():
            files = write_clip(out, frames(), len(clip), clip)
            seconds = time.perf_counter() - began
            if haze_out is not None:
                write_clip(haze_out, iter(hazes), len(hazes), clip)
            for k, place in enumerate(drawn):
                write_clip(place, (frame[k] for frame in samples), len(samples), clip)
        done: dict[str, Any] = {
            "task": self.name,
            "clip": str(path),
            "kind": clip.kind,
            "out": str(out),
        }
        done |= {"files": len(files), "frames": len(clip), "size": [clip.size[1], clip.size[0]]}
        done |= {"tissue": options.tissue, "strength": options.strength}
        done |= {} if haze is None else {"haze": options.haze or HAZE_PRIOR}
        done |= {"nfe": calls, "seconds": round(seconds, 2)}
        if clip.times is not None and not clip.times[0].silent:
            done["note"] = "the sound is left out"
        done |= {"sample_files": [str(place) for place in drawn]} if drawn else {}
        done["frames_per_second"] = round(len(clip) / seconds, 3)
        return done | {name: round(float(np.mean(v)), 4) for name, v in figures.items()}

    def restorer(self, denoiser: Denoiser, options: Frames, settings: Settings) -> Restorer:
        """Around one of the priors; the options name the other one, and nothing for this."""
        tissue, haze = (
            float_model(name) if name else denoiser for name in (options.tissue, options.haze)
        )
        shown = denoiser.condition_channels > 0
        task = self.task(tissue, None if shown else haze, options, settings)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            return task(inputs["frame"], **draws)

        return run

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Frames:
        """``partner``: of a prior the other one, ``tissue:MODEL`` or ``haze:MODEL``."""
        partner = numbers.pop("partner", None)
        if denoiser.condition_channels:
            if partner is not None:
                raise ValueError(
                    "this network is shown the hazy frame and has no partner: leave out --partner"
                )
            return with_numbers(Frames(tissue=""), self.name, sigma or None, numbers)
        role, _, name = (partner or "").partition(":")
        if role not in ("tissue", "haze") or not name:
            raise ValueError(
                "--task ultrasound needs the other prior: --partner haze:MODEL or tissue:MODEL;"
                f" got {partner!r}"
            )
        other = Frames(tissue=name, haze="") if role == "tissue" else Frames(tissue="", haze=name)
        return with_numbers(other, self.name, sigma or None, numbers)

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        if data is None:
            return super().source(data, denoiser, side, seed)
        return Source(tuple(find_pictures(data)), side, seed, 1)

    def trial(self, source: Source, k: int, options: Frames) -> Trial:
        clean = source.picture(k)
        hazy = simulate_haze(clean[0].numpy(), STRENGTHS[k % len(STRENGTHS)], source.seed + k)
        return Trial({"frame": torch.from_numpy(hazy)[None].float()}, clean, "simulated haze")

    def baselines(self, options: Frames) -> dict[str, Callable[[Trial], Tensor]]:
        def plane(method: Callable[[np.ndarray], np.ndarray]) -> Callable[[Trial], Tensor]:
            return lambda trial: torch.from_numpy(
                np.clip(method(trial.inputs["frame"][0].numpy()), 0, 1)
            )[None].float()

        return {name: plane(method) for name, method in of_haze().items()}


def restored(
    task: UltrasoundTask | ShownFrameTask, clip: Clip, options: Frames, draws: Draws
) -> Iterator[Dehazed]:
    """The results of a clip's frames, in order."""
    frames = (torch.from_numpy(np.ascontiguousarray(frame)) for frame in clip)
    if draws.samples > 1:
        return (task(frame, num_samples=draws.samples, seed=draws.seed) for frame in frames)
    warm, stream = options.warm_start, options.stream
    return restore_clip(task, frames, seed=draws.seed, warm_start=warm, stream=stream)


def _measure(figures: dict[str, list[float]], seen, image: np.ndarray, truth, masks) -> None:
    values: dict[str, Any] = {}
    if truth is not None:
        values |= {"psnr": psnr(image[None], truth[None]), "ssim": ssim(image[None], truth[None])}
    if masks is not None:
        tissue, blood = masks["tissue"], masks["blood"]
        for name, picture in (("before", seen), ("after", image)):
            values |= {
                f"gcnr_{name}": gcnr(picture[tissue], picture[blood]),
                f"cnr_{name}": cnr(picture[tissue], picture[blood]),
            }
        values["ks_tissue"] = ks(seen[tissue], image[tissue])[0]
    for name, value in values.items():
        figures.setdefault(name, []).append(value)
