"""Accelerated MRI as one graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from export.jobs.base import Job, Shape, quantile
from restoration.mri.consistency import Alternation, Consistency
from restoration.mri.estimate import CONDITION_CHANNELS, ITERATIONS, QUANTILE, features
from restoration.mri.real_sense import RealSense, coil_pairs
from restoration.mri.task import MRITask
from restoration.operators.linear import Denoising
from restoration.operators.measurement import Measurement
from restoration.task import Run
from solvers.denoiser import Denoiser
from solvers.processes.process import CLEAN

# stands for a measurement that the functions of a correction hold
IN_AGREE = Measurement(Denoising(), torch.zeros(1))


@dataclass(frozen=True)
class MRIJob(Job):
    """``kspace (B, 2 coils, H, W)``, real parts first; ``mask (B, 1, H, W)``; ``maps`` like k-space
    for more than one coil, of norm 1 over the coils (:func:`restoration.mri.normalise_maps`); the
    result is the complex image ``(B, 2, H, W)`` in the units of the data.

    Args:
        task: of a conditional network, with its default correction or none.
        exact: the data are without noise (one coil only); otherwise the standard deviation of their
            real part is an input, ``sigma (B, 1, 1, 1)``.
        iterations: of conjugate gradients per data consistency
            (:class:`restoration.mri.real_sense.RealSense`).
    """

    task: MRITask
    coils: int
    size: tuple[int, int] = (320, 320)
    exact: bool = False
    iterations: int = 40
    name = "mri"

    @property
    def correction(self) -> str:
        return self.task.plan()[1]

    @property
    def steps(self) -> int:
        return self.task.plan()[0]

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
        known = ("consistency", "alternation", "none")
        if self.denoiser.condition_channels != CONDITION_CHANNELS or self.correction not in known:
            raise ValueError(
                f"MRI graphs hold networks that are shown {CONDITION_CHANNELS} condition channels,"
                f" with the correction {', '.join(known)}; got {self.denoiser.condition_channels}"
                f" channels and {self.correction!r}"
            )
        if self.exact and self.coils > 1:
            raise ValueError(
                "exact data of several coils make a singular system, whose conjugate gradients a"
                " graph can't run to convergence: give exact=False and the noise as an input,"
                " however small"
            )

    def example(self) -> dict[str, Tensor]:
        return super().example() | {"mask": torch.ones(1, 1, *self.size)}

    def prepare(
        self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None, sigma: Tensor | None = None
    ) -> Run:
        operator, y = RealSense(mask, maps, self.iterations), coil_pairs(kspace * mask)
        noise = torch.zeros_like(kspace[:, :1, :1, :1]) if sigma is None else sigma
        zero_filled = operator.A_adjoint(y)
        first = zero_filled
        if maps is not None:
            power = (
                zero_filled.square()
                .sum(1, keepdim=True)
                .mean((2, 3), keepdim=True)
                .clamp(min=1e-12)
            )
            first = operator.solve(zero_filled, (noise**2 / power).clamp(min=1e-4), ITERATIONS)
        magnitude = first.square().sum(1).sqrt().flatten(1)
        scale = quantile(magnitude, QUANTILE)[:, None, None, None].clamp(min=1e-30)
        d = self.denoiser.conditioned(features(first / scale, zero_filled / scale, noise / scale))
        seen = 1.0 if maps is None else (maps.abs().sum(1, keepdim=True) > 0).to(first)

        def agree(x: Tensor) -> Tensor:
            return operator.agree(x, y / scale[:, None], None if self.exact else noise / scale)

        steps, correction = self.task.plan()
        grid, solver = self.task.nodes(steps), self.task.solver
        if correction == "none":
            return Run(d, solver, grid, self.state, lambda x: scale * seen * x)
        if correction == "consistency":
            agreeing = _Agreeing(d, agree)
            return Run(agreeing, solver, grid, self.state, lambda x: scale * seen * agree(x))
        width = (
            float(self.denoiser.data_std) if self.task.prior_std is None else self.task.prior_std
        )

        def prox(x: Tensor, variance: float) -> Tensor:
            if self.exact:
                return agree(x)
            return operator.prox_l2(
                x, y / scale[:, None], variance * (scale / noise.clamp(min=1e-12)) ** 2
            )

        turning, start = _Alternating(d, agree, prox, width), torch.zeros_like(first)
        return Run(turning, solver, grid, self.state, lambda x: scale * seen * agree(x), start)


class _Agreeing(Consistency):
    def __init__(self, denoiser: Denoiser, agree: Callable[[Tensor], Tensor]):
        super().__init__(denoiser, IN_AGREE)
        self.agree = agree

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return self.agree(x0)


class _Alternating(Alternation):
    def __init__(
        self,
        denoiser: Denoiser,
        agree: Callable[[Tensor], Tensor],
        prox: Callable[[Tensor, float], Tensor],
        width: float,
    ):
        super().__init__(denoiser, IN_AGREE, prior_std=width)
        self.agree, self.prox = agree, prox

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return self.agree(x0) if self.next_time(t) <= CLEAN else self.prox(x0, self.variance(t))
