"""DDRM: each singular direction of the operator is denoised with what was measured of it. Kawar et
al. 2022 (arXiv 2201.11793).
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.operators.linear import spectral_filter
from restoration.operators.measurement import Measurement
from restoration.posterior.correction import Correction, unit_variance
from solvers.prediction import Prediction
from solvers.solver import DenoiserLike


class DDRM(Correction):
    """Spectral denoising with ``A = U S V^T``, ``ybar = A^+ y`` and the next level ``kappa' =
    b_s/a_s`` (Kawar et al. 2022, eq. 8).

    ====================  ==========================  ============================================
    direction             image                       noise, in units of ``kappa'``
    ====================  ==========================  ============================================
    ``s_i = 0``           ``x0``                      ``sqrt(1 - eta^2) eps + eta z``
    ``kappa'<sigma/s``    ``x0``                      ``sqrt(1-eta^2) (ybar - x0) s/sigma + eta z``
    else                  ``x0 + eta_b (ybar - x0)``  ``sqrt(1 - eta_b^2 sigma^2/(s kappa')^2) z``
    ====================  ==========================  ============================================

    with ``s`` the direction's singular value ``s_i``; where it is 0, nothing was measured.

    The answer is built so that ``DDIM()`` lands on the paper's next state. The fresh noise ``z`` is
    in the answer, so solvers that combine answers of several steps (multi-step PNDM) don't fit, and
    a network's learned variance has no place.
    Only products with ``V f(S) V^T`` are taken, never an SVD of the whole operator. The authors
    start from ``start(noise, t)``.

    Where their code differs: it divides that start by ``b_T``; and it counts ``kappa' = sigma/s_i``
    as unmeasured, so that noiseless runs end on the bare estimate instead of the data. The paper's
    last step, to the clean level, is the bare estimate wherever the data are noisy, which after few
    steps is far off; here it is the best mean of both, whose estimate has the variance
    ``kappa_t^2/(1 + kappa_t^2)``. At many steps that is no change. ``strict=True`` repeats the
    code and the paper in both.

    Args:
        eta: share of fresh noise off the data, in [0, 1].
        eta_b: trust in the data where they are better than the state, in [0, 1].
        strict: directions at equality count as unmeasured, and the last step is the paper's.

    Raises:
        TypeError: the operator knows no singular value decomposition.
        ValueError: ``eta`` or ``eta_b`` outside [0, 1].
    """

    draws_noise = True

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        eta: float = 0.85,
        eta_b: float = 1.0,
        *,
        strict: bool = False,
    ):
        if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
            raise ValueError(f"eta and eta_b must lie in [0, 1]; got {eta} and {eta_b}")
        super().__init__(denoiser, measurement)
        # refuse early
        spectral_filter(
            measurement.operator, measurement.operator.A_adjoint(measurement.y), torch.ones_like
        )
        self.eta, self.eta_b, self.strict = eta, eta_b, strict

    def __call__(self, x: Tensor, t: float) -> Prediction:
        m, p = self.measurement, self.denoiser(x, t)
        if m.sigma > 0 and self.ends_after(t) and not self.strict:
            return self.with_image(p, self.closest(p.x0, unit_variance(self.process.kappa(t))), t)
        kappa = self.process.kappa(self.next_time(t))
        along = (1 - self.eta**2) ** 0.5
        gap = m.operator.A_dagger(m.residual(p.x0))  # ybar - x0, zero in unmeasured directions

        def strong(s: Tensor) -> Tensor:
            return (s > 0) & (kappa * s > m.sigma if self.strict else kappa * s >= m.sigma)

        def trust(s: Tensor) -> Tensor:  # the share of the gap that enters the next state
            weak = along * kappa / m.sigma * s if m.sigma > 0 else torch.zeros_like(s)
            return torch.where(strong(s), torch.full_like(s, self.eta_b), weak)

        def kept(s: Tensor) -> Tensor:
            return torch.where(s > 0, torch.zeros_like(s), torch.full_like(s, along))

        def fresh(s: Tensor) -> Tensor:
            return torch.where(strong(s), self.room(s, kappa), torch.full_like(s, self.eta))

        x0 = p.x0 + spectral_filter(m.operator, gap, trust)
        eps = spectral_filter(m.operator, p.eps, kept) + spectral_filter(
            m.operator, self.noise(x), fresh
        )
        return Prediction(x0, eps)

    def room(self, s: Tensor, kappa: float) -> Tensor:
        """Noise that a measured direction still lacks at level ``kappa``, as a share of the level:
        the data bring their own.
        """
        own = self.eta_b * self.measurement.sigma / (s * kappa).clamp(min=torch.finfo(s.dtype).tiny)
        return (1 - own**2).clamp(min=0).sqrt()

    def start(self, noise: Tensor, t: float) -> Tensor:
        """The state at ``t`` to begin from: measured directions at ``ybar`` with the noise they
        lack, others pure noise (eq. 7).
        """
        m, a, b, kappa = (
            self.measurement,
            self.process.a(t),
            self.process.b(t),
            self.process.kappa(t),
        )

        def known(s: Tensor) -> Tensor:
            return ((s > 0) & (kappa * s > m.sigma)).to(s.dtype)

        def lacking(s: Tensor) -> Tensor:
            own = m.sigma / (s * kappa).clamp(min=torch.finfo(s.dtype).tiny)
            return torch.where(known(s) > 0, (1 - own**2).clamp(min=0).sqrt(), torch.ones_like(s))

        return a * spectral_filter(
            m.operator, m.operator.A_dagger(m.y), known
        ) + b * spectral_filter(m.operator, noise, lacking)
