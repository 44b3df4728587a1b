"""Hyperspectral denoising: a low-rank spectral subspace, its eigen-images restored by a diffusion prior.

Any number of bands, no retraining: whitening makes the noise of every eigen-image white and of known size, which is what a diffusion
network removes. ``y = x0 + sigma eps`` is the state of the process at the time whose noise-to-signal ratio ``b/a`` is sigma, so one call
there estimates the posterior mean, and a stochastic solver started there (``DDIM(eta=1)``) samples the posterior without any further
correction; a deterministic one returns one cube, with the texture that the prior expects.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from restoration.io.cubes import Cube
from restoration.lift import push_pull
from restoration.measurement import Measurement
from restoration.operators import Denoising
from restoration.posterior import CORRECTIONS
from restoration.subspace import Subspace, data_mask, fit_subspace, learn_bands
from restoration.tiling import tiled
from solvers.ddim import DDIM
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS, explicit
from solvers.process import CLEAN
from solvers.solver import Solver, randn, solve

SPREAD = 0.4  # standard deviation of planes shown to the network, in units of half its range
FIT_PIXELS = 60_000  # pixels that the subspace is fitted to


@dataclass(frozen=True, eq=False)
class RestoredCube:
    """A restored cube, held as eigen-images: the cube itself is made as it is asked for.

    Attributes:
        model: subspace, noise levels and stripes.
        images: ``(r, H, W)`` restored eigen-images.
        noisy_images: ``(r, H, W)`` as measured.
        dead: share of entries found dead; outliers: share of the remaining ones that the subspace contradicts.
        nfe: network calls.
        seconds: wall-clock time.
    """

    model: Subspace
    images: np.ndarray
    noisy_images: np.ndarray
    dead: float
    outliers: float
    nfe: int
    seconds: float

    def rows(self, rows: slice = slice(None)) -> np.ndarray:
        """``(B, h, W)`` float32 in the cube's units."""
        return self.model.spectra(self.images[:, rows]).astype(np.float32)

    def truncated(self, rows: slice = slice(None)) -> np.ndarray:
        """The same without the prior: the subspace alone."""
        return self.model.spectra(self.noisy_images[:, rows]).astype(np.float32)


@dataclass(frozen=True)
class HyperspectralTask:
    """Denoise cubes with any denoiser of single planes or of three channels, and any solver.

    Args:
        denoiser: of one channel (the shipped ``grey``), or of three (``photo``): then three eigen-images at a time are its colours.
            A condition is left empty.
        solver: used for more than one step.
        num_inference_steps: 1: one call at the level of the noise, the posterior mean. More: the solver's steps from that
            level down.
        correction: None, or a name in ``restoration.posterior.CORRECTIONS``: then the solver runs from pure noise, and the correction
            (``diffpir``, ``ddnm+``) holds it to the eigen-image.
        symmetries: 1, 2, 4 or 8 flips and turns whose results are averaged.
        channels: of the denoiser's images; eigen-images are restored by that many at a time.
        tile: side of the tiles for larger eigen-images, in pixels.
        block: rows of the cube in memory at a time.

    Raises:
        ValueError: a number or name that is not accepted, or a denoiser of other channels.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 1
    correction: str | None = None
    symmetries: int = 8
    channels: int = 1
    tile: int = 512
    overlap: int = 32
    block: int = 256

    def __post_init__(self):
        if self.symmetries not in (1, 2, 4, 8):
            raise ValueError(f"symmetries must be 1, 2, 4 or 8; got {self.symmetries}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1; got {self.channels}")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {self.num_inference_steps}")
        if self.correction is not None and self.correction not in CORRECTIONS:
            raise ValueError(f"correction {self.correction!r} is unknown; known: {', '.join(CORRECTIONS)}")
        if self.tile < 64 or not 0 <= self.overlap <= self.tile // 4 or self.block < 16:
            raise ValueError(f"tile must be at least 64, overlap at most a quarter of it, block at least 16; got {self}")

    def __call__(
        self,
        cube: Cube | np.ndarray | Tensor,
        *,
        sigma: float | np.ndarray | None = None,
        rank: int | None = None,
        dead: np.ndarray | None = None,
        num_samples: int = 1,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> RestoredCube:
        """Restore one cube.

        Args:
            cube: ``(B, H, W)`` in any units; NaN, infinite and no-data entries are missing.
            sigma: standard deviation of the noise, one number or one per band, in the cube's units; None: estimated.
            rank: dimensions of the subspace; None: chosen.
            dead: bool, broadcastable to ``(B, H, W)``: entries known to be dead, beside those that are found.
            num_samples: samples to average, for more than one step.
            callback: called with the number of eigen-images done.

        Raises:
            ValueError: shapes or numbers that don't fit, or a cube without data.
        """
        began = time.perf_counter()
        cube = cube if isinstance(cube, Cube) else Cube(np.asarray(cube))
        sigma, rank = _check(cube.values, sigma, rank)
        height, width = cube.values.shape[1:]
        known = np.ones((1, 1, 1), bool) if dead is None else ~np.asarray(dead, bool)
        try:
            known = np.broadcast_to(known, cube.values.shape)
        except ValueError as error:
            raise ValueError(f"dead has shape {known.shape}; it must fit the cube {cube.values.shape}") from error

        def read(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            values = np.asarray(cube.values[:, rows])
            here = cube.valid(rows) & known[:, rows]
            return values, *data_mask(values, here)

        values, valid, _ = read(fit_rows(height, width))
        if not valid.any():
            raise ValueError("the cube holds no data: every entry is missing or dead")
        model = fit_subspace(values, valid, sigma, rank)
        noisy, variance = np.empty((model.rank, height, width)), np.empty((model.rank, height, width))
        found = outliers = 0
        for top in range(0, height, self.block):
            rows = slice(top, min(top + self.block, height))
            block, here, gone = read(rows)
            noisy[:, rows], variance[:, rows], used = model.project(block, here)
            found += int(gone.sum())
            outliers += int((here & model.trusted[:, None, None] & ~used).sum())
        images, nfe = self.denoise(noisy, variance, num_samples, seed, callback)
        if not model.trusted.all():
            rows = fit_rows(height, width)
            held = cube.valid(rows) & known[:, rows]  # with the extremes, see learn_bands
            lines = held & (np.where(held, values, np.inf).min(1) == np.where(held, values, -np.inf).max(1))[:, None, :]
            model = learn_bands(model, np.where(held, values, 0), held & ~lines, images[:, rows])
        size = cube.values.size
        return RestoredCube(model, images, noisy, found / size, outliers / size, nfe, time.perf_counter() - began)

    @torch.no_grad()
    def denoise(
        self, images: np.ndarray, variance: np.ndarray, num_samples: int = 1, seed: int = 0, callback: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, int]:
        """Restore eigen-images ``(r, H, W)`` with noise of ``variance (r, H, W)``; returns them and the number of network calls.

        Pixels with more than ten times the usual variance (too few entries were valid there) are filled from around first.
        """
        d = self.denoiser
        if max(images.shape[1:]) > self.tile:
            unit = d.fold * d.multiple
            d = tiled(d, self.tile // unit * unit, self.overlap // unit * unit)
        level = np.sqrt(np.median(variance, axis=(1, 2)))
        bad = (variance > 10 * level[:, None, None] ** 2).any(0)
        x = torch.from_numpy(images).float()
        if bad.any() and not bad.all():
            x = push_pull(x[None], torch.from_numpy(~bad)[None, None].float())[0]
        calls = _Counter(d)
        out = torch.empty_like(x)
        channels = self.channels
        for first in range(0, len(x), channels):
            part = [min(k, len(x) - 1) for k in range(first, first + channels)]
            out[part] = self._planes(calls, x[part], level[part], num_samples, seed + 1000 * first)
            if callback is not None:
                callback(min(first + channels, len(x)))
        return out.double().numpy(), calls.count

    def _planes(self, d, x: Tensor, level: np.ndarray, num_samples: int, seed: int) -> Tensor:
        """Planes ``(C, H, W)`` of noise ``level (C,)``, restored together at the largest of their levels."""
        centre = x.median() if len(x) == 1 else x.flatten(1).median(1).values[:, None, None]
        noise = torch.as_tensor(level, dtype=x.dtype)[:, None, None]
        # one scale per plane, so that each is shown with the contrast of a picture
        power = (x - centre).square().mean((1, 2), keepdim=True) - noise**2
        reach = ((x - centre).abs().flatten(1).quantile(0.995, dim=1)[:, None, None] - 2.5 * noise).clamp(min=0)
        scale = torch.maximum(power.clamp(min=0).sqrt() / SPREAD, reach / 1.2)
        scale = torch.maximum(scale, noise / 2.5)  # a plane of noise alone: stays within the levels of the training
        low, high = d.value_range
        half = (high - low) / 2
        kappa = float((noise / scale).max()) * half
        y = (high + low) / 2 + half * (x - centre) / scale
        total = torch.zeros_like(y)
        for k in range(self.symmetries):
            turned = _turn(y, k)[None]
            total += _turn_back(self._restore(d, turned, kappa, num_samples, seed + k)[0], k)
        return centre + scale * (total / self.symmetries - (high + low) / 2) / half

    def _restore(self, d, y: Tensor, kappa: float, num_samples: int, seed: int) -> Tensor:
        """``y (1, C, H, W)`` with noise ``kappa``, in the network's range."""
        process = d.process
        t = process.time_at(-2 * math.log(max(kappa, 1e-6)))
        if t <= CLEAN:
            return y
        if self.correction is None and self.num_inference_steps == 1:
            if not d.timesteps:
                return d(process.a(t) * y, t).x0
            # an exported network holds a few times only: at the nearest one, the plane is shown with more or less contrast
            t = min((s for s in d.timesteps if process.a(s) > 0), key=lambda s: abs(process.log_snr(s) + 2 * math.log(kappa)))
            middle, contrast = sum(d.value_range) / 2, process.kappa(t) / kappa
            x0 = d(process.a(t) * (middle + contrast * (y - middle)), t).x0
            return middle + (x0 - middle) / contrast
        samples = []
        for k in range(num_samples):
            generator = torch.Generator().manual_seed(seed + 100_003 * k)
            if self.correction is None:
                levels = np.linspace(process.log_snr(t), max(process.log_snr(0.0), process.log_snr(t)) + 1e-9, self.num_inference_steps)
                nodes = sorted({process.time_at(float(v)) for v in levels}, reverse=True)
                start, asked, grid = process.a(t) * y, d, explicit([n for n in nodes if n > CLEAN])
            else:
                asked = CORRECTIONS[self.correction](d, Measurement(Denoising(), y, kappa))
                grid = GRIDS["log-snr"](process, self.num_inference_steps)
                start = process.b(grid.times[0]) * randn(y.shape, generator)
            samples.append(solve(self.solver, asked, start, grid, process=process, generator=[generator]).x0)
        return torch.stack(samples).mean(0)


def fit_rows(height: int, width: int) -> np.ndarray:
    """Numbers of the rows that the subspace is fitted to: all, or blocks of 16 spread over the height."""
    wanted = max(16, FIT_PIXELS // width)
    if height <= wanted:
        return np.arange(height)
    starts = np.linspace(0, height - 16, max(1, wanted // 16)).astype(int)
    return np.unique(np.concatenate([np.arange(s, s + 16) for s in starts]))


class _Counter:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.count = denoiser, 0
        self.process, self.value_range = denoiser.process, denoiser.value_range
        self.device = getattr(denoiser, "device", "cpu")
        self.timesteps = tuple(getattr(denoiser.network, "timesteps", ()))

    def __call__(self, x: Tensor, t: float):
        self.count += 1
        return self.denoiser(x, t)


def _turn(x: Tensor, k: int) -> Tensor:
    x = torch.rot90(x, k // 2, (-2, -1))
    return x.flip(-1) if k % 2 else x


def _turn_back(x: Tensor, k: int) -> Tensor:
    x = x.flip(-1) if k % 2 else x
    return torch.rot90(x, -(k // 2), (-2, -1))


def _check(values: np.ndarray, sigma, rank: int | None) -> tuple[np.ndarray | None, int | None]:
    if values.ndim != 3 or min(values.shape) < 1:
        raise ValueError(f"a cube must be (B, H, W); got shape {values.shape}")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"a cube must hold integers or real numbers; got {values.dtype}")
    if min(values.shape[1:]) < 8:
        raise ValueError(f"a cube must have at least 8 x 8 pixels; got {values.shape[2]} x {values.shape[1]}")
    if rank is not None and not 1 <= rank <= values.shape[0]:
        raise ValueError(f"rank must lie between 1 and the number of bands, {values.shape[0]}; got {rank}")
    if sigma is None:
        return None, rank
    sigma = np.asarray(sigma, np.float64)
    if sigma.shape not in ((), (values.shape[0],)) or not np.isfinite(sigma).all() or (sigma <= 0).any():
        raise ValueError(f"sigma must be one positive number, or one per band ({values.shape[0]}); got {sigma}")
    return np.broadcast_to(sigma, values.shape[:1]), rank
