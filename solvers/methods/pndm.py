"""PNDM: pseudo numerical methods for diffusion models on manifolds. Liu et al. 2022 (arXiv
2202.09778).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import Prediction
from solvers.processes.process import CLEAN, Process
from solvers.solver import Problem, Queries, Query, weighted_sum


@dataclass(frozen=True)
class Transfer:
    """Moves from one state along a noise estimate: ``phi`` of eq. 11, starting from the state that
    the prediction describes.
    """

    process: Process
    start: Prediction
    t: float
    y: Tensor | None = None

    def gradient(self, eps: Tensor) -> Tensor:
        return eps

    def to(self, s: float, eps: Tensor) -> Tensor:
        """``phi(x, eps; t -> s)``, written as the step along the start's own noise plus what
        ``eps`` changes.

        ``a_s x0 + c_s y + b_s eps_t + a_s (kappa_s - kappa_t)(eps - eps_t)``: a first-order step to
        the clean level returns the image estimate to the last bit.
        """
        x = self.process.add_noise(self.start.x0, self.start.eps, s, self.y)
        if eps is self.start.eps:
            return x
        return x + self.process.a(s) * (self.process.kappa(s) - self.process.kappa(self.t)) * (
            eps - self.start.eps
        )


class Increments(Transfer):
    """Moves in a straight line: the gradient is the change of ``x`` over one training step, always
    taken at the start.
    """

    def gradient(self, eps: Tensor) -> Tensor:
        s = max(self.t - 1, CLEAN)
        return (super().to(s, eps) - self.state) / (self.t - s)

    def to(self, s: float, increment: Tensor) -> Tensor:
        return self.state + (self.t - s) * increment

    @property
    def state(self) -> Tensor:
        return self.process.add_noise(self.start.x0, self.start.eps, self.t, self.y)


def pseudo_heun(move: Transfer, g1: Tensor, s: float) -> Queries:
    """``(g1 + g2)/2`` with ``g2`` asked where ``g1`` leads (eq. 14)."""
    g2 = move.gradient((yield Query(move.to(s, g1), s)).eps)
    return (g1 + g2) / 2


def pseudo_runge_kutta(move: Transfer, g1: Tensor, s: float) -> Queries:
    """``(g1 + 2 g2 + 2 g3 + g4)/6``; all four moves start from the same state (eq. 13)."""
    middle = (move.t + s) / 2
    g2 = move.gradient((yield Query(move.to(middle, g1), middle)).eps)
    g3 = move.gradient((yield Query(move.to(middle, g2), middle)).eps)
    g4 = move.gradient((yield Query(move.to(s, g3), s)).eps)
    return (g1 + 2 * g2 + 2 * g3 + g4) / 6


def combine(weights: Sequence[float], history: Sequence[Tensor]) -> Tensor:
    """``sum_j w_j g_j``; a single gradient is returned as it is."""
    return history[0] if len(history) == 1 else weighted_sum(weights, history)


def lagrange_weights(nodes: Sequence[float], target: float) -> list[float]:
    """Mean over ``[nodes[0], target]`` of each Lagrange basis polynomial on ``nodes`` (1 to 4 of
    them).

    Two Gauss points integrate a cubic exactly. The weights sum to 1; for equal steps they are
    Adams-Bashforth's.
    """
    middle, half = (nodes[0] + target) / 2, (target - nodes[0]) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        sum(
            math.prod((point - other) / (node - other) for other in nodes if other != node)
            for point in points
        )
        / 2
        for node in nodes
    ]


def exponential_weights(nodes: Sequence[float], target: float) -> list[float]:
    """As :func:`lagrange_weights`, of polynomials in ``log kappa``: ``int L_j(log kappa) d kappa``
    over the step, divided by its length. ``nodes`` and ``target`` are positive.
    """
    logs = [math.log(kappa / nodes[0]) for kappa in nodes]
    # ten Gauss points in log kappa: steps of up to e^4 in noise to rounding, longer ones to 1e-4
    points, weights = np.polynomial.legendre.leggauss(10)
    half = math.log(target / nodes[0]) / 2
    at = half * (points + 1)
    shares = weights * half * np.exp(at) / (target / nodes[0] - 1)
    return [
        float(
            shares @ np.prod([(at - other) / (log - other) for other in logs if other != log], 0)
            if len(logs) > 1
            else 1.0
        )
        for log in logs
    ]


# variant: what its first steps are, how many of them, highest order afterwards
WarmUp = Callable[[Transfer, Tensor, float], Queries]
VARIANTS: dict[str, tuple[WarmUp | None, int, int]] = {
    "ddim": (None, 0, 1),
    "s-pndm": (pseudo_heun, 1, 2),
    "f-pndm": (pseudo_runge_kutta, 3, 4),
    "plms": (pseudo_heun, 1, 4),
    "ipndm": (None, 0, 4),
    "fon": (pseudo_runge_kutta, 3, 4),
}
WEIGHTS = ("fixed", "variable", "exponential")
HEUN_STEP = 0.5  # largest first step, in kappa, that is corrected afterwards
# a warm-up step from more noise than the first, over which it falls by more than the second, would
# overshoot
STEEP = (5.0, 10.0)

# Adams-Bashforth for equal steps, newest first
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class PNDM:
    """Combines the noise estimates of several steps by a classical rule and moves along the
    process's own curve instead of a line.

    A *gradient rule* makes ``e'`` of the estimates, the *transfer* ``phi(x, e'; t -> s)`` moves.
    ``phi(x, e; t -> s) = (a_s/a_t) x + a_s (kappa_s - kappa_t) e`` with ``kappa = b/a`` (eq. 11)
    keeps clean images and their noise on the process's own curve for any step. Gradient rules, with
    the newest noise estimate first:

    ========  ====================================================  =========================  ===
    variant   first steps                                           afterwards                 NFE
    ========  ====================================================  =========================  ===
    `ddim`    e                                                     e                          N
    `s-pndm`  1 pseudo Heun, ``(e1 + e2)/2`` (eq. 14)               AB2, ``(3, -1)/2``         N+1
    `f-pndm`  3 pseudo Runge-Kutta, ``(e1+2e2+2e3+e4)/6`` (eq. 13)  AB4 ``(55,-59,37,-9)/24``  N+9
    `plms`    1 pseudo Heun, AB2, AB3                               AB4                        N+1
    `ipndm`   e, AB2, AB3 (Zhang & Chen 2023)                       AB4                        N
    `fon`     3 classical Runge-Kutta on increments                 AB4 on increments          N+9
    ========  ====================================================  =========================  ===

    `fon` ("fourth-order numerical") is the paper's straight-line counterexample, after the authors'
    code: increments are taken over one training step, and ``x`` and ``t`` in them stay those of the
    step's start.

    The default, `ipndm` with variable weights, needs no warm-up calls and measured best on the
    default (trailing) grid. Median error on the analytic mixture at 5/10/20/50/100 calls: variable
    1.3e-1, 6.4e-2, 2.1e-2, 2.0e-3, 2.1e-4; `ipndm` fixed 2.2e-1, 7.6e-2, 2.2e-2, 4.0e-3, 1.4e-3;
    `plms` 2.5e-1, 8.7e-2, 2.5e-2, 3.2e-3, 1.5e-3. Equal-step weights lose their order where steps
    are unequal, which each grid's last step is. On log-SNR grids they are nevertheless better up to
    50 calls (at 10: 1.1e-2 against 3.0e-2).

    `ipndm` with exponential weights (the name ``eab``) integrates the noise estimates as
    polynomials in ``log kappa`` instead of ``kappa``: exponential Adams-Bashforth. On log-SNR
    grids: 6.1e-2, 6.1e-3, 6.0e-4, 1.9e-5 at 5, 10, 20, 50 calls on three mixtures, where the best
    of diffusers' has 1.0e-1, 1.1e-2, 9.3e-4, 2.8e-4; on karras grids order 3 is better than 4 below
    25 calls. :class:`EABM` corrects it, which is better still. The step to the clean level is the
    variable one's with half as many estimates: polynomials in ``log kappa`` have no value there.

    Partial runs (image-to-image) begin where noise estimates already bend, with no history to
    follow the bend by. Without warm-up calls, weights that are not fixed therefore correct a short
    first step (``kappa_t - kappa_s <= 0.5``, images in [-1, 1]) when the next call's estimate is
    there: ``x_s += a_s (kappa_s - kappa_t)(e_s - e_t)/2``, pseudo Heun without another call.
    Entering 20-, 50- or 100-step grids at strength 0.1, 0.3, 0.5 or 0.8 then keeps the full run's
    error within a factor of 1.15 (without it: up to 6). First steps out of almost pure noise are
    left alone: they are long in ``kappa``, and what the correction removes there is less than what
    it adds.

    Steps always aim at the next node of the grid. Only each step's first call enters the history. A
    warm-up step that aims at the clean level is done as a later step (there is nothing to ask the
    network there), so runs of one to three steps work. One from ``kappa > 5``, over which the noise
    falls more than tenfold, would overshoot by as much: its calls are made, and the first alone
    counts. From a level without signal (zero terminal SNR) the first step is first order and
    warm-up and history begin after it, since nothing but the image estimate says where to go. The
    state is taken from the prediction, ``x = a x0 + c y + b eps``: corrections that change the
    image estimate, or the state, change the run.

    When to use it: the default of the family for deterministic sampling from 8 calls up, on any
    grid, from any level. Fixed weights (`plms`, `ipndm`) on log-SNR grids up to 50 calls; `s-pndm`,
    `f-pndm` and `fon` to reproduce published runs.

    NFE: N; the variants with a warm-up N + 1 or N + 9 (the table).

    Reference: Liu et al. 2022 (arXiv 2202.09778), equations 11, 13 and 14; variable weights are
    DEIS's idea (Zhang & Chen 2023, arXiv 2204.13902) with ``kappa`` as the coordinate.

    Args:
        variant: see the table.
        weights: `fixed` (the table's), `variable`: the mean over the step of the Lagrange
            interpolant through the stored estimates at their true ``kappa`` (then the table's AB
            weights are replaced), or `exponential`: of that in ``log kappa``. Default: `variable`
            for `ipndm`, else `fixed`.
        order: most estimates to combine, 1 to 4 (`s-pndm` never uses more than 2).

    Raises:
        ValueError: an unknown variant or weights, an order outside 1..4, other than fixed weights
            with `fon` (its increments have no ``kappa``).
    """

    variant: str = "ipndm"
    weights: str | None = None
    order: int = 4

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is unknown; known: {', '.join(VARIANTS)}")
        if self.weights is None:
            object.__setattr__(self, "weights", "variable" if self.variant == "ipndm" else "fixed")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r} are unknown; known: {', '.join(WEIGHTS)}")
        if self.order not in ADAMS_BASHFORTH:
            raise ValueError(f"order must be 1, 2, 3 or 4; got {self.order!r}")
        if self.variant == "fon" and self.weights != "fixed":
            raise ValueError("variant 'fon' combines increments and takes weights='fixed' only")

    @property
    def keeps_history(self) -> bool:
        """Whether noise estimates of several steps are combined."""
        return min(self.order, VARIANTS[self.variant][2]) > 1

    @property
    def combines_noise(self) -> bool:
        """The same."""
        return self.keeps_history

    def single_call(self) -> PNDM:
        """The same gradient rule without warm-up: one call per step from the first on.

        Raises:
            ValueError: `fon` has no such form.
        """
        if self.variant == "fon":
            raise ValueError("variant 'fon' can't run without its warm-up; use 'ipndm'")
        if not VARIANTS[self.variant][1]:
            return self
        return replace(self, variant="ipndm", order=min(self.order, VARIANTS[self.variant][2]))

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process, y = problem.process, problem.y
        start, warm_up, order = VARIANTS[self.variant]
        order = min(order, self.order)
        move_by = Increments if self.variant == "fon" else Transfer
        kappas: list[float] = []  # newest first, as is the history
        history: list[Tensor] = []
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            if process.a(t) <= 0:
                x = process.add_noise(p.x0, p.eps, s, y)
                continue
            kappa = process.kappa(t)
            if (
                start is None
                and self.weights != "fixed"
                and order > 1
                and len(history) == 1
                and kappas[0] - kappa <= HEUN_STEP
            ):
                p = Prediction(p.x0 + (kappa - kappas[0]) / 2 * (p.eps - history[0]), p.eps)
            move = move_by(process, p, t, y)
            gradient = move.gradient(p.eps)
            kappas = [kappa, *kappas][:order]
            history = [gradient, *history][:order]
            target = process.kappa(s)
            steep = kappa > STEEP[0] and kappa > STEEP[1] * target
            if start is not None and warm_up > 0 and s > CLEAN:
                warm_up -= 1
                found = yield from start(move, gradient, s)
                gradient = gradient if steep else found
            elif self.weights == "exponential" and target > 0:
                gradient = combine(exponential_weights(kappas, target), history)
            elif self.weights != "fixed":
                last = max(order // 2, 1) if self.weights == "exponential" else order
                gradient = combine(lagrange_weights(kappas[:last], target), history[:last])
            else:
                gradient = combine(ADAMS_BASHFORTH[len(history)], history)
            x = move.to(s, gradient)
        return x
