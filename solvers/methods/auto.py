"""The most accurate deterministic solver for a grid, picked by the grid."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import Tensor

from solvers.grid import Grid
from solvers.methods.pndm import PNDM
from solvers.processes.process import Process
from solvers.solver import Problem, Queries, Solver

EVEN = 1.5  # longest of a grid's steps, in shortest ones, where they count as even
RHO = 7.0  # of karras grids
# least calls of each order on those
ORDERS = {4: 25, 3: 6, 2: 0}


@dataclass(frozen=True)
class Auto:
    """Runs the solver that measured best on grids such as the one it is given.

    ====================================  =====================================================
    grid                                  solver
    ====================================  =====================================================
    even in log-SNR (``log-snr``)         PNDM's `ipndm` with exponential weights, order 4
    even in kappa^(1/7) (``karras``)      the same, order 3 below 25 calls, 2 below 6
    anything else (``trailing`` ...)      PNDM's `ipndm` with variable weights
    ====================================  =====================================================

    Both of the first kind also descend to the process's least noisy time. A step is even to half of
    itself; the first, which a partial run may have cut, does not count where there are others.

    When to use it: wherever no other reason picks a solver. ``restobox bench solvers`` shows the
    errors that the table comes from; at no count from 5 to 50 calls and on none of the three grids
    did a solver of another library measure better by more than a few percent.

    NFE: N.

    Reference: this library's; the rules are PNDM's, see :class:`solvers.PNDM`.
    """

    @property
    def keeps_history(self) -> bool:
        """Whether a step also uses earlier answers."""
        return True

    @property
    def combines_noise(self) -> bool:
        """Whether these are noise estimates."""
        return True

    def choose(self, process: Process, grid: Grid) -> Solver:
        """The solver for this grid."""
        kappas = [process.kappa(t) for t in grid.times]
        noisy = [kappa for kappa in kappas if 0 < kappa < math.inf]
        if len(noisy) < 3 or noisy[-1] > EVEN * process.kappa(process.first):
            return PNDM()
        if _even([math.log(kappa) for kappa in noisy]):
            return PNDM("ipndm", "exponential", 4)
        if _even([kappa ** (1 / RHO) for kappa in noisy]):
            return PNDM("ipndm", "exponential", _order(len(noisy)))
        return PNDM()

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        return (yield from self.choose(problem.process, grid).run(problem, grid, x))


def _order(calls: int) -> int:
    return next(order for order, least in ORDERS.items() if calls >= least)


def _even(values: list[float]) -> bool:
    """Whether all steps between them are about as long; of more than two but the first."""
    steps = [before - after for before, after in itertools.pairwise(values)]
    steps = steps[1:] if len(steps) > 2 else steps
    return max(steps) <= EVEN * min(steps)
