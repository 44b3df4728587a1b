"""What quantization did to a network: per layer, per timestep, along the chain, on restored
pictures, in bytes.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from quant.packing import network_bytes
from quant.sensitivity import layer_sqnr, sensitivity, trajectory_errors
from restoration.io.folders import picture_crops
from restoration.metrics import psnr, ssim
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import KINDS, MISSING, make_mask
from solvers import solver_by_name
from solvers.files import check_outputs
from toolbox.api import float_model
from toolbox.support.html import check_report, html_table, picture, write_report
from toolbox.support.sheets import chart


def run_report(
    model: str,
    quantized: Path,
    calibration: Path,
    out: Path,
    *,
    data: Path | None = None,
    count: int = 8,
    side: int = 192,
    solver: str = "ddim",
    steps: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Measure a quantized network and write ``report.html``, ``report.json`` and pictures into
    ``out``.

    Args:
        model: the float model.
        quantized: folder of ``restobox quantize``.
        calibration: inputs to compare on; take others than it was calibrated on for an honest
            error.
        data: pictures to restore with both networks; without them chain and restored pictures are
            left out.
        count, side: how many pictures, and the side of their crops.

    Returns:
        ``layers`` (name, kind, codes, input step, SQNR dB, error of the output when this layer
            alone is quantized), ``timesteps`` (t,
        relative error), ``chain`` (step, relative error of the image estimate), ``images`` and
            their means, ``bytes``.

    Raises:
        ValueError, OSError: bad files or names; nothing is written then.
    """
    check_report(out)
    check_outputs([out], [model, quantized, calibration, data])
    denoiser = float_model(model)
    network = load_quantized(quantized, denoiser.network)
    inputs = CalibrationSet.load(calibration, denoiser.network)
    total = 3 + (count if data is not None else 0)
    sqnr = layer_sqnr(network, inputs)
    progress(1, total)
    alone = sensitivity(network, inputs)
    progress(2, total)
    errors = trajectory_errors(network, denoiser.network, inputs)
    progress(3, total)
    layers = [
        {
            "layer": name,
            "kind": "conv" if layer.codes.ndim == 4 else "linear",
            "codes": int(layer.codes.size),
            "input_step": layer.input_scale,
            "sqnr_db": sqnr[name],
            "error_alone": alone[name],
        }
        for name, layer in network.layers().items()
    ]
    float_bytes = 4 * sum(p.numel() for p in denoiser.network.parameters())
    figures = {
        "model": model,
        "recipe": network.recipe.to_dict(),
        "error": float(np.mean(list(errors.values()))),
        "bytes": network_bytes(network) | {"float32": float_bytes},
        "timesteps": [{"t": t, "error": error} for t, error in errors.items()],
        "layers": sorted(layers, key=lambda row: -row["error_alone"]),
    }
    shown: list[str] = []
    sheets: dict[str, np.ndarray] = {}
    if data is not None:
        figures |= _restored(
            denoiser,
            network,
            data,
            count,
            side,
            solver,
            steps,
            seed,
            sheets,
            shown,
            lambda k: progress(3 + k, total),
        )
    _write(out, quantized.name, figures, shown, sheets)
    return figures


def _restored(
    denoiser, network, data, count, side, solver, steps, seed, sheets, shown, progress
) -> dict:
    """The same pictures, masks and noise through the float and the quantized network."""
    small = copy.copy(denoiser)
    small.network = network
    task = InpaintingTask(denoiser, solver_by_name(solver), steps)
    chain = np.zeros(0)
    images = []
    for k, (_, image) in enumerate(picture_crops(data, count, side, seed)):
        kind = KINDS[k % len(KINDS)]
        known = make_mask(kind, *image.shape[1:], MISSING[kind], seed + k)
        seen: list[list[torch.Tensor]] = [[], []]
        results = []
        for estimates, d in zip(seen, (denoiser, small), strict=True):
            run = replace(task, denoiser=d)
            watch = lambda _, step, estimates=estimates: estimates.append(step.prediction.x0)  # noqa: E731
            results.append(
                run(
                    torch.from_numpy(image), torch.from_numpy(known), seed=seed + k, callback=watch
                ).mean.numpy()
            )
        distance = np.array([float((b - a).norm() / a.norm()) for a, b in zip(*seen, strict=True)])
        chain = distance if not len(chain) else chain + distance
        a, b = results
        row = {
            "mask": kind,
            "psnr_float": psnr(a, image),
            "psnr_quantized": psnr(b, image),
            "psnr_between": psnr(b, a),
        }
        images.append(row | {"ssim_float": ssim(a, image), "ssim_quantized": ssim(b, image)})
        titles = (
            "original",
            f"{kind} missing",
            f"float {row['psnr_float']:.2f} dB",
            f"quantized {row['psnr_quantized']:.2f} dB",
        )
        shown.append(
            picture(sheets, f"case-{k}.png", zip(titles, (image, image * known, a, b), strict=True))
        )
        progress(k + 1)
    means = {
        key: float(np.mean([row[key] for row in images])) for key in images[0] if key != "mask"
    }
    return {
        "chain": [{"step": k + 1, "error": float(e)} for k, e in enumerate(chain / count)],
        "images": images,
    } | means


def _curve(sheets: dict[str, np.ndarray], name: str, title: str, values: dict[str, float]) -> str:
    """The HTML of a curve; a table where matplotlib (extra ``plots``) isn't installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return html_table((title, ""), list(values.items()))
    sheets[name] = chart(title, list(values), list(values.values()))
    return f'<p><img src="{name}" alt="{title}"></p>'


def _write(
    out: Path, name: str, figures: dict, shown: list[str], sheets: dict[str, np.ndarray]
) -> None:
    errors = {f"{r['t']:g}": r["error"] for r in figures["timesteps"]}
    body = [_curve(sheets, "timesteps.png", "relative error of the network's output", errors)]
    if "chain" in figures:
        errors = {str(r["step"]): r["error"] for r in figures["chain"]}
        body.append(_curve(sheets, "chain.png", "relative error of the image estimate", errors))
        means = [
            (key, figures[key])
            for key in (
                "psnr_float",
                "psnr_quantized",
                "ssim_float",
                "ssim_quantized",
                "psnr_between",
            )
        ]
        body.append(html_table(("restored pictures, mean", ""), means))
    body.append(html_table(("bytes", ""), list(figures["bytes"].items())))
    body.append(html_table(("recipe", ""), list(figures["recipe"].items())))
    body.append(
        html_table(tuple(figures["layers"][0]), [tuple(row.values()) for row in figures["layers"]])
    )
    write_report(out, name, figures, [*body, *shown], sheets)
