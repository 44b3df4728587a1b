"""What quantization did to a network: per layer, per timestep, along the chain, on restored
pictures, in bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from quant.packing import network_bytes
from quant.sensitivity import layer_sqnr, sensitivity, trajectory_errors
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from solvers.solver import Step
from toolbox.api import float_model
from toolbox.deploy.compare import Row, compare, means, shown
from toolbox.deploy.options import Origin, Trials
from toolbox.deploy.verify import on_recorded_grid, restorers, task_of
from toolbox.support.html import check_report, html_table, write_report
from toolbox.support.sheets import chart
from toolbox.tasks.base import Task
from toolbox.tasks.settings import Draws, Settings


def run_report(
    quantized: Path,
    origin: Origin,
    out: Path,
    trials: Trials = Trials(side=192),
    run: Settings = Settings(steps=5),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Measure a quantized network and write ``report.html``, ``report.json`` and pictures into
    ``out``.

    Args:
        quantized: folder of ``restobox quantize``.
        origin: the float model, and inputs to compare on; take others than it was calibrated on for
            an honest error.
        trials: measurements to restore with both networks; without data chain and restored pictures
            are left out.

    Returns:
        ``layers`` (name, kind, codes, input step, SQNR dB, error of the output when this layer
        alone is quantized), ``timesteps`` (t, relative error), ``chain`` (step, relative error of
        the image estimate), ``images`` and their means, ``bytes``.

    Raises:
        ValueError, OSError: bad files or names; nothing is written then.
    """
    model, calibration = origin.model, origin.calibration
    if calibration is None:
        raise ValueError("give --calibration: the inputs that the networks are compared on")
    check_report(out)
    check_outputs([out], [model, quantized, calibration, trials.data])
    denoiser = float_model(model)
    network = load_quantized(quantized, denoiser.network)
    inputs = CalibrationSet.load(calibration, denoiser.network)
    if trials.data is not None:
        trials.options(task_of(denoiser, inputs), denoiser)  # which may lack one
    total = 3 + (trials.count if trials.data is not None else 0)
    sqnr = layer_sqnr(network, inputs)
    progress(1, total)
    alone = sensitivity(network, inputs)
    progress(2, total)
    errors = trajectory_errors(network, denoiser.network, inputs)
    progress(3, total)
    layers: list[dict[str, Any]] = [
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
    sheets: dict[str, np.ndarray] = {}
    pictures: list[str] = []
    if trials.data is not None:
        task, run = task_of(denoiser, inputs), on_recorded_grid(run, inputs)
        both = {"float": denoiser, "quantized": denoiser.around(network)}
        chain, rows = _restored(task, both, trials, run, lambda k: progress(3 + k, total))
        images = [row.flat() | {"psnr_between": row.between("quantized", "float")} for row in rows]
        errors_of_steps = [{"step": k + 1, "error": float(e)} for k, e in enumerate(chain)]
        figures |= {"chain": errors_of_steps, "images": images} | means(images)
        pictures = shown(sheets, task, rows)
    _write(out, quantized.name, figures, pictures, sheets)
    return figures


def _restored(
    task: Task,
    both: Mapping[str, Denoiser],
    trials: Trials,
    run: Settings,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, list[Row]]:
    """The same measurements and noise through the float and the quantized network: the mean
    relative distance of their estimates after each step, and the results.
    """
    denoiser = both["float"]
    options = trials.options(task, denoiser)
    source = task.source(trials.data, denoiser, trials.side, trials.seed)
    methods = {name: ways[0] for name, ways in restorers(task, both, options, run).items()}
    chains, rows = [], list[Row]()
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, _: int, step: Any) -> None:
        if isinstance(step, Step):  # large pictures are done window by window, without one
            seen.setdefault(name, []).append(step.prediction.x0)

    made = (task.trial(source, k, options) for k in range(trials.count))
    for row in compare(task, made, methods, Draws(trials.seed), callback=watch):
        pairs = zip(seen.pop("float", []), seen.pop("quantized", []), strict=True)
        chains.append([float((b - a).norm() / a.norm()) for a, b in pairs])
        rows.append(row)
        progress(len(rows))
    return np.mean(chains, axis=0), rows


def _curve(sheets: dict[str, np.ndarray], name: str, title: str, values: dict[str, float]) -> str:
    """The HTML of a curve; a table where matplotlib (extra ``plots``) isn't installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return html_table((title, ""), list(values.items()))
    sheets[name] = chart(title, list(values), list(values.values()))
    return f'<p><img src="{name}" alt="{title}"></p>'


def _write(
    out: Path, name: str, figures: dict, pictures: list[str], sheets: dict[str, np.ndarray]
) -> None:
    errors = {f"{r['t']:g}": r["error"] for r in figures["timesteps"]}
    body = [_curve(sheets, "timesteps.png", "relative error of the network's output", errors)]
    if "chain" in figures:
        errors = {str(r["step"]): r["error"] for r in figures["chain"]}
        body.append(_curve(sheets, "chain.png", "relative error of the image estimate", errors))
        found = [(key, figures[key]) for key in figures["images"][0] if key != "case"]
        body.append(html_table(("restored, mean", ""), found))
    body.append(html_table(("bytes", ""), list(figures["bytes"].items())))
    body.append(html_table(("recipe", ""), list(figures["recipe"].items())))
    body.append(
        html_table(tuple(figures["layers"][0]), [tuple(row.values()) for row in figures["layers"]])
    )
    write_report(out, name, figures, [*body, *pictures], sheets)
