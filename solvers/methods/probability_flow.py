"""The probability-flow ODE by an adaptive Runge-Kutta method. Song et al. 2021 (arXiv
2011.13456).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from solvers.grid import Grid
from solvers.solver import Problem, Queries, Query, weighted_sum

# Dormand & Prince 1980: nodes, stages (the last is the 5th-order step), and 5th minus 4th order
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class ProbabilityFlow:
    """Follows the deterministic flow that every DDIM-like solver approximates to a given error,
    with as many calls as that takes.

    With ``l = log(b/a)`` and ``u = (x - c y)/sqrt(a^2 + b^2)``, whose size is the data's or the
    noise's at every level::

        du/dl = kappa/sqrt(1 + kappa^2) eps - kappa^2/(1 + kappa^2) u

    by the pair of orders 5 and 4 of Dormand & Prince (RK45), which adapts its step to the error.
    Only the grid's ends count: the flow runs from the first node to the last noisy one; where the
    grid ends clean, the image estimate there is the result.

    When to use it: as the reference that other solvers are measured against, on networks without a
    closed form. The calls can't be listed beforehand, so it has no scheduler form and does not run
    on int8 bundles, whose timesteps are fixed.

    NFE: 6 per step tried, + 1; about 60 to 200.

    Reference: Song et al. 2021 (arXiv 2011.13456), section 4.3; the method "PF" of PNDM's released
    code, which integrates in time, in single precision.

    Args:
        rtol, atol: relative and absolute error per step in ``u``, > 0; steps follow the hardest
            sample of the batch.
        max_calls: give up after so many.

    Raises:
        ValueError: tolerances or a limit that are not positive.
        RuntimeError: ``max_calls`` were not enough.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_calls: int = 10_000

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.max_calls > 0):
            raise ValueError(
                f"rtol, atol and max_calls must be positive; got {self.rtol}, {self.atol} and"
                f" {self.max_calls}"
            )

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process, y, times = problem.process, problem.y, list(grid.times)
        while (
            process.a(times[0]) <= 0 and len(times) > 1
        ):  # no flow begins where there is no signal
            p = yield Query(x, times[0], editable=True)
            x = process.add_noise(p.x0, p.eps, times[1], y)
            del times[0]
        last = next(t for t in (*reversed(times), times[0]) if process.b(t) > 0 or t == times[0])
        if last < times[0]:
            x = yield from self._flow(problem, x, times[0], last)
        if last == times[-1]:
            return x
        p = yield Query(x, last, editable=True)
        return process.add_noise(p.x0, p.eps, times[-1], y)

    def _flow(self, problem: Problem, x: Tensor, t: float, s: float) -> Queries:
        process, y, calls = problem.process, problem.y, 0

        def scale(time: float) -> float:
            return math.hypot(process.a(time), process.b(time))

        def ask(u: Tensor, level: float) -> Queries:
            nonlocal calls
            calls += 1
            if calls > self.max_calls:
                raise RuntimeError(
                    f"the flow was not followed after {self.max_calls} calls: raise max_calls, rtol"
                    " or atol"
                )
            time = min(max(process.time_at(-2 * level), s), t)
            kappa = process.kappa(time)
            p = yield Query(process.shifted(scale(time) * u, time, y), time)
            return kappa / math.hypot(1, kappa) * p.eps - kappa**2 / (1 + kappa**2) * u

        level, end = math.log(process.kappa(t)), math.log(process.kappa(s))
        u = process.unshifted(x, t, y) / scale(t)
        step, slopes = -0.1, [(yield from ask(u, level))]
        while level > end:
            step = max(step, end - level)
            for node, weights in zip(NODES, STAGES, strict=True):
                new = u + step * weighted_sum(weights, slopes)
                slopes.append((yield from ask(new, level + node * step)))
            error = step * weighted_sum(ERROR, slopes)
            allowed = self.atol + self.rtol * u.abs().maximum(new.abs())
            worst = (error / allowed).square().flatten(1).mean(1).max().sqrt().item()
            if worst <= 1:
                # the last stage is the next step's first
                level, u, slopes = (level + step, new, slopes[-1:])
            else:
                slopes = slopes[:1]
            step *= min(10, max(0.2, 0.9 * max(worst, 1e-10) ** -0.2))
        return process.shifted(scale(s) * u, s, y)
