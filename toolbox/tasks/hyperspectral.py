"""Cube in, cube out: what ``restobox restore hsi`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from restoration.hyperspectral.quality import cube_quality
from restoration.hyperspectral.task import HyperspectralTask, RestoredCube
from restoration.io.cube import Cube
from restoration.io.cubes import check_cube_writable, read_cube, write_cube
from restoration.io.envi import raw_file
from restoration.io.images import Photo, check_writable, write_image
from solvers import solver_by_name
from solvers.files import check_outputs, together
from toolbox.api import load_for

RGB = (640.0, 550.0, 470.0)  # nanometres


def run_hsi(
    cube: Path,
    out: Path,
    *,
    model: str,
    sigma: str,
    rank: str,
    solver: str,
    steps: int,
    correction: str | None,
    key: str | None,
    band_axis: int | None,
    dead: Path | None,
    seed: int,
    num_samples: int,
    symmetries: int,
    quicklook: Path | None,
    reference: Path | None,
    device: str,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Read, restore, write; returns what was done and found.

    Raises:
        ValueError, OSError: bad files, names or numbers; nothing is written then.
    """
    noise, dimensions = parse_auto("sigma", sigma, float), parse_auto("rank", rank, int)
    check_outputs([out, raw_file(out), quicklook], [cube, raw_file(cube), dead, reference, model])
    source = read_cube(cube, key, band_axis)
    check_cube_writable(out, source)
    if quicklook is not None:
        check_writable(quicklook)
    mask = None if dead is None else read_cube(dead).values
    truth = None
    if reference is not None:
        envi = reference.suffix.lower() == ".hdr"  # which has one array and names its axes
        truth = read_cube(reference) if envi else read_cube(reference, key, band_axis)
    if truth is not None and truth.values.shape != source.values.shape:
        raise ValueError(
            f"reference {reference} has shape {truth.values.shape} but the cube has"
            f" {source.values.shape} (B, H, W)"
        )
    denoiser = load_for("hsi", model, device=device)
    channels = denoiser.image_channels or 1
    task = HyperspectralTask(
        denoiser, solver_by_name(solver), steps, correction, symmetries, channels=channels
    )
    result = task(
        source,
        sigma=noise,
        rank=dimensions,
        dead=mask,
        num_samples=num_samples,
        seed=seed,
        callback=progress,
    )
    with together():
        write_cube(out, source, result.rows)
        if quicklook is not None:
            write_image(quicklook, Photo(quick_look(source, result)))
    figures = {
        "cube": str(cube),
        "out": str(out),
        "bands": source.values.shape[0],
        "size": [source.values.shape[2], source.values.shape[1]],
        "rank": result.model.rank,
        "sigma_median": float(np.median(result.model.sigma)),
        "dead": round(result.dead, 5),
        "outliers": round(result.outliers, 5),
        "striped_columns": int((result.model.stripes != 0).sum()),
        "striped_rows": result.striped_rows,
        "model": model,
        "nfe": result.nfe,
        "seconds": round(result.seconds, 2),
    }
    if quicklook is not None:
        figures["quicklook"] = str(quicklook)
    if truth is not None:
        low, high = float(np.min(truth.values)), float(np.max(truth.values))
        pair = (
            (np.asarray(v, np.float64) - low) / (high - low) for v in (result.rows(), truth.values)
        )
        figures |= {name: round(value, 5) for name, value in cube_quality(*pair).items()}
    return figures


def parse_auto(name: str, text: str, kind: type):
    """None for ``auto``, else the number.

    Raises:
        ValueError: neither.
    """
    if text == "auto":
        return None
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"--{name} takes auto or a number; got {text!r}") from error


def rgb_bands(cube: Cube) -> tuple[int, int, int]:
    """Bands next to red, green and blue; spread over the range where the wavelengths are unknown or
    not visible light.
    """
    bands = cube.values.shape[0]
    if (
        cube.wavelengths is not None
        and cube.wavelengths.min() < 500
        and cube.wavelengths.max() > 600
    ):
        red, green, blue = (int(np.abs(cube.wavelengths - w).argmin()) for w in RGB)
        return red, green, blue
    order = np.arange(bands) if cube.wavelengths is None else np.argsort(cube.wavelengths)
    red, green, blue = (int(order[k]) for k in ((5 * bands) // 6, bands // 2, bands // 6))
    return red, green, blue


def quick_look(cube: Cube, result: RestoredCube) -> np.ndarray:
    """A picture ``(3, H', W')`` in [0, 1]: three bands before and after, and the spectra of three
    pixels.
    """
    from toolbox.support.sheets import sheet

    bands = list(rgb_bands(cube))
    # block by block: the cube may be larger than memory
    blocks = [slice(top, top + 64) for top in range(0, cube.values.shape[1], 64)]
    thin = -(-max(cube.values.shape[1:]) // 1024)
    after = _thinned((result.rows(rows)[bands] for rows in blocks), thin)
    before = _thinned(
        (np.where(cube.valid(rows)[bands], cube.values[bands, rows], np.nan) for rows in blocks),
        thin,
    )
    low, high = (np.quantile(after, q, axis=(1, 2), keepdims=True) for q in (0.01, 0.99))
    panels = [
        np.nan_to_num((v - low) / np.maximum(high - low, 1e-12)).clip(0, 1) for v in (before, after)
    ]
    height, width = panels[0].shape[1:]
    grow = max(1, -(-256 // max(height, width)))
    panels = [v.repeat(grow, 1).repeat(grow, 2).astype(np.float32) for v in panels]
    return sheet(
        [
            ("as measured", panels[0]),
            ("restored", panels[1]),
            ("spectra: grey measured", _spectra(cube, result, *panels[0].shape[1:])),
        ]
    )


def _thinned(blocks: Iterable[np.ndarray], thin: int) -> np.ndarray:
    """Every ``thin``-th row and column of blocks of up to 64 rows."""
    return np.concatenate(
        [block[:, (-k * 64) % thin :: thin, ::thin] for k, block in enumerate(blocks)], axis=1
    )


def _spectra(cube: Cube, result: RestoredCube, height: int, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    rows, columns = cube.values.shape[1:]
    at = [(rows // 4, columns // 4), (rows // 2, columns // 2), (3 * rows // 4, 3 * columns // 4)]
    order = (
        np.arange(cube.values.shape[0])
        if cube.wavelengths is None
        else np.argsort(cube.wavelengths)
    )
    x = order.argsort() if cube.wavelengths is None else cube.wavelengths
    x = (np.asarray(x, float) - np.min(x)) / max(float(np.ptp(x)), 1e-12)
    lines = []
    for row, column in at:
        measured = np.where(
            cube.valid(slice(row, row + 1))[:, 0, column], cube.values[:, row, column], np.nan
        )
        lines.append((measured, result.rows(slice(row, row + 1))[:, 0, column]))
    low, high = min(r.min() for _, r in lines), max(r.max() for _, r in lines)
    margin = 0.15 * max(high - low, 1e-12)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for (measured, restored), colour in zip(lines, ("#c0392b", "#27639a", "#2d8a4e"), strict=True):
        for spectrum, ink in ((measured, "#c8c8c8"), (restored, colour)):
            y = (spectrum - low + margin) / (high - low + 2 * margin)
            points = [
                (x[b] * (width - 1), (1 - y[b]) * (height - 1)) for b in order if np.isfinite(y[b])
            ]
            points = [(px, min(max(py, 0), height - 1)) for px, py in points]
            if len(points) > 1:
                draw.line(points, fill=ink, width=1 if ink == "#c8c8c8" else 2)
    return np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255
