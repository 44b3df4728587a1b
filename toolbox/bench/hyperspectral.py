"""Hyperspectral denoising measured: methods on cubes with known truth and the benchmark's noise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from restoration.hyperspectral.noise import CASES, add_noise, band_sigma
from restoration.hyperspectral.quality import cube_quality
from restoration.hyperspectral.simulation import SENSORS, SpectralLibrary, bands_of, simulate_cube
from restoration.hyperspectral.task import HyperspectralTask
from restoration.io.cubes import read_cube
from toolbox.api import keeping_models, load
from toolbox.bench.options import Extent
from toolbox.bench.shares import shared

CLASSICAL = ("noisy", "subspace", "fasthyde-nlm", "fasthyde", "bm4d")


def run_bench_hsi(
    cubes: list[Path],
    *,
    cases: list[str],
    methods: list[str],
    library: Path | None = None,
    crop: int | None = 64,
    extent: Extent = Extent(),
    symmetries: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """One row per cube, case and method: MPSNR (dB), MSSIM, SAM (radians), ERGAS, seconds.

    Args:
        cubes: files; each is scaled to [0, 1] by its smallest and largest value. `simulated` makes
            one (:func:`simulated`), names of :data:`restoration.hyperspectral.simulation.SENSORS`
            make scenes of measured spectra.
        cases: names of :data:`restoration.hyperspectral.noise.CASES`; a number stands for Gaussian
            noise of that sigma of 255.
        methods: ``noisy``; ``subspace``: projection on the fitted subspace alone; ``fasthyde-nlm``:
            FastHyDe's scheme with scikit-image's non-local means on each eigen-image of the same
            subspace; ``fasthyde``: that of the package hyde-images (BM3D, ten dimensions);
            ``bm4d``, told the true sigma for Gaussian noise and the median of the bands' estimates
            otherwise; else a model's name or folder.
        library: spectra of those scenes, as
            :meth:`restoration.hyperspectral.simulation.SpectralLibrary.read` takes them.
        crop: side of the top left part that is used; None: all.
        extent: its seed and workers.

    Raises:
        ValueError: an unknown case, a scene without a library, or a package that is missing.
    """
    check_cases(cases)
    rows: list[dict] = []
    turns = [(str(file), case, method) for file in cubes for case in cases for method in methods]
    with keeping_models({}):
        for method in {*methods} - {*CLASSICAL}:  # unknown ones are said before the first row
            load(method)
        measure = partial(_rows, library, crop, extent.seed, symmetries)
        for row in shared(measure, turns, extent.workers):
            rows.append(row)
            progress(len(rows), len(turns))
    return rows


def _rows(
    library: Path | None,
    crop: int | None,
    seed: int,
    symmetries: int,
    turns: Sequence[tuple[str, str, str]],
) -> Iterator[dict]:
    """Rows of some cubes, cases and methods."""
    for file, of_cube in itertools.groupby(turns, key=lambda turn: turn[0]):
        clean = np.ascontiguousarray(_clean(file, library, seed)[:, :crop, :crop])
        for case, of_case in itertools.groupby(of_cube, key=lambda turn: turn[1]):
            sigma = float(case) / 255 if case.replace(".", "", 1).isdigit() else None
            noisy = add_noise(clean, "iid" if sigma is not None else case, seed, sigma)
            for _, _, method in of_case:
                began = time.perf_counter()
                restored = _restore(method, noisy, sigma, symmetries)
                seconds = time.perf_counter() - began
                quality = {name: float(v) for name, v in cube_quality(restored, clean).items()}
                head = {"cube": Path(file).stem, "case": case, "method": method}
                yield head | quality | {"seconds": seconds}


def _clean(cube: str, library: Path | None, seed: int) -> np.ndarray:
    if cube == "simulated":
        return simulated(seed=seed)
    if cube not in SENSORS:
        return _unit(read_cube(cube).values)
    if library is None:
        raise ValueError(f"the scene {cube!r} is mixed from measured spectra: give --library")
    from skimage.data import chelsea  # no training picture, unlike other colour photographs there

    picture = chelsea()[::3, ::3].transpose(2, 0, 1) / 255
    return simulate_cube(SpectralLibrary.read(library), picture, bands_of(cube), seed)


def _restore(method: str, noisy: np.ndarray, sigma: float | None, symmetries: int) -> np.ndarray:
    if method == "noisy":
        return noisy
    if method == "bm4d":
        level = sigma if sigma is not None else float(np.median(band_sigma(noisy)))
        return _bm4d()(np.ascontiguousarray(noisy.transpose(1, 2, 0)), level).transpose(2, 0, 1)
    if method == "fasthyde":
        import torch

        y = torch.from_numpy(np.ascontiguousarray(noisy.transpose(1, 2, 0), np.float32))
        return np.asarray(
            _fasthyde()()(y, noise_type="additive", iid=sigma is not None, k_subspace=10)
        ).transpose(2, 0, 1)
    if method in ("subspace", "fasthyde-nlm"):
        return _Classical(None if method == "subspace" else _non_local_means)(noisy).rows()
    denoiser = load(method)
    return HyperspectralTask(
        denoiser, symmetries=symmetries, channels=denoiser.image_channels or 1
    )(noisy).rows()


class _Classical(HyperspectralTask):
    """The task with a classical filter of known noise level in the network's place, or with
    none.
    """

    def __init__(self, filter):
        super().__init__(filter)

    def denoise(self, images, variance, num_samples=1, seed=0, callback=None, like=None):
        if self.denoiser is None:
            return images, 0
        level = np.sqrt(np.median(variance, axis=(1, 2)))
        return np.stack([self.denoiser(x, s) for x, s in zip(images, level, strict=True)]), 0


def _non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        image, patch_size=5, patch_distance=10, h=0.8 * sigma, sigma=sigma, fast_mode=True
    )


def _bm4d():
    try:
        from bm4d import bm4d
    except ImportError as error:
        raise ValueError(
            "this method needs the package bm4d: pip install bm4d (its licence is non-commercial)"
        ) from error
    return bm4d


def _fasthyde():
    try:
        from hyde import FastHyDe
    except ImportError as error:
        raise ValueError(
            "this method needs hyde-images, pytorch_wavelets, kornia and bm3d (pip install):"
            f" {error}"
        ) from error
    return FastHyDe


def _unit(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12)


def simulated(bands: int = 100, side: int = 64, seed: int = 0) -> np.ndarray:
    """A cube ``(B, side, side)`` in [0, 1] without any noise: five smooth spectra, fields with soft
    borders, a slope of light.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    points = rng.uniform(0, side, (18, 2, 1, 1))
    distance = ((grid - points) ** 2).sum(1)
    kind = rng.integers(0, 5, 18)
    weight = np.exp(-(distance - distance.min(0)) / (0.12 * side))
    maps = np.stack([weight[kind == k].sum(0) for k in range(5)]) / weight.sum(0)
    band = np.linspace(0, 1, bands)[:, None]
    centres, widths, heights = (
        rng.uniform(0, 1, (3, 5)),
        rng.uniform(0.08, 0.4, (3, 5)),
        rng.uniform(0.1, 0.5, (3, 5)),
    )
    spectra = 0.1 + (heights * np.exp(-0.5 * ((band[:, None] - centres) / widths) ** 2)).sum(1)
    light = 0.8 + 0.2 * np.sin(grid[0] / side * 3 + grid[1] / side * 2)
    cube = np.tensordot(spectra, maps, 1) * light
    return (cube / cube.max()).astype(np.float32)


def check_cases(cases: list[str]) -> None:
    """Raise before any work if a case is neither a name nor a number.

    Raises:
        ValueError: which one.
    """
    for case in cases:
        if case not in CASES[1:] and not case.replace(".", "", 1).isdigit():
            raise ValueError(
                f"noise case {case!r} is unknown; give a sigma of 255 or one of"
                f" {', '.join(CASES[1:])}"
            )
