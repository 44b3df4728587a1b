"""DiffPIR: a proximal step on the data term after each denoising. Zhu et al. 2023."""

from __future__ import annotations

import math

from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import Correction
from solvers.solver import DenoiserLike


class DiffPIR(Correction):
    """``x0 <- argmin_x |y - A x|^2 / (2 sigma^2) + lam |x - x0|^2 / (2 r_t^2)`` (Zhu et al. 2023,
    alg. 1, line 4).

    ``r_t`` is how far the estimate may be off. The paper takes ``r_t = kappa_t = b/a``, the noise
    level of the state; with images known to vary by ``prior_std``, ``r_t^2 = kappa^2 s^2 / (kappa^2
    + s^2)``, which makes the step exact for a Gaussian prior of that width (the paper's is the
    limit of large s). Noiseless data are a limit too: projection on ``A x = y``. Needs no gradient.

    With ``draw`` the image is not the argmin but a draw from the Gaussian that the bracket is the
    exponent of (the argmin for data and estimate that are perturbed by as much as they may be off).
    Samples then have the posterior's mean *and* spread for a Gaussian prior of that width, after
    any number of steps and for any ``eta`` of DDIM, while those of the argmin fall together at few
    steps. Pictures are no white noise: what is drawn where nothing was measured looks like it.

    Args:
        lam: trust in the denoiser, > 0; the paper uses values from 1 to 20.
        prior_std: s, > 0, in the denoiser's value range; infinite as in the paper.
        draw: see above; needs a finite ``prior_std``, real data and a solver without history.

    Raises:
        ValueError: ``lam`` or ``prior_std`` is not positive, or ``draw`` without ``prior_std``.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        lam: float = 1.0,
        prior_std: float = math.inf,
        draw: bool = False,
    ):
        if not (lam > 0 and prior_std > 0):
            raise ValueError(f"lam and prior_std must be positive; got {lam} and {prior_std}")
        if draw and prior_std == math.inf:
            raise ValueError("draw needs prior_std: how far images vary, in the denoiser's range")
        super().__init__(denoiser, measurement)
        self.lam, self.prior_std, self.draw = lam, prior_std, draw
        self.draws_noise = draw

    def variance(self, t: float) -> float:
        """``r_t^2``."""
        kappa = self.process.kappa(t)
        if kappa == 0 or min(kappa, self.prior_std) == math.inf:
            return kappa**2
        return 1 / (kappa**-2 + self.prior_std**-2)

    def correct(self, x0: Tensor, t: float) -> Tensor:
        variance = self.variance(t) / self.lam
        if variance == 0:
            return x0
        return self._drawn(x0, variance) if self.draw else self.closest(x0, variance)

    def _drawn(self, x0: Tensor, variance: float) -> Tensor:
        m = self.measurement
        guess = x0 + variance**0.5 * self.noise(x0)
        measured = m.operator.A(guess)
        if m.sigma == 0:
            return guess + m.operator.A_dagger(m.y - measured)
        y = m.y + m.sigma * self.noise(measured)
        return m.operator.prox_l2(guess, y, variance / m.sigma**2)
