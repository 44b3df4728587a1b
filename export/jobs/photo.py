"""What a restorer graph can do: for each task, its inputs, its noise, and how a run starts and
ends, in traceable tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.operators.linear import Denoising
from restoration.operators.measurement import Measurement
from restoration.paired.task import HAZE, MASKED, PairedTask, reduced_size
from restoration.photo.inpainting import InpaintingTask
from restoration.posterior import CORRECTIONS
from solvers.denoiser import Denoiser
from solvers.grid import Grid
from solvers.processes.process import Process
from solvers.solver import Solver

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """One run on one measurement.

    Attributes:
        denoiser: what the solver asks, conditioned and corrected.
        finish: from the end of a run to the result.
        start: the state to start from; None: noise at the first level, and the process's share of
            ``y``.
        process, y: as for :func:`solvers.loop.solve`.
    """

    denoiser: object
    grid: Grid
    solver: Solver
    finish: Callable[[Tensor], Tensor]
    start: Tensor | None = None
    process: Process | None = None
    y: Tensor | None = None


class Job:
    """A task with everything fixed but the measurement. Subclasses are frozen dataclasses with
    these attributes and :meth:`prepare`.

    Attributes:
        name: of the task, as the command line calls it.
        denoiser: around a PyTorch network whose temporal path can be tabulated.
        inputs: names and shapes of the measurement's tensors, without the batch.
        state: ``(C, H, W)`` of the noise.
        correction, sigma, steps, grid_name, solver_name: for the record.
    """

    name: str
    sigma: float = 0.0

    @property
    def denoiser(self) -> Denoiser:
        return self.task.denoiser

    @property
    def correction(self) -> str:
        return self.task.correction or "none"

    @property
    def steps(self) -> int | None:
        return getattr(getattr(self, "task", None), "num_inference_steps", None)

    @property
    def operator_record(self) -> dict[str, str | float]:
        return {}

    def around(self, denoiser: Denoiser) -> Job:
        """The same job around another denoiser."""
        return replace(self, task=replace(self.task, denoiser=denoiser))

    def check(self) -> None:
        """Refuse what can't be a graph, in words.

        Raises:
            ValueError: a correction that differentiates the network.
        """
        if self.correction in CORRECTIONS and CORRECTIONS[self.correction].needs_gradient:
            raise ValueError(
                f"{self.correction} differentiates the network, which a graph can't; use ddnm,"
                " diffpir, ddrm or repaint"
            )

    def example(self) -> dict[str, Tensor]:
        """Inputs ``(1, ...)`` that mean something, for a dry run."""
        return {name: torch.full((1, *shape), 0.5) for name, shape in self.inputs.items()}

    def prepare(self, **inputs: Tensor) -> Prepared:
        """A run on a batch of measurements."""
        raise TypeError(f"{type(self).__name__} must define prepare")


@dataclass(frozen=True)
class InpaintingJob(Job):
    """``image (B, 3, H, W)`` in [0, 1] and ``mask (B, 1, H, W)``, 1 = known."""

    task: InpaintingTask
    size: tuple[int, int] = (256, 256)
    sigma: float = 0.0
    name = "inpaint"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))

    @property
    def correction(self) -> str:
        return self.task.correction_for(self.sigma)

    @property
    def inputs(self) -> dict[str, Shape]:
        return {"image": (3, *self.size), "mask": (1, *self.size)}

    @property
    def state(self) -> Shape:
        return (3, *self.size)

    def example(self) -> dict[str, Tensor]:
        return super().example() | {"mask": torch.ones(1, 1, *self.size)}

    def prepare(self, image: Tensor, mask: Tensor) -> Prepared:
        denoiser, finish = self.task.prepare(image, mask, self.sigma)
        return Prepared(denoiser, self.task.nodes(), self.task.solver, finish)


@dataclass(frozen=True)
class LinearJob(Job):
    """``image``: what a fixed linear operator (denoising, super-resolution, deblurring) measured of
    pictures in [0, 1].

    Args:
        task: has ``denoiser``, ``solver``, ``correction`` and ``prepare(measurement, shape) ->
            (denoiser, start or None, grid, finish)``.
        operator: of :mod:`restoration.operators.linear` or :mod:`restoration.operators.separable`.
        size: ``(H, W)`` of the restored pictures.
        name: ``denoise``, ``superresolve`` or ``deblur``.
        record: name and numbers of the operator.
    """

    task: object
    operator: object
    size: tuple[int, int]
    sigma: float = 0.0
    name: str = "denoise"
    record: dict[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))

    @property
    def correction(self) -> str:
        if self.task.correction is not None:
            return self.task.correction
        return (
            "none"
            if isinstance(self.operator, Denoising)
            else "diffpir"
            if self.sigma > 0
            else "ddnm"
        )

    @property
    def operator_record(self) -> dict[str, str | float]:
        return self.record

    @property
    def inputs(self) -> dict[str, Shape]:
        return {"image": tuple(self.operator.A(torch.zeros(1, 3, *self.size)).shape[1:])}

    @property
    def state(self) -> Shape:
        return (3, *self.size)

    def prepare(self, image: Tensor) -> Prepared:
        shape = (image.shape[0], 3, *self.size)
        denoiser, start, grid, finish = self.task.prepare(
            Measurement(self.operator, image, self.sigma), shape
        )
        return Prepared(denoiser, grid, self.task.solver, finish, start)


@dataclass(frozen=True)
class PairedJob(Job):
    """``image (B, 3, H, W)`` in [0, 1]: degraded pictures; and ``mask (B, 1, H, W)``, 1 where
    degraded, for networks that are shown one.

    Reduction to the task's view, the haze prior, the run and the way back to the whole picture are
    inside.

    Args:
        task: with any solver and process.
    """

    task: PairedTask
    size: tuple[int, int] = (256, 256)
    products: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)
    correction = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))
        products = tuple(_reduction(n, m) for n, m in zip(self.size, self.state[1:], strict=True))
        object.__setattr__(self, "products", products)

    @property
    def name(self) -> str:
        return "dehaze" if self.denoiser.condition_channels == HAZE else "paired"

    @property
    def inputs(self) -> dict[str, Shape]:
        masked = self.denoiser.condition_channels == MASKED
        return {"image": (3, *self.size)} | ({"mask": (1, *self.size)} if masked else {})

    @property
    def state(self) -> Shape:
        return (
            3,
            *(self.size if self.task.side is None else reduced_size(self.size, self.task.side)),
        )

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Prepared:
        run = self.task.prepare(image, mask, self._reduced)
        return Prepared(
            run.denoiser, run.grid, self.task.solver, run.finish, None, run.process, run.y
        )

    def _reduced(self, image: Tensor, _: int) -> Tensor:
        """What ``restoration.paired.task.reduced`` does, as two matrix products: TensorRT resizes
        with aliasing only.
        """
        if self.state[1:] == self.size:
            return image
        rows, columns = self.products
        return (rows @ image @ columns.T).clamp(0, 1)


def _reduction(size: int, smaller: int) -> Tensor:
    """The matrix ``(smaller, size)`` of resizing one axis without aliasing."""
    unit = torch.eye(size)[None, None]
    return F.interpolate(unit, (smaller, size), mode="bilinear", antialias=True)[0, 0]


def ordered(values: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 0) of each row of ``(B, n)``."""
    n = values.shape[1]
    return (
        values.topk(n - k, dim=1).values[:, -1]
        if k >= n // 2
        else -(-values).topk(k + 1, dim=1).values[:, -1]
    )


def quantile(values: Tensor, q: float) -> Tensor:
    """``torch.quantile`` of each row of ``(B, n)``, by operators that graphs have."""
    place = q * (values.shape[1] - 1)
    low, high = ordered(values, math.floor(place)), ordered(values, math.ceil(place))
    return low + (place - math.floor(place)) * (high - low)
