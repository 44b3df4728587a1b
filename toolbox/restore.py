"""Files in, files out: what ``restobox restore`` does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from restoration.inpainting import InpaintingTask
from restoration.io.images import Photo, check_writable, read_image, read_mask, write_image
from restoration.masks import make_mask, parse_mask
from restoration.metrics import LPIPSUnavailable, lpips, psnr, ssim
from solvers import solver_by_name
from toolbox.api import load
from toolbox.pictures import heat


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
    device: str,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Read, restore, write; returns what was done and, with a reference, how close it came.

    Everything that can be checked is checked before the first network call.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    check_writable(out)
    photo = read_image(image)
    height, width = photo.pixels.shape[1:]
    known = _mask(mask, height, width, seed)
    truth = None if reference is None else read_image(reference).pixels
    if truth is not None and truth.shape != photo.pixels.shape:
        raise ValueError(f"reference {reference} has shape {truth.shape} but the image has {photo.pixels.shape} (channels, height, width)")
    if truth is not None and min(height, width) < 11:
        raise ValueError("--reference needs pictures of at least 11 x 11 pixels (the window of SSIM)")
    if photo.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
    spread_file = out.with_name(f"{out.stem}-std.png")
    if std:
        check_writable(spread_file)
    denoiser = load(model, device=device)
    done = itertools.count(1)
    options = {"num_samples": num_samples, "seed": seed, "callback": lambda *_: progress(next(done))}
    run = getattr(denoiser, "run", None)
    if run is not None:  # a whole restoration: what it does was settled on export
        if run.sigma != sigma:
            raise ValueError(f"{model} was exported for noise of sigma {run.sigma:g}; got --sigma {sigma:g}")
        solver, steps, task = run.solver, run.steps, denoiser
    else:
        task = InpaintingTask(denoiser, solver_by_name(solver), steps, grid, correction, tile)
        options["sigma"] = sigma
    result = task(torch.from_numpy(photo.pixels), torch.from_numpy(known), **options)
    restored = result.mean.numpy()
    figures = {
        "image": str(image),
        "out": str(out),
        "size": [width, height],
        "missing": round(float(1 - known.mean()), 4),
        "model": model,
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "samples": num_samples,
        "nfe": result.nfe,
        "seconds": round(result.seconds, 2),
    }
    if std:
        spread = result.std.mean(0).numpy()
        coloured, top = heat(spread)
        figures |= {"std": str(spread_file), "std_mean": round(float(spread.mean()), 5), "std_white": round(top, 4)}
    if truth is not None:
        figures |= {"psnr": round(psnr(restored, truth), 3), "ssim": round(ssim(restored, truth), 4)}
        try:
            colour = [np.broadcast_to(v, (3, height, width)) for v in (restored, truth)]
            figures["lpips"] = round(lpips(*colour), 4)
        except LPIPSUnavailable as error:
            figures["lpips"] = str(error)
    write_image(out, Photo(restored, photo.alpha, photo.bits))
    if std:
        write_image(spread_file, Photo(coloured))
    return figures


def _mask(text: str, height: int, width: int, seed: int) -> np.ndarray:
    """A mask file, or one made from ``KIND:FRACTION``."""
    if Path(text).exists():
        return read_mask(text, height, width)
    kind, fraction = parse_mask(text)
    mask = make_mask(kind, height, width, fraction, seed)
    if mask.all() or not mask.any():
        raise ValueError(f"mask {text} came out with {'nothing' if mask.all() else 'everything'} missing; choose another fraction or seed")
    return mask
