"""DPS: a gradient step on the residual's norm after each sampling step. Chung et al. 2023 (arXiv
2209.14687).
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import GradientCorrection
from solvers.prediction import Prediction
from solvers.solver import DenoiserLike


class DPS(GradientCorrection):
    """``x_s <- x_s - zeta grad_{x_t} |y - A x0(x_t)|`` after each step t -> s (Chung et al. 2023,
    alg. 1, line 7).

    The next state is ``a_s x0 + ...``, so the move is made by ``x0 - zeta/a_s grad`` while the
    noise estimate stays as it is: DDIM (``eta=1`` in the paper) then takes the paper's step
    exactly. The norm is each image's own. One backward pass per call.

    Where the authors' code differs: RED-diff's version of it differentiates the squared norm and
    divides by the norm, so its weight is ``zeta/2``; another takes one norm over the batch, which
    couples the images.

    Args:
        scale: zeta, >= 0, for images in [-1, 1]; 0.3 to 1, by task and step count. It has no
            unit-free default that fits all tasks.

    Raises:
        TypeError: the network is not differentiable.
        ValueError: a negative scale.
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, scale: float = 1.0):
        if not scale >= 0:
            raise ValueError(f"scale must not be negative; got {scale}")
        super().__init__(denoiser, measurement)
        self.scale = scale

    def __call__(self, x: Tensor, t: float) -> Prediction:
        with torch.enable_grad():
            x, p = self.ask(x, t)
            residual = self.measurement.residual(p.x0)
            norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)  # its gradient at 0 is 0
            gradient = torch.autograd.grad(norm.sum(), x)[0]
        x0 = p.x0.detach() - self.scale / self.process.a(self.next_time(t)) * gradient
        plain = p.detached()
        return Prediction(x0, plain.eps, spread=plain.spread)
