"""From a trained model to a proven bundle: what ``restobox quantize``, ``export`` and ``verify``
do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quant.calibration.trajectory import CalibrationSet
from quant.files import check_quantized_free, load_quantized, save_quantized
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from restoration.io.images import read_image
from restoration.metrics import psnr, ssim
from restoration.paired.task import HAZE, PLAIN, PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import KINDS, make_mask
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import load
from toolbox.support.cost import Cost
from toolbox.support.html import check_report, html_table, picture, write_report
from toolbox.training.examples.paired import Haze, find_pairs, make_hazy, read_pair

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
MISSING = {"random": 0.8, "strokes": 0.25, "text": 0.1, "box": 0.1}


def pictures(
    folder: Path, count: int, side: int | tuple[int, int], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """``count`` random crops ``(3, side, side)`` or ``(3, *side)`` (smaller where a picture is) of
    a folder, with the file's SHA-256.

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
        height, width = (
            min(m, n)
            for m, n in zip(
                (side, side) if isinstance(side, int) else side, pixels.shape[1:], strict=True
            )
        )
        top, left = (
            int(rng.integers(n - m + 1))
            for n, m in zip(pixels.shape[1:], (height, width), strict=True)
        )
        crop = pixels[:, top : top + height, left : left + width]
        yield (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            np.ascontiguousarray(np.broadcast_to(crop, (3, height, width))),
        )


def run_quantize(
    model: str,
    calibration: Path,
    recipe: Path | None,
    out: Path,
    *,
    preset: str | None = None,
    solver: str | None = None,
    float_macs: float | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Quantize a model on a calibration file and write the folder of scales and codes.

    Args:
        solver: the solver to be deployed; the calibration must have been recorded with it.
        float_macs: in place of the recipe's (:class:`quant.recipe.QuantRecipe`).

    Raises:
        ValueError: a calibration of another model or solver, both a recipe file and a preset, one
            that isn't accepted, or a share outside [0, 1).
    """
    check_quantized_free(out)
    check_outputs([out], [model, calibration, recipe, state])
    if recipe is not None and preset is not None:
        raise ValueError("give a recipe file or a preset, not both")
    settings = QuantRecipe() if preset is None else QuantRecipe.preset(preset)
    if recipe is not None:
        settings = QuantRecipe.from_json(recipe.read_text(encoding="utf-8"))
    if float_macs is not None:
        settings = replace(settings, float_macs=float_macs)
    denoiser = float_model(model)
    with Cost() as cost:
        calibrated = CalibrationSet.load(calibration, denoiser.network)
        calibrated.check(denoiser.network, solver)
        quantized = quantize(denoiser.network, calibrated, settings, state=state, progress=progress)
        save_quantized(quantized, out)
    chosen = calibrated.provenance
    figures = {
        "out": str(out),
        "layers": len(quantized.names),
        "recipe": quantized.recipe.to_dict(),
        "timesteps": list(quantized.timesteps),
    }
    return figures | {
        "solver": chosen.solver,
        "selection": chosen.selection,
        "cost": cost.to_dict(),
    }


def run_export(
    model: str, quantized: Path | None, target: str, out: Path, *, seed: int, summary: str = ""
) -> dict:
    """Export a model (float without ``quantized``) as a bundle."""
    from export.bundle import check_bundle_free
    from export.exporter import export_bundle

    check_bundle_free(out)
    check_outputs([out], [model, quantized])
    denoiser = float_model(model)
    made = None if quantized is None else load_quantized(quantized, denoiser.network)
    card = f"# {out.name}\n\n{summary}" if summary else f"# {out.name}"
    bundle = export_bundle(denoiser, out, target=target, quantized=made, seed=seed, card=card)
    return {
        "out": str(out),
        "target": target,
        "graph": bundle.graph,
        "bytes": sum(f.size for f in bundle.files.values()),
    }


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
    device: str = "cpu",
) -> dict:
    """Prove a bundle against the model it was made from: kernels, errors along the trajectory,
    speed, restored images.

    The figures are put into the bundle's manifest; with ``report`` also into a folder with
    ``report.html``, ``report.json`` and pictures.
    """
    from export.bundle import read_bundle, set_parity
    from export.parity import Limits, verify

    check_report(report)
    check_outputs([report], [bundle, model, quantized, calibration, data])
    read_bundle(bundle)
    denoiser = float_model(model)
    made = load_quantized(quantized, denoiser.network)
    recorded = CalibrationSet.load(calibration)
    recorded.check(denoiser.network, solver)
    paired = denoiser.condition_channels in (PLAIN, HAZE)
    cases = []
    if data is not None:
        cases = (
            _paired_cases(denoiser, data, count, side, seed)
            if paired
            else _masked_cases(data, count, side, seed)
        )
    restored: list[list[np.ndarray]] = []

    def restore(d: Denoiser) -> float:
        results = []
        for k, (_, image, shown) in enumerate(cases):
            if paired:  # its solvers take turns
                names = solver.split(",")
                task = PairedTask(d, solver_by_name(names[k % len(names)]), steps)
                result = task(torch.from_numpy(shown), seed=seed + k)
            else:
                task = InpaintingTask(d, solver_by_name(solver), steps)
                result = task(torch.from_numpy(image), torch.from_numpy(shown), seed=seed + k)
            results.append(result.mean.numpy())
        restored.append(results)
        return float(np.mean([psnr(r, i) for r, (_, i, _) in zip(results, cases, strict=True)]))

    limits = Limits(quality_drop=psnr_drop)
    parity = verify(
        denoiser,
        bundle,
        made,
        recorded,
        device=device,
        restore=restore if cases else None,
        limits=limits,
    )
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


def _masked_cases(
    data: Path, count: int, side: int, seed: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, picture and mask."""
    cases = []
    for k, (_, image) in enumerate(pictures(data, count, side, seed)):
        kind = KINDS[k % len(KINDS)]
        cases.append((kind, image, make_mask(kind, *image.shape[1:], MISSING[kind], seed + k)))
    return cases


def _paired_cases(
    denoiser: Denoiser, data: Path, count: int, side: int, seed: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, clean and degraded picture: haze is simulated on clear pictures, other degradations
    come as a folder of pairs.
    """
    if denoiser.condition_channels == HAZE:
        rng = np.random.default_rng(seed)
        pairs = [
            make_hazy(torch.from_numpy(i), torch.from_numpy(i)[None], Haze(), rng)
            for _, i in pictures(data, count, side, seed)
        ]
        return [("haze", clear.numpy(), hazy.numpy()) for clear, hazy in pairs]
    cases = []
    for paths in find_pairs(data)[:count]:
        degraded, clean = (
            np.broadcast_to(v, (3, *v.shape[1:]))[:, :side, :side] for v in read_pair(*paths)
        )
        cases.append(("degraded", np.ascontiguousarray(clean), np.ascontiguousarray(degraded)))
    return cases


def _write_report(
    folder: Path, bundle: Path, figures: dict, cases: list, restored: list[list[np.ndarray]]
) -> None:
    body = [
        html_table(
            ("figure", "value"),
            [(k, v) for k, v in figures.items() if not isinstance(v, (list, tuple, dict))],
        )
    ]
    errors = zip(figures["timesteps"], figures["simulated"], figures["onnx"], strict=True)
    body.append("<h2>Relative error against the float network</h2>")
    body.append(
        html_table(
            ("timestep", "simulated", "ONNX"),
            [(f"{t:g}", f"{a:.4f}", f"{b:.4f}") for t, a, b in errors],
        )
    )
    sheets: dict[str, np.ndarray] = {}
    for k, (kind, image, shown) in enumerate(cases):
        panels = [
            ("original", image),
            (kind, shown) if shown.ndim == 3 else (f"{kind} missing", image * shown),
            (f"float {psnr(restored[0][k], image):.2f} dB", restored[0][k]),
            (f"bundle {psnr(restored[1][k], image):.2f} dB", restored[1][k]),
        ]
        body.append(picture(sheets, f"case-{k}.png", panels))
    write_report(folder, bundle.name, figures, body, sheets)


def float_model(model: str) -> Denoiser:
    """The PyTorch denoiser of this name or folder.

    Raises:
        ValueError: none, or an exported bundle.
    """
    denoiser = load(model)
    if not isinstance(denoiser.network, torch.nn.Module):
        raise ValueError(
            f"model {model!r} is an exported bundle; give the PyTorch model that it was made from"
        )
    return denoiser
