"""What all corrections share."""

from __future__ import annotations

from torch import Tensor

from restoration.measurement import Measurement
from solvers.prediction import Prediction


class Correction:
    """A denoiser that wraps a denoiser: it replaces the image estimate by one that agrees with the measurement.

    Subclasses define ``correct(x0, t)``. The noise estimate follows the new image, so that ``x = a x0 + b eps`` still holds
    and every solver can use the result.

    Args:
        denoiser: anything with ``process`` that answers ``(x, t)`` with a ``Prediction``.
        measurement: in the denoiser's value range.
    """

    needs_gradient = False  #: whether the network must be differentiable; False: works with an exported int8 model

    def __init__(self, denoiser, measurement: Measurement):
        self.denoiser = denoiser
        self.measurement = measurement

    @property
    def process(self):
        return self.denoiser.process

    def __call__(self, x: Tensor, t: float) -> Prediction:
        p = self.denoiser(x, t)
        x0 = self.correct(p.x0, t)
        # x = a x0 + b eps fixes the new noise; written as a change so that a shift c y of the process stays where it is
        a, b = self.process.a(t), self.process.b(t)
        return Prediction(x0, p.eps + (a / b) * (p.x0 - x0) if b > 0 else p.eps)

    def correct(self, x0: Tensor, t: float) -> Tensor:
        """The corrected image estimate ``(B, C, H, W)`` at time ``t``."""
        raise TypeError(f"{type(self).__name__} must define correct")
