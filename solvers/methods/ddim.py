"""DDIM: deterministic (or partly stochastic) first-order sampling. Song et al. 2021."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.grid import Grid
from solvers.solver import Problem, Queries, Query


@dataclass(frozen=True)
class DDIM:
    """Takes the network's image and noise for the truth and moves them to the next level, with a
    share of fresh noise if wanted.

    ``x_s = a_s x0 + c_s y + sqrt(b_s^2 - sd^2) eps + sd n``. First order.

    When to use it: as the plain reference; at a handful of steps where PSNR counts (it blurs rather
    than invents); with ``eta=1`` inside corrections that expect ancestral sampling (DPS, PiGDM,
    MMPS, RePaint).

    NFE: N.

    Reference: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.

    Args:
        eta: 0 deterministic, 1 ancestral (DDPM). Eq. 16 written for any ``(a, b)``:
            ``sd^2 = eta^2 b_s^2 (1 - (kappa_s/kappa_t)^2)`` with ``kappa = b/a``. At 1 a network's
            learned variance takes the place of the fresh noise's, which is the least possible; the
            largest is ``b_t^2 - (a_t b_s/a_s)^2`` (Nichol & Dhariwal 2021, arXiv 2102.09672).

    Raises:
        ValueError: ``eta`` outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process = problem.process
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            if self.eta == 0 or process.b(s) == 0:
                x = process.add_noise(p.x0, p.eps, s, problem.y)
                continue
            ratio = process.kappa(s) / process.kappa(t)
            fresh = self.eta * (1 - ratio**2) ** 0.5
            if self.eta == 1 and p.spread is not None:
                least = process.b(s) ** 2 * fresh**2
                most = process.b(t) ** 2 - (process.a(t) / process.a(s) * process.b(s)) ** 2
                sd = (least * (most / least) ** p.spread) ** 0.5
                kept = process.add_noise(p.x0, ratio * p.eps, s, problem.y)
                x = kept + sd * problem.noise(x)
                continue
            eps = (1 - fresh**2) ** 0.5 * p.eps + fresh * problem.noise(x)
            x = process.add_noise(p.x0, eps, s, problem.y)
        return x
