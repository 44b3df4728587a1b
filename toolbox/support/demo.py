"""The main job on an embedded photo: restore it, show it, compare it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from restoration.io.images import Photo, write_image
from restoration.metrics import psnr, ssim
from solvers.files import check_marked, check_outputs, replace_marked_folder
from toolbox.api import ZOO, load_for
from toolbox.support.sheets import heat, sheet
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Source
from toolbox.tasks.options import Inpainting
from toolbox.tasks.settings import Draws, Prior, Settings

KIND = "demo"
PHOTO = ZOO / "demo" / "chelsea.png"


def run_demo(
    out: Path,
    mask: str,
    prior: Prior = Prior(),
    settings: Settings = Settings(steps=5),
    draws: Draws = Draws(samples=4),
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Degrade the embedded photo, restore it, write five PNG files to ``out`` and return the
    figures.

    Raises:
        ValueError: unknown model, solver or mask kind, or an impossible step count.
        OSError: ``out`` can't be made or written.
    """
    check_marked(out, KIND)
    check_outputs([out], [prior.model])
    task = task_by_name("inpaint")
    options = Inpainting(mask)
    trial = task.trial(Source((PHOTO,), 2**31, draws.seed), 0, options)
    original, known = trial.known.numpy(), trial.inputs["mask"].numpy()
    degraded = original * known + (1 - known) * 0.5
    done = iter(range(1, 10**9))
    restorer = task.restorer(load_for("inpaint", prior.model), options, settings)
    result = restorer(
        trial.inputs,
        num_samples=draws.samples,
        seed=draws.seed,
        callback=lambda *_: progress(next(done)),
    )
    restored, first = result.mean.numpy(), result.samples[0].numpy()
    began = time.perf_counter()
    biharmonic = task.baselines(options)["biharmonic"](trial).numpy()
    biharmonic_seconds = time.perf_counter() - began
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
        ("first sample", first),
    ]
    files["side-by-side"] = sheet(panels, columns=3)

    def write(place: Path) -> None:
        for name, pixels in files.items():
            write_image(place / f"{name}.png", Photo(pixels))

    replace_marked_folder(out, write, KIND)
    return {
        "model": prior.model,
        "solver": settings.solver,
        "steps": settings.steps,
        "samples": draws.samples,
        "mask": mask.partition(":")[0],
        "missing": round(float(1 - known.mean()), 4),
        "nfe": result.nfe,
        "restored": _figures(restored, original, result.seconds),
        "first_sample": _figures(
            result.samples[0].numpy(), original, result.seconds / draws.samples
        ),
        "biharmonic": _figures(biharmonic, original, biharmonic_seconds),
        "degraded": _figures(degraded, original, None),
        "files": [str(out / f"{name}.png") for name in files],
    }


def _figures(image: np.ndarray, reference: np.ndarray, seconds: float | None) -> dict:
    figures = {"psnr": round(psnr(image, reference), 3), "ssim": round(ssim(image, reference), 4)}
    return figures if seconds is None else {**figures, "seconds": round(seconds, 2)}
