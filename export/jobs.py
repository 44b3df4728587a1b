"""What a restorer graph can do: for each task, its inputs, its noise, and how a run starts and ends, in traceable tensor operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from restoration.hyperspectral import SPREAD, HyperspectralTask
from restoration.inpainting import InpaintingTask
from restoration.measurement import Measurement
from restoration.mri.consistency import Consistency
from restoration.mri.estimate import CONDITION_CHANNELS, ITERATIONS, QUANTILE, features
from restoration.mri.real import RealSense, coil_pairs
from restoration.mri.task import MRI
from restoration.operators import Denoising
from restoration.posterior import CORRECTIONS
from solvers.ddim import DDIM
from solvers.denoiser import Denoiser
from solvers.grid import Grid
from solvers.prediction import Prediction
from solvers.process import CLEAN, Process
from solvers.solver import Solver

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """One run on one measurement.

    Attributes:
        denoiser: what the solver asks, conditioned and corrected.
        finish: from the end of a run to the result.
        start: the state to start from; None: noise at the first level, and the process's share of ``y``.
        process, y: as for :func:`solvers.solver.solve`.
    """

    denoiser: object
    grid: Grid
    solver: Solver
    finish: Callable[[Tensor], Tensor]
    start: Tensor | None = None
    process: Process | None = None
    y: Tensor | None = None


class Job:
    """A task with everything fixed but the measurement. Subclasses are frozen dataclasses with these attributes and :meth:`prepare`.

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
            raise ValueError(f"{self.correction} differentiates the network, which a graph can't; use ddnm, diffpir, ddrm or repaint")

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

    def __post_init__(self):
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
    """``image``: what a fixed linear operator (denoising, super-resolution, deblurring) measured of pictures in [0, 1].

    Args:
        task: has ``denoiser``, ``solver``, ``correction`` and ``prepare(measurement, shape) -> (denoiser, start or None, grid, finish)``.
        operator: of :mod:`restoration.operators` or :mod:`restoration.separable`.
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

    def __post_init__(self):
        object.__setattr__(self, "task", replace(self.task, tile=2**31))

    @property
    def correction(self) -> str:
        if self.task.correction is not None:
            return self.task.correction
        return "none" if isinstance(self.operator, Denoising) else "diffpir" if self.sigma > 0 else "ddnm"

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
        denoiser, start, grid, finish = self.task.prepare(Measurement(self.operator, image, self.sigma), shape)
        return Prepared(denoiser, grid, self.task.solver, finish, start)


@dataclass(frozen=True)
class PairedJob(Job):
    """``image (B, C, H, W)`` in [0, 1]: a degraded picture, of which the network, or the process, or both are shown.

    Args:
        base: the denoiser.
        solver, grid: any; the grid's times are of ``process``.
        process: the process that the solver follows (Resfusion, RDDM, ...), answered by level matching where the denoiser's is another;
            None: the denoiser's own.
        condition: from the degraded picture, in the network's range, to what the network is shown; None: the picture alone.
    """

    base: Denoiser
    solver: Solver
    grid: Grid
    size: tuple[int, int]
    process: Process | None = None
    channels: int = 3
    condition: Callable[[Tensor], Tensor] | None = None
    name = "paired"
    correction = "none"

    @property
    def denoiser(self) -> Denoiser:
        return self.base

    def around(self, denoiser: Denoiser) -> PairedJob:
        return replace(self, base=denoiser)

    @property
    def inputs(self) -> dict[str, Shape]:
        return {"image": self.state}

    @property
    def state(self) -> Shape:
        return (self.channels, *self.size)

    def prepare(self, image: Tensor) -> Prepared:
        d, process = self.base, self.process or self.base.process
        y = d.from_unit(image)
        if d.condition_channels:
            d = d.conditioned(y if self.condition is None else self.condition(y))
        holds = process.holds_image or d.process.holds_image
        d = d.with_degraded(y) if d.process.holds_image else d
        return Prepared(d, self.grid, self.solver, lambda x: d.to_unit(x).clamp(0, 1), None, process, y if holds else None)


@dataclass(frozen=True)
class MRIJob(Job):
    """``kspace (B, 2 coils, H, W)``, real parts first; ``mask (B, 1, H, W)``; ``maps`` like k-space for more than one coil; the result is
    the complex image ``(B, 2, H, W)`` in the units of the data.

    Args:
        task: of a conditional network, with its default correction or none.
        exact: the data are without noise; otherwise the standard deviation of their real part is an input, ``sigma (B, 1, 1, 1)``.
        iterations: of conjugate gradients per data consistency (:class:`restoration.mri.real.RealSense`).
    """

    task: MRI
    coils: int
    size: tuple[int, int] = (320, 320)
    exact: bool = False
    iterations: int = 40
    name = "mri"

    @property
    def correction(self) -> str:
        return self.task.correction or "consistency"

    @property
    def inputs(self) -> dict[str, Shape]:
        data = (2 * self.coils, *self.size)
        found = {"kspace": data, "mask": (1, *self.size)}
        found |= {"maps": data} if self.coils > 1 else {}
        return found if self.exact else found | {"sigma": (1, 1, 1)}

    @property
    def state(self) -> Shape:
        return (2, *self.size)

    def check(self) -> None:
        if self.denoiser.condition_channels != CONDITION_CHANNELS or self.task.correction not in (None, "none"):
            raise ValueError(
                f"MRI graphs hold networks that are shown {CONDITION_CHANNELS} condition channels, with data consistency or 'none'; got "
                f"{self.denoiser.condition_channels} channels and {self.task.correction!r}"
            )

    def example(self) -> dict[str, Tensor]:
        return super().example() | {"mask": torch.ones(1, 1, *self.size)}

    def prepare(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None, sigma: Tensor | None = None) -> Prepared:
        operator, y = RealSense(mask, maps, self.iterations), coil_pairs(kspace * mask)
        noise = torch.zeros_like(kspace[:, :1, :1, :1]) if sigma is None else sigma
        zero_filled = operator.A_adjoint(y)
        first = zero_filled
        if maps is not None:
            power = zero_filled.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).clamp(min=1e-12)
            first = operator.solve(zero_filled, (noise**2 / power).clamp(min=1e-4), ITERATIONS)
        magnitude = first.square().sum(1).sqrt().flatten(1)
        scale = quantile(magnitude, QUANTILE)[:, None, None, None].clamp(min=1e-30)
        d = self.denoiser.conditioned(features(first / scale, zero_filled / scale, noise / scale))
        seen = 1.0 if maps is None else (maps.abs().sum(1, keepdim=True) > 0).to(first)

        def agree(x: Tensor) -> Tensor:
            return operator.agree(x, y / scale, None if self.exact else noise / scale)

        if self.task.correction == "none":
            return Prepared(d, self.task._grid(), self.task.solver, lambda x: scale * seen * x)
        return Prepared(_Agreeing(d, agree), self.task._grid(), self.task.solver, lambda x: scale * seen * agree(x))


class _Agreeing(Consistency):
    def __init__(self, denoiser, agree: Callable[[Tensor], Tensor]):
        super().__init__(denoiser, None)
        self.agree = agree

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return self.agree(x0)


@dataclass(frozen=True)
class EigenImageJob(Job):
    """``image (B, 1, H, W)``: eigen-images of a cube, any number of them as the batch, and ``level (B, 1, 1, 1)``, their noise.

    The network is asked at one time; planes with more or less noise are shown to it with less or more contrast, as
    :class:`restoration.hyperspectral.HyperspectralTask` does with an exported network.

    Args:
        task: of single planes, one step.
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
        if t.num_inference_steps != 1 or t.correction is not None or t.channels != 1 or self.denoiser.process.a(self.time) <= 0:
            raise ValueError("eigen-image graphs ask a network of single planes once, without correction, at a time with some signal")

    def prepare(self, image: Tensor, level: Tensor) -> Prepared:
        d = self.denoiser
        pixels = image.flatten(1)
        count = pixels.shape[1]
        centre = ordered(pixels, (count - 1) // 2)[:, None, None, None]  # torch's median
        power = (image - centre).square().mean((1, 2, 3), keepdim=True) - level**2
        reach = (quantile((image - centre).abs().flatten(1), 0.995)[:, None, None, None] - 2.5 * level).clamp(min=0)
        scale = torch.maximum(power.clamp(min=0).sqrt() / SPREAD, reach / 1.2)
        scale = torch.maximum(scale, level / 2.5).clamp(min=1e-30)
        low, high = d.value_range
        half, middle = (high - low) / 2, (high + low) / 2
        contrast = d.process.kappa(self.time) / (level / scale * half).clamp(min=1e-6)
        start = d.process.a(self.time) * (middle + contrast * half * (image - centre) / scale)

        def finish(x0: Tensor) -> Tensor:
            return centre + scale * (x0 - middle) / (contrast * half)

        return Prepared(_Turned(d, self.task.symmetries), Grid((self.time, CLEAN)), DDIM(), finish, start)


class _Turned:
    """The mean of a denoiser's answers to the flips and turns of a state."""

    def __init__(self, denoiser: Denoiser, symmetries: int):
        self.denoiser, self.symmetries, self.process = denoiser, symmetries, denoiser.process

    def __call__(self, x: Tensor, t: float) -> Prediction:
        total = torch.zeros_like(x)
        for k in range(self.symmetries):
            turned = torch.rot90(x, k // 2, (-2, -1))
            answer = self.denoiser(turned.flip(-1) if k % 2 else turned, t).x0
            total = total + torch.rot90(answer.flip(-1) if k % 2 else answer, -(k // 2), (-2, -1))
        x0 = total / self.symmetries
        return Prediction(x0, (x - self.process.a(t) * x0) / self.process.b(t))


def ordered(values: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 0) of each row of ``(B, n)``."""
    n = values.shape[1]
    return values.topk(n - k, dim=1).values[:, -1] if k >= n // 2 else -(-values).topk(k + 1, dim=1).values[:, -1]


def quantile(values: Tensor, q: float) -> Tensor:
    """``torch.quantile`` of each row of ``(B, n)``, by operators that graphs have."""
    place = q * (values.shape[1] - 1)
    low, high = ordered(values, math.floor(place)), ordered(values, math.ceil(place))
    return low + (place - math.floor(place)) * (high - low)
