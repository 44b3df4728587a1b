"""The most accurate deterministic solver for a grid, picked by the grid."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from solvers.grid import Grid
from solvers.methods.eabm import EABM, RHO
from solvers.methods.pndm import PNDM
from solvers.processes.process import Process
from solvers.solver import Problem, Queries, Solver

EVEN = 1.5  # longest of a grid's steps, in shortest ones, where they count as even
BAND = range(14, 18)  # calls on a karras grid at which predicting alone is better
FIVE, SPAN, SMALL = 5, 3e4, 250  # calls, from most to least noise, values of an image


@dataclass(frozen=True)
class Auto:
    """Runs the solver that measured best on grids such as the one it is given.

    ============  =============================================================================
    grid          solver
    ============  =============================================================================
    `karras`      PNDM's `ipndm` with exponential weights, order 3, at the calls named below
    any other     `eabm`
    ============  =============================================================================

    That is at 14 to 17 calls; and at 5 where noise falls by more than 30 000 times, as on EDM's own
    levels, and images have at most 250 values (0.7 to 0.8 of `eabm`'s error at 48, four times as
    much at 768). A `karras` grid is one that is even in ``kappa^(1/7)`` and goes to the process's
    least noisy time. A step is even to half of itself; the first, which a partial run may have cut,
    does not count where there are others.

    When to use it: wherever no other reason picks a solver. ``restobox bench solvers --peers``
    shows the errors that the table comes from, beside those of other libraries' samplers.

    NFE: N.

    Reference: this library's; see :class:`solvers.EABM` and :class:`solvers.PNDM`.
    """

    keeps_history: ClassVar[bool] = True  # a step also uses earlier answers, noise estimates
    combines_noise: ClassVar[bool] = True

    def choose(self, process: Process, grid: Grid, size: int) -> Solver:
        """The solver for this grid and images of ``size`` values."""
        kappas = [process.kappa(t) for t in grid.times]
        noisy = [kappa for kappa in kappas if 0 < kappa < math.inf]
        five = len(noisy) == FIVE and noisy[0] >= SPAN * noisy[-1] and size <= SMALL
        if (
            (five or len(noisy) in BAND)
            and noisy[-1] <= EVEN * process.kappa(process.first)
            and _even([kappa ** (1 / RHO) for kappa in noisy])
        ):
            return PNDM("ipndm", "exponential", 3)
        return EABM()

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        return (yield from self.choose(problem.process, grid, x[0].numel()).run(problem, grid, x))


def _even(values: list[float]) -> bool:
    """Whether all steps between them but the first are about as long."""
    steps = [before - after for before, after in itertools.pairwise(values)][1:]
    return max(steps) <= EVEN * min(steps)
