"""PiGDM: guidance by the measurement's likelihood under a Gaussian around the estimate. Song et al.
2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import GradientCorrection, unit_variance
from solvers.prediction import Prediction
from solvers.solver import DenoiserLike


class PiGDM(GradientCorrection):
    """``x0 <- x0 + a_t J^T v``, ``v = A^H (A A^H + sigma^2/r_t^2 I)^-1 (y - A x0)``, ``J = d x0/d
    x_t`` (Song et al. 2023, alg. 1).

    ``p(x0 | x_t)`` is taken as ``N(x0, r_t^2 I)``; ``r_t^2 = kappa^2/(1 + kappa^2)`` with ``kappa =
    b/a`` is right for images of unit variance (``1 - abar`` for VP). Noiseless data: ``v = A^+ y -
    A^+ A x0``. One backward pass per call.

    The paper adds ``a_s a_t r_t^2 grad log p`` to the next state: the noise estimate stays as it is
    (``keep_noise``). The authors' code has an alternative that lets the noise follow the new image.

    At a level without signal the gradient vanishes, and the proximal point ``x0 + v`` is taken.

    Args:
        scale: factor on the guidance, >= 0; 1 in the paper.
        keep_noise: the paper's weighting (True), or a noise estimate with ``x = a x0 + b eps``.
        paste: the authors' extra for inpainting: the part of the estimate that is measured is
            replaced by the measurement, and only the rest is guided. For data with little noise.
        finish: the last step, to the clean level, is the proximal point instead of a guidance by
            ``a_t J^T v``, which after few steps does not reach the data (noiseless ones are met
            exactly). At many steps that is no change. Not in the paper; tasks do so.

    Raises:
        TypeError: the network is not differentiable.
        ValueError: a negative scale.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        scale: float = 1.0,
        *,
        keep_noise: bool = True,
        paste: bool = False,
        finish: bool = False,
    ):
        if not scale >= 0:
            raise ValueError(f"scale must not be negative; got {scale}")
        super().__init__(denoiser, measurement)
        self.scale, self.keep_noise, self.paste = scale, keep_noise, paste
        self.finish = finish

    def __call__(self, x: Tensor, t: float) -> Prediction:
        m, a, kappa = self.measurement, self.process.a(t), self.process.kappa(t)
        ends = self.finish and self.ends_after(t)
        if self.scale > 0 and (a == 0 or (ends and m.sigma > 0)):
            p = self.denoiser(x.detach(), t)
            return self.with_image(p, self.closest(p.x0, unit_variance(kappa)), t)
        with torch.enable_grad():
            x, p = self.ask(x, t)
            guidance = (
                self.scale * a * self.pull_back(x, p.x0, self.direction(p.x0.detach(), kappa))
            )
        p = p.detached()
        x0 = p.x0 + guidance
        if ends and m.sigma == 0:
            return self.with_image(p, x0 + m.operator.A_dagger(m.residual(x0)), t)
        if self.paste:
            measured = m.operator.A_dagger(m.operator.A(guidance))
            x0 = x0 - measured + m.operator.A_dagger(m.residual(p.x0))
        if self.keep_noise:
            return Prediction(x0, p.eps, spread=p.spread)
        return self.with_image(p, x0, t)

    def direction(self, x0: Tensor, kappa: float) -> Tensor:
        """``v``, an image. The proximal point at ``x0`` is ``x0 + A^H (A A^H + I/gamma)^-1 (y - A
        x0)``.
        """
        m, r2 = self.measurement, unit_variance(kappa)
        if m.sigma == 0:
            return m.operator.A_dagger(m.residual(x0))
        return self.closest(x0, r2) - x0 if r2 > 0 else torch.zeros_like(x0)
