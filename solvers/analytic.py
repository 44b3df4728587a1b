"""A Gaussian mixture as the image distribution: every denoising question has a closed-form
answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.prediction import Prediction
from solvers.processes.process import Process, Table
from solvers.solver import RNG, randn


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """``p(x0) = sum_k w_k N(mu_k, diag(s_k^2))`` over images, held in float64: a network without
    training error.

    Args:
        weights: ``(K,)``, positive; scaled to sum 1.
        means: ``(K, C, H, W)``.
        stds: ``(K,)`` or ``(K, C, H, W)``, not negative.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, negative stds.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        weights, means, stds = (
            torch.as_tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds)
        )
        if weights.ndim != 1 or means.ndim != 4 or len(means) != len(weights):
            raise ValueError(
                f"weights must be (K,) and means (K, C, H, W); got {tuple(weights.shape)} and"
                f" {tuple(means.shape)}"
            )
        if stds.shape not in (weights.shape, means.shape):
            raise ValueError(
                f"stds must be (K,) or the means' shape {tuple(means.shape)}; got"
                f" {tuple(stds.shape)}"
            )
        if not (weights > 0).all() or not (stds >= 0).all():
            raise ValueError("weights must be positive and stds not negative")
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(
            self, "stds", stds if stds.ndim == 4 else stds[:, None, None, None].expand_as(means)
        )

    def sample(self, count: int, generator: RNG = None) -> Tensor:
        """``(count, C, H, W)`` float64 draws; with a list of generators, draw i comes from the i-th
        alone.
        """
        # uniform, one per draw
        pick = torch.special.ndtr(randn((count, 1), generator, dtype=torch.float64)[:, 0])
        k = torch.searchsorted(self.weights.cumsum(0), pick).clamp(max=len(self.weights) - 1)
        return self.means[k] + self.stds[k] * randn(
            (count, *self.means.shape[1:]), generator, dtype=torch.float64
        )

    def posterior(self, x: Tensor, a: float, b: float) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]`` for ``x = a x0 + b eps``, ``x (B, C, H, W)``; computed
        in float64, returned in x's dtype.

        With ``v_k = a^2 s_k^2 + b^2`` (per pixel) and responsibilities ``r_k ~ w_k prod N(x; a
        mu_k, v_k)``: ``E[x0] = sum_k r_k (mu_k + a s_k^2 (x - a mu_k)/v_k)`` and ``E[eps] = sum_k
        r_k b (x - a mu_k)/v_k``, so no nearly equal numbers are subtracted.

        Raises:
            ValueError: ``b = 0`` with a std of 0: the state has no density.
        """
        means, variances = self.means.to(x.device), self.stds.to(x.device) ** 2
        v = a * a * variances + b * b
        if (v == 0).any():
            raise ValueError("a component without spread can't be asked at the clean level")
        gap = x.double()[:, None] - a * means  # (B, K, C, H, W)
        log_r = self.weights.to(x.device).log() - 0.5 * (gap**2 / v + v.log()).sum(dim=(2, 3, 4))
        r = log_r.softmax(dim=1)[:, :, None, None, None]
        x0 = (r * (means + a * variances * gap / v)).sum(dim=1)
        eps = (r * (b * gap / v)).sum(dim=1)
        return Prediction(x0.to(x.dtype), eps.to(x.dtype))

    def flow(self, process: Process, x: Tensor, t: float, s: float) -> Tensor:
        """The exact probability flow from ``x (B, C, H, W)`` float64 at ``t`` to ``s`` (clean
        allowed): where deterministic solvers end.

        With ``y = x/a``: ``dy/dlog(kappa) = y - E[x0]`` (Karras et al. 2022, eq. 1), by an adaptive
        method of order 8 to about 1e-9. To reach the clean level the flow runs down to kappa =
        1e-5, from where one denoising is exact to about kappa^2.
        """
        from scipy.integrate import solve_ivp

        end = max(process.kappa(s), 1e-5)

        def slope(log_kappa: float, y: Table) -> Table:
            kappa = math.exp(log_kappa)
            eps = self.posterior(torch.from_numpy(y).reshape(x.shape), 1.0, kappa).eps
            return kappa * eps.reshape(-1).numpy()

        span = (math.log(process.kappa(t)), math.log(end))
        start: Table = (x / process.a(t)).reshape(-1).numpy()
        path = solve_ivp(slope, span, start, method="DOP853", rtol=1e-10, atol=1e-11)
        y = torch.from_numpy(path.y[:, -1]).reshape(x.shape)
        return process.a(s) * y if process.kappa(s) > 0 else self.posterior(y, 1.0, end).x0

    def denoiser(self, process: Process) -> MixtureDenoiser:
        """The exact denoiser of this mixture under ``process`` (one without a ``c`` term;
        :func:`solve` matches levels for others).
        """
        return MixtureDenoiser(self, process)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """``denoiser(x, t) -> Prediction`` of a :class:`GaussianMixture`; its ``process`` must not hold
    a degraded image.
    """

    mixture: GaussianMixture
    process: Process

    def __post_init__(self) -> None:
        if self.process.holds_image:
            raise ValueError(
                "a mixture knows no degraded image: give a process with c = 0, and the other one to"
                " solve(process=...)"
            )

    def __call__(self, x: Tensor, t: float) -> Prediction:
        return self.mixture.posterior(x, self.process.a(t), self.process.b(t))
