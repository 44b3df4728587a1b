"""MMPS: moment matching, the exact posterior mean for the denoiser's own covariance. Rozet et al.
2024 (arXiv 2405.13712).
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.operators.linear import conjugate_gradient
from restoration.operators.measurement import Measurement
from restoration.posterior.correction import GradientCorrection
from solvers.prediction import Prediction
from solvers.solver import DenoiserLike


class MMPS(GradientCorrection):
    """``x0 <- x0 + V A^H (sigma^2 I + A V A^H)^-1 (y - A x0)`` with ``V = Cov[x0 | x_t]`` (Rozet et
    al. 2024, section 4.2).

    Tweedie's second-order formula gives ``V = (b^2/a) d x0/d x_t``, which is symmetric for an exact
    denoiser, so a product with V is one backward pass. The system is solved by a few
    conjugate-gradient iterations, each with one pass: ``iterations + 1`` per call. With few steps
    (20) the strongest point estimate per network call; a linear operator is needed.

    Args:
        iterations: conjugate-gradient iterations, >= 1. More are not always better: the network's V
            is not exactly symmetric.

    Raises:
        TypeError: the network is not differentiable.
        ValueError: fewer than one iteration.
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, iterations: int = 5):
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1; got {iterations}")
        super().__init__(denoiser, measurement)
        self.iterations = iterations

    def __call__(self, x: Tensor, t: float) -> Prediction:
        m, a, b = self.measurement, self.process.a(t), self.process.b(t)
        if a == 0 or b == 0:  # pure noise says nothing about V; at the clean level it is zero
            return self.denoiser(x.detach(), t)
        with torch.enable_grad():
            x, p = self.ask(x, t)

            def covariance(v: Tensor) -> Tensor:
                return b * b / a * self.pull_back(x, p.x0, v, keep=True)

            def system(u: Tensor) -> Tensor:
                return m.sigma**2 * u + m.operator.A(covariance(m.operator.A_adjoint(u)))

            u = conjugate_gradient(
                system, m.residual(p.x0.detach()), max_iterations=self.iterations
            )
            x0 = p.x0.detach() + covariance(m.operator.A_adjoint(u))
        return self.with_image(Prediction(p.x0.detach(), p.eps.detach()), x0, t)
