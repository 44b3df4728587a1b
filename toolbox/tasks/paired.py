"""Paired restoration of files: ``restobox restore dehaze``, ``restobox restore paired`` and
``restobox bench dehaze``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restoration.io.folders import find_pairs, read_pair
from restoration.io.images import Photo, check_writable, read_image, write_image
from restoration.metrics import psnr, ssim
from restoration.paired.dark_channel import DarkChannelPrior
from restoration.paired.task import PairedTask
from solvers import solver_by_name
from solvers.files import check_outputs
from toolbox.api import load_for

CLASSICAL = ("input", "dark-channel")
SOLVERS = ("resfusion", "rddm", "evodiff", "ddim")


def paired_task(
    model: str,
    solver: str,
    steps: int,
    *,
    haze: bool,
    view: int | None = None,
    tile: int = 512,
    device: str = "cpu",
) -> PairedTask:
    """The task around a model of that kind.

    Raises:
        ValueError: an unknown model or solver, a whole-restoration bundle, or a model that was made
            for something else.
    """
    denoiser = load_for("dehaze" if haze else "paired", model, device=device)
    return PairedTask(denoiser, solver_by_name(solver), steps, view=view, tile=tile)


def run_paired(
    image: Path,
    out: Path,
    *,
    mask: Path | None,
    model: str,
    solver: str,
    steps: int,
    seed: int,
    num_samples: int,
    reference: Path | None,
    view: int | None,
    tile: int,
    device: str,
    haze: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Read, restore, write; returns what was done and, with a reference, how close it came.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_writable(out)
    check_outputs([out], [image, mask, reference, model])
    photo = read_image(image)
    height, width = photo.pixels.shape[1:]
    truth = None if reference is None else read_pair(image, reference)[1]
    if truth is not None and min(height, width) < 11:
        raise ValueError(
            "--reference needs pictures of at least 11 x 11 pixels (the window of SSIM)"
        )
    if photo.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
    shown = None
    if mask is not None:
        pixels = read_image(mask).pixels
        if pixels.shape[1:] != (height, width):
            raise ValueError(
                f"mask {mask} is {pixels.shape[2]} x {pixels.shape[1]} pixels but the image is"
                f" {width} x {height}"
            )
        shown = torch.from_numpy((pixels.mean(0) >= 0.5).astype(np.float32))
    task = paired_task(model, solver, steps, haze=haze, view=view, tile=tile, device=device)
    done = itertools.count(1)
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "seed": seed,
        "callback": lambda *_: progress(next(done)),
    }
    result = task(torch.from_numpy(photo.pixels), shown, **options)
    restored = result.mean.numpy()
    write_image(out, Photo(restored, photo.alpha, photo.bits))
    figures = {
        "image": str(image),
        "out": str(out),
        "size": [width, height],
        "model": model,
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "samples": num_samples,
        "nfe": result.nfe,
        "seconds": round(result.seconds, 2),
    }
    if truth is not None:
        figures |= {
            "psnr": round(psnr(restored, truth), 3),
            "ssim": round(ssim(restored, truth), 4),
        }
        figures |= {
            "psnr_input": round(psnr(photo.pixels, truth), 3),
            "ssim_input": round(ssim(photo.pixels, truth), 4),
        }
    return figures


def run_bench_dehaze(
    data: Path,
    *,
    hazy: str,
    clear: str,
    models: Sequence[str],
    solvers: Sequence[str],
    steps: int,
    num_samples: int,
    limit: int | None,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """Mean PSNR, SSIM and seconds on a folder of pairs; ``input`` and ``dark-channel`` among the
    models are the picture itself and the classical method.

    Raises:
        FileNotFoundError, ValueError: bad folders, pairs or names.
    """
    pairs = find_pairs(data, hazy, clear)[:limit]
    methods: list[tuple[str, str, int, Callable]] = []
    prior = DarkChannelPrior()
    for model in models:
        if model == "input":
            methods.append((model, "", 0, lambda image, seed: image))
        elif model == "dark-channel":
            methods.append(
                (
                    model,
                    "",
                    0,
                    lambda image, seed: prior(image.expand(3, -1, -1)[None]).image[0, : len(image)],
                )
            )
        else:
            for solver in solvers:
                task = paired_task(model, solver, steps, haze=True)
                methods.append((model, solver, steps * num_samples, _restorer(task, num_samples)))
    rows: dict[tuple[str, str, int], list] = {}
    done, total = 0, len(pairs) * len(methods)
    for path, clear_path in pairs:
        image, truth = read_pair(path, clear_path)
        for model, solver, calls, method in methods:
            began = time.perf_counter()
            restored = method(torch.from_numpy(image), seed).numpy()
            seconds = time.perf_counter() - began
            rows.setdefault((model, solver, calls), []).append(
                (psnr(restored, truth), ssim(restored, truth), seconds)
            )
            done += 1
            progress(done, total)
    table = []
    for (model, solver, calls), values in rows.items():
        p, s, seconds = np.mean(values, axis=0)
        figures = {
            "psnr": round(float(p), 3),
            "ssim": round(float(s), 4),
            "seconds": round(float(seconds), 2),
        }
        each = [round(float(v[0]), 2) for v in values]
        table.append(
            {
                "model": model,
                "solver": solver,
                "nfe": calls,
                "pictures": len(values),
                **figures,
                "psnr_each": each,
            }
        )
    return table


def _restorer(task: PairedTask, num_samples: int) -> Callable:
    return lambda image, seed: task(image, num_samples=num_samples, seed=seed).mean
