"""MMPS: moment matching, the exact posterior mean for the denoiser's own covariance. Rozet et al.
2024 (arXiv 2405.13712).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import GradientCorrection, unit_variance
from solvers.prediction import Prediction
from solvers.solver import DenoiserLike


class MMPS(GradientCorrection):
    """``x0 <- x0 + V A^H (sigma^2 I + A V A^H)^-1 (y - A x0)`` with ``V = Cov[x0 | x_t]`` (Rozet et
    al. 2024, section 4.2).

    Tweedie's second-order formula gives ``V = (b^2/a) d x0/d x_t``, so a product with V is one
    backward pass. V is symmetric for an exact denoiser alone; a network's is not, least of all in
    flat regions, where conjugate gradients then diverge. The system is therefore solved by
    :func:`gmres`, which never lets the residual grow whatever V is: ``iterations + 1`` passes per
    call. What so few iterations leave of noiseless data is projected away, and at a level without
    signal, which says nothing about V, the estimate's errors count as white and of unit variance.
    With few steps the strongest point estimate per network call; a linear operator is needed.

    Args:
        iterations: of the linear solver, >= 1.

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
        if b == 0:  # nothing is uncertain
            return self.denoiser(x.detach(), t)
        if a == 0:
            p = self.denoiser(x.detach(), t)
            return self.with_image(p, self.closest(p.x0, unit_variance(self.process.kappa(t))), t)
        with torch.enable_grad():
            x, p = self.ask(x, t)

            def covariance(v: Tensor) -> Tensor:
                return b * b / a * self.pull_back(x, p.x0, v, keep=True)

            def system(u: Tensor) -> Tensor:
                return m.sigma**2 * u + m.operator.A(covariance(m.operator.A_adjoint(u)))

            u = gmres(system, m.residual(p.x0.detach()), self.iterations)
            x0 = p.x0.detach() + covariance(m.operator.A_adjoint(u))
        if m.sigma == 0:
            x0 = x0 + m.operator.A_dagger(m.residual(x0))
        return self.with_image(p.detached(), x0, t)


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """The ``x`` with the smallest ``|b - apply(x)|`` among combinations of ``b, apply(b), ...,
    apply^(iterations - 1)(b)`` (Saad & Schultz 1986), for each sample of a batch.

    Args:
        apply: any square linear map on tensors of ``b``'s shape, acting on each sample alone.
        b: right-hand side ``(B, ...)``, real or complex.
    """
    dims = tuple(range(1, b.ndim))
    tiny, rounding = torch.finfo(b.dtype).tiny, torch.finfo(b.dtype).eps ** (2 / 3)

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).sum(dims, keepdim=True)

    def unit(v: Tensor) -> tuple[Tensor, Tensor]:
        length = dot(v, v).abs().sqrt()
        return v / length.clamp(min=tiny), length

    basis, images = [unit(b)[0]], []
    for _ in range(iterations):
        image = apply(basis[-1])
        images.append(image)
        for q in basis:
            image = image - dot(q, image) * q
        for q in basis:  # once more: rounding leaves some
            image = image - dot(q, image) * q
        direction, length = unit(image)
        # what a finished sample has left is rounding, no direction
        done = length <= rounding * dot(images[-1], images[-1]).abs().sqrt()
        if bool(done.all()):
            break
        basis.append(torch.where(done, torch.zeros_like(direction), direction))
    # least squares in the basis, where the numbers of columns and rows are few
    frame, matrix = (torch.stack([v.flatten(1) for v in vs], dim=-1) for vs in (basis, images))
    weights = torch.linalg.pinv(frame.mH @ matrix) @ (frame.mH @ b.flatten(1)[..., None])
    return sum(
        (weights[:, k].reshape(-1, *(1 for _ in dims)) * basis[k] for k in range(len(images))),
        torch.zeros_like(b),
    )
