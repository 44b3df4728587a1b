"""Noise that grows with brightness, as counted photons have it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.operators.linear import Denoising

FIRST = math.sqrt(3 / 2)


@dataclass(frozen=True)
class Counting(Denoising):
    """Measures the picture itself, by counting photons: Poisson noise of variance ``gain x``, and
    what the task calls sigma on top of it.

    Pictures are denoised after Anscombe's transform, which makes all noise alike (for noise of both
    kinds: Murtagh, Starck & Bijaoui 1995), and brought back by the closed form of its exact
    unbiased inverse (Mäkitalo & Foi 2013), since the transform of a mean isn't the mean of the
    transforms.

    Args:
        gain: brightness of one photon, in units of [0, 1]: 1 / N where N photons are white.

    Raises:
        ValueError: a gain that isn't positive, or above 1.
    """

    gain: float

    def __post_init__(self) -> None:
        if not 0 < self.gain <= 1:
            raise ValueError(
                "the gain is the brightness of one photon, above 0 and at most 1 (white); got"
                f" {self.gain:g}"
            )

    def stabilized(self, y: Tensor, sigma: float) -> tuple[Tensor, float]:
        """A picture in [0, 1] as one in [0, 1] with white noise, and the deviation of that."""
        low, width = self._ends(sigma)
        return (self._anscombe(y, sigma) - low) / width, 1 / width

    def restored(self, z: Tensor, sigma: float) -> Tensor:
        """From the clean one of :meth:`stabilized` back."""
        low, width = self._ends(sigma)
        # no mean is below that of no photons, where the series has its least argument
        d = (low + width * z).clamp(min=2 * math.sqrt(3 / 8 + (sigma / self.gain) ** 2))
        photons = d**2 / 4 + FIRST / (4 * d) - 11 / (8 * d**2) + 5 * FIRST / (8 * d**3) - 1 / 8
        return (self.gain * (photons - (sigma / self.gain) ** 2)).clamp(0, 1)

    def deviation(self, sigma: float) -> float:
        """Of the noise in middle grey."""
        return math.sqrt(self.gain / 2 + sigma**2)

    def _anscombe(self, y: Tensor, sigma: float) -> Tensor:
        photons = y / self.gain + 3 / 8 + (sigma / self.gain) ** 2
        return 2 * photons.clamp(min=0).sqrt()

    def _ends(self, sigma: float) -> tuple[float, float]:
        """Of black, and how much more that of white is."""
        black, white = self._anscombe(torch.tensor([0.0, 1.0], dtype=torch.float64), sigma).tolist()
        return black, white - black
