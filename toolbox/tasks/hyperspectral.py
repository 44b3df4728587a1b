"""Hyperspectral cubes, and their eigen-images in a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from export.jobs.hyperspectral import EigenImageJob
from restoration.hyperspectral.noise import SIGMAS, add_noise
from restoration.hyperspectral.quality import cube_quality
from restoration.hyperspectral.simulation import SENSORS, SpectralLibrary, bands_of, simulate_cube
from restoration.hyperspectral.task import HyperspectralTask, RestoredCube
from restoration.io.cubes import check_cube_writable, read_cube, write_cube
from restoration.io.cubes.containers import READ_ONLY
from restoration.io.cubes.cube import Cube
from restoration.io.cubes.envi import raw_file
from restoration.io.cubes.files import SUFFIXES, TIFF
from restoration.io.cubes.outputs import lost
from restoration.io.cubes.products import BAND
from restoration.io.images import Photo, check_writable, write_image
from restoration.io.pictures.folders import find_pictures, visible_files
from restoration.task import Restored, shown_to
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs, together
from toolbox.api import load_for
from toolbox.tasks.base import Progress, Restorer, Size, Source, Task, Trial, silent, with_numbers
from toolbox.tasks.options import Cubes
from toolbox.tasks.settings import Prior, Request, Settings

RGB = (640.0, 550.0, 470.0)  # nanometres


LARGEST = 1e12  # of the numbers on the command line, whose squares must stay finite
LEVEL = 0.05  # noise of the planes that graphs are tried on


class Hyperspectral(Task):
    """Cubes. A graph holds the restoration of eigen-images: ``image (1, H, W)`` and ``level (1, 1,
    1)``, its noise.
    """

    name = "hsi"
    written = (".tif", *(s for s in SUFFIXES if s != ".tif"))
    suffixes = (*written, *READ_ONLY)
    prior = Prior("grey")
    settings = Settings(steps=1, symmetries=8)
    unused = ("grid", "correction", "sigma")
    files = ("dead",)
    further: ClassVar[Mapping[str, str | None]] = {"quicklook": ".png"}

    def is_one(self, folder: Path) -> bool:
        names = (p.name for p in visible_files(folder) if p.suffix.lower() in TIFF)
        return any(BAND.search(name) for name in names)

    def task(self, denoiser: Denoiser, settings: Settings) -> HyperspectralTask:
        """The algorithm."""
        return HyperspectralTask(
            denoiser,
            solver_by_name(settings.solver),
            1 if settings.steps is None else settings.steps,
            settings.correction,
            settings.symmetries,
            channels=denoiser.image_channels or 1,
            timesteps=settings.timesteps,
        )

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        path, options, prior = request.path, request.options, request.prior
        output, settings, draws = request.output, request.settings, request.draws
        noise, rank = auto("sigma", options.sigma, float), auto("rank", options.rank, int)
        out, reference = output.out, output.reference
        inputs = [path, raw_file(path), options.dead, reference, prior.model]
        check_outputs([out, raw_file(out), options.quicklook], inputs)
        cube = read_cube(path, options.key, options.band_axis)
        check_cube_writable(out, cube)
        if options.quicklook is not None:
            check_writable(options.quicklook)
        dead = None if options.dead is None else read_cube(options.dead).values
        truth = None if reference is None else _reference(reference, options, cube)
        denoiser, done = load_for(self.name, prior.model, **prior.place), count(1)
        result = self.task(denoiser, settings)(
            cube,
            sigma=noise,
            rank=rank,
            dead=dead,
            num_samples=draws.samples,
            seed=draws.seed,
            callback=lambda *_: progress(next(done), 0),
        )
        cube = replace(cube, bad=result.bad)  # which the output marks
        good = np.ones(len(cube.values), bool) if result.bad is None else ~result.bad
        with together():
            write_cube(out, cube, result.rows)
            if options.quicklook is not None:
                write_image(options.quicklook, Photo(quick_look(cube, result)))
        bands, height, width = cube.values.shape
        figures = {"task": self.name, "cube": str(path), "out": str(out), "bands": bands}
        figures |= {"size": [width, height], "rank": result.model.rank}
        figures |= {"sigma_median": float(np.median(result.model.sigma[good]))}
        figures |= {"dead": round(result.dead, 5), "outliers": round(result.outliers, 5)}
        if not good.all():
            figures["bad_bands"] = int((~good).sum())
        figures |= {"striped_columns": int((result.model.stripes != 0).sum())}
        figures |= {"striped_rows": result.striped_rows, "model": prior.model}
        figures |= {"nfe": result.nfe, "seconds": round(result.seconds, 2)}
        if options.quicklook is not None:
            figures["quicklook"] = str(options.quicklook)
        if notes := [note for note in (cube.note, lost(out, cube)) if note]:
            figures["note"] = "; ".join(notes)
        if truth is not None:
            low, high = float(np.min(truth.values[good])), float(np.max(truth.values[good]))
            pair = (
                (np.asarray(v[good], np.float64) - low) / (high - low)
                for v in (result.rows(), truth.values)
            )
            figures |= {name: round(value, 5) for name, value in cube_quality(*pair).items()}
        return figures

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        """Of cubes, ``cube (B, H, W)``; or of eigen-images, as the graph has them."""
        task = self.task(denoiser, settings)
        if settings.timesteps:  # as in a graph, of planes on their own axes
            task = replace(task, axes=1)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            if "cube" in inputs:
                found = task(inputs["cube"].numpy(), **draws)
                return Restored(found.samples, found.mean, found.std, found.nfe, found.seconds)
            planes = inputs["image"].numpy()
            variance = np.broadcast_to(inputs["level"].numpy() ** 2, planes.shape)
            restored, nfe = task.denoise(planes, variance, **draws)
            result = torch.from_numpy(restored)
            return Restored(result[None], result, torch.zeros_like(result), nfe, 0.0)

        return run

    def job(
        self, denoiser: Denoiser, options: Any, settings: Settings, size: Size
    ) -> EigenImageJob:
        low, high = denoiser.value_range
        noise = auto("sigma", options.sigma, float) or 0.1
        level = -2 * math.log(noise * (high - low) / 2)
        known = [t for t in settings.timesteps if denoiser.process.a(t) > 0]
        time = (
            min(known, key=lambda t: abs(denoiser.process.log_snr(t) - level))
            if known
            else denoiser.process.time_at(level)
        )
        return EigenImageJob(HyperspectralTask(denoiser, symmetries=1, axes=1), time, size)

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Cubes:
        return with_numbers(Cubes(), self.name, sigma, numbers)

    def check_recordable(self, denoiser: Denoiser) -> None:
        if "joint" not in shown_to(denoiser):
            raise ValueError(
                "--task hsi fits networks of joint latents (recipe hsi); calibrate those of single"
                " planes with --task denoise"
            )

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        """Pictures, and ``spectral_library.npz`` for simulated cubes; pictures alone stand for
        eigen-images.
        """
        if data is None or not data.is_dir():
            raise ValueError(
                "--task hsi needs --data: a folder of pictures and spectral_library.npz; got"
                f" {data}"
            )
        library = sorted(data.rglob("spectral_library.npz"))[:1]
        if "joint" in shown_to(denoiser) and not library:
            raise ValueError(f"{data} must hold spectral_library.npz, for simulated scenes")
        joint = "joint" in shown_to(denoiser)
        files = (*(library if joint else ()), *find_pictures(data))
        return Source(files, side, seed, 3 if joint else 1)

    def trial(self, source: Source, k: int, options: Any) -> Trial:
        if source.channels == 1:
            plane = source.picture(k)
            noise = source.noise(k, plane)
            inputs = {"image": plane + LEVEL * noise, "level": torch.full((1, 1, 1), LEVEL)}
            return Trial(inputs, plane, "eigen-image")
        library, *pictures = source.files
        scenes = Source(tuple(pictures), source.side, source.seed)
        seed = [source.seed, k]
        sensor, case = list(SENSORS)[k % len(SENSORS)], ("iid", "mixture")[k % 2]
        clean = simulate_cube(
            SpectralLibrary.read(library), scenes.picture(k).numpy(), bands_of(sensor), seed
        )
        sigma = SIGMAS[k // 2 % len(SIGMAS)] if case == "iid" else None
        noisy = add_noise(clean, case, source.seed + k, sigma)
        inputs = {"cube": torch.from_numpy(np.ascontiguousarray(noisy)).float()}
        return Trial(
            inputs, torch.from_numpy(np.ascontiguousarray(clean)).float(), f"{sensor} {case}"
        )

    def picture(self, result: Tensor) -> np.ndarray:
        """A plane, or three bands of a cube."""
        if len(result) > 3:
            result = result[list(rgb_bands(Cube(result.numpy())))]
        return result.clamp(0, 1).numpy()


def _reference(path: Path, options: Cubes, cube: Cube) -> Cube:
    envi = path.suffix.lower() == ".hdr"  # which has one array and names its axes
    truth = read_cube(path) if envi else read_cube(path, options.key, options.band_axis)
    if truth.values.shape != cube.values.shape:
        raise ValueError(
            f"reference {path} has shape {truth.values.shape} but the cube has"
            f" {cube.values.shape} (B, H, W)"
        )
    return truth


def auto(name: str, text: Any, kind: type) -> Any:
    """None for ``auto``, else the number.

    Raises:
        ValueError: neither, or one that is far out of any range.
    """
    if text == "auto":
        return None
    try:
        number = kind(text)
    except ValueError as error:
        raise ValueError(f"--{name} takes auto or a number; got {text!r}") from error
    if not 0 <= number <= LARGEST:
        raise ValueError(f"--{name} must lie between 0 and {LARGEST:g}; got {text}")
    return number


def rgb_bands(cube: Cube) -> tuple[int, int, int]:
    """Bands next to red, green and blue; spread over the range where the wavelengths are unknown or
    not visible light.
    """
    bands = cube.values.shape[0]
    if cube.bad is not None:  # of the others
        good = np.flatnonzero(~cube.bad)
        waves = None if cube.wavelengths is None else cube.wavelengths[good]
        red, green, blue = rgb_bands(
            replace(cube, values=cube.values[good], wavelengths=waves, bad=None)
        )
        return int(good[red]), int(good[green]), int(good[blue])
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
