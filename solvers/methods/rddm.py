"""RDDM: residual denoising diffusion models. Liu et al. 2024 (arXiv 2308.13712)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import PREDICTION_TYPES, Prediction, ResidualPrediction
from solvers.processes.process import CLEAN, VP, Process, Table
from solvers.solver import Problem, Queries, Query

METHODS = ("res_noise", "res", "noise")
WEIGHTS = ("increased", "decreased", "average", "normal")
LAST_SIGNAL = (
    1e-6  # stands in for 1 - A = 0 where a noise network is asked about the image (released code)
)


class RDDM(Process):
    """``x = x0 + A R + B eps`` with the residual ``R = y - x0``: ``a = 1 - A``, ``c = A``, ``b =
    B``.

    ``A`` grows to 1 and ``B`` to the noise that hides what is left of the image, so a run begins at
    ``y + B eps``, :meth:`Process.start`. Unconditional generation is the case ``y = 0``.

    Network outputs it reads, besides the common ones: ``residual`` (R; the authors' pred_res),
    ``residual_noise`` (R and eps stacked on channels, ``(B, 2C, H, W)``; pred_res_noise) and
    ``sample_noise`` (x0 and eps; pred_x0_noise). ``epsilon`` is their pred_noise.

    Args:
        residual_sums: ``A``, shape ``(T,)``, increasing in [0, 1].
        noise_sums: ``B``, shape ``(T,)``, increasing, not negative.

    Raises:
        ValueError: tables that do not fit this.
    """

    prediction_types = (*PREDICTION_TYPES, "residual", "residual_noise", "sample_noise")

    def __init__(self, residual_sums: ArrayLike, noise_sums: ArrayLike):
        A = np.array(residual_sums, dtype=np.float64)
        A = np.where(np.abs(A - 1) < 1e-9, 1.0, A)  # sums of weights miss 1 by rounding
        if (
            not ((A >= 0) & (A <= 1)).all()
            or (np.diff(A) < 0).any()
            or (np.diff(noise_sums) < 0).any()
        ):
            raise ValueError("residual_sums must increase in [0, 1] and noise_sums must increase")
        super().__init__(1 - A, noise_sums, A)
        # the later releases' first level holds no noise
        self.first = float(np.argmax(self.b_table > 0))

    def _a(self, t: Table) -> Table:
        return 1 - self._c(t)

    @classmethod
    def scheduled(
        cls,
        steps: int = 1000,
        sum_scale: float = 1.0,
        *,
        residual: tuple[str, float] = ("decreased", 1.0),
        noise: tuple[str, float] = ("increased", 1.0),
        release: str = "restoration",
    ) -> RDDM:
        """The released schedules: ``A`` sums the residual's weights, ``B^2`` is ``sum_scale`` times
        the sum of the noise's.

        ``sum_scale`` is ``B^2`` at the end: 1 for generation and most tasks, 0.01 where little
        noise is wanted. See :func:`weights` for the rest; ``residual`` and ``noise`` are (name,
        power).
        """
        sums = [
            np.minimum(np.cumsum(weights(steps, *kind, release=release)), 1)
            for kind in (residual, noise)
        ]
        return cls(sums[0], np.sqrt(sum_scale * sums[1]))

    @classmethod
    def from_vp(cls, process: VP) -> RDDM:
        """The DDIM conversion: ``A = 1 - sqrt(abar)``, ``B = sqrt(1 - abar)``; with ``y = 0`` it is
        the same process.
        """
        return cls(1 - process.a_table, process.b_table)

    def predict(
        self, output: Tensor, x: Tensor, t: float, prediction_type: str, y: Tensor | None = None
    ) -> Prediction:
        """As :meth:`Process.predict`. Two-headed networks give a :class:`ResidualPrediction`.

        A noise network says nothing about the image where ``A = 1``: the degraded image stands in
        for it there.
        """
        if y is None:
            if prediction_type in PREDICTION_TYPES and self.a(t) != 0:
                return super().predict(output, x, t, prediction_type)
            raise ValueError(
                f"{prediction_type!r} of a residual process needs the degraded image: pass it as y"
            )
        a, b, A = self.a(t), self.b(t), self.c(t)
        z = self.unshifted(x, t, y)
        match prediction_type:
            case "residual":
                return Prediction.from_x0(y - output, z, a, b)
            case "residual_noise":
                residual, eps = output.chunk(2, dim=1)
                p = Prediction.from_x0(x - A * residual - b * eps, z, a, b)
                return ResidualPrediction(p.x0, p.eps, residual, eps)
            case "sample_noise":
                x0, eps = output.chunk(2, dim=1)
                p = Prediction.from_x0(x0, z, a, b)
                return ResidualPrediction(p.x0, p.eps, None, eps)
            case "epsilon" if a == 0:
                p = Prediction.from_x0(y, z, a, b)
                return ResidualPrediction(p.x0, p.eps, None, output)
        return Prediction.from_output(output, z, a, b, prediction_type)

    def training_pair(
        self, x0: Tensor, y: Tensor, eps: Tensor, t: Tensor, target: str = "residual_noise"
    ) -> tuple[Tensor, Tensor]:
        """State and target of a training step; images and noise ``(B, C, H, W)``, whole times ``t
        (B,)`` drawn from ``0 .. T-1``.

        Targets: ``residual_noise`` and ``sample_noise`` ``(B, 2C, H, W)``, ``residual``,
        ``epsilon``, ``sample``. The authors' loss is the mean absolute difference (squared for
        generation), summed over the two heads.

        Raises:
            ValueError: an unknown target.
        """
        targets = {
            "residual_noise": (y - x0, eps),
            "sample_noise": (x0, eps),
            "residual": (y - x0,),
            "epsilon": (eps,),
            "sample": (x0,),
        }
        if target not in targets:
            raise ValueError(f"target {target!r} is unknown; known: {', '.join(targets)}")
        a, b, c = (f(t.double()).to(x0).reshape(-1, 1, 1, 1) for f in (self.a, self.b, self.c))
        return a * x0 + c * y + b * eps, torch.cat(targets[target], dim=1)


def weights(steps: int, name: str, power: float = 1.0, *, release: str = "restoration") -> Table:
    """Shares of each step in a sum of 1, shape ``(steps,)``.

    ``increased``: proportional to ``u^power``; ``decreased``: its flip; ``average``: equal;
    ``normal``: a normal density over three standard deviations to either side. ``u`` runs over ``1
    .. T`` in the `restoration` release and over ``linspace(0, 1, T)`` in the `later` ones, where
    one end is exactly 0. (Only the later releases know ``normal``; the first takes it for
    ``average``, as it does every word it does not know.)

    Raises:
        ValueError: an unknown name or release, fewer than 2 steps, a power that is not positive.
    """
    if name not in WEIGHTS:
        raise ValueError(f"weights {name!r} are unknown; known: {', '.join(WEIGHTS)}")
    if release not in ("restoration", "later"):
        raise ValueError(f"release {release!r} is unknown; known: restoration, later")
    if steps < 2 or not power > 0:
        raise ValueError(
            f"weights need at least 2 steps and a positive power; got {steps} and {power}"
        )
    if name == "average":
        return np.full(steps, 1 / steps)
    if name == "normal":
        density = np.exp(-(np.linspace(-3, 3, steps) ** 2) / 2)
        return density / density.sum()
    u = (
        np.arange(1, steps + 1, dtype=np.float64)
        if release == "restoration"
        else np.linspace(0, 1, steps)
    )
    u = u**power / (u**power).sum()
    return u if name == "increased" else u[::-1]


def rddm_nodes(process: Process, num_inference_steps: int) -> Grid:
    """``S`` equal strides from ``T-1`` to the clean level, cut to whole times: the released grid.

    Raises:
        ValueError: steps that are not a whole number from 1 to T.
    """
    T, n = process.levels, num_inference_steps
    if T is None or isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= T:
        raise ValueError(
            f"num_inference_steps must be a whole number from 1 to the process's {T} levels; got"
            f" {n!r}"
        )
    # in single precision, whose rounding moves a few nodes by one: part of the released grid
    times = torch.linspace(-1, T - 1, n + 1).trunc().tolist()
    return Grid((*times[:0:-1], CLEAN))


def is_converted(process: Process) -> bool:
    """Whether this is the process of a DDIM network: one without a degraded image, or that of
    :meth:`RDDM.from_vp`, which preserves the variance at every level.
    """
    return not process.holds_image or np.allclose(process.a_table**2 + process.b_table**2, 1)


@dataclass(frozen=True)
class RDDMSampler:
    """Removes residual and noise step by step, each on its own schedule.

    ``x_s = x - (A_t - A_s) R - (B_t - sqrt(B_s^2 - sd^2)) eps + sd n``: every step takes a part of
    the residual and a part of the noise away. On RDDM's own schedules ``sd^2 = eta (B_t^2 - B_s^2)
    B_s^2/B_t^2``; on a converted DDIM network (below) it is DDIM's, ``sd = eta B_s sqrt(1 -
    (kappa_s/kappa_t)^2)`` with ``kappa = B/(1 - A)`` of the network's own process. Where R, eps and
    the image come from (``y`` is 0 in unconditional runs):

    ===========  =================  =========================  =====================================
    method       R                  eps                        image
    ===========  =================  =========================  =====================================
    `res_noise`  residual estimate  noise estimate             ``x - A R - B eps``, or the network's
    `res`        residual estimate  ``(x - y + (1 - A) R)/B``  ``y - R``
    `noise`      ``y`` - image      noise estimate             ``(x - A y - B eps)/(1 - A)``
    ===========  =================  =========================  =====================================

    Two-headed networks have both estimates and can be sampled all three ways. Where a network
    estimates no residual it is ``y`` minus the image estimate. The run ends on the image of its
    last call. A process without a degraded image is taken as RDDM's with ``y = 0`` and ``A = 1 -
    a``: the DDIM conversion, as is :meth:`RDDM.from_vp`. Any other is walked through its states
    less ``(a + c - 1) y``, which have RDDM's form; without limits, for networks whose estimates
    agree, the run is then DDIM's.

    When to use it: on networks trained for :class:`RDDM`: `res` or `res_noise` where one answer is
    right (shadows, low light, rain, blur), `noise` and `res_noise` for generation.

    NFE: N (2N with ``separate``).

    Reference: Liu et al. 2024 (arXiv 2308.13712) and its released code, whose names for the
    sampling methods are SM-Res-N, SM-Res and SM-N.

    Args:
        method: see the table (the paper's SM-Res-N, SM-Res, SM-N).
        eta: 0 deterministic (restoration); 1 ancestral. It enters ``sd^2`` linearly, DDIM's ``sd``
            in conversions.
        clip: limit R and the image, never eps, to ``[-clip, clip]``; the released code does with 1.
        ancestral: the posterior mean of each step from x, R and the image, with all its noise, as
            the authors sample full chains. The same as ``eta = 1`` of RDDM's own schedules as long
            as nothing is limited.
        separate: first a whole run that removes only the residual, then a second, from its image,
            that removes only noise (partially path-independent generation, as released; NFE = 2
            steps). It needs heads that know their own coordinates, ``A`` and ``B``, instead of
            time.
        schedule: take the strides from this process's A and B, the estimates from the run's own (a
            schedule changed at test time).
        image_at_end: False: the last step is one like the others, as in the released DDIM
            conversion. It differs with ``clip`` alone.

    Raises:
        ValueError: an unknown method, ``eta`` outside [0, 1], ``clip`` not positive, ``eta`` with
            ``ancestral`` or ``separate``.
    """

    method: str = "res_noise"
    eta: float = 0.0
    clip: float | None = None
    ancestral: bool = False
    separate: bool = False
    schedule: Process | None = None
    image_at_end: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; known: {', '.join(METHODS)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for no limit; got {self.clip}")
        if (self.eta > 0) + self.ancestral + self.separate > 1:
            raise ValueError("eta, ancestral and separate exclude each other; give one")

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        y = problem.y if problem.process.holds_image else None
        if self.separate:
            for part in ("residual", "noise"):
                x = yield from self._pass(problem, grid, x, y, part)
            return x
        return (yield from self._pass(problem, grid, x, y, "both"))

    def _pass(
        self, problem: Problem, grid: Grid, x: Tensor, y: Tensor | None, part: str
    ) -> Queries:
        process, strides = problem.process, self.schedule or problem.process
        converted = is_converted(process)
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            # 1. The state as the network, or whoever corrected it, saw it; in the paper's
            # coordinates, where y is a part of the image.
            x = process.add_noise(p.x0, p.eps, t, y)
            if y is not None:
                x = x - (process.a(t) + process.c(t) - 1) * y
            # 2. Residual, noise and image by the method's rule; the last step ends on the image.
            residual, eps, x0 = self._estimates(p, x, 1 - process.a(t), process.b(t), y)
            if s == CLEAN and self.image_at_end:
                return x0
            # 3. Strides of residual and noise.
            dA, B, B_s = strides.a(s) - strides.a(t), strides.b(t), strides.b(s)
            ratio = B_s / B if B > 0 else 0.0
            # 4. Remove some of both, and add fresh noise where the method does.
            if self.ancestral:
                kept, new = ratio**2, 1 - ratio**2
                x = kept * x + (new * (1 - strides.a(s)) - kept * dA) * residual + new * x0
                fresh = (new * B_s**2) ** 0.5
            else:
                if converted and B_s > 0:
                    fresh = self.eta * B_s * (1 - (process.kappa(s) / process.kappa(t)) ** 2) ** 0.5
                else:
                    fresh = (self.eta * (B**2 - B_s**2)) ** 0.5 * ratio
                if part != "noise":
                    x = x - dA * residual
                if part != "residual":
                    x = x - (B - (B_s**2 - fresh**2) ** 0.5) * eps
            if fresh > 0:
                x = x + fresh * problem.noise(x)
            # 5. Back to this process's state.
            if y is not None:
                x = x + (process.a(s) + process.c(s) - 1) * y
        return x

    def _estimates(
        self, p: Prediction, x: Tensor, A: float, B: float, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R, eps and the image by ``method``."""
        base = 0 if y is None else y
        heads = (
            p if isinstance(p, ResidualPrediction) else ResidualPrediction(p.x0, p.eps, None, p.eps)
        )
        residual = self._limited(base - p.x0 if heads.residual is None else heads.residual)
        eps = heads.noise
        match self.method:
            case "res":
                return residual, (x - base + (1 - A) * residual) / B, self._limited(base - residual)
            case "noise":
                x0 = self._limited((x - A * base - B * eps) / max(1 - A, LAST_SIGNAL))
                return self._limited(base - x0), eps, x0
        return (
            residual,
            eps,
            self._limited(p.x0 if heads.residual is None else x - A * residual - B * eps),
        )

    def _limited(self, image: Tensor) -> Tensor:
        return image if self.clip is None else image.clamp(-self.clip, self.clip)
