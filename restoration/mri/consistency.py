"""Data consistency for networks that have seen the data: no closer to the measurement than its
noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from restoration.mri.estimate import lift
from restoration.mri.sense import Sense, SingleCoil
from restoration.operators.measurement import Measurement
from restoration.posterior import Correction, DiffPIR
from solvers.processes.process import CLEAN
from solvers.solver import DenoiserLike

DOUBLINGS, STALLED = 10, 0.02


class ScanData(Protocol):
    """What was measured, as a run needs it: on the host (:class:`Slice`), or in a graph
    (:class:`restoration.mri.real_sense.RealSlice`).
    """

    @property
    def first(self) -> Tensor:
        """The lift, ``(B, 2, H, W)``."""
        ...

    @property
    def zero_filled(self) -> Tensor:
        """``A^H y``, ``(B, 2, H, W)``."""
        ...

    @property
    def seen(self) -> Tensor | float:
        """1 where a coil is sensitive."""
        ...

    @property
    def noise(self) -> Tensor | float:
        """Standard deviation per real part, of each sample; 0: exact."""
        ...

    @property
    def measurement(self) -> Measurement:
        """Operator and data. A graph's has no noise: what weighs it asks :attr:`noise`."""
        ...

    def scaled(self, scale: Tensor) -> ScanData:
        """The same of an image that is divided by ``scale (B, 1, 1, 1)``."""
        ...

    def agree(self, x: Tensor) -> Tensor:
        """:func:`agree`."""
        ...

    def pull(self, x: Tensor, variance: float) -> Tensor:
        """The proximal step on the data of an image that may be off by this variance."""
        ...


@dataclass(frozen=True)
class Slice:
    """One slice ``y (1, 2 coils, H, W)`` with noise ``sigma`` per real part; 0: exact."""

    operator: Sense | SingleCoil
    y: Tensor
    sigma: float

    @property
    def first(self) -> Tensor:
        return lift(self.operator, self.y, self.sigma)

    @property
    def zero_filled(self) -> Tensor:
        return self.operator.A_adjoint(self.y)

    @property
    def seen(self) -> Tensor | float:
        maps = getattr(self.operator, "maps", None)
        return 1.0 if maps is None else (maps.abs().sum(0) > 0).float()

    @property
    def noise(self) -> float:
        return self.sigma

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.operator, self.y, self.sigma)

    def scaled(self, scale: Tensor) -> Slice:
        return Slice(self.operator, self.y / scale, self.sigma / float(scale))

    def agree(self, x: Tensor) -> Tensor:
        return agree(x, self.measurement)

    def pull(self, x: Tensor, variance: float) -> Tensor:
        if self.sigma == 0 or variance == math.inf:
            return x + self.operator.A_dagger(self.y - self.operator.A(x))
        return self.operator.prox_l2(x, self.y, variance / self.sigma**2)


class Consistency(Correction):
    """Moves the image estimate, where its residual exceeds the noise, just until it does not
    (:func:`agree`).

    A conditional network's image is already a posterior mean. Weighing it against the data once
    more, as DiffPIR rightly does with an unconditional one, counts the data twice and brings their
    noise back.
    """

    def __init__(self, denoiser: DenoiserLike, data: ScanData):
        super().__init__(denoiser, data.measurement)
        self.data = data

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return self.data.agree(x0)


class Alternation(DiffPIR):
    """Network and data take turns: a proximal step of width ``prior_std`` after each answer but the
    last, which is only made consistent.

    For networks that were trained through these very steps (Aggarwal et al. 2019, "MoDL"): each
    answer sees what the data said to the one before it. The last answer is the estimate; weighing
    it against the data again would bring their noise back.
    """

    def __init__(self, denoiser: DenoiserLike, data: ScanData, prior_std: float):
        super().__init__(denoiser, data.measurement, prior_std=prior_std)
        self.data = data

    def correct(self, x0: Tensor, t: float) -> Tensor:
        if self.next_time(t) <= CLEAN:
            return self.data.agree(x0)
        variance = self.variance(t)
        return x0 if variance == 0 else self.data.pull(x0, variance)


def agree(x: Tensor, measurement: Measurement) -> Tensor:
    """``x`` moved as little as needed for a residual of at most the noise level (Morozov's
    discrepancy principle), by proximal steps.

    Where the sensitivities are off by more than the noise no image explains the data, and insisting
    would only copy their error into the image: the data's weight stops growing once a doubling
    takes less than STALLED of the squared residual off.
    """
    operator: Any = measurement.operator  # Sense or SingleCoil
    sigma = measurement.sigma
    if sigma == 0:
        return x + operator.A_dagger(measurement.residual(x))
    goal = sigma**2 * 2 * operator.coils * operator.mask.sum()
    moved, left = x, measurement.residual(x).square().sum()
    for k in range(DOUBLINGS):
        if left <= goal:
            break
        before, moved = left, operator.prox_l2(x, measurement.y, 2.0**k)
        left = measurement.residual(moved).square().sum()
        if left > (1 - STALLED) * before:
            break
    return moved
