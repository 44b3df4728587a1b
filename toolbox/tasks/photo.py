"""Files in, files out: what ``restobox restore`` does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from restoration.io.images import (
    MAX_PIXELS,
    Photo,
    check_writable,
    read_image,
    read_mask,
    write_image,
)
from restoration.metrics import LPIPSUnavailable, lpips, noise_level, psnr, ssim
from restoration.operators.linear import Denoising
from restoration.operators.separable import Bicubic, BlockMean, Blur, gaussian_kernel
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.lift import enlarge
from restoration.photo.linear import LinearTask
from restoration.photo.masks import make_mask, parse_mask
from restoration.task import Restored
from solvers import solver_by_name
from solvers.files import check_outputs, together
from toolbox.api import load
from toolbox.support.sheets import heat


def run_inpainting(
    image: Path,
    mask: str,
    out: Path,
    *,
    model: str,
    solver: str,
    steps: int,
    grid: str,
    correction: str | None,
    sigma: float,
    seed: int,
    num_samples: int,
    std: bool,
    reference: Path | None,
    tile: int,
    symmetries: int = 1,
    device: str,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Read, restore, write; returns what was done and, with a reference, how close it came.

    Everything that can be checked is checked before the first network call.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_writable(out)
    check_outputs([out, _spread_file(out) if std else None], [image, mask, reference, model])
    photo = read_image(image)
    height, width = photo.pixels.shape[1:]
    known = _mask(mask, height, width, seed)
    truth = _truth(reference, photo.pixels.shape)
    spread_file = _check_output(out, photo, std)
    denoiser = load(model, device=device)
    done = itertools.count(1)
    options = {
        "num_samples": num_samples,
        "seed": seed,
        "callback": lambda *_: progress(next(done)),
    }
    run = getattr(denoiser, "run", None)
    if run is not None:  # a whole restoration: what it does was settled on export
        if run.sigma != sigma:
            raise ValueError(
                f"{model} was exported for noise of sigma {run.sigma:g}; got --sigma {sigma:g}"
            )
        if symmetries != 1:
            raise ValueError(
                f"{model} is a whole restoration without symmetries; --symmetries needs a denoiser"
            )
        solver, steps, task = run.solver, run.steps, denoiser
    else:
        task = InpaintingTask(
            denoiser, solver_by_name(solver), steps, grid, correction, tile, symmetries=symmetries
        )
        options["sigma"] = sigma
    result = task(torch.from_numpy(photo.pixels), torch.from_numpy(known), **options)
    settings = {
        "model": model,
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "samples": num_samples,
    }
    missing = {"missing": round(float(1 - known.mean()), 4)}
    return _write(image, out, photo, result, spread_file, truth, missing | settings)


def run_linear(
    image: Path,
    out: Path,
    *,
    task: str,
    amount: float,
    kernel: str = "block",
    model: str,
    solver: str,
    steps: int,
    grid: str,
    correction: str | None,
    start_level: float = 0.0,
    sigma: float | str,
    seed: int,
    num_samples: int,
    std: bool,
    reference: Path | None,
    tile: int,
    symmetries: int = 1,
    device: str,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Read, restore, write, as :func:`run_inpainting` does, for ``task`` ``denoise``,
    ``superresolve`` or ``deblur``.

    Args:
        amount: factor of super-resolution, or standard deviation of the Gaussian blur in pixels;
            denoising has none.
        start_level: see :class:`LinearTask`; 0: from noise.
        kernel: how a large picture became the small one: ``block`` (means of blocks) or
            ``bicubic``.
        sigma: noise, in units of [0, 1]; ``auto``: :func:`restoration.metrics.noise_level`.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_writable(out)
    check_outputs([out, _spread_file(out) if std else None], [image, reference, model])
    photo = read_image(image)
    size = photo.pixels.shape[1:]
    if sigma == "auto":
        sigma = noise_level(photo.pixels)
        if not sigma > 1e-4:
            raise ValueError(f"{image} shows no noise to estimate; give --sigma")
    if task == "superresolve":
        operator = enlargement(size, amount, kernel)
        size, factor = tuple(int(amount) * n for n in size), int(amount)
        if photo.alpha is not None:
            alpha = torch.from_numpy(photo.alpha)[None, None].float()
            photo = replace(photo, alpha=enlarge(alpha, factor, size)[0, 0].clamp(0, 1).numpy())
    else:
        operator = Denoising() if task == "denoise" else Blur(size, gaussian_kernel(amount))
    truth = _truth(reference, (len(photo.pixels), *size))
    spread_file = _check_output(out, photo, std)
    denoiser = load(model, device=device)
    if getattr(denoiser, "run", None) is not None:
        raise ValueError(
            f"{model} holds a whole restoration of another task; --model takes a denoiser here"
        )
    done = itertools.count(1)
    restore = LinearTask(
        denoiser,
        solver_by_name(solver),
        steps,
        grid,
        correction,
        tile,
        symmetries=symmetries,
        start_level=start_level or None,
    )
    result = restore(
        torch.from_numpy(photo.pixels),
        operator,
        sigma=sigma,
        num_samples=num_samples,
        seed=seed,
        callback=lambda *_: progress(next(done)),
    )
    settings = {
        "model": model,
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "samples": num_samples,
        "sigma": sigma,
    }
    return _write(image, out, photo, result, spread_file, truth, {"task": task} | settings)


def enlargement(size: tuple[int, int], factor: float, kernel: str) -> BlockMean | Bicubic:
    """The operator that made a picture of ``size (H, W)`` from one ``factor`` times as large.

    Raises:
        ValueError: a factor or a kernel that is not known, or a result that is too large.
    """
    if factor != int(factor) or not 2 <= factor <= 8:
        raise ValueError(f"the factor must be a whole number from 2 to 8; got {factor:g}")
    if kernel not in ("block", "bicubic"):
        raise ValueError(f"kernel {kernel!r} is unknown; known: block, bicubic")
    height, width = (int(factor) * n for n in size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"the result would have {height * width:,} pixels; at most {MAX_PIXELS:,} are accepted"
        )
    return {"block": BlockMean, "bicubic": Bicubic}[kernel]((height, width), int(factor))


def _truth(reference: Path | None, shape: tuple[int, int, int]) -> np.ndarray | None:
    truth = None if reference is None else read_image(reference).pixels
    if truth is not None and truth.shape != shape:
        raise ValueError(
            f"reference {reference} has shape {truth.shape} but the result has {shape} (channels,"
            " height, width)"
        )
    if truth is not None and min(shape[1:]) < 11:
        raise ValueError(
            "--reference needs pictures of at least 11 x 11 pixels (the window of SSIM)"
        )
    return truth


def _check_output(out: Path, photo: Photo, std: bool) -> Path | None:
    """Where the spread goes, if it is wanted."""
    if photo.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
    if not std:
        return None
    check_writable(_spread_file(out))
    return _spread_file(out)


def _spread_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}-std.png")


def _write(
    image: Path,
    out: Path,
    photo: Photo,
    result: Restored,
    spread_file: Path | None,
    truth,
    settings: dict,
) -> dict:
    """Write the pictures; the figures of the run."""
    restored = result.mean.numpy()
    height, width = restored.shape[1:]
    figures = {"image": str(image), "out": str(out), "size": [width, height], **settings}
    figures |= {"nfe": result.nfe, "seconds": round(result.seconds, 2)}
    if spread_file is not None:
        spread = result.std.mean(0).numpy()
        coloured, top = heat(spread)
        figures |= {
            "std": str(spread_file),
            "std_mean": round(float(spread.mean()), 5),
            "std_white": round(top, 4),
        }
    if truth is not None:
        figures |= {
            "psnr": round(psnr(restored, truth), 3),
            "ssim": round(ssim(restored, truth), 4),
        }
        try:
            colour = [np.broadcast_to(v, (3, height, width)) for v in (restored, truth)]
            figures["lpips"] = round(lpips(*colour), 4)
        except LPIPSUnavailable as error:
            figures["lpips"] = str(error)
    with together():
        write_image(out, Photo(restored, photo.alpha, photo.bits))
        if spread_file is not None:
            write_image(spread_file, Photo(coloured))
    return figures


def _mask(text: str, height: int, width: int, seed: int) -> np.ndarray:
    """A mask file, or one made from ``KIND:FRACTION``."""
    if Path(text).exists():
        return read_mask(text, height, width)
    kind, fraction = parse_mask(text)
    mask = make_mask(kind, height, width, fraction, seed)
    if mask.all() or not mask.any():
        raise ValueError(
            f"mask {text} came out with {'nothing' if mask.all() else 'everything'} missing; choose"
            " another fraction or seed"
        )
    return mask
