"""DDNM: the range-space part of the estimate is replaced by the measurement's. Wang et al. 2023."""

from __future__ import annotations

from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import Correction
from restoration.posterior.ddrm import DDRM
from solvers.solver import DenoiserLike


class DDNM(Correction):
    """``x0 <- x0 + A^+ (y - A x0)`` (Wang et al. 2023, eq. 13), for noiseless data; needs no
    gradient.

    Raises:
        ValueError: a noisy measurement (it would be copied with its noise): use DDNMPlus or
            DiffPIR.
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement):
        if measurement.sigma > 0:
            raise ValueError(
                "DDNM is for noiseless data and would copy the noise of these: use DDNMPlus or"
                " DiffPIR (ddnm+ or diffpir)"
            )
        super().__init__(denoiser, measurement)

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return x0 + self.measurement.operator.A_dagger(self.measurement.residual(x0))


class DDNMPlus(DDRM):
    """DDNM for noisy data: per singular direction, ``x0 <- x0 + lambda_i (A^+ (y - A x0))_i`` and
    noise scaled to match.

    With the next level (a_s, b_s): ``lambda_i = 1`` and noise ``sqrt(b_s^2 - a_s^2 sigma^2/s_i^2)``
    if ``b_s >= a_s sigma/s_i``, else ``lambda_i = s_i b_s sqrt(1 - eta^2)/(a_s sigma)`` and noise
    ``eta b_s``; the denoiser's own noise estimate only where nothing is measured (Wang et al. 2023,
    section 3.3 and appendix I). Divided by a_s these are DDRM's rules with ``eta_b = 1``, and are
    computed as such. Without the ``sqrt(1 - eta^2)`` the same measurement noise would be added
    again in every step, which ruins deblurring.

    Args:
        eta: share of fresh noise off the data, in [0, 1].

    Raises:
        TypeError: the operator knows no singular value decomposition.
        ValueError: ``eta`` outside [0, 1].
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, eta: float = 0.85):
        super().__init__(denoiser, measurement, eta=eta, eta_b=1.0)
