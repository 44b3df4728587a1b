"""RePaint: the measured part of each state is the measurement, noised to that state's level.
Lugmayr et al. 2022.
"""

from __future__ import annotations

from torch import Tensor

from restoration.operators.linear import Inpainting
from restoration.posterior.correction import Correction
from solvers.prediction import Prediction


class RePaint(Correction):
    """Measured part of the next state ``a_s A^+ y + b_s z``, the rest from the denoiser (Lugmayr et
    al. 2022, eq. 8).

    Written for any operator: both estimates lose their part in the range of ``A^H`` and get the
    measurement's, with fresh noise. The paper makes holes and surroundings agree by going back up
    and down again, which is the solver's part: ``Resampled(DDIM(eta=1))``. Noise on the data is
    copied, as by DDNM. The fresh noise is in the answer, so multi-step solvers don't fit. A
    network's learned variance is that of the missing pixels; with other operators it is left out.
    """

    draws_noise = True

    def __call__(self, x: Tensor, t: float) -> Prediction:
        m, p = self.measurement, self.denoiser(x, t)
        x0 = p.x0 + m.operator.A_dagger(m.residual(p.x0))
        eps = p.eps + m.operator.A_dagger(m.operator.A(self.noise(x) - p.eps))
        spread = None
        if p.spread is not None and isinstance(m.operator, Inpainting):
            spread = p.spread - m.operator.A(p.spread)
        return Prediction(x0, eps, spread=spread)
