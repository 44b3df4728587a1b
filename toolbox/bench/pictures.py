"""Measured figures on folders of pictures: models x solvers on the same measurements, next to the
classical methods, in one run.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.io.containers.arrays import arrays_of
from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pairs, find_pictures, read_pair
from restoration.metrics import LPIPSUnavailable
from restoration.photo.latent import STEPS as LATENT_STEPS
from restoration.photo.masks import make_mask, parse_mask
from restoration.task import Restored, shown_to
from toolbox.api import keeping_models, load_for
from toolbox.bench.options import Extent, Methods
from toolbox.bench.shares import shared
from toolbox.deploy.compare import compare
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Restorer, Source, Task, Trial
from toolbox.tasks.options import Deblurring, Dehazing, Denoising, Enlarging, Inpainting, Pairs
from toolbox.tasks.paired import binary
from toolbox.tasks.pictures import perceived
from toolbox.tasks.settings import Draws, Settings

CASES = ("denoise:25", "denoise:50", "superresolve:4")
KINDS = ("denoise", "superresolve", "superresolve-bicubic", "superresolve-jpeg", "deblur")
BLUR_NOISE = 0.01

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Case:
    """One degradation, measured of every picture of a folder: the trials are made one after the
    other.
    """

    name: str
    task: Task
    options: Any
    trials: Callable[[], Iterator[Trial]]
    count: int


def measure(
    cases: Sequence[Case], methods: Methods, extent: Extent, *, progress: Progress
) -> list[dict[str, Any]]:
    """One row per case, model and solver: mean figures, calls per picture, seconds, and the PSNR of
    each picture.

    Raises:
        ValueError: an unknown model, solver or classical method.
    """
    rows: list[dict[str, Any]] = []
    found: list[dict[tuple[str, str], list[dict[str, float]]]] = [{} for _ in cases]
    turns = [(number, k) for number, case in enumerate(cases) for k in range(case.count)]
    with keeping_models({}):
        for case in cases:  # what can't be loaded is said before the first picture
            _ways(case, methods)
        measured = shared(partial(_measured, cases, methods, extent), turns, extent.workers)
        for done, ((number, _), made) in enumerate(zip(turns, measured, strict=True), 1):
            for name, figures in made.items():
                model, _, solver = name.partition("|")
                found[number].setdefault((model, solver), []).append(figures)
            progress(done, len(turns))
    for case, of_case in zip(cases, found, strict=True):
        for (model, solver), each in of_case.items():
            # figures that all pictures have
            keys = [key for key in each[0] if all(key in f for f in each)]
            means = {key: round(float(np.mean([f[key] for f in each])), 4) for key in keys}
            head: dict[str, Any] = {"case": case.name, "model": model, "solver": solver}
            head |= {"calls": int(means.pop("calls")), "pictures": len(each)}
            psnrs = [round(f["psnr"], 2) for f in each]
            rows.append(head | means | {"psnr_worst": min(psnrs), "psnr_each": psnrs})
    return rows


Measured = dict[str, dict[str, float]]  # figures of a picture, by ``MODEL|SOLVER``


def _measured(
    cases: Sequence[Case], methods: Methods, extent: Extent, turns: Sequence[tuple[int, int]]
) -> Iterator[Measured]:
    """The figures of some pictures of some cases, by the numbers of both."""
    for number, of_case in itertools.groupby(turns, key=lambda turn: turn[0]):
        case, own = cases[number], {k for _, k in of_case}
        way = _ways(case, methods)
        for k, trial in enumerate(case.trials()):
            if k in own:
                yield _figures(case, way, trial, extent)


def _figures(
    case: Case, way: Mapping[tuple[str, str], Restorer], trial: Trial, extent: Extent
) -> Measured:
    restorers = {f"{model}|{solver}": run for (model, solver), run in way.items()}
    draws, found = Draws(extent.seed, extent.samples), {}  # every picture with the same seed
    for made in compare(case.task, [trial], restorers, draws):
        for name, figures in made.figures.items():
            with contextlib.suppress(LPIPSUnavailable):  # too small for it
                truth = case.task.picture(trial.known)
                figures = figures | {"lpips": perceived(made.results[name], truth)}
            found[name] = figures | made.effort[name]
    return found


def _ways(case: Case, methods: Methods) -> dict[tuple[str, str], Restorer]:
    classical = case.task.baselines(case.options)
    noise_only = {"nlm", "bm3d", "cbm3d"} - set(classical)
    for name in noise_only & set(methods.model or ()):
        raise ValueError(f"{name} only removes noise; leave it out, or take denoise cases alone")
    found: dict[tuple[str, str], Restorer] = {}
    for model in methods.model or case.task.benched:
        if model in classical:
            found[model, ""] = _classical(classical[model])
            continue
        denoiser = load_for(case.task.name, model)
        own = case.task.settings
        usual = own.steps if denoiser.autoencoder is None else LATENT_STEPS
        for solver in methods.solver or [own.solver]:
            steps = methods.steps or usual
            settings = Settings(solver, steps, symmetries=methods.symmetries)
            found[model, solver] = case.task.restorer(denoiser, case.options, settings)
    return found


def _classical(method: Callable[[Trial], Tensor]) -> Restorer:
    def run(inputs: Mapping[str, Tensor], **_: Any) -> Restored:
        result = method(Trial(dict(inputs), None))
        return Restored(result[None], result, torch.zeros_like(result), 0, 0.0)

    return run


# -- inpainting ------------------------------------------------------------------------------------


def inpainting_cases(
    data: Path, masks: str | None, names: Sequence[str], extent: Extent
) -> list[Case]:
    """A case for every name of a mask (:func:`read_mask_of`).

    Raises:
        FileNotFoundError, ValueError: no pictures, or masks that don't fit.
    """
    files, task = find_pictures(data)[: extent.limit], task_by_name("inpaint")

    def trials(name: str) -> Iterator[Trial]:
        for path in files:
            pixels = read_image(path).pixels
            image = torch.from_numpy(np.ascontiguousarray(pixels)).expand(3, -1, -1)
            size = (image.shape[1], image.shape[2])
            mask = torch.from_numpy(read_mask_of(masks, name, size, extent.seed))
            yield Trial({"image": image, "mask": mask[None]}, image, name)

    return [Case(name, task, Inpainting(name), partial(trials, name), len(files)) for name in names]


def read_mask_of(source: str | None, name: str, size: tuple[int, int], seed: int) -> np.ndarray:
    """A named mask of ``size (H, W)``, or turned by 90 degrees to fit it.

    Args:
        source: an ``.npz`` file of masks (1 = known), looked up by the name, or keys ``NAME_...``;
            None: names are ``KIND:FRACTION``.

    Raises:
        ValueError: no mask of that name and size in the file.
    """
    if source is None:
        kind, fraction = parse_mask(name)
        return make_mask(kind, *size, fraction, seed)
    with arrays_of(source) as file:
        for key in file.shapes:
            if key != name and not key.startswith(f"{name}_"):
                continue
            mask = file.read(key)
            if mask.shape == size[::-1] != size:
                mask = np.ascontiguousarray(mask.T)
            if mask.shape == size:
                return (mask > 0).astype(np.float32)
        raise ValueError(
            f"{source} holds no mask {name!r} of {size[1]} x {size[0]} pixels; it holds"
            f" {', '.join(file.shapes)}"
        )


# -- noise, blur, few pixels -----------------------------------------------------------------------


def linear_cases(data: Path, names: Sequence[str], grey: bool, extent: Extent) -> list[Case]:
    """Degradations ``KIND:AMOUNT``: noise of sigma AMOUNT of 255, a picture AMOUNT times smaller
    (means of blocks, or bicubic), or a Gaussian blur of AMOUNT pixels with noise of 0.01.

    Args:
        grey: measure the mean of the colours.

    Raises:
        FileNotFoundError, ValueError: no pictures, another kind, or an amount that it does not
            take.
    """
    files = find_pictures(data)[: extent.limit]
    return [_linear_case(name, files, grey, extent.seed) for name in names]


def _linear_case(name: str, files: Sequence[Path], grey: bool, seed: int) -> Case:
    kind, _, text = name.partition(":")
    try:
        amount = float(text)
    except ValueError:
        amount = float("nan")
    whole = amount in range(2, 9)
    if kind not in KINDS or not (whole if kind.startswith("super") else 0 < amount <= 255):
        raise ValueError(
            f"case {name!r} is not KIND:AMOUNT; kinds: {', '.join(KINDS)} (denoise:25,"
            " superresolve:4, deblur:2)"
        )
    options: Any
    match kind:
        case "denoise":
            options = Denoising(str(amount / 255))
        case "deblur":
            options = Deblurring(amount, str(BLUR_NOISE))
        case _:
            kernels = {"superresolve-bicubic": "bicubic", "superresolve-jpeg": "any"}
            # what is measured without noise has none to estimate, but for JPEG's errors
            told = "auto" if kind == "superresolve-jpeg" else "0"
            options = Enlarging(int(amount), kernels.get(kind, "block"), told)
    task: Any = task_by_name(kind.partition("-")[0])
    source = Source(tuple(files), 2**31, seed)

    def trials() -> Iterator[Trial]:
        for k, path in enumerate(files):
            image = torch.from_numpy(read_image(path).pixels)
            image = image.mean(0, keepdim=True) if grey else image
            yield replace(task.measured(image, options, source, k), name=name)

    return Case(name, task, options, trials, len(files))


# -- pairs -----------------------------------------------------------------------------------------


def paired_cases(
    data: Path, degraded: str, clean: str, mask: str, methods: Methods, extent: Extent
) -> list[Case]:
    """One case of the pairs in two subfolders, with the masks in a third where one of the models is
    shown such.

    Raises:
        FileNotFoundError, ValueError: bad folders or pairs.
    """
    task, baselines = task_by_name("paired"), task_by_name("paired").baselines(None)
    models = [load_for(task.name, name) for name in methods.model or () if name not in baselines]
    masked = any("degraded+mask" in shown_to(model) for model in models)
    pairs = find_pairs(data, degraded, clean, mask if masked else None)[: extent.limit]

    def trials() -> Iterator[Trial]:
        for pair in pairs:
            image, truth = (torch.from_numpy(v) for v in read_pair(*pair[:2]))
            marks = [binary(torch.from_numpy(read_image(file).pixels)) for file in pair[2:]]
            yield Trial({"image": image} | ({"mask": marks[0]} if marks else {}), truth, "degraded")

    return [Case("degraded", task, Pairs(), trials, len(pairs))]


def dehazing_cases(data: Path, hazy: str, clear: str, extent: Extent) -> list[Case]:
    """One case of the pairs in two subfolders.

    Raises:
        FileNotFoundError, ValueError: bad folders or pairs.
    """
    pairs, task = find_pairs(data, hazy, clear)[: extent.limit], task_by_name("dehaze")

    def trials() -> Iterator[Trial]:
        for pair in pairs:
            image, truth = (torch.from_numpy(v) for v in read_pair(*pair))
            yield Trial({"image": image}, truth, "haze")

    return [Case("haze", task, Dehazing(), trials, len(pairs))]
