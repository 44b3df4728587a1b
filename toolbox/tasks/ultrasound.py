"""Clip in, clip out: what ``restobox restore ultrasound`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restoration.io.ultrasound import Clip, check_clip_writable, read_clip, write_clip
from restoration.metrics import psnr, ssim
from restoration.ultrasound.clip import restore_clip
from restoration.ultrasound.contrast import cnr, gcnr, ks, read_regions
from restoration.ultrasound.task import Dehazed, UltrasoundTask
from solvers import solver_by_name
from solvers.files import check_outputs, together
from toolbox.api import load_for


def run_ultrasound(
    clip: Path,
    out: Path,
    *,
    tissue: str,
    haze: str,
    strength: float,
    sigma: float,
    solver: str,
    steps: int,
    correction: str,
    seed: int,
    num_samples: int,
    warm_start: float | None,
    stream: bool,
    dynamic_range: float,
    grey: bool,
    sampling_rate: float | None,
    haze_out: Path | None,
    regions: Path | None,
    reference: Path | None,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Read, dehaze, write, frame by frame; returns what was done and measured.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_outputs([out, haze_out], [clip, regions, reference, tissue, haze])
    source = read_clip(clip, dynamic_range=dynamic_range, grey=grey, sampling_rate=sampling_rate)
    check_clip_writable(out, len(source))
    if haze_out is not None:
        check_clip_writable(haze_out, len(source))
    if num_samples > 1 and (warm_start is not None or stream):
        raise ValueError(
            "warm starts and stream batching give one sample per frame; leave out --samples"
        )
    truth = (
        None
        if reference is None
        else read_clip(
            reference, dynamic_range=dynamic_range, grey=grey, sampling_rate=sampling_rate
        )
    )
    if truth is not None and (len(truth), truth.size) != (len(source), source.size):
        raise ValueError(
            f"reference {reference} has {len(truth)} frames of {truth.size}, the clip {len(source)}"
            f" of {source.size} (H, W)"
        )
    masks = None if regions is None else read_regions(regions, source.size)
    if masks is not None and not {"tissue", "blood"} <= set(masks):
        raise ValueError(f"regions {regions} must name tissue and blood; found {', '.join(masks)}")
    task = UltrasoundTask(
        load_for("ultrasound", tissue, device=device),
        load_for("ultrasound", haze, device=device),
        strength=strength,
        sigma=sigma,
        solver=solver_by_name(solver),
        num_inference_steps=steps,
        correction=correction,
    )
    # checks its options before anything is written
    results = restored(task, source, seed, num_samples, warm_start, stream)
    figures: dict[str, list[float]] = {}
    hazes: list[np.ndarray] = []
    calls, began = 0, time.perf_counter()

    def frames() -> Iterator[np.ndarray]:
        nonlocal calls
        for k, result in enumerate(results):
            calls += result.nfe
            image = result.image.numpy()
            if haze_out is not None:
                hazes.append(np.clip(result.haze.numpy(), 0, 1))
            _measure(
                figures,
                source.frame(k) if masks else None,
                image,
                None if truth is None else truth.frame(k),
                masks,
            )
            progress(k + 1, len(source))
            yield image

    with together():
        files = write_clip(out, frames(), len(source))
        seconds = time.perf_counter() - began
        if haze_out is not None:
            write_clip(haze_out, iter(hazes), len(hazes))
    return {
        "clip": str(clip),
        "kind": source.kind,
        "out": str(out),
        "files": len(files),
        "frames": len(source),
        "size": [source.size[1], source.size[0]],
        "tissue": tissue,
        "haze": haze,
        "strength": strength,
        "nfe": calls,
        "seconds": round(seconds, 2),
        "frames_per_second": round(len(source) / seconds, 3),
    } | {name: round(float(np.mean(values)), 4) for name, values in figures.items()}


def restored(
    task: UltrasoundTask,
    clip: Clip,
    seed: int,
    num_samples: int,
    warm_start: float | None,
    stream: bool,
) -> Iterator[Dehazed]:
    """The results of a clip's frames, in order."""
    frames = (torch.from_numpy(np.ascontiguousarray(frame)) for frame in clip)
    if num_samples > 1:
        return (task(frame, num_samples=num_samples, seed=seed) for frame in frames)
    return restore_clip(task, frames, seed=seed, warm_start=warm_start, stream=stream)


def _measure(figures: dict[str, list[float]], seen, image: np.ndarray, truth, masks) -> None:
    values: dict[str, Any] = {}
    if truth is not None:
        values |= {"psnr": psnr(image[None], truth[None]), "ssim": ssim(image[None], truth[None])}
    if masks is not None:
        tissue, blood = masks["tissue"], masks["blood"]
        for name, picture in (("before", seen), ("after", image)):
            values |= {
                f"gcnr_{name}": gcnr(picture[tissue], picture[blood]),
                f"cnr_{name}": cnr(picture[tissue], picture[blood]),
            }
        values["ks_tissue"] = ks(seen[tissue], image[tissue])[0]
    for name, value in values.items():
        figures.setdefault(name, []).append(value)
