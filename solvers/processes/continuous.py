"""Processes with a real clock in place of a table: EDM's variance-exploding one and the VP
diffusion of score-based models.
"""

from __future__ import annotations

import math

import numpy as np

from solvers.prediction import PREDICTION_TYPES
from solvers.processes.process import Process, Table


class Continuous(Process):
    """A process given by formulas on ``[0, end]``; every time in ``[-1, 0]`` is the clean image, so
    ``CLEAN`` ends its runs too.

    Grids by level or real time serve it (``log_snr``, ``karras``, ``linspace``, ``explicit``);
    those that count whole levels do not.

    Args:
        first: least noisy time that networks are asked at.
        end: noisiest time.

    Raises:
        ValueError: not ``0 < first < end``.
    """

    origin = 0.0
    end: float = 1.0
    levels = None
    holds_image = False

    def __init__(self, first: float, end: float):
        if not (0 < first < end < math.inf):
            raise ValueError(
                f"the least and the most noisy time must satisfy 0 < first < end; got {first} and"
                f" {end}"
            )
        self.first, self.end = float(first), float(end)

    def __len__(self) -> int:
        raise TypeError("a continuous process has no number of levels; its noisiest time is `end`")

    def _key(self) -> tuple[object, ...]:
        return tuple(sorted(vars(self).items()))

    def _c(self, t: Table) -> Table:
        return np.zeros_like(t)


class VE(Continuous):
    """``x = x0 + t eps``: time is the noise's standard deviation (Karras et al. 2022).

    Args:
        sigma_min, sigma_max: least and most noise; EDM's values by default.
    """

    raw_types = ("sample", "epsilon")

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        super().__init__(sigma_min, sigma_max)

    def _a(self, t: Table) -> Table:
        return np.ones_like(t)

    def _b(self, t: Table) -> Table:
        return np.maximum(t, 0)

    def time_at(self, log_snr: float) -> float:
        """``exp(-log_snr/2)``, at most ``end``; 0 at the clean level."""
        return self.end if log_snr < self.log_snr(self.end) else math.exp(-log_snr / 2)


class Flow(Continuous):
    """``x = (1 - t) x0 + t eps``: the straight way from image to noise of rectified flows and flow
    matching (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2023, arXiv 2210.02747).

    Networks may also say the ``velocity``, ``eps - x0``.

    Args:
        first: least noisy time that networks are asked at.
    """

    prediction_types = (*PREDICTION_TYPES, "velocity")
    raw_types = ("velocity", "sample", "epsilon")

    def __init__(self, first: float = 1e-3):
        super().__init__(first, 1.0)

    def _a(self, t: Table) -> Table:
        return 1 - np.maximum(t, 0)

    def _b(self, t: Table) -> Table:
        return np.maximum(t, 0)

    def time_at(self, log_snr: float) -> float:
        """``1/(1 + exp(log_snr/2))``; 0 at the clean level."""
        return float(np.exp(-np.logaddexp(0, log_snr / 2)))


class ContinuousVP(Continuous):
    """``log a(t) = -(beta_max - beta_min) t^2/4 - beta_min t/2``, ``b^2 = 1 - a^2`` (Song et al.
    2021, eq. 33), ``t`` up to 1.

    Args:
        beta_min, beta_max: the noise rates at times 0 and 1, ``0 < beta_min <= beta_max``.
        first: least noisy time that networks are asked at.

    Raises:
        ValueError: rates that are not positive or fall with time.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, first: float = 1e-3):
        super().__init__(first, 1.0)
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"the rates must satisfy 0 < beta_min <= beta_max; got {beta_min} and {beta_max}"
            )
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _log_a(self, t: Table) -> Table:
        t = np.maximum(t, 0)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _a(self, t: Table) -> Table:
        return np.exp(self._log_a(t))

    def _b(self, t: Table) -> Table:
        return np.sqrt(-np.expm1(2 * self._log_a(t)))

    def time_at(self, log_snr: float) -> float:
        """The root of the quadratic in ``t`` whose right side is ``log a``, at most ``end``; 0 at
        the clean level.
        """
        if log_snr < self.log_snr(self.end):
            return self.end
        decay = np.logaddexp(0, -log_snr)  # -2 log a
        half = 0.5 * self.beta_min
        return float(
            decay / (half + math.sqrt(half**2 + 0.5 * (self.beta_max - self.beta_min) * decay))
        )
