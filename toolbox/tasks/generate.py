"""Pictures from noise and from latents: nothing is measured. What networks without a task of ours,
and decoders, are calibrated on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.task import Restored, Run, sample
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.grid import lay
from toolbox.tasks.base import Restorer, Source, Task, Trial
from toolbox.tasks.settings import Settings


class Generate(Task):
    """``size (H, W)``, empty: how large the picture is to be."""

    name = "generate"
    unused = ("correction", "sigma")

    def restore(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise ValueError("nothing is restored by the task generate; it is for calibration")

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        solver, steps = (
            solver_by_name(settings.solver),
            5 if settings.steps is None else settings.steps,
        )
        grid = lay(settings.grid, denoiser.process, steps)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            height, width = inputs["size"].shape
            shape = (denoiser.image_channels or 3, height, width)
            return sample(Run(denoiser, solver, grid, shape), **draws)

        return run

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> None:
        return None

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        if data is not None:
            raise ValueError("the task generate starts from noise and takes no --data")
        return Source((), side, seed)

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        side = source.side
        size = (side, side) if isinstance(side, int) else side
        return Trial({"size": torch.empty(size)}, None, "noise")


class Decode(Task):
    """``image (3, H, W)``: a picture, whose latents are decoded."""

    name = "decode"
    unused = ("correction", "sigma")

    def restore(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise ValueError("nothing is restored by the task decode; it is for calibration")

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        return (1,)

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        autoencoder = denoiser.autoencoder.around(denoiser.autoencoder.encoder, denoiser.network)

        @torch.no_grad()
        def run(inputs: Mapping[str, Tensor], **_: Any) -> Restored:
            began, fold = time.perf_counter(), autoencoder.fold
            image = inputs["image"][None].to(denoiser.device)
            height, width = image.shape[-2:]
            x = F.pad(2 * image - 1, (0, -width % fold, 0, -height % fold), mode="replicate")
            picture = (autoencoder.decode(autoencoder.encode(x))[0, :, :height, :width] + 1) / 2
            mean, seconds = picture.clamp(0, 1).cpu(), time.perf_counter() - began
            return Restored(mean[None], mean, torch.zeros_like(mean), 1, seconds)

        return run

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> None:
        return None

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        image = source.picture(k)
        return Trial({"image": image}, image, "decoded latents")
