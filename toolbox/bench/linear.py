"""Measured figures: denoising, super-resolution and deblurring of a folder of pictures, next to the
classical methods, in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration.io.folders import find_pictures
from restoration.io.images import read_image
from restoration.metrics import psnr, ssim
from restoration.operators.linear import Denoising
from restoration.operators.separable import Bicubic, BlockMean, Blur, gaussian_kernel
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from solvers import solver_by_name
from toolbox.api import load

CASES = ("denoise:25", "denoise:50", "superresolve:4")
KINDS = ("denoise", "superresolve", "superresolve-bicubic", "deblur")
CLASSICAL = ("plain", "nlm", "bm3d")
BLUR_NOISE = 0.01


@dataclass(frozen=True)
class LinearCase:
    """One degradation, ``KIND:AMOUNT``: noise of sigma AMOUNT of 255, a picture AMOUNT times
    smaller (means of blocks, or bicubic), or a Gaussian blur of AMOUNT pixels with noise of 0.01.

    Raises:
        ValueError: another kind, or an amount that it does not take.
    """

    name: str

    def __post_init__(self) -> None:
        kind, _, amount = self.name.partition(":")
        try:
            value = float(amount)
        except ValueError:
            value = float("nan")
        whole = value in range(2, 9)
        if kind not in KINDS or not (whole if kind.startswith("super") else 0 < value <= 255):
            raise ValueError(
                f"case {self.name!r} is not KIND:AMOUNT; kinds: {', '.join(KINDS)} (denoise:25,"
                " superresolve:4, deblur:2)"
            )

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def amount(self) -> float:
        return float(self.name.partition(":")[2])

    @property
    def sigma(self) -> float:
        """Noise in units of [0, 1]."""
        return {"denoise": self.amount / 255, "deblur": BLUR_NOISE}.get(self.kind, 0.0)

    def measure(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, Tensor, object]:
        """The truth ``(C, H, W)`` (cut to whole blocks), what is measured of it (no batch axis) and
        the operator.
        """
        if self.kind.startswith("super"):
            factor = int(self.amount)
            height, width = (n // factor * factor for n in image.shape[1:])
            image = np.ascontiguousarray(image[:, :height, :width])
        size = image.shape[1:]
        match self.kind:
            case "denoise":
                operator = Denoising()
            case "superresolve":
                operator = BlockMean(size, int(self.amount))
            case "superresolve-bicubic":
                operator = Bicubic(size, int(self.amount))
            case _:
                operator = Blur(size, gaussian_kernel(self.amount))
        y = operator.A(torch.from_numpy(image)[None])[0]
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
        return image, y + self.sigma * noise, operator


def run_bench_linear(
    data: Path,
    *,
    cases: Sequence[str],
    models: Sequence[str],
    solver: str = "ddim",
    steps: int = 1,
    num_samples: int = 1,
    symmetries: int = 1,
    grey: bool = False,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """Mean PSNR, SSIM and seconds of every method on every case, the same noise for all.

    Args:
        cases: see :class:`LinearCase`.
        models: denoisers; or the classical ``plain`` (the noisy, blurred or bicubically enlarged
            picture), ``nlm`` (non-local means; noise only) and ``bm3d`` (noise only; needs the
            package).
        grey: measure the mean of the colours.

    Raises:
        FileNotFoundError, ValueError: no pictures, unknown names, or a classical method that does
            not fit a case.
    """
    files = find_pictures(data)[:limit]
    known = [LinearCase(name) for name in cases]
    for name in models:
        if name in CLASSICAL[1:] and any(c.kind != "denoise" for c in known):
            raise ValueError(
                f"{name} only removes noise; leave it out, or take denoise cases alone"
            )
    methods = {
        name: (
            _classical(name)
            if name in CLASSICAL
            else _task(name, solver, steps, num_samples, symmetries)
        )
        for name in models
    }
    rows: dict[tuple[str, str], list] = {}
    total = len(files) * len(known) * len(methods)
    for k, path in enumerate(files):
        image = read_image(path).pixels.astype(np.float32)
        image = image.mean(0, keepdims=True) if grey else image
        for case in known:
            truth, y, operator = case.measure(image, seed + k)
            for name, method in methods.items():
                began = time.perf_counter()
                restored = method(y, operator, case, seed)
                seconds = time.perf_counter() - began
                rows.setdefault((case.name, name), []).append(
                    (psnr(restored, truth), ssim(restored, truth), seconds)
                )
                progress(sum(map(len, rows.values())), total)
    table = []
    for (case, name), values in rows.items():
        p, s, seconds = np.mean(values, axis=0)
        calls = 0 if name in CLASSICAL else steps * num_samples * symmetries
        figures = {
            "psnr": round(float(p), 3),
            "ssim": round(float(s), 4),
            "seconds": round(float(seconds), 2),
        }
        table.append(
            {"case": case, "model": name, "calls": calls, "pictures": len(values), **figures}
        )
    return table


def _task(model: str, solver: str, steps: int, num_samples: int, symmetries: int) -> Callable:
    task = LinearTask(load(model), solver_by_name(solver), steps, symmetries=symmetries)
    # as `restobox restore deblur`
    blurred = LinearTask(task.denoiser, task.solver, steps, symmetries=symmetries, start_level=0.4)

    def run(y: Tensor, operator, case: LinearCase, seed: int) -> np.ndarray:
        chosen = blurred if case.kind == "deblur" else task
        return chosen(
            y, operator, sigma=case.sigma, num_samples=num_samples, seed=seed
        ).mean.numpy()

    return run


def _classical(name: str) -> Callable:
    if name == "plain":
        return _plain
    if name == "nlm":
        from skimage.restoration import denoise_nl_means

        def denoise(plane: np.ndarray, sigma: float) -> np.ndarray:
            return denoise_nl_means(
                plane, patch_size=7, patch_distance=9, h=0.8 * sigma, sigma=sigma, fast_mode=True
            )

    else:
        try:
            from bm3d import bm3d as denoise
        except ImportError as error:
            raise ValueError(
                "the method bm3d needs the package bm3d (not part of restobox): pip install bm3d"
            ) from error

    def run(y: Tensor, operator, case: LinearCase, seed: int) -> np.ndarray:
        return (
            np.stack([denoise(plane, case.sigma) for plane in y.double().numpy()])
            .clip(0, 1)
            .astype(np.float32)
        )

    return run


def _plain(y: Tensor, operator, case: LinearCase, seed: int) -> np.ndarray:
    if case.kind.startswith("super"):
        factor = int(case.amount)
        y = enlarge(y[None], factor, tuple(factor * n for n in y.shape[1:]))[0]
    return y.clamp(0, 1).numpy()
