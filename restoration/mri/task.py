"""Accelerated MRI: a conditional diffusion model with data consistency in every reverse step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from restoration.mri.consistency import Alternation, Consistency, ScanData, Slice
from restoration.mri.espirit import espirit
from restoration.mri.estimate import CONDITION_CHANNELS, features, image_scale, noise_level
from restoration.mri.halves import moved
from restoration.mri.openness import left_open
from restoration.mri.partial_fourier import completed
from restoration.mri.sense import cartesian, normalise_maps, sampling_mask, to_channels, to_complex
from restoration.posterior import CORRECTIONS, correction_by_name
from restoration.task import Restored, Run, Watch, sample
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS, Grid, lay
from solvers.inputs.errors import UncalibratedError
from solvers.methods.ddim import DDIM
from solvers.methods.red_diff import REDDiff
from solvers.solver import DenoiserLike, Solver

METHODS = ("none", "consistency", "alternation", "red-diff", *CORRECTIONS)
SAMPLING_STEPS = 4
BY_CHANCE = 0.02  # share of the sampled points at which a slice may be zero though it was sampled


@dataclass(frozen=True)
class RestoredScan(Restored):
    """A reconstructed slice or volume, in the units of the measured data: ``samples`` are complex
    ``(n, H, W)``, of a volume ``(slices, n, H, W)``, ``mean`` ``(H, W)`` or ``(slices, H, W)``, and
    ``std`` tells where it may be wrong: of a network that is shown the scan, how far its estimates
    from halves of the scan lie apart (:mod:`restoration.mri.halves`); of any other, of the samples'
    magnitudes; zero for one sample.

    Attributes:
        residual: root mean square of ``y - A x`` over the measured points of the mean image, per
            real part.
        sigma: the noise level that the reconstruction assumed, per real part: ``residual`` should
            not exceed it.
        left_open: of several samples, the share of an image that such a scan leaves open
            (:func:`restoration.mri.openness.left_open`), the largest of a volume's slices.
    """

    residual: float = field(kw_only=True)
    sigma: float = field(kw_only=True)
    left_open: float | None = field(kw_only=True, default=None)

    @property
    def magnitude(self) -> Tensor:
        """``|mean|``."""
        return self.mean.abs()


@dataclass(frozen=True)
class MRITask:
    """Reconstruct undersampled Cartesian k-space with any denoiser of complex images (2 channels),
    solver and correction.

    A conditional denoiser (7 condition channels) is shown the CG-SENSE image and where it may be
    wrong (``condition``); an unconditional one is steered by the correction alone. Images have
    their 0.99 quantile at 1 for the network; that scaling is undone.

    One sample is the estimate of ``E[x | y]``, the image of least squared error. A network that was
    trained through the steps of its run (``denoiser.unrolled_steps``) takes turns with the data
    (:class:`Alternation`), from zero noise: the same for every seed. Any other gives its estimate
    in one step from the noisiest level. Several samples are drawn of the posterior, from noise, in
    four steps or more; they are sharper and further from the truth, and their spread is the
    uncertainty.

    Of a partial Fourier scan, which the mask tells, the side that was not scanned is filled by its
    conjugate (:mod:`restoration.mri.partial_fourier`), where the data bear that out.

    The default correction of samples is :class:`Consistency` at every step: the image is moved as
    little as needed for a residual of at most the noise; without noise that is the projection on
    ``A x = y``. An unconditional network gets DiffPIR. The last image is made consistent in either
    case.

    Args:
        denoiser: PyTorch, fake-quantized or ONNX.
        solver: any solver of this toolbox.
        num_inference_steps: solver steps; by default those of the estimate for one sample (above),
            4 for several.
        grid: a name in ``solvers.grid.GRIDS``.
        correction: ``none``, ``consistency``, ``alternation``, ``red-diff`` (which brings its own
            solver), a name in ``restoration.posterior.CORRECTIONS``, or None for the default.
        prior_std: DiffPIR's, in units of the scaled image: how far an unconditional network's image
            may be off; by default the denoiser's ``data_std``.

    Raises:
        ValueError: an unknown grid or correction, or a prior_std that is not positive.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int | None = None
    grid: str = "trailing"
    correction: str | None = None
    prior_std: float | None = None

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise ValueError(f"grid {self.grid!r} is unknown; known: {', '.join(GRIDS)}")
        if self.correction is not None and self.correction not in METHODS:
            raise ValueError(
                f"correction {self.correction!r} is unknown; known: {', '.join(METHODS)}"
            )
        if self.prior_std is not None and not self.prior_std > 0:
            raise ValueError(f"prior_std must be positive; got {self.prior_std}")

    @torch.no_grad()
    def __call__(
        self,
        kspace: Tensor,
        mask: Tensor | None = None,
        maps: Tensor | None = None,
        *,
        sigma: float | None = None,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> RestoredScan:
        """Reconstruct one slice.

        Args:
            kspace: complex ``(coils, H, W)``, zero frequency in the centre; what the mask leaves
                out is ignored.
            mask: ``(H, W)`` or ``(W,)``, 1 = sampled; by default the points where any coil is not
                zero.
            maps: complex sensitivities like ``kspace``, used with norm 1 over the coils
                (``normalise_maps``); by default estimated from the centre by ESPIRiT (several
                coils), or 1 (one coil).
            sigma: noise of the real part of ``kspace`` in its units; estimated by default; 0: the
                data are exact.
            num_samples: posterior samples.
            seed: sample k uses ``seed + k``.
            callback: called after each network call with the sample's number and the step.

        Raises:
            ValueError: shapes that don't fit, values that are not finite, a mask that samples
                nothing, no calibration region.
        """
        began = time.perf_counter()
        kspace, mask = check_kspace(kspace, mask)
        if maps is None and len(kspace) > 1:
            maps = espirit(kspace, mask)
        if maps is not None and tuple(maps.shape) != tuple(kspace.shape):
            raise ValueError(
                f"the coil maps are {tuple(maps.shape)} but k-space is {tuple(kspace.shape)}"
                " (coils, H, W): they must have the same coils and size"
            )
        if maps is not None:
            maps = normalise_maps(maps)
        sigma = noise_level(kspace, mask) if sigma is None else float(sigma)
        if not 0 <= sigma <= 1e18:
            raise ValueError(f"sigma must be from 0 to 1e18; got {sigma:g}")
        device = self.denoiser.device
        mask, kspace = mask.to(device), kspace.to(device)
        maps = None if maps is None else maps.to(kspace)
        whole = completed(kspace, mask, maps, sigma)
        operator = cartesian(mask, maps, tuple(mask.shape), tolerance=1e-5, max_iterations=100)
        y = to_channels(kspace[None]) * mask
        if whole is None:
            run = self.prepare(Slice(operator, y, sigma), num_samples)
        else:
            filled, known = whole.kspace, whole.mask
            over = cartesian(known, maps, tuple(mask.shape), tolerance=1e-5, max_iterations=100)
            run = self.prepare(Slice(over, to_channels(filled[None]) * known, sigma), num_samples)
            finish = run.finish
            run = replace(run, finish=lambda x0: whole.real(finish(x0)))
        result = sample(run, num_samples=num_samples, seed=seed, callback=callback)
        samples = to_complex(result.samples)[:, 0]
        mean = to_complex(result.mean[None])[0, 0]
        error = y - operator.A(result.mean[None].to(y.device))
        residual = float((error.square().sum() / (2 * operator.coils * mask.sum())).sqrt())
        nfe = result.nfe
        std = torch.zeros_like(mean.real) if num_samples == 1 else samples.abs().std(0)
        if num_samples > 1 and self.denoiser.condition_channels:
            with suppress(UncalibratedError):  # a bundle for another grid of times
                std = moved(self._estimate(kspace, maps, sigma), mask, seed)
                nfe += 3  # all points and both halves
        seconds = time.perf_counter() - began
        found = RestoredScan(samples, mean, std, nfe, seconds, residual=residual, sigma=sigma)
        return replace(found, left_open=left_open(operator)) if num_samples > 1 else found

    def _estimate(
        self, kspace: Tensor, maps: Tensor | None, sigma: float
    ) -> Callable[[Tensor], Tensor]:
        """The network's estimate of what a mask leaves of the scan. In one step: its first time is
        that of every run, so an exported network has it.
        """
        task = MRITask(self.denoiser, num_inference_steps=1)
        return lambda mask: task(kspace * mask, mask, maps, sigma=sigma).mean

    def volume(
        self,
        kspace: Tensor,
        mask: Tensor | None = None,
        maps: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **settings: Any,
    ) -> RestoredScan:
        """Reconstruct ``(slices, coils, H, W)`` slice by slice; slice k uses seeds from ``seed + k
        num_samples`` on.

        Args:
            mask: shared by all slices, or ``(slices, H, W)``; by default the points where any coil
                is not zero: in any slice, but where slices are sampled differently, in each.
            maps: ``(slices, coils, H, W)``, or ``(coils, H, W)`` for all slices; None: estimated
                per slice.
            progress: called with the slices done and their number.
            settings: ``sigma``, ``num_samples``, ``seed`` as for one slice.

        Raises:
            ValueError: as for one slice, with the slice's number.
        """
        if kspace.ndim != 4 or len(kspace) == 0:
            raise ValueError(f"a volume is (slices, coils, H, W); got {tuple(kspace.shape)}")
        seed, count = settings.pop("seed", 0), settings.get("num_samples", 1)
        mask = sampled(kspace) if mask is None else mask
        slices = []
        for k, one in enumerate(kspace):
            these = maps if maps is None or maps.ndim == 3 else maps[k]
            points = mask[k] if mask.ndim == 3 else mask
            try:
                slices.append(self(one, points, these, seed=seed + k * count, **settings))
            except ValueError as error:
                raise ValueError(f"slice {k}: {error}") from error
            progress(k + 1, len(kspace))
        worst = max(slices, key=lambda s: s.residual / max(s.sigma, 1e-30))
        return RestoredScan(
            torch.stack([s.samples for s in slices]),
            torch.stack([s.mean for s in slices]),
            torch.stack([s.std for s in slices]),
            sum(s.nfe for s in slices),
            sum(s.seconds for s in slices),
            residual=worst.residual,
            sigma=worst.sigma,
            left_open=max((s.left_open for s in slices if s.left_open is not None), default=None),
        )

    def plan(self, num_samples: int = 1) -> tuple[int, str]:
        """Steps and correction of a run for so many samples."""
        unrolled = getattr(self.denoiser, "unrolled_steps", None)
        steps = self.num_inference_steps
        if steps is None:
            steps = SAMPLING_STEPS if num_samples > 1 else unrolled or 1
        if self.correction is not None:
            return steps, self.correction
        if not self.denoiser.condition_channels:
            return steps, "diffpir"
        return steps, "alternation" if num_samples == 1 and steps == unrolled else "consistency"

    def nodes(self, steps: int) -> Grid:
        """The times of a run."""
        grid = lay(self.grid, self.denoiser.process, steps)
        if (
            self.correction == "red-diff" and self.denoiser.process.a(grid.times[0]) == 0
        ):  # it needs levels with some signal
            grid = Grid(lay(self.grid, self.denoiser.process, steps + 1).times[1:])
        return grid

    def prepare(self, data: ScanData, num_samples: int = 1) -> Run:
        """The run on this scan. Tensor operations only: it can be traced.

        Raises:
            ValueError: a network that is shown something else, or a number of steps that the
                process doesn't have.
        """
        d, first = self.denoiser, data.first
        steps, name = self.plan(num_samples)
        grid, scale = self.nodes(steps), image_scale(first)
        held = data.scaled(scale)
        if d.condition_channels not in (0, CONDITION_CHANNELS):
            raise ValueError(
                f"the network's condition has {d.condition_channels} channels; MRI shows it"
                f" {CONDITION_CHANNELS} (see the recipe mri)"
            )
        if d.condition_channels:
            d = d.conditioned(features(first / scale, data.zero_filled / scale, held.noise))
        corrected, solver = self._corrected(d, held, name, steps)
        # where no coil is sensitive nothing is measured: there the image is zero, as in SENSE
        size, seen = (2, int(first.shape[-2]), int(first.shape[-1])), data.seen

        def finish(x0: Tensor) -> Tensor:
            return scale * seen * (x0 if name == "none" else held.agree(x0))

        start = torch.zeros_like(first) if name == "alternation" else None
        return Run(corrected, solver, grid, size, finish, start)

    def _corrected(
        self, d: Denoiser, data: ScanData, name: str, steps: int
    ) -> tuple[DenoiserLike, Solver]:
        width = float(d.data_std) if self.prior_std is None else self.prior_std
        match name:
            case "none":
                return d, self.solver
            case "red-diff":
                m, start = data.measurement, data.first
                return d, REDDiff(m, lam=0.25, lr=0.02, decay=True, start=start)
            case "consistency":
                return Consistency(d, data), self.solver
            case "alternation":
                return Alternation(d, data, width), self.solver
        m = data.measurement
        return correction_by_name(name, d, m, steps=steps, prior_std=width), self.solver


def sampled(kspace: Tensor) -> Tensor:
    """Where k-space ``(slices, coils, H, W)`` was measured, ``(slices, H, W)``: where any slice is
    not zero, since a slice without signal says nothing; but of a slice that is zero at many of
    these points, being sampled differently, where it isn't itself.
    """
    seen = torch.nan_to_num(kspace.abs(), nan=1.0).sum(1) > 0
    union, own = seen.any(0), seen.sum((1, 2))
    apart = (own > 0) & (own < (1 - BY_CHANCE) * union.sum())
    return torch.where(apart[:, None, None], seen, union)


def check_kspace(kspace: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(coils, H, W)`` complex64 and ``(H, W)`` float mask, both checked; points that the mask
    leaves out are set to zero.

    Raises:
        ValueError: not complex, another rank, measured values that are not finite, a mask that
            doesn't fit or samples nothing.
    """
    if kspace.ndim != 3 or not kspace.is_complex() or kspace.numel() == 0:
        raise ValueError(
            f"k-space must be complex (coils, H, W); got {kspace.dtype} of shape"
            f" {tuple(kspace.shape)}"
        )
    size = tuple(kspace.shape[1:])
    if mask is None:
        mask = torch.nan_to_num(kspace.abs(), nan=1.0).sum(0) > 0
    mask = sampling_mask(mask, size)
    kspace = torch.where(
        mask > 0, kspace.to(torch.complex64), torch.zeros((), dtype=torch.complex64)
    )
    bad = ~torch.isfinite(kspace).all(0)
    if bad.any():
        rows, columns = (torch.nonzero(bad.any(axis))[:, 0].tolist() for axis in (1, 0))
        raise ValueError(
            f"k-space holds NaN or infinite values in {len(columns)} columns (first {columns[0]})"
            f" and {len(rows)} rows (first {rows[0]}): leave them out of the mask"
        )
    if not kspace.abs().any():
        raise ValueError("the measured k-space holds only zeros")
    return kspace, mask
