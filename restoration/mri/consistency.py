"""Data consistency for networks that have seen the data: no closer to the measurement than its
noise.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior import Correction, DiffPIR
from solvers.processes.process import CLEAN

DOUBLINGS, STALLED = 10, 0.02


class Consistency(Correction):
    """Moves the image estimate, where its residual exceeds the noise, just until it does not
    (:func:`agree`).

    A conditional network's image is already a posterior mean. Weighing it against the data once
    more, as DiffPIR rightly does with an unconditional one, counts the data twice and brings their
    noise back.
    """

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return agree(x0, self.measurement)


class Alternation(DiffPIR):
    """Network and data take turns: a proximal step of width ``prior_std`` after each answer but the
    last, which is only made consistent.

    For networks that were trained through these very steps (Aggarwal et al. 2019, "MoDL"): each
    answer sees what the data said to the one before it. The last answer is the estimate; weighing
    it against the data again would bring their noise back.
    """

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return agree(x0, self.measurement) if self.next_time(t) <= CLEAN else super().correct(x0, t)


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
