"""How often intervals of 90 % hold the truth on kinds of masks that nobody calibrated on, by the
factors of a model's card and by one factor for all masks.

    python benchmarks/coverage_masks.py inpaint PICTURES --model photo-int8
    python benchmarks/coverage_masks.py mri SLICES.npz --model mri-int8 --masks MASKS.npz

Masks for MRI are the arrays of a ``.npz`` file that fit the slices, 1 = sampled; without one,
fastMRI's equispaced columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from restoration.metrics import shrunk
from restoration.mri.sampling import make_sampling
from toolbox.api import load_for
from toolbox.support.cards import spread_of
from toolbox.tasks import task_by_name
from toolbox.tasks.settings import Settings

Draw = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]
SINGLE = {"inpaint": 3.18}  # the factor of four samples that was fitted on all masks


def drawn(size: tuple[int, ...], shapes: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    """1 where nothing is drawn."""
    canvas = Image.new("L", (size[1], size[0]), 255)
    shapes(ImageDraw.Draw(canvas))
    return (np.asarray(canvas) > 127).astype(np.float32)


def scratches(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    def lines(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(int(rng.integers(2, 7))):
            ends = [tuple(rng.uniform(-5, size[::-1])) for _ in range(2)]
            draw.line(ends, fill=0, width=int(rng.integers(1, 4)))

    return drawn(size, lines)


def dust(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    def specks(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(int(rng.integers(10, 40))):
            (y, x), r = rng.uniform(0, size), rng.uniform(0.5, 3)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=0)

    return drawn(size, specks)


def blobs(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    smooth = gaussian_filter(rng.standard_normal(size), rng.uniform(2, 6))
    return (smooth < np.quantile(smooth, 0.75)).astype(np.float32)


def grid(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(size, np.float32)
    mask[::2, ::2] = 1
    return mask


def edge(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    mask = np.ones(size, np.float32)
    mask[:, size[1] * 4 // 5 :] = 0
    return mask


HOLES: dict[str, Draw] = {
    **{"scratches": scratches, "dust": dust, "blobs": blobs},
    **{"every second pixel": grid, "a fifth at the edge": edge},
}


def columns(every: float) -> Draw:
    """Every n-th, joined with the centre."""
    return lambda size, rng: (
        make_sampling("equispaced", size, every, None, int(rng.integers(1000)))
        .expand(size)
        .numpy()
        .copy()
    )


def masks_of(path: Path | None, size: tuple[int, ...]) -> dict[str, Draw]:
    """For MRI."""
    if path is None:
        return {f"every {n:g} columns": columns(n) for n in (4.0, 6.0)}
    stored = np.load(path)
    fitting = [name for name in stored.files if stored[name].shape == size]
    return {name: lambda *_, name=name: stored[name].astype(np.float32) for name in fitting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("inpaint", "mri"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, denoiser = task_by_name(options.task), load_for(options.task, options.model)
    source = task.source(options.data, denoiser, 96, 2)
    settings = Settings(steps=task.sampling_steps)
    run = {"solver": "ddim", "steps": settings.steps, "correction": None}
    if options.task == "mri":  # the trials' own masks sample everything
        measured = task.simulated(denoiser, mask="random", acceleration=1.0)
        kinds = masks_of(options.masks, source.volume.shape[1:])
    else:
        measured, kinds = task.simulated(denoiser), HOLES
    for kind, draw in kinds.items():
        rows = []
        for k in range(options.trials):
            trial = task.trial(source, k, measured)
            size = tuple(trial.inputs["mask"].shape[-2:])
            mask = torch.from_numpy(draw(size, np.random.default_rng(k)))
            inputs = trial.inputs | {"mask": mask[None]}
            inputs |= {"kspace": inputs["kspace"] * mask} if "kspace" in inputs else {}
            found = task.restorer(denoiser, measured, settings)(inputs, num_samples=4, seed=4 * k)
            samples, truth, counts = task.guessed(found.samples, trial.known)
            own = task.own_spread(denoiser)
            std = found.std.reshape(truth.shape) if own else samples.std(0)
            error = (samples.mean(0) - truth).abs()
            counts = counts & ((std > 0) | (error > 0))
            hard = task.difficulty(inputs)
            known = spread_of(options.model, task.name, run, 4, hard)
            if known is None:
                continue
            score = (error / shrunk(std).clamp(min=1e-9))[counts]
            factors = (SINGLE.get(task.name, np.nan), known.factor)
            held = [float((score <= f).double().mean()) for f in factors]
            rows.append((hard, known.factor, *held))
        hard, factor, single, fitted = np.mean(rows, 0) if rows else [np.nan] * 4
        alike = f" one factor {single:.3f}," if task.name in SINGLE else ""
        print(
            f"{kind}: {len(rows)} trials, difficulty {hard:.3g},{alike}"
            f" the card's ({factor:.3g}) {fitted:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
