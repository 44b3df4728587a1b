"""Resfusion: restoration as the diffusion of a clean image's residual. Shi et al. 2024 (arXiv
2311.14900).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import PREDICTION_TYPES, Prediction
from solvers.processes.process import CLEAN, Process, Table, Times, evaluate, log_linear
from solvers.solver import Problem, Queries, Query

SCHEDULES = ("linear", "cosine")
TARGETS = ("resnoise", "sample", "residual")


class Resfusion(Process):
    """``x = (2q - 1) x0 + (1 - q) y + b eps`` with ``q = sqrt(abar)``, ``b = sqrt(1 - abar)``: DDPM
    of ``x - R``, ``R = y - x0``.

    At ``q = 1/2`` the image has left the state, so restoration begins there, after ``T'`` of DDPM's
    steps, from ``y/2 + sqrt(3)/2 eps`` (the "smooth equivalence transformation"). The process ends
    at that level: later ones do not exist. Where no level of the schedule has ``q = 1/2`` exactly
    the last ``a = 2q - 1`` is a small number of either sign (at most 0.02 below 0), and
    :meth:`Process.start` fills that share of the image with ``y``, as the authors' code does.

    Network outputs it reads, besides the common ones: ``residual`` (R) and ``resnoise``, ``n = eps
    + g R`` with ``g = (1 - sqrt(alpha)) b/beta = b/(1 + sqrt(alpha))``, ``alpha =
    abar_t/abar_{t-1}``. State and ``n`` are two equations for R and eps: ``R = (x - q y - b n)/(1 -
    2q - b g)``, whose denominator is never near 0. (The authors' code does not form the image from
    ``n``.)

    Args:
        alphas_cumprod: ``abar`` of the ``T'`` levels, strictly decreasing in (0, 1), the last with
            ``q`` close to 1/2.
        noise_scale: s in ``b = s sqrt(1 - abar)``, as if images were counted in units of s; 1 as
            released. RDDM's ``sum_scale`` is the square of the same. ``g`` is then ``b/(1 +
            sqrt(alpha))/s^2``, so that ``b n`` holds the same share of R.

    Raises:
        ValueError: a table that does not fit this, or a scale that is not positive.
    """

    prediction_types = (*PREDICTION_TYPES, "residual", "resnoise")

    def __init__(self, alphas_cumprod: ArrayLike, noise_scale: float = 1.0):
        abar = np.array(alphas_cumprod, dtype=np.float64)
        if (
            abar.ndim != 1
            or abar.size == 0
            or not ((abar > 0) & (abar < 1)).all()
            or (np.diff(abar) >= 0).any()
        ):
            raise ValueError(
                "alphas_cumprod must be a table (T',) that decreases strictly in (0, 1)"
            )
        q = np.sqrt(abar)
        if q[-1] < 0.48 or (q[:-1] < 0.5).any():
            raise ValueError(
                "alphas_cumprod must end where its root crosses 1/2; it goes on to a root of"
                f" {q[-1]:.3g}. Use Resfusion.scheduled"
            )
        if not 0 < noise_scale < np.inf:
            raise ValueError(f"noise_scale must be a positive number; got {noise_scale}")
        super().__init__(np.maximum(2 * q - 1, 0), noise_scale * np.sqrt(1 - abar), 1 - q)
        self.noise_scale = float(noise_scale)
        self.alphas_cumprod, self.root_table = abar, q
        self.a_table = 2 * q - 1
        for table in (self.alphas_cumprod, self.root_table, self.a_table):
            table.setflags(write=False)

    @classmethod
    def scheduled(
        cls, schedule: str = "linear", steps: int = 12, noise_scale: float = 1.0
    ) -> Resfusion:
        """The released "LinearPro" and "CosinePro": see :func:`truncated`. ``linear`` of 12 steps,
        their choice, leaves 5.

        Raises:
            ValueError: an unknown schedule, too few steps, or a scale that is not positive.
        """
        abar = truncated(schedule, steps)
        return cls(abar[: 1 + np.argmin(np.abs(np.sqrt(abar) - 0.5))], noise_scale)

    def _q(self, t: Table) -> Table:
        return log_linear(t, self.root_table, 1.0)

    def _a(self, t: Table) -> Table:
        return 2 * self._q(t) - 1

    def _b(self, t: Table) -> Table:
        return self.noise_scale * np.sqrt(-np.expm1(2 * np.log(self._q(t))))

    def _c(self, t: Table) -> Table:
        return 1 - self._q(t)

    def _g(self, t: Table) -> Table:
        return (
            self._b(t) / self.noise_scale**2 / (1 + self._q(t) / self._q(np.maximum(t - 1, CLEAN)))
        )

    def resnoise_weight(self, t: Times) -> Times:
        """``g``, the residual's share in ``resnoise``, at one time or a tensor of times."""
        return evaluate(self._g, t, self.end)

    def predict(
        self, output: Tensor, x: Tensor, t: float, prediction_type: str, y: Tensor | None = None
    ) -> Prediction:
        if prediction_type not in ("residual", "resnoise"):
            return super().predict(output, x, t, prediction_type, y)
        if y is None:
            raise ValueError(f"{prediction_type!r} is relative to the degraded image: pass it as y")
        if prediction_type == "residual":
            return Prediction.from_x0(y - output, self.unshifted(x, t, y), self.a(t), self.b(t))
        q, b, g = 1 - self.c(t), self.b(t), self.resnoise_weight(t)
        residual = (x - q * y - b * output) / (1 - 2 * q - b * g)
        return Prediction(y - residual, output - g * residual)

    def training_pair(
        self, x0: Tensor, y: Tensor, eps: Tensor, t: Tensor, target: str = "resnoise"
    ) -> tuple[Tensor, Tensor]:
        """State and target of a training step; images and noise ``(B, C, H, W)``, whole times ``t
        (B,)`` drawn from ``0 .. T'-1``.

        Targets: ``resnoise`` (the authors' default), ``sample`` (x0) or ``residual`` (y - x0).
        Their loss is the mean squared difference.

        Raises:
            ValueError: an unknown target.
        """
        if target not in TARGETS:
            raise ValueError(f"target {target!r} is unknown; known: {', '.join(TARGETS)}")
        a, b, c, g = (
            f(t.double()).to(x0).reshape(-1, 1, 1, 1)
            for f in (self.a, self.b, self.c, self.resnoise_weight)
        )
        residual = y - x0
        return (
            a * x0 + c * y + b * eps,
            {"resnoise": eps + g * residual, "sample": x0, "residual": residual}[target],
        )


def truncated(schedule: str, steps: int) -> Table:
    """``abar`` of the released schedules, shape ``(L,)``.

    ``linear``: ``beta`` from ``0.1/steps`` to ``20/steps``; ``cosine``: Improved DDPM's with betas
    up to 0.999. If the first level with ``q = sqrt(abar) <= 1/2`` lies below it by more than 0.01,
    it and all later ones are replaced by one level with ``q = 1/2`` exactly; otherwise all
    ``steps`` levels stay, to be cut after the level nearest 1/2.

    Raises:
        ValueError: an unknown schedule, or steps that are not a whole number of at least 10
            (``linear``: below, betas exceed 1 before the middle) or 2 (``cosine``).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
    least = 10 if schedule == "linear" else 2
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < least:
        raise ValueError(
            f"the {schedule} schedule takes a whole number of steps from {least} up; got {steps!r}"
        )
    if schedule == "linear":
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
    else:
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    abar: np.ndarray = np.cumprod(1 - betas)
    k = int(np.argmax(abar <= 0.25))  # betas above 1 come only after this
    return np.concatenate([abar[:k], [0.25]]) if 0.5 - np.sqrt(abar[k]) > 0.01 else abar


@dataclass(frozen=True)
class ResfusionSampler:
    """Ancestral sampling that starts from the degraded image: DDPM of ``x - R``, where the residual
    R takes part in the noise.

    ``x_s = a_s x0 + c_s y + sqrt(b_s^2 - sd^2) eps + sd n``, ``sd^2 = eta^2 b_s^2 (1 -
    (k_s/k_t)^2)`` with ``k = b/(a + c)``: on a :class:`Resfusion` process ``a + c = sqrt(abar)``
    and with every level visited this is the released update ``(x - beta/b n)/sqrt(alpha) +
    sqrt(beta~) z``, written for any grid. On a process without an image it is DDPM's
    (``DDIM(eta=1)``); on :class:`~solvers.methods.rddm.RDDM`'s it is that method's.

    Start from ``process.start(y, noise)`` over ``leading(process, len(process))``.

    When to use it: on networks trained for :class:`Resfusion` (five calls as released); with
    ``eta=0`` it is DDIM there.

    NFE: N.

    Reference: Shi et al. 2024 (arXiv 2311.14900) and its released code; the schedules are the
    released LinearPro and CosinePro.

    Args:
        eta: 1 as released, 0 deterministic.
        clip: limit image estimates to ``[-clip, clip]``. The released code does so (with 1) for
            ``sample`` and ``residual`` networks, and clips only the result for ``resnoise``.

    Raises:
        ValueError: ``eta`` outside [0, 1], ``clip`` not positive.
    """

    eta: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for no limit; got {self.clip}")

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process = problem.process
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            x0, eps = p.x0, p.eps
            if self.clip is not None:
                x0 = x0.clamp(-self.clip, self.clip)
                if process.b(t) > 0:
                    eps = eps + process.a(t) / process.b(t) * (p.x0 - x0)  # still the same state
            if self.eta > 0 and process.b(s) > 0:
                fresh = self.eta * self.fresh_share(process, t, s)
                eps = (1 - fresh**2) ** 0.5 * eps + fresh * problem.noise(x)
            x = process.add_noise(x0, eps, s, problem.y)
        return x

    @staticmethod
    def fresh_share(process: Process, t: float, s: float) -> float:
        """``sqrt(1 - (k_s/k_t)^2)``: how much of the noise at ``s`` is new at eta = 1."""
        ratio = (
            process.b(s)
            * (process.a(t) + process.c(t))
            / (process.b(t) * (process.a(s) + process.c(s)))
        )
        return max(1 - ratio**2, 0) ** 0.5
