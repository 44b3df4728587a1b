"""MRI files in, images out: what ``restobox restore mri`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.io.mri import read_maps, read_sampling, read_scan
from restoration.io.mri_output import check_output, std_file, write_reconstruction
from restoration.io.mri_scan import Scan
from restoration.mri.espirit import mvue, rss
from restoration.mri.evaluation import volume_quality
from restoration.mri.sampling import MASKS, Seed, column_mask, poisson_mask, volume_seed
from restoration.mri.sense import fft2c, ifft2c, normalise_maps
from restoration.mri.simulation import resize_maps, ring_maps, smooth_phase
from restoration.mri.task import MRITask
from solvers import solver_by_name
from solvers.files import check_outputs
from toolbox.api import load_for

CALIBRATION = 24


def make_sampling(
    kind: str, size: tuple[int, ...], acceleration: float, center_fraction: float | None, seed: Seed
) -> Tensor:
    """A mask ``(W,)``, or ``(H, W)`` for ``poisson``; the centre is fastMRI's share for the
    acceleration unless given (0.32/R).

    Raises:
        ValueError: an unknown kind, or a centre that doesn't fit.
    """
    if kind not in MASKS:
        raise ValueError(f"mask {kind!r} is neither a file nor a kind; kinds: {', '.join(MASKS)}")
    if kind == "poisson":
        # at most half of the points lie in the centre
        half = int((size[0] * size[1] / (2 * acceleration)) ** 0.5)
        return poisson_mask(size[0], size[1], acceleration, min(CALIBRATION, half, *size), seed)
    return column_mask(
        kind,
        size[1],
        acceleration,
        0.32 / acceleration if center_fraction is None else center_fraction,
        seed,
    )


def simulate(
    scan: Scan, maps: np.ndarray | None, coils: int, sigma: float, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Fully sampled noisy k-space ``(slices, coils, H, W)`` from magnitudes, the coil maps, and the
    noise in the data's units.

    The phase is smooth and random, one for all slices; maps are a ring of coils unless given.

    Args:
        sigma: noise of real and imaginary part as a share of the volume's 0.99 quantile.
    """
    magnitude: Any = scan.magnitude
    size, rng = magnitude.shape[1:], np.random.default_rng(seed)
    if maps is None:
        sens = (
            ring_maps(coils, size, rng)
            if coils > 1
            else torch.ones(1, *size, dtype=torch.complex64)
        )
    else:
        sens = resize_maps(torch.from_numpy(maps), size)
    phase = smooth_phase(size, rng)
    images = torch.polar(torch.from_numpy(magnitude), phase.expand(magnitude.shape))
    noise = sigma * float(np.quantile(magnitude, 0.99))
    clean = fft2c(images[:, None] * sens)
    g = torch.Generator().manual_seed(seed)
    return (
        clean + noise * 2**0.5 * torch.randn(clean.shape, generator=g, dtype=clean.dtype),
        sens,
        noise,
    )


def run_mri(
    file: Path,
    out: Path,
    *,
    mask: str | None,
    acceleration: float,
    center_fraction: float | None,
    coils: str,
    model: str,
    solver: str,
    steps: int | None,
    grid: str,
    correction: str | None,
    sigma: float | None,
    seed: int,
    num_samples: int,
    std: bool,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Read, undersample if asked, reconstruct, write; returns what was done and, where the truth is
    known, how close it came.

    Everything that can be checked is checked before the first network call.

    Args:
        mask: a file, one of fastMRI's kinds or ``poisson`` (the data are then undersampled), or
            None: as sampled.
        coils: ``auto`` (maps that lie in the file, otherwise ESPIRiT), ``espirit``, a file of maps,
            or for magnitude images the number of simulated coils.
        sigma: noise of the k-space in its units; for magnitude images the noise that is simulated,
            as a share of their 0.99 quantile.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_output(out)
    check_outputs({out, std_file(out) if std else out}, [file, mask, coils, model])
    scan = read_scan(file)
    maps, source = _maps(coils, scan)
    _check_maps(maps, scan)
    given = maps
    if scan.kspace is None:
        if mask is None:
            raise ValueError(
                f"{file} holds images, not k-space: say how to undersample them with --mask"
            )
        count = int(coils) if coils.isdigit() else 8
        kspace, sens, sigma = simulate(
            scan, None if maps is None else maps.numpy(), count, sigma or 0.0, seed
        )
        maps = None if count > 1 and given is None else sens
        truth = torch.from_numpy(scan.magnitude)
    else:
        kspace = torch.from_numpy(scan.kspace)
        if coils.isdigit():
            raise ValueError(
                f"{file} holds k-space of {kspace.shape[1]} coils; --coils takes auto, espirit or a"
                " file of maps"
            )
        truth = None
    sampling = None if scan.mask is None else torch.from_numpy(scan.mask)
    if mask is not None:
        if (
            scan.kspace is not None
            and sampling is None
            and bool((kspace.abs().sum((0, 1)) > 0).float().mean() > 0.95)
        ):
            truth = torch.stack(
                [
                    _full(one, given if given is None or given.ndim == 3 else given[k])
                    for k, one in enumerate(kspace)
                ]
            )
        elif scan.kspace is not None and Path(mask).exists() is False:
            raise ValueError(
                f"{file} is undersampled already; leave --mask out, or give the mask it was sampled"
                " with as a file"
            )
        size = tuple(kspace.shape[-2:])
        made = Path(mask).exists()
        sampling = (
            torch.from_numpy(read_sampling(mask, size))
            if made
            else make_sampling(mask, size, acceleration, center_fraction, volume_seed(file.name))
        )
    task = MRITask(
        load_for("mri", model, device=device), solver_by_name(solver), steps, grid, correction
    )
    result = task.volume(
        kspace, sampling, maps, sigma=sigma, num_samples=num_samples, seed=seed, progress=progress
    )
    image = result.mean.numpy()
    if scan.crop is not None:
        image, spread = _crop(image, scan.crop), _crop(result.std.numpy(), scan.crop)
        truth = None if truth is None else torch.from_numpy(_crop(truth.numpy(), scan.crop))
    else:
        spread = result.std.numpy()
    if truth is None and scan.target is not None and scan.target.shape == image.shape:
        truth = torch.from_numpy(scan.target)
    used = (
        (kspace.abs().sum((0, 1)) > 0).float()
        if sampling is None
        else sampling.expand(kspace.shape[-2:])
    )
    figures = {
        "file": str(file),
        "slices": len(image),
        "coils": kspace.shape[1],
        "maps": "none" if maps is None and kspace.shape[1] == 1 else source,
        "size": list(image.shape[1:]),
        "acceleration": round(float(1 / used.mean()), 2),
        "model": model,
        "solver": solver,
        "steps": task.plan(num_samples)[0],
        "samples": num_samples,
        "seed": seed,
        "sigma": result.sigma,
        "residual": result.residual,
        "nfe": result.nfe,
        "seconds": round(result.seconds, 2),
    }
    if truth is not None and min(truth.shape[1:]) >= 7:
        quality = volume_quality(np.abs(image), truth.numpy())
        figures |= {
            "psnr": round(quality.psnr, 3),
            "ssim": round(quality.ssim, 4),
            "nmse": round(quality.nmse, 6),
        }
    if given is not None and scan.kspace is not None and bool((given.abs().sum(-3) > 0).all()):
        figures["note"] = (
            "the coil maps cover the air around the object too; --coils espirit finds where the"
            " object ends"
        )
    files = write_reconstruction(out, image, scan, spread if std else None)
    return figures | {"out": [str(f) for f in files]}


def _maps(coils: str, scan: Scan) -> tuple[Tensor | None, str]:
    """Sensitivities, None where they are to be estimated, and where they come from."""
    if coils.isdigit():
        if not 1 <= int(coils) <= 64:
            raise ValueError(f"--coils takes 1 to 64 simulated coils; got {coils}")
        return None, "espirit"
    if coils == "auto" and scan.maps is not None:
        return torch.from_numpy(scan.maps), "file"
    if coils in ("auto", "espirit"):
        return None, "espirit"
    return torch.from_numpy(read_maps(coils)), coils


def _check_maps(maps: Tensor | None, scan: Scan) -> None:
    if maps is None:
        return
    if scan.kspace is None:
        if maps.ndim != 3:
            raise ValueError(
                f"coils are simulated with maps (coils, H, W); got {tuple(maps.shape)}"
            )
    elif tuple(maps.shape) not in (scan.kspace.shape, scan.kspace.shape[1:]):
        raise ValueError(
            f"the coil maps are {tuple(maps.shape)} but k-space is {scan.kspace.shape} (slices,"
            " coils, H, W): give the same coils and size, for one slice or for all"
        )


def _full(kspace: Tensor, maps: Tensor | None) -> Tensor:
    """The magnitude that fully sampled data give: combined by the maps, or root of the sum of
    squares without them.
    """
    return rss(ifft2c(kspace)) if maps is None else mvue(kspace, normalise_maps(maps)).abs()


def _crop(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centred crop; axes that are smaller already stay."""
    height, width = (min(a, b) for a, b in zip(size, x.shape[-2:], strict=True))
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
