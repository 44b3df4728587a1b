"""Hyperspectral denoising: a low-rank spectral subspace, its eigen-images restored by a diffusion
prior.

Any number of bands, no retraining: whitening makes the noise of every eigen-image white and of
known size, which is what a diffusion network removes. A denoiser of single planes restores
eigen-images one by one (:func:`restoration.hyperspectral.eigen_images.separately`); a joint one
takes all of them as one latent (:mod:`restoration.hyperspectral.joint`).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from restoration.hyperspectral.eigen_images import (
    Counter,
    Sampling,
    Statistics,
    filled,
    jointly,
    separately,
)
from restoration.hyperspectral.garbage import garbage_bands
from restoration.hyperspectral.joint import CONDITION_CHANNELS
from restoration.hyperspectral.subspace import Subspace, data_mask, fit_subspace, learn_bands
from restoration.io.cubes.cube import Cube
from restoration.posterior.by_name import check_correction
from restoration.task import Watch
from restoration.wrappers.symmetry import COUNTS
from restoration.wrappers.tiling import tile_weight, tiled
from solvers.denoiser import Denoiser, timesteps_of
from solvers.grid import check_steps
from solvers.methods.ddim import DDIM
from solvers.solver import Solver

FIT_ENTRIES = 4_000_000  # entries that the subspace is fitted to
BLOCK_ENTRIES = 4_000_000  # entries of the cube in memory at a time
KEPT_ENTRIES = (
    50_000_000  # entries of eigen-images that are kept in memory; more lie in a temporary file
)
STRIP_PIXELS = 400_000  # pixels of eigen-images that are restored at a time


@dataclass(frozen=True, eq=False)
class RestoredCube:
    """A restored cube, held as eigen-images: the cube itself is made as it is asked for. It has
    what :class:`restoration.task.Restored` has; samples are averaged as they are drawn, so that
    their spread isn't known.

    Attributes:
        model: subspace, noise levels and stripes.
        images: ``(r, H, W)`` restored eigen-images.
        noisy_images: ``(r, H, W)`` as measured.
        dead: share of entries found dead; outliers: share of the remaining ones that the subspace
            contradicts.
        striped_rows: number of rows of single bands whose offset was found and removed (columns:
            ``model.stripes``).
        nfe: network calls.
        seconds: wall-clock time.
        cube: as it was measured; None: not kept.
        bad: bool ``(B,)``, bands that took no part, because the file or their numbers say that they
            hold nothing of the scene, and that come back as they were; None: there is none.
    """

    model: Subspace
    images: np.ndarray
    noisy_images: np.ndarray
    dead: float
    outliers: float
    striped_rows: int
    nfe: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    cube: Cube | None = None
    bad: np.ndarray | None = None

    def rows(self, rows: slice = slice(None)) -> np.ndarray:
        """``(B, h, W)`` float32 in the cube's units."""
        found = self.model.spectra(self.images[:, rows]).astype(np.float32)
        if self.cube is not None and self.bad is not None:
            found[self.bad] = self.cube.values[self.bad, rows]
        return found

    @property
    def mean(self) -> Tensor:
        """``(B, H, W)``."""
        return torch.from_numpy(self.rows())

    @property
    def samples(self) -> Tensor:
        """``(1, B, H, W)``."""
        return self.mean[None]

    @property
    def std(self) -> Tensor:
        """Zeros ``(B, H, W)``."""
        return torch.zeros_like(self.mean)

    def truncated(self, rows: slice = slice(None)) -> np.ndarray:
        """The same without the prior: the subspace alone."""
        return self.model.spectra(self.noisy_images[:, rows]).astype(np.float32)


@dataclass(frozen=True)
class HyperspectralTask:
    """Denoise cubes with any denoiser of single planes, of three channels, or of joint latents, and
    any solver.

    Args:
        denoiser: of one channel (the shipped ``grey``), or of three (``photo``): then three
            eigen-images at a time are its colours, and a condition is left empty. Or a joint one
            (recipe ``hsi``), which is known by its condition.
        solver: used for more than one step.
        num_inference_steps: 1: one call at the level of the noise, the posterior mean. More: the
            solver's steps from that level down.
        correction: None, or a name in ``restoration.posterior.CORRECTIONS``: then the solver runs
            from pure noise, and the correction (``diffpir``, ``ddnm+``) holds it to the
            eigen-image.
        symmetries: 1, 2, 4 or 8 flips and turns whose results are averaged.
        axes: 1: eigen-images along the axes principal about zero light; 2: once more along those
            about the mean, and averaged. Which of the two gives plainer images depends on the
            scene. A joint denoiser takes all at once, along the first.
        caution: planes whose noise is ``kappa`` times their contrast are taken to hold ``1 +
            caution kappa`` times as much: a small network leaves some of the noise where there is
            little else, which costs little in dB but turns dark spectra. 0.3 lowers the angle of
            Jasper Ridge, Moffett and a simulated scene by 2 % at the same MPSNR; 0 for a denoiser
            that is exact.
        channels: of the denoiser's images; eigen-images are restored by that many at a time.
        tile: side of the tiles for larger eigen-images, in pixels; strips of rows share an overlap
            that is blended.
        block: most rows of the cube in memory at a time.
        timesteps: the only times that the network may be asked at; empty: any, or those that an
            exported network holds.

    Raises:
        ValueError: a number or name that is not accepted, or a correction of a joint denoiser,
            which is shown the data already.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 1
    correction: str | None = None
    symmetries: int = 8
    axes: int = 2
    caution: float = 0.3
    channels: int = 1
    tile: int = 512
    overlap: int = 32
    block: int = 256
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.symmetries not in COUNTS:
            raise ValueError(f"symmetries must be 1, 2, 4 or 8; got {self.symmetries}")
        if self.axes not in (1, 2):
            raise ValueError(f"axes must be 1 or 2; got {self.axes}")
        if not 0 <= self.caution <= 10:
            raise ValueError(f"caution must lie between 0 and 10; got {self.caution}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1; got {self.channels}")
        check_steps(self.num_inference_steps)
        if self.correction is not None:
            check_correction(self.correction)
        if self.correction is not None and self.joint:
            raise ValueError(
                "a joint denoiser is shown what was measured and takes no correction; got"
                f" {self.correction!r}"
            )
        if self.tile < 64 or not 0 <= self.overlap <= self.tile // 4 or self.block < 16:
            raise ValueError(
                "tile must be at least 64, overlap at most a quarter of it, block at least 16; got"
                f" {self}"
            )

    @property
    def joint(self) -> bool:
        """Whether the denoiser takes all eigen-images as one latent."""
        return self.denoiser.condition_channels == CONDITION_CHANNELS

    def __call__(
        self,
        cube: Cube | np.ndarray | Tensor,
        *,
        sigma: float | np.ndarray | None = None,
        rank: int | None = None,
        dead: np.ndarray | None = None,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> RestoredCube:
        """Restore one cube.

        Memory-mapped cubes may be larger than memory: a block of rows is read at a time,
        eigen-images are restored in strips of rows and kept in a temporary file where they are
        many.

        Args:
            cube: ``(B, H, W)`` in any units; NaN, infinite and no-data entries are missing.
            sigma: standard deviation of the noise, one number or one per band, in the cube's units;
                None: estimated.
            rank: dimensions of the subspace; None: chosen.
            dead: broadcastable to ``(B, H, W)``, not 0 at entries known to be dead, beside those
                that are found.
            num_samples: samples to average, for more than one step.
            callback: called after each group of eigen-images with 0 and None.

        Raises:
            ValueError: shapes or numbers that don't fit, or a cube without data.
        """
        began = time.perf_counter()
        scene = cube if isinstance(cube, Cube) else Cube(np.asarray(cube))
        sigma, rank = _check(scene.values, sigma, rank)
        bands, height, width = scene.values.shape
        try:
            gaps = np.zeros(()) if dead is None else dead
            dead = np.broadcast_to(gaps, scene.values.shape)
        except ValueError as error:
            raise ValueError(
                f"dead has shape {np.shape(gaps)}; it must fit the cube {scene.values.shape}"
            ) from error

        def read(rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(scene.values[:, rows]), scene.valid(rows) & (dead[:, rows] == 0)

        sample = fit_rows(height, width, bands)
        values, held = read(sample)
        if not held.any():
            raise ValueError("the cube holds no data: every entry is missing or dead")
        bad = garbage_bands(values, held)
        if bad.any():  # from here on as if the file had said so
            bad |= np.zeros(bands, bool) if scene.bad is None else scene.bad
            scene = replace(scene, bad=bad)
            held &= ~bad[:, None, None]
        valid, _ = data_mask(values, held)
        if not valid.any():
            raise ValueError("the cube holds no data: every entry is missing or dead")
        model = fit_subspace(values, valid, sigma, rank)
        noisy, images = (_kept((model.rank, height, width)) for _ in range(2))
        strips, overlap = _strips(height, width, self.overlap)
        found = outliers = lines = nfe = done = 0
        like = None if len(strips) == 1 else Statistics.of(*model.project(values, valid)[:2])
        step = min(self.block, max(16, BLOCK_ENTRIES // (bands * width)))
        for start, stop in strips:
            variance = np.empty((model.rank, stop - start, width), np.float32)
            for top in range(start, stop, step):
                rows = slice(top, min(top + step, stop))
                block, here = read(rows)
                here, gone = data_mask(block, here)
                noisy[:, rows], part, used, offsets = model.project_lines(block, here)
                variance[:, top - start : rows.stop - start] = part
                # rows that the last strip had as well count once
                new = slice(max(0, done - top), None)
                found += int(gone[:, new].sum())
                lines += int((offsets[:, new] != 0).sum())
                outliers += int((here & model.trusted[:, None, None] & ~used)[:, new].sum())
                done = max(done, rows.stop)
            strip = noisy[:, start:stop]
            restored, calls = self.denoise(strip, variance, num_samples, seed, callback, like)
            weight = tile_weight(start, stop - start, height, overlap).numpy()[:, None]
            images[:, start:stop] += weight * restored
            nfe += calls
        if not model.trusted.all():
            columns = (
                held
                & (np.where(held, values, np.inf).min(1) == np.where(held, values, -np.inf).max(1))[
                    :, None, :
                ]
            )
            # with the extremes
            model = learn_bands(
                model, np.where(held, values, 0), held & ~columns, images[:, sample]
            )
        size = scene.values.size
        seconds = time.perf_counter() - began
        shares = found / size, outliers / size
        return RestoredCube(
            model, images, noisy, *shares, lines, nfe, seconds, cube=scene, bad=scene.bad
        )

    @torch.no_grad()
    def denoise(
        self,
        images: np.ndarray,
        variance: np.ndarray,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
        like: Statistics | None = None,
    ) -> tuple[np.ndarray, int]:
        """Restore eigen-images ``(r, H, W)`` with noise of ``variance (r, H, W)``; returns them and
        the number of network calls.

        Pixels with more than a hundred times the usual variance (too few entries were valid there)
        are filled from around first.

        Args:
            like: what contrasts and noise levels are told from; None: these images.
        """
        d = self.denoiser
        timesteps = self.timesteps or timesteps_of(d.network)
        if max(images.shape[1:]) > self.tile:
            unit = d.fold * d.multiple
            d = tiled(d, self.tile // unit * unit, self.overlap // unit * unit)
        calls = Counter(d, timesteps)
        like = Statistics.of(images, variance) if like is None else like
        x = filled(images, variance, like.level)
        sampling = Sampling(
            self.solver,
            self.num_inference_steps,
            self.correction,
            self.symmetries,
            num_samples,
            seed,
            self.caution,
        )
        done = (lambda: None) if callback is None else partial(callback, 0, None)
        if self.joint:
            out = jointly(calls, x, torch.from_numpy(variance).float(), like, sampling, done)
        else:
            out = separately(calls, x, like, self.channels, sampling, done)
            if self.axes == 2 and len(x) > 1:
                axes = like.axes()
                turned = separately(
                    calls, torch.tensordot(axes.T, x, 1), like.along(axes), self.channels, sampling
                )
                out = (out + torch.tensordot(axes, turned, 1)) / 2
        return out.numpy(), calls.count


def fit_rows(height: int, width: int, bands: int) -> np.ndarray:
    """Numbers of the rows that the subspace is fitted to: all, or blocks of 16 spread over the
    height.
    """
    wanted = max(16, FIT_ENTRIES // (width * bands))
    if height <= wanted:
        return np.arange(height)
    starts = np.linspace(0, height - 16, max(1, wanted // 16)).astype(int)
    return np.unique(np.concatenate([np.arange(s, s + 16) for s in starts]))


def _strips(height: int, width: int, overlap: int) -> tuple[list[tuple[int, int]], int]:
    """Strips of rows to restore one after the other, and how much neighbours overlap; each row of
    an overlap lies in two of them.
    """
    rows = max(4 * overlap, STRIP_PIXELS // width, 64)
    if height <= rows:
        return [(0, height)], 0
    count = -(-(height - overlap) // (rows - overlap))
    starts = [k * (rows - overlap) for k in range(count)]
    return [(s, min(s + rows, height)) for s in starts], overlap


def _kept(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, float32; in a temporary file, which goes with the array, where they are many."""
    if np.prod(shape, dtype=np.int64) <= KEPT_ENTRIES:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _check(
    values: np.ndarray, sigma: float | np.ndarray | None, rank: int | None
) -> tuple[np.ndarray | None, int | None]:
    if values.ndim != 3 or min(values.shape) < 1:
        raise ValueError(f"a cube must be (B, H, W); got shape {values.shape}")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"a cube must hold integers or real numbers; got {values.dtype}")
    if min(values.shape[1:]) < 8:
        raise ValueError(
            f"a cube must have at least 8 x 8 pixels; got {values.shape[2]} x {values.shape[1]}"
        )
    if rank is not None and not 1 <= rank <= values.shape[0]:
        raise ValueError(
            f"rank must lie between 1 and the number of bands, {values.shape[0]}; got {rank}"
        )
    if sigma is None:
        return None, rank
    sigma = np.asarray(sigma, np.float64)
    if (
        sigma.shape not in ((), (values.shape[0],))
        or not np.isfinite(sigma).all()
        or (sigma <= 0).any()
    ):
        raise ValueError(
            f"sigma must be one positive number, or one per band ({values.shape[0]}); got {sigma}"
        )
    return np.broadcast_to(sigma, values.shape[:1]), rank
