"""Measured figures for MRI: the model next to zero-filled, CG-SENSE and L1-wavelet reconstruction
of the same undersampled data.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.io.mri import read_maps, read_scan
from restoration.io.mri_scan import Scan
from restoration.metrics import LPIPSUnavailable, lpips
from restoration.mri.espirit import espirit, mvue
from restoration.mri.estimate import lift
from restoration.mri.evaluation import coverage, slice_quality, volume_quality
from restoration.mri.partial_fourier import missing_side, smooth_phase
from restoration.mri.sampling import make_sampling, volume_seed
from restoration.mri.sense import cartesian, to_channels, to_complex
from restoration.mri.simulation import simulate
from restoration.mri.task import MRITask
from solvers import solver_by_name
from toolbox.api import keeping_models, load
from toolbox.bench.options import Extent, Methods, Scans
from toolbox.bench.shares import shared

SENSE_WEIGHTS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WAVELET_WEIGHTS = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
CLASSICAL = ("zero-filled", "cg-sense", "l1-wavelet")
POCS_ITERATIONS = 20


@dataclass(frozen=True)
class MRICase:
    """Undersampled slices with their truth: ``kspace (slices, coils, H, W)`` zero where not
    sampled, ``mask (H, W)``, maps that were estimated from it, true magnitudes, and the noise
    level.
    """

    kspace: Tensor
    mask: Tensor
    maps: Tensor
    truth: Tensor
    sigma: float | None


def make_case(
    scan: Scan,
    kind: str,
    acceleration: float,
    maps: np.ndarray | None,
    sigma: float,
    seed: int,
    name: str,
) -> MRICase:
    """Simulated from magnitudes, or undersampled from full k-space (whose noise is then estimated,
    and ``sigma`` not used).
    """
    if scan.kspace is None:
        made = simulate(scan, maps, 8, sigma, seed)
        full, sens, noise = made.kspace, made.maps, made.sigma
        truth = torch.from_numpy(scan.magnitude) * (sens.abs().sum(0) > 0)
    else:
        full, noise = torch.from_numpy(scan.kspace), None
        everywhere = torch.ones(full.shape[-2:])
        truth = torch.stack([mvue(one, espirit(one, everywhere)).abs() for one in full])
    size = tuple(full.shape[-2:])
    mask = make_sampling(kind, size, acceleration, None, volume_seed(name)).expand(size)
    kspace = full * mask
    return MRICase(kspace, mask, torch.stack([espirit(one, mask) for one in kspace]), truth, noise)


def _operators(case: MRICase):
    for one, maps in zip(case.kspace, case.maps, strict=True):
        operator = cartesian(
            case.mask, maps, tuple(case.mask.shape), tolerance=1e-5, max_iterations=100
        )
        yield operator, to_channels(one[None])


def zero_filled(case: MRICase) -> Tensor:
    """``|A^H y|``."""
    return torch.stack([to_complex(op.A_adjoint(y))[0, 0].abs() for op, y in _operators(case)])


def cg_sense(case: MRICase, weight: float) -> Tensor:
    """Tikhonov-regularised SENSE, solved to convergence."""
    return torch.stack(
        [to_complex(op.sense(y, weight, 100))[0, 0].abs() for op, y in _operators(case)]
    )


def l1_wavelet(case: MRICase, weight: float, iterations: int = 60) -> Tensor:
    """sigpy's L1-wavelet reconstruction (db4, FISTA); the weight is relative to the 0.99 quantile
    of the CG-SENSE image.

    Raises:
        ImportError: sigpy is not installed.
    """
    try:
        import sigpy.mri.app as app
    except ImportError as error:
        raise ImportError(
            "the L1-wavelet baseline needs sigpy: pip install 'restobox[mri]'"
        ) from error
    images = []
    for one, maps, (op, y) in zip(case.kspace, case.maps, _operators(case), strict=True):
        scale = float(torch.quantile(lift(op, y).square().sum(1).sqrt(), 0.99))
        recon = app.L1WaveletRecon(
            (one / scale).numpy(),
            maps.numpy(),
            weight,
            weights=case.mask.numpy(),
            max_iter=iterations,
            show_pbar=False,
        ).run()
        images.append(torch.from_numpy(np.abs(recon) * scale))
    return torch.stack(images)


def pocs(case: MRICase) -> Tensor:
    """Projections on the data and on images of the phase that the scanned centre has (Haacke et al.
    1991), for partial Fourier.

    Raises:
        ValueError: a mask that leaves out no side of k-space.
    """
    side = missing_side(case.mask)
    if side is None:
        raise ValueError("pocs is for masks that leave out one side of k-space, such as partial")
    images = []
    for one, maps, (op, y) in zip(case.kspace, case.maps, _operators(case), strict=True):
        phase, x = smooth_phase(one, op, side), to_complex(op.A_adjoint(y))
        everywhere = cartesian(torch.ones_like(case.mask), maps, tuple(case.mask.shape))
        for _ in range(POCS_ITERATIONS):
            filled = everywhere.A(to_channels(x.abs() * phase))
            x = to_complex(everywhere.A_adjoint(torch.where(case.mask > 0, y, filled)))
        images.append(x[0, 0].abs())
    return torch.stack(images)


def run_mri_bench(
    data: Path,
    scans: Scans = Scans(),
    methods: Methods = Methods(),
    extent: Extent = Extent(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """One row per mask and method; volume-level PSNR, SSIM and NMSE (fastMRI's), mean slice-level
    PSNR and LPIPS, seconds per slice.

    The weights of CG-SENSE and L1-wavelet are the best of six **for the true image**, which no user
    could choose: the baselines are at their best. All methods share the sensitivities, estimated
    from the undersampled data.

    Args:
        methods: model names or folders, and any of ``CLASSICAL``; all of these and ``mri`` by
            default, for partial Fourier also ``pocs``.

    Raises:
        ValueError, OSError: files that don't fit.
    """
    limit = extent.limit
    kinds, accelerations = scans.mask or ["equispaced-fraction"], scans.acceleration or [4.0, 8.0]
    halves = ["pocs"] if set(kinds) == {"partial"} else []
    models = methods.model or [*CLASSICAL, *halves, "mri"]
    scan = read_scan(data)
    if limit is not None:
        cut = {
            key: value[:limit]
            for key in ("kspace", "magnitude")
            if (value := getattr(scan, key)) is not None
        }
        scan = replace(scan, **cut)
    sens = None if scans.coils is None else read_maps(scans.coils)
    kept: dict[tuple[str, float], MRICase] = {}

    def case_of(kind: str, acceleration: float) -> MRICase:
        key = kind, acceleration
        if key not in kept:
            kept.clear()  # of many slices one is enough in memory
            kept[key] = make_case(scan, *key, sens, scans.sigma, extent.seed, data.name)
        return kept[key]

    rows: list[dict] = []
    turns = list(itertools.product(kinds, accelerations, models))
    with keeping_models({}):
        for model in {*models} - {*CLASSICAL, "pocs"}:  # unknown ones are said before the first row
            load(model)
        measure = partial(_rows, case_of, methods.steps, extent)
        for row in shared(measure, turns, extent.workers):
            rows.append(row)
            progress(len(rows), len(turns))
    return rows


def _rows(
    case_of: Callable[[str, float], MRICase],
    steps: int | None,
    extent: Extent,
    turns: Sequence[tuple[str, float, str]],
) -> Iterator[dict]:
    """Rows of some masks, accelerations and methods."""
    for kind, acceleration, model in turns:
        case = case_of(kind, acceleration)
        row = {
            "mask": kind,
            "acceleration": acceleration,
            "sampled": round(float(case.mask.mean()), 4),
            "model": model,
        }
        yield row | _measure(case, model, steps, extent)


def _measure(case: MRICase, model: str, steps: int | None, extent: Extent) -> dict:
    num_samples, seed = extent.samples, extent.seed
    if model == "zero-filled":
        tried: dict[float | None, Callable[[], Tensor]] = {None: partial(zero_filled, case)}
    elif model == "cg-sense":
        tried = {w: partial(cg_sense, case, w) for w in SENSE_WEIGHTS}
    elif model == "l1-wavelet":
        tried = {w: partial(l1_wavelet, case, w) for w in WAVELET_WEIGHTS}
    elif model == "pocs":
        tried = {None: partial(pocs, case)}
    else:
        task = MRITask(load(model), solver_by_name("ddim"), steps)
        began = time.perf_counter()
        result = task.volume(
            case.kspace, case.mask, case.maps, sigma=case.sigma, num_samples=num_samples, seed=seed
        )
        row = _figures(result.magnitude, case, time.perf_counter() - began) | {
            "lpips": mean_lpips(result.magnitude, case.truth)
        }
        row |= {
            "nfe": result.nfe // len(case.truth),
            "residual_over_sigma": round(result.residual / max(result.sigma, 1e-30), 3),
        }
        if num_samples > 1:
            # before calibration; `bench coverage` has that too
            inside = case.truth > 0.05 * case.truth.max()
            row["coverage_90"] = round(
                coverage(result.magnitude, result.std, case.truth, 0.9, inside), 4
            )
        return row
    best: dict[str, Any] = {}
    for weight, run in tried.items():
        began = time.perf_counter()
        image = run()
        row = _figures(image, case, time.perf_counter() - began) | (
            {} if weight is None else {"weight": weight}
        )
        if not best or row["psnr"] > best["psnr"]:
            best, found = row, image
    return best | {"lpips": mean_lpips(found, case.truth)}


def mean_lpips(image: Tensor, truth: Tensor) -> float | str:
    """LPIPS of grey slices ``(slices, H, W)``, scaled by the true volume's maximum; where it can't
    be computed, the reason.
    """
    peak = truth.max()
    pairs = zip(
        *((v / peak).clamp(0, 1)[:, None].expand(-1, 3, -1, -1).numpy() for v in (image, truth)),
        strict=True,
    )
    try:
        return round(float(np.mean([lpips(x, y) for x, y in pairs])), 4)
    except LPIPSUnavailable as error:
        return str(error)


def _figures(image: Tensor, case: MRICase, seconds: float) -> dict:
    volume = volume_quality(image.numpy(), case.truth.numpy())
    slices = slice_quality(image.numpy(), case.truth.numpy())
    return {
        "psnr": round(volume.psnr, 3),
        "ssim": round(volume.ssim, 4),
        "nmse": round(volume.nmse, 6),
        "slice_psnr": round(float(np.mean([s.psnr for s in slices])), 3),
        "seconds_per_slice": round(seconds / len(image), 2),
    }
