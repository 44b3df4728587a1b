"""Measured figures for ultrasound: clean frames with simulated haze, dehazed by the models and by
classical methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from restoration.io.ultrasound import read_clip
from restoration.metrics import psnr
from restoration.ultrasound.contrast import anatomical_regions, cnr, gcnr, ks
from restoration.ultrasound.power_split import power_split
from restoration.ultrasound.simulation import simulate_haze
from restoration.ultrasound.task import UltrasoundTask
from solvers import solver_by_name
from toolbox.api import load

CLASSICAL = ("hazy", "equalize", "clahe", "gamma", "nlm", "bm3d", "split")
NOISE = (
    0.1  # standard deviation that NLM and BM3D are told: haze's own in a blood pool is about that
)


def run_bench_ultrasound(
    data: Path,
    *,
    methods: Sequence[str],
    strengths: Sequence[float],
    steps: int,
    solver: str,
    correction: str,
    num_samples: int,
    limit: int | None,
    seed: int,
    device: str = "cpu",
    grey: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Means over frames, by method and strength.

    A method is one of ``CLASSICAL``, or two models ``TISSUE+HAZE``. With more frames than
    ``limit``, frames are taken evenly. Frames that show too little tissue or blood are left out and
    counted.

    Raises:
        ValueError: an unknown method, no usable frame, or a method's missing package.
    """
    clip = read_clip(data, grey=grey)
    run = {
        name: _method(name, steps, solver, correction, num_samples, seed, device)
        for name in methods
    }
    chosen = (
        range(len(clip))
        if limit is None
        else sorted({round(k) for k in np.linspace(0, len(clip) - 1, min(limit, len(clip)))})
    )
    found: dict[tuple[str, float], list[dict]] = {}
    skipped, done = 0, 0
    total = len(chosen) * len(strengths) * len(run)
    for number in chosen:
        clean = clip.frame(number)
        try:
            regions = anatomical_regions(clean)
        except ValueError:
            skipped, done = skipped + 1, done + len(strengths) * len(run)
            continue
        for strength in strengths:
            hazy = simulate_haze(clean, strength, seed + number)
            for name, restore in run.items():
                began = time.perf_counter()
                image = np.clip(np.asarray(restore(hazy), np.float64), 0, 1)
                seconds = time.perf_counter() - began
                found.setdefault((name, strength), []).append(
                    _figures(image, clean, hazy, regions) | {"seconds": seconds}
                )
                done += 1
                progress(done, total)
    if not found:
        raise ValueError(f"{data} has no frame that shows enough tissue and blood to measure")
    rows = [
        {"method": name, "strength": strength}
        | {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        for (name, strength), values in sorted(
            found.items(), key=lambda item: (item[0][1], list(run).index(item[0][0]))
        )
    ]
    return {
        "data": str(data),
        "frames": len(chosen) - skipped,
        "skipped": skipped,
        "steps": steps,
        "samples": num_samples,
        "rows": rows,
    }


def _figures(
    image: np.ndarray, clean: np.ndarray, hazy: np.ndarray, regions: dict[str, np.ndarray]
) -> dict[str, float]:
    tissue, blood = regions["tissue"], regions["blood"]
    return {
        "gcnr": gcnr(image[tissue], image[blood]),
        "cnr": cnr(image[tissue], image[blood]),
        "psnr": psnr(image[None], clean[None]),
        "ks_tissue": ks(image[tissue], clean[tissue])[0],  # low: tissue is as it was
        "ks_blood": ks(image[blood], hazy[blood])[0],  # high: haze is gone
    }


def _method(
    name: str, steps: int, solver: str, correction: str, num_samples: int, seed: int, device: str
) -> Callable:
    if "+" in name:
        tissue, _, haze = name.partition("+")
        task = UltrasoundTask(
            load(tissue, device=device),
            load(haze, device=device),
            solver=solver_by_name(solver),
            num_inference_steps=steps,
            correction=correction,
        )
        return lambda hazy: task(
            torch.from_numpy(hazy), num_samples=num_samples, seed=seed
        ).image.numpy()
    if name not in CLASSICAL:
        raise ValueError(
            f"method {name!r} is unknown; known: {', '.join(CLASSICAL)}, or two models as"
            " TISSUE+HAZE"
        )
    if name == "bm3d":
        try:
            from bm3d import bm3d
        except ImportError as error:
            raise ValueError(
                "the method bm3d needs the package bm3d (not part of restobox): pip install bm3d"
            ) from error
        return lambda hazy: bm3d(hazy.astype(np.float64), NOISE)
    from skimage import exposure, restoration

    return {
        "hazy": lambda hazy: hazy,
        "split": power_split,  # what the models' runs start from
        "equalize": lambda hazy: exposure.equalize_hist(hazy, mask=hazy > 0) * (hazy > 0),
        "clahe": lambda hazy: exposure.equalize_adapthist(np.clip(hazy, 0, 1), clip_limit=0.02),
        "gamma": lambda hazy: hazy**2,
        "nlm": lambda hazy: restoration.denoise_nl_means(
            hazy, patch_size=7, patch_distance=9, h=0.8 * NOISE, sigma=NOISE, fast_mode=True
        ),
    }[name]
