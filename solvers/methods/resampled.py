"""Time travel: each stretch of the grid is run several times, going back up in between. Lugmayr et
al. 2022, Wang et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from solvers.grid import Grid
from solvers.methods.ddim import DDIM
from solvers.solver import Problem, Queries, Solver, keeps_history


@dataclass(frozen=True)
class Resampled:
    """Runs ``jump`` steps down with another solver, noises the state back up, and again:
    ``repeats`` times per stretch.

    Going back from s to t keeps the process's own law: ``x_t = (a_t/a_s) x_s + sqrt(b_t^2 - (a_t
    b_s/a_s)^2) n``. It lets parts of the image that a correction filled in separately (holes and
    their surroundings) come to agree. Multi-step solvers start a new history with each stretch.

    When to use it: with the `repaint` and `ddnm` corrections, where pasted pixels and the rest do
    not fit together.

    NFE: repeats times the inner solver's.

    Reference: Lugmayr et al. 2022 (arXiv 2201.09865), algorithm 1; Wang et al. 2023 (arXiv
    2212.00490), time travel.

    Args:
        solver: what walks down.
        jump: steps per stretch, >= 1; the paper uses 10 of 250.
        repeats: how often each stretch is run, >= 1; the paper uses 10.

    Raises:
        ValueError: ``jump`` or ``repeats`` below 1.
    """

    solver: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    jump: int = 10
    repeats: int = 10

    def __post_init__(self) -> None:
        if self.jump < 1 or self.repeats < 1:
            raise ValueError(
                f"jump and repeats must be at least 1; got {self.jump} and {self.repeats}"
            )

    @property
    def keeps_history(self) -> bool:
        """As the solver that walks down."""
        return keeps_history(self.solver)

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        for first in range(0, len(grid), self.jump):
            stretch = Grid(grid.times[first : first + self.jump + 1])
            for again in range(self.repeats):
                if again:
                    x = noise_up(problem, x, stretch.times[-1], stretch.times[0])
                x = yield from self.solver.run(problem, stretch, x)
        return x


def noise_up(problem: Problem, x: Tensor, s: float, t: float) -> Tensor:
    """A draw of ``x_t`` given ``x_s``, ``t > s``: the forward process between two levels.

    Raises:
        ValueError: ``x_s`` has no signal, so it can't be scaled.
    """
    process, y = problem.process, problem.y
    if process.a(s) == 0:
        raise ValueError(f"level t={s} has no signal to go back up from")
    ratio = process.a(t) / process.a(s)
    fresh = max(process.b(t) ** 2 - (ratio * process.b(s)) ** 2, 0.0) ** 0.5
    x = ratio * process.unshifted(x, s, y) + fresh * problem.noise(x)
    return process.shifted(x, t, y)
