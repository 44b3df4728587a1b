"""The eigen-images of a hyperspectral cube as one graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from export.jobs.base import Job, Shape
from restoration.hyperspectral.eigen_images import cautious, placed
from restoration.hyperspectral.task import HyperspectralTask
from restoration.task import Run
from restoration.wrappers.symmetry import Symmetric
from solvers.grid import Grid
from solvers.methods.ddim import DDIM
from solvers.processes.process import CLEAN


@dataclass(frozen=True)
class EigenImageJob(Job):
    """``image (B, 1, H, W)``: eigen-images of a cube, any number of them as the batch, and ``level
    (B, 1, 1, 1)``, their noise.

    The network is asked at one time; planes with more or less noise are shown to it with less or
    more contrast, as :class:`restoration.hyperspectral.task.HyperspectralTask` does with an
    exported network.

    Args:
        task: of single planes, one step. Its second set of axes, if any, is a second run, on turned
            eigen-images.
        time: where the network is asked.
    """

    task: HyperspectralTask
    time: float
    size: tuple[int, int] = (256, 256)
    name = "hsi"

    @property
    def inputs(self) -> dict[str, Shape]:
        return {"image": self.state, "level": (1, 1, 1)}

    @property
    def state(self) -> Shape:
        return (1, *self.size)

    def check(self) -> None:
        t = self.task
        if (
            t.num_inference_steps != 1
            or t.correction is not None
            or t.channels != 1
            or self.denoiser.process.a(self.time) <= 0
        ):
            raise ValueError(
                "eigen-image graphs ask a network of single planes once, without correction, at a"
                " time with some signal"
            )

    def prepare(self, image: Tensor, level: Tensor) -> Run:
        d, planes, noise = self.denoiser, image[:, 0], level[:, 0]
        centre, scale = (v[:, None] for v in placed(planes, noise))
        low, high = d.value_range
        half, middle = (high - low) / 2, (high + low) / 2
        kappa = cautious(level / scale * half, self.task.caution).clamp(min=1e-6)
        contrast = d.process.kappa(self.time) / kappa
        start = d.process.a(self.time) * (middle + contrast * half * (image - centre) / scale)

        def finish(x0: Tensor) -> Tensor:
            return centre + scale * (x0 - middle) / (contrast * half)

        asked, grid = Symmetric(d, self.task.symmetries), Grid((self.time, CLEAN))
        return Run(asked, DDIM(), grid, self.state, finish, start)
