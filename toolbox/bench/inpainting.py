"""Measured figures: models x solvers x masks on a folder of pictures, next to the classical method,
in one run.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from restoration.io.folders import find_pictures
from restoration.io.images import read_image
from restoration.metrics import psnr, ssim
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.lift import push_pull
from restoration.photo.masks import make_mask, parse_mask
from solvers import solver_by_name
from toolbox.api import load

CLASSICAL = ("biharmonic", "push-pull")


def read_masks(
    source: str | None, names: Sequence[str], height: int, width: int, seed: int
) -> list[tuple[str, np.ndarray]]:
    """Named masks ``(H, W)`` of a picture's size, or turned by 90 degrees to fit it.

    Args:
        source: an ``.npz`` file of masks (1 = known), looked up by the name, or keys ``NAME_...``;
            None: names are ``KIND:FRACTION``.

    Raises:
        ValueError: no mask of that name and size in the file.
    """
    if source is None:
        return [(name, _made(name, height, width, seed)) for name in names]
    found = []
    try:
        opened = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} is no .npz file of masks: {error}") from error
    with opened as file:
        for name in names:
            for key in file.files:
                if key != name and not key.startswith(f"{name}_"):
                    continue
                mask = file[key]
                if mask.shape == (width, height) != (height, width):
                    mask = np.ascontiguousarray(mask.T)
                if mask.shape == (height, width):
                    found.append((name, (mask > 0).astype(np.float32)))
                    break
            else:
                raise ValueError(
                    f"{source} holds no mask {name!r} of {width} x {height} pixels; it holds"
                    f" {', '.join(file.files)}"
                )
    return found


def run_bench(
    data: Path,
    *,
    masks: str | None,
    names: Sequence[str],
    models: Sequence[str],
    solvers: Sequence[str],
    steps: int,
    num_samples: int,
    limit: int | None,
    seed: int,
    symmetries: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """Mean PSNR, SSIM and seconds of every method on every mask; a model that is ``biharmonic`` or
    ``push-pull`` is the classical method.

    Raises:
        FileNotFoundError, ValueError: no pictures, unknown names, or masks that don't fit.
    """
    files = find_pictures(data)[:limit]
    methods: list[tuple[str, str, Callable]] = []
    for model in models:
        if model in CLASSICAL:
            methods.append((model, "", _biharmonic if model == "biharmonic" else _push_pull))
            continue
        denoiser = load(model)
        for solver in solvers:
            task = InpaintingTask(denoiser, solver_by_name(solver), steps, symmetries=symmetries)
            methods.append(
                (
                    model,
                    solver,
                    lambda image, mask, task=task: _restore(task, image, mask, num_samples, seed),
                )
            )
    rows: dict[tuple[str, str, str], list] = {}
    done, total = 0, len(files) * len(names) * len(methods)
    for path in files:
        image = read_image(path).pixels
        image = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])))
        for name, mask in read_masks(masks, names, image.shape[1], image.shape[2], seed):
            for model, solver, method in methods:
                began = time.perf_counter()
                restored = method(image, mask)
                seconds = time.perf_counter() - began
                rows.setdefault((name, model, solver), []).append(
                    (psnr(restored, image), ssim(restored, image), seconds)
                )
                done += 1
                progress(done, total)
    table = []
    for (name, model, solver), values in rows.items():
        p, s, seconds = np.mean(values, axis=0)
        nfe = 0 if model in CLASSICAL else steps * num_samples * symmetries
        figures = {
            "psnr": round(float(p), 3),
            "ssim": round(float(s), 4),
            "seconds": round(float(seconds), 2),
        }
        table.append(
            {
                "mask": name,
                "model": model,
                "solver": solver,
                "calls": nfe,
                "pictures": len(values),
                **figures,
            }
        )
    return table


def _restore(
    task: InpaintingTask, image: np.ndarray, mask: np.ndarray, num_samples: int, seed: int
) -> np.ndarray:
    return task(
        torch.from_numpy(image), torch.from_numpy(mask), num_samples=num_samples, seed=seed
    ).mean.numpy()


def _biharmonic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from skimage.restoration import inpaint_biharmonic

    return (
        inpaint_biharmonic((image * mask).transpose(1, 2, 0), mask == 0, channel_axis=-1)
        .transpose(2, 0, 1)
        .clip(0, 1)
    )


def _push_pull(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return push_pull(torch.from_numpy(image)[None], torch.from_numpy(mask)[None, None])[0].numpy()


def _made(name: str, height: int, width: int, seed: int) -> np.ndarray:
    kind, fraction = parse_mask(name)
    return make_mask(kind, height, width, fraction, seed)
