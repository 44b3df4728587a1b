"""The main job on an embedded photo: restore it, show it, compare it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import psnr, ssim
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import make_mask
from solvers import solver_by_name
from solvers.files import check_marked, check_outputs, replace_marked_folder
from toolbox.api import ZOO, load
from toolbox.support.sheets import heat, sheet

KIND = "demo"
PHOTO = ZOO / "demo" / "chelsea.png"


def run_demo(
    out: Path,
    *,
    model: str,
    solver: str,
    steps: int,
    num_samples: int,
    mask: tuple[str, float],
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Degrade the embedded photo, restore it, write five PNG files to ``out`` and return the
    figures.

    Raises:
        ValueError: unknown model, solver or mask kind, or an impossible step count.
        OSError: ``out`` can't be made or written.
    """
    from skimage.restoration import inpaint_biharmonic

    check_marked(out, KIND)
    check_outputs([out], [model])
    original = read_image(PHOTO).pixels
    known = make_mask(mask[0], *original.shape[1:], mask[1], seed)
    degraded = original * known + (1 - known) * 0.5
    task = InpaintingTask(load(model), solver_by_name(solver), steps)
    done = iter(range(1, 10**9))
    result = task(
        torch.from_numpy(degraded),
        torch.from_numpy(known),
        num_samples=num_samples,
        seed=seed,
        callback=lambda *_: progress(next(done)),
    )
    restored = result.mean.numpy()
    began = time.perf_counter()
    biharmonic = inpaint_biharmonic(
        (original * known).transpose(1, 2, 0), known == 0, channel_axis=-1
    )
    biharmonic_seconds = time.perf_counter() - began
    biharmonic = biharmonic.transpose(2, 0, 1).clip(0, 1).astype(np.float32)
    uncertainty, top = heat(result.std.mean(0).numpy())
    files = {
        "original": original,
        "degraded": degraded,
        "restored": restored,
        "uncertainty": uncertainty,
    }
    panels = [
        ("original", original),
        (f"degraded ({1 - known.mean():.0%} missing)", degraded),
        (f"restored ({psnr(restored, original):.2f} dB)", restored),
        (f"biharmonic ({psnr(biharmonic, original):.2f} dB)", biharmonic),
        (f"uncertainty (white = {top:.2f})", uncertainty),
        ("first sample", result.samples[0].numpy()),
    ]
    files["side-by-side"] = sheet(panels, columns=3)

    def write(place: Path) -> None:
        for name, pixels in files.items():
            write_image(place / f"{name}.png", Photo(pixels))

    replace_marked_folder(out, write, KIND)
    return {
        "model": model,
        "solver": solver,
        "steps": steps,
        "samples": num_samples,
        "mask": mask[0],
        "missing": round(float(1 - known.mean()), 4),
        "nfe": result.nfe,
        "restored": _figures(restored, original, result.seconds),
        "first_sample": _figures(result.samples[0].numpy(), original, result.seconds / num_samples),
        "biharmonic": _figures(biharmonic, original, biharmonic_seconds),
        "degraded": _figures(degraded, original, None),
        "files": [str(out / f"{name}.png") for name in files],
    }


def _figures(image: np.ndarray, reference: np.ndarray, seconds: float | None) -> dict:
    figures = {"psnr": round(psnr(image, reference), 3), "ssim": round(ssim(image, reference), 4)}
    return figures if seconds is None else {**figures, "seconds": round(seconds, 2)}
