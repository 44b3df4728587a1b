"""From a trained model to a proven bundle: what ``restobox calibrate``, ``quantize``, ``export`` and ``verify`` do."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from quant.files import load_quantized, save_quantized
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.trajectory import CalibrationSet, record
from restoration.inpainting import InpaintingTask
from restoration.io.images import Photo, check_folder, read_image, replace_file, write_image
from restoration.masks import KINDS, make_mask
from restoration.metrics import psnr, ssim
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.api import load
from toolbox.pictures import sheet

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
MISSING = {"random": 0.8, "strokes": 0.25, "text": 0.1, "box": 0.1}


def pictures(folder: Path, count: int, side: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """``count`` random crops ``(3, side, side)`` (smaller where a picture is) of a folder's files, with each file's SHA-256.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(files))
    for k in range(count):
        path = files[order[k % len(files)]]
        pixels = read_image(path).pixels
        height, width = (min(side, n) for n in pixels.shape[1:])
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(pixels.shape[1:], (height, width), strict=True))
        crop = pixels[:, top : top + height, left : left + width]
        yield hashlib.sha256(path.read_bytes()).hexdigest(), np.ascontiguousarray(np.broadcast_to(crop, (3, height, width)))


def run_calibrate(
    model: str,
    data: Path,
    out: Path,
    *,
    solver: str,
    steps: Sequence[int],
    count: int,
    side: int,
    per_timestep: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Restore ``count`` pictures with the deployed solver at each number of steps and record what the network sees.

    Masks take turns through all kinds. Returns the figures that the command prints.

    Raises:
        ValueError, OSError: bad names, numbers or files; nothing is written then.
    """
    check_folder(out.parent)
    denoiser = _float_model(model)
    tasks = [InpaintingTask(denoiser, solver_by_name(solver), n) for n in steps]
    crop = min(side // denoiser.fold, 64) // denoiser.multiple * denoiser.multiple
    hashes, done = [], 0
    with record(denoiser, per_timestep=per_timestep, crop=crop, seed=seed, solver=solver, task="inpainting", data=()) as recorder:
        for k, (digest, image) in enumerate(pictures(data, count, side, seed)):
            hashes.append(digest)
            kind = KINDS[k % len(KINDS)]
            mask = torch.from_numpy(make_mask(kind, *image.shape[1:], MISSING[kind], seed + k))
            for task in tasks:
                task(torch.from_numpy(image), mask, seed=seed + k)
                done += 1
                progress(done)
    found = recorder.result()
    provenance = found.provenance
    provenance = type(provenance)(provenance.model, seed, solver, max(steps), "inpainting", tuple(sorted(set(hashes))))
    calibration = CalibrationSet(found.samples, found.timesteps, provenance)
    calibration.save(out)
    return {"out": str(out), "samples": len(calibration), "timesteps": list(calibration.grid), "hash": calibration.hash}


def run_quantize(
    model: str,
    calibration: Path,
    recipe: Path | None,
    out: Path,
    *,
    preset: str | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Quantize a model on a calibration file and write the folder of scales and codes.

    Raises:
        ValueError: both a recipe file and a preset, or one that isn't accepted.
    """
    if recipe is not None and preset is not None:
        raise ValueError("give a recipe file or a preset, not both")
    settings = QuantRecipe() if preset is None else QuantRecipe.preset(preset)
    if recipe is not None:
        settings = QuantRecipe.from_json(recipe.read_text(encoding="utf-8"))
    denoiser = _float_model(model)
    calibrated = CalibrationSet.load(calibration, denoiser.network)
    quantized = quantize(denoiser.network, calibrated, settings, state=state, progress=progress)
    save_quantized(quantized, out)
    return {"out": str(out), "layers": len(quantized.names), "recipe": settings.to_dict(), "timesteps": list(quantized.timesteps)}


def run_export(model: str, quantized: Path | None, target: str, out: Path, *, seed: int, summary: str = "") -> dict:
    """Export a model (float without ``quantized``) as a bundle."""
    from export.exporter import export_bundle

    denoiser = _float_model(model)
    made = None if quantized is None else load_quantized(quantized, denoiser.network)
    card = f"# {out.name}\n\n{summary}" if summary else f"# {out.name}"
    bundle = export_bundle(denoiser, out, target=target, quantized=made, seed=seed, card=card)
    return {"out": str(out), "target": target, "graph": bundle.graph, "bytes": sum(f.size for f in bundle.files.values())}


def run_verify(
    bundle: Path,
    model: str,
    quantized: Path,
    calibration: Path,
    data: Path | None,
    *,
    count: int,
    side: int,
    steps: int,
    solver: str,
    psnr_drop: float,
    report: Path | None,
    seed: int,
) -> dict:
    """Prove a bundle against the model it was made from: kernels, errors along the trajectory, speed, restored images.

    The figures are put into the bundle's manifest; with ``report`` also into a folder with ``report.html``, ``report.json`` and pictures.
    """
    from export.bundle import read_bundle, set_parity
    from export.parity import Limits, verify

    if report is not None:
        check_folder(report)
    read_bundle(bundle)
    denoiser = _float_model(model)
    made = load_quantized(quantized, denoiser.network)
    recorded = CalibrationSet.load(calibration, denoiser.network)
    cases = []
    if data is not None:
        for k, (_, image) in enumerate(pictures(data, count, side, seed)):
            kind = KINDS[k % len(KINDS)]
            cases.append((kind, image, make_mask(kind, *image.shape[1:], MISSING[kind], seed + k)))
    restored: list[list[np.ndarray]] = []

    def restore(d: Denoiser) -> float:
        task = InpaintingTask(d, solver_by_name(solver), steps)
        results = [task(torch.from_numpy(i), torch.from_numpy(m), seed=seed + k).mean.numpy() for k, (_, i, m) in enumerate(cases)]
        restored.append(results)
        return float(np.mean([psnr(r, i) for r, (_, i, _) in zip(results, cases, strict=True)]))

    parity = verify(denoiser, bundle, made, recorded, restore=restore if cases else None, limits=Limits(quality_drop=psnr_drop))
    figures = parity.to_dict()
    if cases:
        pairs = [psnr(b, a) for a, b in zip(*restored, strict=True)]
        figures["images"] = [
            {
                "mask": kind,
                "psnr_float": psnr(a, i),
                "psnr_bundle": psnr(b, i),
                "ssim_float": ssim(a, i),
                "ssim_bundle": ssim(b, i),
                "psnr_between": p,
            }
            for (kind, i, _), a, b, p in zip(cases, *restored, pairs, strict=True)
        ]
    set_parity(bundle, figures)
    if report is not None:
        _write_report(report, bundle, figures, cases, restored)
    return figures


def _write_report(folder: Path, bundle: Path, figures: dict, cases: list, restored: list[list[np.ndarray]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "report.json", lambda p: p.write_text(json.dumps(figures, indent=2)))
    rows = [(k, v) for k, v in figures.items() if not isinstance(v, (list, tuple, dict))]
    body = [f"<h1>{html.escape(bundle.name)}</h1>", _html_table(("figure", "value"), rows)]
    errors = zip(figures["timesteps"], figures["simulated"], figures["onnx"], strict=True)
    body.append("<h2>Relative error against the float network</h2>")
    body.append(_html_table(("timestep", "simulated", "ONNX"), [(f"{t:g}", f"{a:.4f}", f"{b:.4f}") for t, a, b in errors]))
    for k, (kind, image, mask) in enumerate(cases):
        panels = [
            ("original", image),
            (f"{kind} missing", image * mask),
            (f"float {psnr(restored[0][k], image):.2f} dB", restored[0][k]),
            (f"bundle {psnr(restored[1][k], image):.2f} dB", restored[1][k]),
        ]
        write_image(folder / f"case-{k}.png", Photo(sheet(panels)))
        body.append(f'<p><img src="case-{k}.png" alt="{kind}"></p>')
    style = "body{font-family:sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:right}img{max-width:100%}"
    page = f'<!doctype html><meta charset="utf-8"><title>{html.escape(bundle.name)}</title><style>{style}</style>' + "\n".join(body)
    replace_file(folder / "report.html", lambda p: p.write_text(page, encoding="utf-8"))


def _html_table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(f'{v:.4g}' if isinstance(v, float) else str(v))}</td>" for v in r) + "</tr>" for r in rows
    ]
    return "\n".join(lines) + "</table>"


def _float_model(model: str) -> Denoiser:
    denoiser = load(model)
    if not isinstance(denoiser.network, torch.nn.Module):
        raise ValueError(f"model {model!r} is an exported bundle; give the PyTorch model that it was made from")
    return denoiser
