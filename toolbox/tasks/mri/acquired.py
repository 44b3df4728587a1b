"""What of a scan's file is reconstructed: k-space as it is, undersampled or simulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration.io.mri import read_maps, read_sampling
from restoration.io.mri_scan import Scan
from restoration.mri.espirit import mvue, rss
from restoration.mri.sampling import make_sampling, volume_seed
from restoration.mri.sense import ifft2c, normalise_maps
from restoration.mri.simulation import simulate
from restoration.mri.task import sampled
from toolbox.tasks.options import Scanning


@dataclass(frozen=True)
class Acquired:
    """What is reconstructed: ``kspace (slices, coils, H, W)``, the mask (of all slices or of each)
    and maps that are known, its noise, the true magnitudes where they are known, and where the maps
    come from.
    """

    kspace: Tensor
    mask: Tensor | None
    maps: Tensor | None
    sigma: float | None
    truth: np.ndarray | None
    origin: str
    covers_air: bool

    @property
    def acceleration(self) -> float:
        """Points over sampled points."""
        mask = sampled(self.kspace) if self.mask is None else self.mask
        size = self.kspace.shape[-2:]
        return float(1 / mask.float().expand(*mask.shape[:-2], *size).mean())


def acquired(scan: Scan, options: Scanning, path: Path, seed: int) -> Acquired:
    """The scan of a file, simulated where it holds images, undersampled where that is asked for.

    ``options.sigma`` is the noise of the k-space in its units; of magnitude images the noise that
    is simulated, as a share of their 0.99 quantile. By default it is estimated; no noise is
    simulated, and with known maps the data are exact.

    Raises:
        ValueError: options that don't fit the file.
    """
    coils, mask, sigma = options.coils, options.mask, options.sigma
    given, origin = _maps(coils, scan)
    _check_maps(given, scan)
    maps, truth = given, None
    if scan.kspace is None:
        if mask is None:
            raise ValueError(
                f"{path} holds images, not k-space: say how to undersample them with --mask"
            )
        count, own = coil_count(coils), None if given is None else given.numpy()
        made = simulate(scan, own, count, sigma or 0.0, seed)
        kspace, estimated = made.kspace, count > 1 and given is None
        maps = None if estimated else made.maps
        # maps that are estimated explain no data exactly: without noise, not even its estimate is 0
        sigma = None if estimated and sigma is None else made.sigma
        truth = scan.magnitude
    else:
        kspace = torch.from_numpy(scan.kspace)
        if coils.isdigit():
            raise ValueError(
                f"{path} holds k-space of {kspace.shape[1]} coils; --coils takes auto, espirit or a"
                " file of maps"
            )
    sampling = None if scan.mask is None else torch.from_numpy(scan.mask)
    if mask is not None:
        if scan.kspace is not None and sampling is None and _is_full(kspace):
            each = [
                given if given is None or given.ndim == 3 else given[k] for k in range(len(kspace))
            ]
            full = [_full(one, own) for one, own in zip(kspace, each, strict=True)]
            truth = torch.stack(full).numpy()
        elif scan.kspace is not None and not Path(mask).exists():
            raise ValueError(
                f"{path} is undersampled already; leave --mask out, or give the mask it was sampled"
                " with as a file"
            )
        sampling = _sampling(options, tuple(kspace.shape[-2:]), path)
        if not Path(mask).exists() and truth is not None and scan.kspace is not None:
            inside = sampled(kspace).any(0).any(0).to(sampling)
            sampling = sampling * inside  # what was filled with zeros isn't known
    covers_air = (
        scan.kspace is not None and given is not None and bool((given.abs().sum(-3) > 0).all())
    )
    origin = "none" if maps is None and kspace.shape[1] == 1 else origin
    return Acquired(kspace, sampling, maps, sigma, truth, origin, covers_air)


def _is_full(kspace: Tensor) -> bool:
    """Whether all of it was measured, perhaps but for margins that were filled with zeros alike on
    both sides (as fastMRI delivers its columns). Margins on one side are partial Fourier.
    """
    seen = sampled(kspace).all(0)
    if not seen.any():
        return False
    for axis in (0, 1):
        where = torch.nonzero(seen.any(axis))[:, 0]
        first, last = int(where[0]), seen.shape[1 - axis] - 1 - int(where[-1])
        if abs(first - last) > 2:
            return False
        seen = seen.narrow(1 - axis, first, len(seen.any(axis)) - first - last)
    return bool(seen.float().mean() > 0.95) and seen.numel() > kspace[0, 0].numel() / 4


def _sampling(options: Scanning, size: tuple[int, ...], path: Path) -> Tensor:
    """A file's mask, or one of the kinds, drawn for the file's name."""
    mask = options.mask or ""
    if Path(mask).exists():
        return torch.from_numpy(read_sampling(mask, size))
    seed = volume_seed(path.name)
    return make_sampling(mask, size, options.acceleration, options.center_fraction, seed)


def coil_count(coils: str) -> int:
    """How many coils are simulated."""
    return int(coils) if coils.isdigit() else 8


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
