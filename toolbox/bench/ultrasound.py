"""Measured figures for ultrasound: clean frames with simulated haze, dehazed by the models and by
classical methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from restoration.io.ultrasound import read_clip
from restoration.io.ultrasound_signals import Clip
from restoration.metrics import psnr
from restoration.ultrasound.measures import anatomical_regions, cnr, gcnr, ks, structure
from restoration.ultrasound.simulation import simulate_haze
from toolbox.api import keeping_models, load_for, local
from toolbox.bench.options import Extent, Methods
from toolbox.bench.shares import shared
from toolbox.tasks.classical import of_haze
from toolbox.tasks.options import Frames
from toolbox.tasks.settings import Settings
from toolbox.tasks.ultrasound import STRENGTHS, Ultrasound

SHIPPED = ("ultrasound", "ultrasound-tissue+ultrasound-haze")


def run_bench_ultrasound(
    data: Path,
    strengths: Sequence[float] = STRENGTHS,
    methods: Methods = Methods(),
    extent: Extent = Extent(),
    *,
    correction: str | None = None,
    grey: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Means over frames, by method and strength.

    A model is a classical method (:func:`toolbox.tasks.classical.of_haze`), a network that is shown
    the hazy frame, or two priors ``TISSUE+HAZE``. With more frames than the limit, frames are taken
    evenly. Frames that show too little tissue or blood are left out and counted.

    Raises:
        ValueError: an unknown method, no usable frame, or a method's missing package.
    """
    clip = read_clip(data, grey=grey)
    names = methods.model or [*of_haze(), *SHIPPED]
    limit = extent.limit
    settings = Settings((methods.solver or ["ddim"])[0], methods.steps, correction=correction)
    chosen = (
        range(len(clip))
        if limit is None
        else sorted({round(k) for k in np.linspace(0, len(clip) - 1, min(limit, len(clip)))})
    )
    found: dict[tuple[str, float], list[dict]] = {}
    skipped = 0
    with keeping_models({}):
        for name in names:  # what is unknown is said before the first frame
            _method(name, settings, extent)
        measure = partial(_measured, clip, strengths, names, settings, extent)
        for done, frame in enumerate(shared(measure, chosen, extent.workers), 1):
            skipped += not frame
            for key, figures in frame.items():
                found.setdefault(key, []).append(figures)
            progress(done, len(chosen))
    if not found:
        raise ValueError(f"{data} has no frame that shows enough tissue and blood to measure")
    rows = [
        {"method": name, "strength": strength}
        | {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        for (name, strength), values in sorted(
            found.items(), key=lambda item: (item[0][1], names.index(item[0][0]))
        )
    ]
    return {
        "data": str(data),
        "frames": len(chosen) - skipped,
        "skipped": skipped,
        "samples": extent.samples,
        "rows": rows,
    }


def _measured(
    clip: Clip,
    strengths: Sequence[float],
    names: Sequence[str],
    settings: Settings,
    extent: Extent,
    numbers: Sequence[int],
) -> Iterator[dict[tuple[str, float], dict[str, float]]]:
    """Figures of some frames, by method and strength; none of a frame that shows too little."""
    run = {name: _method(name, settings, extent) for name in names}
    for number in numbers:
        clean, found = clip.frame(number), {}
        try:
            regions = anatomical_regions(clean)
        except ValueError:
            yield {}
            continue
        for strength in strengths:
            hazy = simulate_haze(clean, strength, extent.seed + number)
            for name, restore in run.items():
                began = time.perf_counter()
                image = np.clip(np.asarray(restore(hazy), np.float64), 0, 1)
                seconds = {"seconds": time.perf_counter() - began}
                found[name, strength] = _figures(image, clean, hazy, regions) | seconds
        yield found


def _figures(
    image: np.ndarray, clean: np.ndarray, hazy: np.ndarray, regions: dict[str, np.ndarray]
) -> dict[str, float]:
    tissue, blood = regions["tissue"], regions["blood"]
    return {
        "gcnr": gcnr(image[tissue], image[blood]),
        "cnr": cnr(image[tissue], image[blood]),
        "psnr": psnr(image[None], clean[None]),
        **asdict(structure(image, clean, hazy)),
        "ks_tissue": ks(image[tissue], clean[tissue])[0],  # low: tissue is as it was
        "ks_blood": ks(image[blood], hazy[blood])[0],  # high: haze is gone
    }


def _method(name: str, settings: Settings, extent: Extent) -> Callable:
    if name in (known := of_haze()):
        return known[name]
    tissue, plus, haze = name.partition("+")
    if not plus and not local(name).exists():
        raise ValueError(
            f"method {name!r} is unknown; known: {', '.join(known)}, a model, or two priors as"
            " TISSUE+HAZE"
        )
    first = load_for("ultrasound", tissue)
    if not plus and not first.condition_channels:
        raise ValueError(f"{name} is a prior of tissue or haze: give both as TISSUE+HAZE")
    second = load_for("ultrasound", haze) if plus else None
    own = settings if plus else replace(settings, correction=None)
    task = Ultrasound().task(first, second, Frames(haze=haze or None), own)
    return lambda hazy: task(
        torch.from_numpy(hazy), num_samples=extent.samples, seed=extent.seed
    ).image.numpy()
