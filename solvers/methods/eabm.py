"""Adams-Bashforth-Moulton on noise estimates: past ones predict a step, the new one corrects it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.methods.pndm import lagrange_weights
from solvers.prediction import Prediction
from solvers.solver import Problem, Queries, Query, weighted_sum

RHO = 7  # polynomials are in tau^(1/RHO), as karras grids are even in kappa^(1/RHO)
LEAST = 1e-4  # mean square of a noise estimate below which it tells nothing of the images
WITHIN = 0.5  # of the images' standard deviation
PURE = 10.0  # kappa above which a state is noise: images have a standard deviation below 1


@dataclass(frozen=True)
class EABM:
    """Each call is used twice: to correct the step that led to it, and to predict the next.

    In ``u = (x - c y)/a`` the probability flow is ``du/d kappa = eps``, ``kappa = b/a``. From node
    k' to k the prediction integrates the polynomial through the last ``order`` noise estimates; the
    network is asked there; the correction integrates the polynomial that goes through the new
    estimate too::

        u = u' + sum_j w_j e_j                            Adams-Bashforth, order p
        e = eps(u, k)                                     the step's only network call
        d = (sum_j v_j e_j - sum_j w_j e_j)/(1 - v_0 J)   Adams-Moulton, order p + 1
        u <- u + d,  e <- e + J d

    The correction is implicit: it moves the state that the estimate was asked at. ``J = d e/d u``
    says how the estimate would follow, and one Newton step with it needs no further call. J is 0
    where the image estimate follows the state and ``1/kappa`` where it stands still. The estimate
    tells which: ``J_pixel = (1 - Cov(x0 | u)/kappa^2)/kappa`` by Tweedie's formula, and the noise's
    variance of 1 is that of its estimate plus ``Cov(x0 | u)/kappa^2``, so the mean of J over the
    pixels is ``mean(e^2)/kappa``. A state off the flow is taken for noise, so that is done again
    with the corrected e. In a run that starts in pure noise, the mean square of that noise stands
    for the 1, from which it differs in small images.

    Of images with a standard deviation s, one Gaussian, u is linear in ``tau = sqrt(kappa^2 +
    s^2)`` along the flow: ``e tau/kappa``, not e, is the same at all nodes. That is what the
    polynomials go through, and what is integrated over tau. The estimate tells s too: its mean
    square is ``kappa^2/tau^2``. Half of that s is taken: the images that a state may still become
    lie closer together as it goes on. Polynomials in ``tau^(1/7)`` lie between those in
    ``tau`` and in ``log tau``; they measured best over all grids. The last step, to clean,
    integrates polynomials of e in ``kappa``: pictures have fine structure much weaker than s, which
    is to be denoised there.

    When to use it: deterministic sampling on any grid, above all from 20 calls up. Errors against
    the best of PNDM, DPM-Solver++, UniPC, DEIS and EVODiff: ``restobox bench solvers``.

    From a level without signal (zero terminal SNR) the first step is first order and history begins
    after it. Corrections of the image estimate, or of the state, change the run.

    NFE: N.

    Reference: this library's. Predictor and corrector without a second call: Hairer, Norsett &
    Wanner, Solving Ordinary Differential Equations I, III.1; Zhao et al. 2023 (UniPC, arXiv
    2302.04867) for diffusion.

    Args:
        order: of the prediction, 1 to 4; the correction's is one higher.

    Raises:
        ValueError: another order.
    """

    order: int = 4

    keeps_history: ClassVar[bool] = True  # a step also uses earlier answers, noise estimates
    combines_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4; got {self.order!r}")

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process, y = problem.process, problem.y
        kappas: list[float] = []  # newest first, as is the history
        history: list[Tensor] = []
        unit: Tensor | float = 1.0  # mean square of the run's noise
        share: Tensor | float  # of it in the estimate, which is kappa J
        moved: Tensor | None = None  # by the last prediction, in u
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            if process.a(t) <= 0:
                x = process.add_noise(p.x0, p.eps, s, y)
                continue
            kappa, target = process.kappa(t), process.kappa(s)
            # 1. Correct the step that led here by what the network says now.
            if moved is None:
                unit = mean_square(p.eps).clamp(min=LEAST) if kappa > PURE else 1.0
                share = (mean_square(p.eps) / unit).clamp(max=1)
            else:
                d, share = torch.zeros_like(p.eps), torch.zeros_like(p.eps[:, :1, :1, :1])
                for _ in range(2):  # the slope by the estimate as it is, then as it is corrected
                    share = (mean_square(p.eps + share / kappa * d) / unit).clamp(max=1)
                    std = image_std(kappa, share) * WITHIN
                    weights = flow_weights([kappa, *kappas], kappas[0], kappa, std)
                    gap = weighted_sum(weights, [p.eps, *history]) - moved
                    d = gap / (1 - weights[0] / kappa * share)
                p = Prediction(p.x0 + (1 - share) * d, p.eps + share / kappa * d)
            kappas = [kappa, *kappas][: self.order]
            history = [p.eps, *history][: self.order]
            # 2. Predict the next state; the clean one by polynomials of e in kappa.
            if target > 0:
                weights = flow_weights(kappas, kappa, target, image_std(kappa, share) * WITHIN)
                moved = weighted_sum(weights, history)
            else:
                fixed = [(target - kappa) * w for w in lagrange_weights(kappas, target)]
                moved = weighted_sum(fixed, history)
            # along the newest estimate, plus what the others change: one alone is not rounded
            bent = moved - (target - kappa) * p.eps
            x = process.add_noise(p.x0, p.eps, s, y) + process.a(s) * bent
        return x


def image_std(kappa: float, share: Tensor) -> Tensor:
    """Standard deviation of the images that noise estimates with a mean square of ``share`` tell
    of, ``(B, 1, 1, 1)`` like that.
    """
    return kappa * (1 / share.clamp(min=LEAST) - 1).sqrt()


def flow_weights(nodes: Sequence[float], start: float, end: float, std: Tensor) -> list[Tensor]:
    """What each node's noise estimate adds to u from ``start`` to ``end``: ``int L_j d tau`` for
    the Lagrange polynomials in ``tau^(1/7)`` on the nodes, times ``tau_j/kappa_j``.

    With ``v = tau^(1/7)`` the integrand is a polynomial in v, so Gauss points integrate it exactly.

    Args:
        nodes: kappas.
        std: of the images, ``(B, 1, 1, 1)``; 0 gives polynomials in ``kappa^(1/7)``.

    Returns:
        ``(B, 1, 1, 1)`` for each node, like ``std``.
    """
    # steps of tau may be small, but neither every device nor TensorRT has doubles
    s = std if torch.compiler.is_exporting() else std.detach().cpu().double()

    def tau(kappa: float) -> Tensor:
        return (kappa**2 + s**2).sqrt()

    at = [tau(kappa) ** (1 / RHO) for kappa in nodes]
    low, high = tau(start) ** (1 / RHO), tau(end) ** (1 / RHO)
    gauss = np.polynomial.legendre.leggauss((len(nodes) + RHO) // 2)
    points, shares = (torch.from_numpy(values).to(s) for values in gauss)
    v = (low + high) / 2 + (high - low) / 2 * points  # (B, 1, 1, points)
    d_tau = (high - low) / 2 * shares * RHO * v ** (RHO - 1)
    found = []
    for j, (a, kappa) in enumerate(zip(at, nodes, strict=True)):
        others = [(v - b) / (a - b) for i, b in enumerate(at) if i != j]
        weight = (d_tau * math.prod(others, start=torch.ones_like(v))).sum(-1, keepdim=True)
        found.append((weight * a**RHO / kappa).to(std))
    return found


def mean_square(x: Tensor) -> Tensor:
    """Of each sample: ``(B, 1, 1, 1)``."""
    return x.square().mean(dim=(1, 2, 3), keepdim=True)
