"""The restorer graphs of the command line: a job by its task's name, and measurements of pictures
to verify one on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.jobs.base import Job
from export.jobs.mri import MRIJob
from export.jobs.paired import PairedJob
from export.jobs.photo import InpaintingJob, LinearJob
from restoration.io.folders import find_pairs, picture_crops, read_pair
from restoration.io.images import read_image
from restoration.operators.linear import Denoising
from restoration.operators.separable import Bicubic, Blur, gaussian_kernel
from restoration.paired.simulation import Haze, make_hazy
from restoration.paired.task import PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.task import KINDS, check_kind, shown_to
from solvers import solver_by_name
from solvers.denoiser import Denoiser, Network

TASKS = ("inpaint", "denoise", "superresolve", "deblur", "mri", "hsi", "dehaze", "paired")


def make_job(
    denoiser: Denoiser,
    task: str,
    *,
    solver: str = "ddim",
    steps: int = 5,
    grid: str = "trailing",
    correction: str | None = None,
    sigma: float = 0.0,
    size: tuple[int, int] = (256, 256),
    factor: int = 4,
    blur: float = 1.6,
    coils: int = 1,
    timesteps: tuple[float, ...] = (),
) -> Job:
    """What ``restobox export --restorer --task`` bakes in.

    Args:
        sigma: noise of the data in units of [0, 1]; ``mri``: 0 with one coil = exact data, else the
            noise is an input; ``hsi``: the noise, relative to a plane's contrast, that the network
            is asked at (0.1 if 0).
        factor, blur, coils: of ``superresolve``, ``deblur`` (standard deviation in pixels) and
            ``mri``.
        timesteps: that scales were calibrated at: ``hsi`` and ``denoise`` ask at the nearest of
            them.

    Raises:
        ValueError: an unknown task, or what the task refuses.
    """
    if task in KINDS:
        check_kind(denoiser, task)
    if task in ("paired", "dehaze") and ("haze" in shown_to(denoiser)) != (task == "dehaze"):
        other = "paired" if task == "dehaze" else "dehaze"
        raise ValueError(
            f"this network is for another kind of pictures: export it with --task {other}"
        )
    run: dict[str, Any] = {
        "solver": solver_by_name(solver),
        "num_inference_steps": steps,
        "grid": grid,
        "correction": correction,
    }
    if task == "inpaint":
        return InpaintingJob(InpaintingTask(denoiser, **run), size, sigma)
    if task == "mri":
        from export.jobs.mri import MRIJob
        from restoration.mri.task import MRITask

        return MRIJob(MRITask(denoiser, **run), coils, size, exact=sigma == 0 and coils == 1)
    if task == "hsi":
        from export.jobs.hyperspectral import EigenImageJob
        from restoration.hyperspectral.task import HyperspectralTask

        low, high = denoiser.value_range
        level = -2 * math.log((sigma or 0.1) * (high - low) / 2)
        known = [t for t in timesteps if denoiser.process.a(t) > 0]
        time = (
            min(known, key=lambda t: abs(denoiser.process.log_snr(t) - level))
            if known
            else denoiser.process.time_at(level)
        )
        return EigenImageJob(HyperspectralTask(denoiser, symmetries=1, axes=1), time, size)
    if task in ("dehaze", "paired"):
        if correction is not None or sigma:
            raise ValueError(
                f"the task {task} knows neither --correction nor --sigma: the network is shown the"
                " degraded picture"
            )
        return PairedJob(PairedTask(denoiser, run["solver"], steps, grid=grid), size)
    operators = {
        "denoise": lambda: (Denoising(), {}),
        "superresolve": lambda: (Bicubic(size, factor), {"factor": float(factor)}),
        "deblur": lambda: (Blur(size, gaussian_kernel(blur).tolist()), {"blur": blur}),
    }
    if task not in operators:
        raise ValueError(f"task {task!r} is unknown; known: {', '.join(TASKS)}")
    from restoration.photo.linear import LinearTask

    operator, numbers = operators[task]()
    # at times that the noise decides, not the grid
    entered = task == "denoise" and correction is None
    linear = LinearTask(denoiser, **run, timesteps=tuple(timesteps) if entered else ())
    return LinearJob(
        linear, operator, size, sigma, task, {"operator": type(operator).__name__} | numbers
    )


def measure(job: Job, picture: np.ndarray, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A measurement ``(1, ...)`` of a picture ``(3, H, W)`` of the job's size, and the truth that
    the result ``(1, ...)`` is compared with.

    MRI sees the grey picture as magnitude under a smooth phase through a ring of coils, every
    second line and the centre sampled; eigen-images the grey picture with noise.
    """
    g, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    image = torch.from_numpy(np.ascontiguousarray(picture))[None].float()
    grey = image.mean(1, keepdim=True)
    if isinstance(job, LinearJob):
        y = job.operator.A(image)
        return {"image": y + job.sigma * torch.randn(y.shape, generator=g)}, image
    if job.name == "hsi":
        level = 0.05
        return {
            "image": grey + level * torch.randn(grey.shape, generator=g),
            "level": torch.full((1, 1, 1, 1), level),
        }, grey
    if job.name == "dehaze":
        clear, hazy = make_hazy(image[0], image, Haze(), rng)
        return {"image": hazy[None]}, clear[None]
    if not isinstance(job, MRIJob):
        raise ValueError(f"restorers of task {job.name} are verified on their own data")
    from restoration.mri.sense import to_channels
    from restoration.mri.simulation import ring_maps, simulate_kspace, smooth_phase

    size = job.size
    maps = ring_maps(job.coils, size, rng).to(torch.complex64) if job.coils > 1 else None
    x = torch.polar(grey[0, 0], smooth_phase(size, rng).to(grey).reshape(size))
    mask = torch.zeros(size)
    mask[:, ::2] = 1
    mask[:, size[1] // 2 - size[1] // 16 : size[1] // 2 + size[1] // 16] = 1
    sigma = 0.0 if job.exact else 0.005
    _, y = simulate_kspace(x, maps, mask, sigma, g)
    found = {"kspace": y.float(), "mask": mask[None, None]}
    found |= {} if maps is None else {"maps": to_channels(maps[None])}
    found |= {} if job.exact else {"sigma": torch.full((1, 1, 1, 1), sigma)}
    return found, to_channels(x[None, None]).float()


def measurements(
    job: Job, data: Path, count: int, seed: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """``count`` measurements of pictures of a folder with their truths (:func:`measure`); for the
    task ``paired`` of its pairs.

    Raises:
        ValueError, FileNotFoundError: a folder without them, or a pair that is smaller than the
            graph's size.
    """
    if job.name != "paired":
        for k, (_, image) in enumerate(picture_crops(data, count, job.size, seed)):
            yield measure(job, image, seed + k)
        return
    masked, (height, width) = "mask" in job.inputs, job.size
    for paths in find_pairs(data, mask="mask" if masked else None)[:count]:
        parts = [np.broadcast_to(v, (3, *v.shape[1:])) for v in read_pair(*paths[:2])]
        parts += [read_image(path).pixels.mean(0, keepdims=True) >= 0.5 for path in paths[2:]]
        if (
            min(part.shape[1] for part in parts) < height
            or min(part.shape[2] for part in parts) < width
        ):
            raise ValueError(
                f"{paths[0]} (or its mask) is smaller than the restorer's {width} x {height} pixels"
            )
        degraded, clean, *mask = (
            torch.from_numpy(part[None, :, :height, :width].astype(np.float32)) for part in parts
        )
        yield {"image": degraded} | ({"mask": mask[0]} if masked else {}), clean


def simulated(job: Job, network: Network) -> Job:
    """The same job around the simulated 8-bit network."""
    return job.around(job.denoiser.around(network))


def record_of(run) -> dict:
    """The settings of :func:`make_job` that a bundle's ``run`` was made with."""
    numbers = {key: run.operator[key] for key in ("factor", "blur") if key in run.operator}
    coils = run.inputs.get("kspace", [2])[0] // 2
    sigma = run.sigma if run.task != "mri" else float("sigma" in run.inputs)
    correction = None if run.correction == "none" and run.task != "mri" else run.correction
    found = {
        "solver": run.solver,
        "steps": run.steps,
        "grid": run.grid,
        "correction": correction,
        "sigma": sigma,
        "coils": coils,
    }
    found |= {"size": (run.height, run.width)} | (
        {"factor": int(numbers["factor"])} if "factor" in numbers else {}
    )
    return found | ({"blur": numbers["blur"]} if "blur" in numbers else {})
