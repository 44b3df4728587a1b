"""DiffPIR: a proximal step on the data term after each denoising. Zhu et al. 2023."""

from __future__ import annotations

import math

from torch import Tensor

from restoration.measurement import Measurement
from restoration.posterior.correction import Correction


class DiffPIR(Correction):
    """``x0 <- argmin_x |y - A x|^2 / (2 sigma^2) + lam |x - x0|^2 / (2 kappa_t^2)`` (Zhu et al. 2023, alg. 1, line 4).

    ``kappa = b/a`` is the noise level of the state. Noiseless data are the limit: projection on ``A x = y``. Needs no gradient.

    Args:
        lam: trust in the denoiser, > 0; the paper uses values from 1 to 20.

    Raises:
        ValueError: ``lam`` is not positive.
    """

    def __init__(self, denoiser, measurement: Measurement, lam: float = 1.0):
        if not lam > 0:
            raise ValueError(f"lam must be positive; got {lam}")
        super().__init__(denoiser, measurement)
        self.lam = lam

    def correct(self, x0: Tensor, t: float) -> Tensor:
        m, kappa = self.measurement, self.process.kappa(t)
        if kappa == 0:
            return x0
        if m.sigma == 0 or math.isinf(kappa):
            return x0 + m.operator.A_dagger(m.residual(x0))
        return m.operator.prox_l2(x0, m.y, kappa**2 / (self.lam * m.sigma**2))
