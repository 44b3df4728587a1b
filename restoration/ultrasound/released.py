"""Joint posterior sampling as in the released code of "Removing Structured Noise" (Stevens et al.
2025, arXiv 2302.05290).

For reproducing published runs; :class:`restoration.ultrasound.task.UltrasoundTask` is the correct
version. Where this code differs from what it stands for:

- guidance uses the *mean of the predictor's step* where the posterior mean ``E[x0 | x_t]``
  (Tweedie) belongs;
- the vector-Jacobian product is ``J^T 1``, multiplied elementwise, in place of ``J^T v``;
- the measurement's likelihood in PiGDM has no noise and one variance for both priors; DPS takes one
  norm over the batch;
- the VE diffusion starts from unit noise although its level is ``std(1) = 9.85``; the step is
  ``1/N``, not the grid's spacing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[torch.Size], Tensor]

GUIDANCE = ("projection", "dps", "pigdm")


class Predicted(NamedTuple):
    """One component after a predictor step."""

    state: Tensor
    mean: Tensor  # of the step, without its noise
    gradient: Tensor  # of that mean's sum, by the state before


@dataclass(frozen=True)
class SimpleVE:
    """``dx = sigma^t dw``: no drift, mean coefficient 1, ``std^2 = (sigma^(2t) - 1)/(2 ln
    sigma)``.
    """

    sigma: float = 25.0

    def mean(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        return ((self.sigma ** (2 * t) - 1) / (2 * math.log(self.sigma))).sqrt()

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma**t

    def alpha(self, t: Tensor, steps: int) -> Tensor:
        raise TypeError("a VE diffusion has no alphas")


@dataclass(frozen=True)
class ReleasedVP:
    """``dx = -beta/2 x dt + sqrt(beta) dw`` with ``beta = 0.1 + 19.9 t``."""

    low: float = 0.1
    high: float = 20.0

    def mean(self, t: Tensor) -> Tensor:
        return torch.exp(-(t**2) * (self.high - self.low) / 4 - 0.5 * self.low * t)

    def std(self, t: Tensor) -> Tensor:
        return (1 - self.mean(t) ** 2).sqrt()

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * _wide(self.low + (self.high - self.low) * t, x) * x

    def g(self, t: Tensor) -> Tensor:
        return (self.low + (self.high - self.low) * t).sqrt()

    def alpha(self, t: Tensor, steps: int) -> Tensor:
        """``1 - beta`` of the step, for the Langevin corrector."""
        table = 1 - torch.linspace(self.low / steps, self.high / steps, steps, dtype=t.dtype)
        return table[(t * (steps - 1)).long()]


@dataclass(frozen=True)
class ReleasedSampler:
    """Predictor (reverse Euler-Maruyama), optional Langevin corrector, then one guidance step on
    ``y = b x + a h``, b = 1 - a.

    Args:
        guidance: ``projection``, ``dps`` or ``pigdm``.
        lam, kappa: guidance weights of tissue and haze. Published for 600 steps: 0.5/0.5,
            12.7/16.7, 0.93/0.88.
        blend: a.
        steps: N.
        eps: last time.
        start: share of the diffusion to skip: x then starts from the diffused measurement; None
            starts from noise.
        corrections: Langevin steps before each predictor, 0 for none; only with a VP diffusion.
        snr: of a Langevin step.
        noise_std: of the measurement, where there is no haze prior.

    Raises:
        ValueError: an unknown guidance, no steps, or a corrector with the VE diffusion.
    """

    guidance: str = "pigdm"
    lam: float = 0.93
    kappa: float = 0.88
    blend: float = 0.5
    steps: int = 600
    eps: float = 1e-3
    start: float | None = None
    corrections: int = 0
    snr: float = 0.17
    noise_std: float = 0.1
    sde: SimpleVE | ReleasedVP = field(default_factory=SimpleVE)

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCE:
            raise ValueError(f"guidance {self.guidance!r} is unknown; known: {', '.join(GUIDANCE)}")
        if self.steps < 1:
            raise ValueError(f"at least one step is needed; got {self.steps}")
        if self.corrections and not isinstance(self.sde, ReleasedVP):
            raise ValueError(
                "the Langevin corrector needs a VP diffusion: its step follows the levels' alphas"
            )

    def times(self) -> Tensor:
        return torch.linspace(1.0 if self.start is None else 1 - self.start, self.eps, self.steps)

    def run(
        self,
        y: Tensor,
        score_x: Score,
        score_h: Score | None,
        noise: Draw,
        callback: Callable[[Tensor, Tensor | None], None] = lambda x, h: None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tissue and haze, the predictor's last means.

        Args:
            y: measurement ``(B, ...)``.
            score_x, score_h: ``score(state, t (B,))``; no ``score_h``: noise removal with the
                tissue prior alone.
            noise: N(0, 1) of a shape; asked for h's start, x's start, then in each step for x's
                corrector and predictor, h's, and the measurement's noise (projection).
            callback: sees the start states, then the predictor's means of each step.
        """
        h = None if score_h is None else noise(y.shape)
        x = noise(y.shape)
        if self.start is not None:
            t = self._time(y, 1 - self.start)
            x = _wide(self.sde.mean(t), y) * y + _wide(self.sde.std(t), y) * x
        callback(x, h)
        mean_x, mean_h = x, h
        for time in self.times():
            t = self._time(y, time)
            tissue, haze = self.predict(x, t, score_x, noise), None
            if h is not None and score_h is not None:
                haze = self.predict(h, t, score_h, noise)
            mean_x, mean_h = tissue.mean, None if haze is None else haze.mean
            callback(mean_x, mean_h)
            x, h = self.guide(y, tissue, haze, t, noise)
        return mean_x, mean_h

    def predict(self, x: Tensor, t: Tensor, score: Score, noise: Draw) -> Predicted:
        """The state after corrector and predictor, with what guidance needs of the predictor."""
        for _ in range(self.corrections):
            gradient, z = score(x, t), noise(x.shape)
            norms = (v.flatten(1).norm(dim=1).mean() for v in (z, gradient))
            step = (
                (self.snr * next(norms) / next(norms)) ** 2
                * 2
                * _wide(self.sde.alpha(t, self.steps), x)
            )
            x = x + step * gradient + (2 * step).sqrt() * z
        g = _wide(self.sde.g(t), x)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            mean = state - (self.sde.drift(state, t) - g**2 * score(state, t)) / self.steps
            gradient = torch.autograd.grad(mean.sum(), state)[0]
        mean = mean.detach()
        return Predicted(mean + g / self.steps**0.5 * noise(x.shape), mean, gradient)

    def guide(
        self, y: Tensor, tissue: Predicted, haze: Predicted | None, t: Tensor, noise: Draw
    ) -> tuple[Tensor, Tensor | None]:
        """One guidance step on the states after both predictors: those of tissue and haze."""
        x, mean_x, grad_x = tissue
        a, b, std = self.blend, 1 - self.blend, _wide(self.sde.std(t), y)
        r2 = std**2 / (1 + std**2)
        if self.guidance == "projection":
            y_t = _wide(self.sde.mean(t), y) * y + std * noise(y.shape)
            if haze is None:
                return x + self.lam * (y_t - x), None
            h = haze.state
            return x - self.lam * (b * b * x - b * y_t + a * b * h), h - self.kappa * (
                a * a * h - a * y_t + a * b * x
            )
        if haze is None:
            residual = y - mean_x
            weight = (
                1 / residual.norm() if self.guidance == "dps" else r2 / (self.noise_std**2 + r2)
            )
            return x + self.lam * weight * grad_x * residual, None
        h, mean_h, grad_h = haze
        residual = y - b * mean_x - a * mean_h
        weight = 1 / residual.norm() if self.guidance == "dps" else 0.5  # r2/(2 r2)
        return (
            x + self.lam * weight * b * grad_x * residual,
            h + self.kappa * weight * a * grad_h * residual,
        )

    def _time(self, y: Tensor, t: float | Tensor) -> Tensor:
        return torch.full((len(y),), float(t), dtype=y.dtype)


def _wide(v: Tensor, like: Tensor) -> Tensor:
    return v.view(-1, *(1,) * (like.ndim - 1))
