"""Eigen-images restored by a diffusion prior, each on its own or a few as the colours of a picture.

``y = x0 + sigma eps`` is the state of the process at the time whose noise-to-signal ratio ``b/a``
is sigma, so one call there estimates the posterior mean, and a stochastic solver started there
(``DDIM(eta=1)``) samples the posterior without any further correction; a deterministic one returns
one image, with the texture that the prior expects.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.hyperspectral.joint import (
    WEAKEST,
    groups,
    measured_features,
    pad_channels,
    shown,
    strengths,
)
from restoration.operators.linear import Denoising
from restoration.operators.measurement import Measurement
from restoration.operators.quantiles import median, quantile
from restoration.photo.lift import push_pull
from restoration.posterior import correction_by_name
from restoration.wrappers.symmetry import average, turn, turn_back
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS, explicit
from solvers.loop import solve
from solvers.prediction import Prediction
from solvers.processes.process import CLEAN
from solvers.solver import DenoiserLike, Solver, device_of, randn

SPREAD = 0.4  # standard deviation of planes shown to the network, in units of half its range


@dataclass(frozen=True)
class Sampling:
    """How a denoiser is asked: see :class:`restoration.hyperspectral.task.HyperspectralTask` for
    the fields.
    """

    solver: Solver
    num_inference_steps: int
    correction: str | None
    symmetries: int
    num_samples: int
    seed: int
    caution: float = 0.0

    def from_level(self, d: Counter, y: Tensor, kappa: float, seed: int) -> Tensor:
        """``y (1, C, H, W)`` with noise ``kappa``, in the network's range, restored."""
        process = d.process
        t = process.time_at(-2 * math.log(max(kappa, 1e-6)))
        if t <= CLEAN:
            return y
        if self.correction is None and self.num_inference_steps == 1:
            if not d.timesteps:
                return d(process.a(t) * y, t).x0
            # an exported network holds a few times only: at the nearest one, the plane is shown
            # with more or less contrast
            t = min(
                (s for s in d.timesteps if process.a(s) > 0),
                key=lambda s: abs(process.log_snr(s) + 2 * math.log(kappa)),
            )
            middle, contrast = sum(d.value_range) / 2, process.kappa(t) / kappa
            x0 = d.scaled(contrast)(process.a(t) * (middle + contrast * (y - middle)), t).x0
            return middle + (x0 - middle) / contrast
        samples = []
        asked: DenoiserLike = d
        for k in range(self.num_samples):
            generator = torch.Generator().manual_seed(seed + 100_003 * k)
            if self.correction is None:
                levels = np.linspace(
                    process.log_snr(t),
                    max(process.log_snr(0.0), process.log_snr(t)) + 1e-9,
                    self.num_inference_steps,
                )
                nodes = sorted({process.time_at(float(v)) for v in levels}, reverse=True)
                start, grid = process.a(t) * y, explicit([n for n in nodes if n > CLEAN])
            else:
                asked = correction_by_name(
                    self.correction,
                    d,
                    Measurement(Denoising(), y, kappa),
                    steps=self.num_inference_steps,
                    prior_std=SPREAD,
                )
                grid = GRIDS["log-snr"](process, self.num_inference_steps)
                start = process.b(grid.times[0]) * randn(y.shape, generator)
            samples.append(
                solve(self.solver, asked, start, grid, process=process, generator=[generator]).x0
            )
        return torch.stack(samples).mean(0)

    def over_symmetries(self, restore: Callable[[int], Tensor]) -> Tensor:
        """Mean of ``restore(k)``, which returns an image turned by :func:`turn`, over flips and
        turns k.
        """
        return average([turn_back(restore(k), k) for k in range(self.symmetries)])


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the scale of eigen-images is told from: those of the whole cube, or of some of its rows.

    Attributes:
        images, variance: ``(r, h, W)`` and the variance of their noise.
        level: ``(r,)`` usual standard deviation of the noise.
    """

    images: Tensor
    variance: Tensor
    level: Tensor

    @classmethod
    def of(cls, images: np.ndarray, variance: np.ndarray) -> Statistics:
        level = torch.from_numpy(np.sqrt(np.median(variance, axis=(1, 2)))).float()
        return cls(
            filled(images, variance, level), torch.from_numpy(np.array(variance)).float(), level
        )

    def axes(self) -> Tensor:
        """``(r, r)`` orthonormal columns: principal axes about the mean."""
        a = self.images.flatten(1).double()
        a = a - a.mean(1, keepdim=True)
        return torch.linalg.eigh(a @ a.T)[1].flip(1).float()

    def along(self, axes: Tensor) -> Statistics:
        """The same of ``axes^T images``; noise is taken to be independent between the images."""
        share = axes.T.square()
        level = (share @ self.level.square()).sqrt()
        return Statistics(
            torch.tensordot(axes.T, self.images, 1), torch.tensordot(share, self.variance, 1), level
        )


def filled(images: np.ndarray, variance: np.ndarray, level: Tensor) -> Tensor:
    """Eigen-images ``(r, H, W)``; pixels with more than a hundred times the usual variance (too few
    entries were valid there) are filled from around.
    """
    bad = (variance > (10 * level.numpy()[:, None, None]) ** 2).any(0)
    x = torch.from_numpy(np.asarray(images)).float()
    return (
        push_pull(x[None], torch.from_numpy(~bad)[None, None].float())[0]
        if bad.any() and not bad.all()
        else x
    )


def separately(
    d: Counter,
    x: Tensor,
    like: Statistics,
    channels: int,
    sampling: Sampling,
    done: Callable[[], None] = lambda: None,
) -> Tensor:
    """Eigen-images ``x (r, H, W)`` by a denoiser of ``channels``, that many at a time; ``done`` is
    called after each part.
    """
    out = torch.empty_like(x)
    for first in range(0, len(x), channels):
        part = [min(k, len(x) - 1) for k in range(first, first + channels)]
        out[part] = _planes(
            d, x[part], like.images[part], like.level[part], sampling, sampling.seed + 1000 * first
        )
        done()
    return out


def placed(planes: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale ``(B, 1, 1)`` that give planes ``(B, H, W)`` with this noise ``(B, 1, 1)``
    the contrast of a picture, each its own. Tensor operations only: it can be traced.
    """
    centre = median(planes.flatten(1))[:, None, None]
    power = (planes - centre).square().mean((1, 2), keepdim=True) - noise**2
    far = quantile((planes - centre).abs().flatten(1), 0.995)[:, None, None]
    reach = (far - 2.5 * noise).clamp(min=0)
    scale = torch.maximum(power.clamp(min=0).sqrt() / SPREAD, reach / 1.2)
    # a plane of noise alone: stays within the levels of the training
    return centre, torch.maximum(scale, noise / 2.5).clamp(min=1e-30)


def cautious(kappa: Any, caution: float) -> Any:
    """The noise that a plane with noise ``kappa`` is taken to have:
    :class:`restoration.hyperspectral.task.HyperspectralTask` says why.
    """
    return kappa * (1 + caution * kappa)


def _planes(
    d: Counter, x: Tensor, like: Tensor, level: Tensor, sampling: Sampling, seed: int
) -> Tensor:
    """Planes ``(C, H, W)`` of noise ``level (C,)``, restored together at the largest of their
    levels.
    """
    noise = level[:, None, None]
    centre, scale = placed(like, noise)
    low, high = d.value_range
    half = (high - low) / 2
    kappa = cautious(float((noise / scale).max()) * half, sampling.caution)
    y = (high + low) / 2 + half * (x - centre) / scale
    mean = sampling.over_symmetries(
        lambda k: sampling.from_level(d, turn(y, k)[None], kappa, seed + k)[0]
    )
    return centre + scale * (mean - (high + low) / 2) / half


def jointly(
    d: Counter,
    x: Tensor,
    variance: Tensor,
    like: Statistics,
    sampling: Sampling,
    done: Callable[[], None] = lambda: None,
) -> Tensor:
    """Eigen-images ``x (r, H, W)``, in units of noise, as one latent: see
    :mod:`restoration.hyperspectral.joint`.
    """
    std = strengths(like.images, like.variance)
    centre = like.images.flatten(1).median(1).values[:, None, None]
    out = torch.empty_like(x)
    for members, old in groups(std.numpy()):
        latent, strength = pad_channels((x - centre)[members]), pad_channels(std[members], WEAKEST)
        noise = pad_channels(variance[members], 1.0)

        def restore(
            k: int, latent: Tensor = latent, strength: Tensor = strength, noise: Tensor = noise
        ) -> Tensor:
            y = turn(latent, k)
            asked = d.shown(measured_features(y, strength, turn(noise, k)), strength)
            return sampling.from_level(asked, y[None], 1.0, sampling.seed + k)[0]

        new = members[old:]
        out[new] = centre[new] + sampling.over_symmetries(restore)[old : len(members)]
        done()
    return out


class Counter:
    """A denoiser that counts its calls.

    Args:
        timesteps: the only times it may be asked at; empty: any.
    """

    def __init__(self, denoiser: Denoiser, timesteps: tuple[float, ...] = ()):
        self.denoiser, self.calls, self.timesteps = denoiser, [0], timesteps
        self.process, self.value_range = denoiser.process, denoiser.value_range
        self.device = device_of(denoiser)

    @property
    def count(self) -> int:
        return self.calls[0]

    def __call__(self, x: Tensor, t: float) -> Prediction:
        self.calls[0] += 1
        return self.denoiser(x, t)

    def shown(self, condition: Tensor, std: Tensor) -> Counter:
        """A copy that asks a joint denoiser about channels of the strengths ``std``; calls of all
        copies are counted together.
        """
        other = copy.copy(self)
        other.denoiser = shown(self.denoiser, condition, std)
        return other

    def scaled(self, contrast: float) -> Counter:
        """A copy for images of ``contrast`` times the size, where the denoiser is told the size of
        each channel.
        """
        if not isinstance(getattr(self.denoiser, "data_std", None), Tensor):
            return self
        other = copy.copy(self)
        other.denoiser = copy.copy(self.denoiser)
        other.denoiser.data_std = contrast * self.denoiser.data_std
        return other
