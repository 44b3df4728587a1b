"""Pictures from noise: nothing is measured. What networks without a task of ours are calibrated
on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
