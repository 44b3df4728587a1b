"""DDNM: the range-space part of the estimate is replaced by the measurement's. Wang et al. 2023."""

from __future__ import annotations

from torch import Tensor

from restoration.measurement import Measurement
from restoration.posterior.correction import Correction


class DDNM(Correction):
    """``x0 <- x0 + A^+ (y - A x0)`` (Wang et al. 2023, eq. 13), for noiseless data; needs no gradient.

    Raises:
        ValueError: a noisy measurement (it would be copied with its noise): use DiffPIR.
    """

    def __init__(self, denoiser, measurement: Measurement):
        if measurement.sigma > 0:
            raise ValueError(f"DDNM is for noiseless data (sigma = {measurement.sigma:.3g} was given); use DiffPIR")
        super().__init__(denoiser, measurement)

    def correct(self, x0: Tensor, t: float) -> Tensor:
        return x0 + self.measurement.operator.A_dagger(self.measurement.residual(x0))
