"""Degradations known by pairs of pictures: outdoor haze, rain drops, shadows, low light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from export.jobs.paired import PairedJob
from restoration.io.images import Photo, read_image
from restoration.io.pictures.folders import find_pairs, find_pictures, random_window
from restoration.paired.dark_channel import DarkChannelPrior
from restoration.paired.lifts import underexposed
from restoration.paired.simulation import Haze, make_hazy
from restoration.paired.task import PairedTask
from restoration.task import Restored, shown_to
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.tasks.base import Restorer, Size, Source, Trial, with_numbers
from toolbox.tasks.options import Dehazing, Pairs
from toolbox.tasks.pictures import PictureTask, Reading, visible
from toolbox.tasks.settings import Prior, Settings

SOLVERS = ("resfusion", "rddm", "evodiff", "ddim")


class Paired(PictureTask):
    """``image (C, H, W)``, and ``mask (1, H, W)``, 1 where it is degraded, for networks that are
    shown one.
    """

    name = "paired"
    benched: ClassVar[tuple[str, ...]] = ("input",)
    settings = Settings(solver="rddm", steps=5)
    unused = ("correction", "sigma")
    several_solvers = True
    files = ("mask",)

    def read(self, photo: Photo, options: Any, seed: int) -> Reading:
        height, width = photo.pixels.shape[1:]
        image, kept = visible(photo)
        inputs, file = {"image": image}, getattr(options, "mask", None)
        if file is not None:
            pixels = read_image(file).pixels
            if pixels.shape[1:] != (height, width):
                raise ValueError(
                    f"mask {file} is {pixels.shape[2]} x {pixels.shape[1]} pixels but the image is"
                    f" {width} x {height}"
                )
            inputs["mask"] = binary(torch.from_numpy(pixels))
        return Reading(inputs, photo, options, (height, width), {}, kept)

    def refined(self, reading: Reading, options: Any, denoiser: Any) -> Reading:
        image = reading.inputs["image"][None]
        if getattr(denoiser, "shown", None) != "brightened" or underexposed(image) > 0:
            return reading
        note = "the picture has as much light as well exposed ones and was left as it is"
        return replace(reading, found=reading.found | {"note": note})

    def task(self, denoiser: Denoiser, options: Any, settings: Settings) -> PairedTask:
        """The algorithm.

        Raises:
            ValueError: a correction, which a network that is shown the degraded picture has no use
                for, or a network for the other kind of pictures.
        """
        if settings.correction is not None:
            raise ValueError(
                f"the task {self.name} knows no --correction: the network is shown the degraded"
                " picture"
            )
        if ("haze" in shown_to(denoiser)) != (self.name == "dehaze"):
            other = "dehaze" if self.name == "paired" else "paired"
            raise ValueError(f"this network is for another kind of pictures: take the task {other}")
        steps = self.settings.steps if settings.steps is None else settings.steps
        return PairedTask(
            denoiser,
            solver_by_name(settings.solver),
            5 if steps is None else steps,
            grid=settings.grid,
            view=getattr(options, "view", None),
            tile=settings.tile,
        )

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        task = self.task(denoiser, options, settings)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            mask = inputs.get("mask")
            return task(inputs["image"], None if mask is None else mask[0], **draws)

        return run

    def job(self, denoiser: Denoiser, options: Any, settings: Settings, size: Size) -> PairedJob:
        return PairedJob(self.task(denoiser, options, settings), size)

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Any:
        return with_numbers(Pairs(), self.name, sigma, numbers)

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        """Pairs (and masks) where the folder holds them, else degraded pictures without a truth."""
        masked = any("+mask" in word for word in shown_to(denoiser))
        if data is None or not (data / "degraded").is_dir():
            if masked:
                raise ValueError(
                    f"{data}: this network is shown masks: give a folder with degraded/ and mask/,"
                    " and with clean/ where results are to be compared"
                )
            return super().source(data, denoiser, side, seed)
        if (data / "clean").is_dir():
            found = find_pairs(data, mask="mask" if masked else None)
            return Source(tuple((*files, None)[:3] for files in found), side, seed)
        if masked:
            found = find_pairs(data, "degraded", "mask")
            return Source(tuple((image, None, mask) for image, mask in found), side, seed)
        return Source(tuple(find_pictures(data / "degraded")), side, seed)

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        image, clean, mask = window(source, k)
        inputs = {"image": image} if mask is None else {"image": image, "mask": binary(mask)}
        return Trial(inputs, clean, "degraded")

    def baselines(self, options: Any) -> dict[str, Callable[[Trial], Tensor]]:
        return {"input": lambda trial: trial.inputs["image"]}


class Dehaze(Paired):
    """``image (C, H, W)`` with outdoor haze."""

    name = "dehaze"
    benched = ("input", "dark-channel", "haze", "haze-int8")
    prior = Prior("haze-int8")

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Dehazing:
        return with_numbers(Dehazing(), self.name, sigma, numbers)

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        """Pairs ``hazy/`` and ``clear/``, or clear pictures to which haze is simulated."""
        if data is not None and (data / "hazy").is_dir() and (data / "clear").is_dir():
            pairs = find_pairs(data, "hazy", "clear")
            return Source(tuple((*p, None) for p in pairs), side, seed)
        return PictureTask.source(self, data, denoiser, side, seed)

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        image, clean, _ = window(source, k)
        if clean is not None:
            return Trial({"image": image}, clean, "haze")
        clear, hazy = make_hazy(image, image[None], Haze(), source.rng(k))
        return Trial({"image": hazy}, clear, "simulated haze")

    def baselines(self, options: Any) -> dict[str, Callable[[Trial], Tensor]]:
        def dark_channel(trial: Trial) -> Tensor:
            image = trial.inputs["image"]
            return DarkChannelPrior()(image.expand(3, -1, -1)[None]).image[0, : len(image)]

        return super().baselines(options) | {"dark-channel": dark_channel}


def window(source: Source, k: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same random part, from whole scenes to details, of a picture, its clean one and its
    mask.

    Raises:
        ValueError: pictures that differ in size.
    """
    found = source.file(k)
    files: tuple[Path | None, ...] = found if isinstance(found, tuple) else (found, None, None)
    pictures = {f: torch.from_numpy(read_image(f).pixels) for f in files if f is not None}
    if len({p.shape[1:] for p in pictures.values()}) > 1:
        raise ValueError(f"{', '.join(map(str, pictures))} differ in size")
    rng, first = source.rng(k), next(iter(pictures.values()))
    least = (source.side,) * 2 if isinstance(source.side, int) else source.side
    share = max(m / n for m, n in zip(least, first.shape[1:], strict=True))
    scale = rng.uniform(min(1, share), 1)
    small = {f: _scaled(p, scale, least) for f, p in pictures.items()}
    rows, columns = random_window(next(iter(small.values())).shape, least, rng)
    image, clean, mask = (
        None if f is None else small[f][:, rows, columns].expand(3, -1, -1) for f in files
    )
    assert image is not None
    return image, clean, mask


def _scaled(picture: Tensor, scale: float, least: tuple[int, int]) -> Tensor:
    """A smaller picture, no smaller than ``least (H, W)`` where it was as large before."""
    size = [max(round(scale * n), min(n, m)) for n, m in zip(picture.shape[1:], least, strict=True)]
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def binary(mask: Tensor) -> Tensor:
    """``(1, H, W)`` of 0 and 1."""
    return (mask.mean(0, keepdim=True) >= 0.5).float()
