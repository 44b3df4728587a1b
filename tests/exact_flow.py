"""The probability-flow ODE of a Gaussian mixture, solved to rounding: what every deterministic solver must approach."""

import math

import torch
from scipy.integrate import solve_ivp

from solvers import GaussianMixture, Process


def exact_flow(mixture: GaussianMixture, process: Process, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """From ``x (B, C, H, W)`` float64 at ``t`` to ``s`` (clean allowed).

    With ``y = x/a``: ``dy/dlog(kappa) = y - E[x0]`` (Karras et al. 2022, eq. 1). To reach the clean level the flow runs down to
    kappa = 1e-5, from where one denoising is exact to about kappa^2.
    """
    end = max(process.kappa(s), 1e-5)

    def slope(log_kappa, y):
        kappa = math.exp(log_kappa)
        return kappa * mixture.posterior(torch.from_numpy(y).reshape(x.shape), 1.0, kappa).eps.reshape(-1).numpy()

    span = (math.log(process.kappa(t)), math.log(end))
    y = solve_ivp(slope, span, (x / process.a(t)).reshape(-1).numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    y = torch.from_numpy(y).reshape(x.shape)
    return process.a(s) * y if process.kappa(s) > 0 else mixture.posterior(y, 1.0, end).x0
