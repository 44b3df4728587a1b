"""A table of docs/quantization-studies.md: what each part of a recipe gains on inputs that were not
calibrated on.

python benchmarks/quant_study.py MODEL --calibration c.safetensors --test t.safetensors [--data
PICTURES] [--only NAME ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quant.calibration.trajectory import CalibrationSet
from quant.network import QuantizedNetwork
from quant.quantize import quantize
from quant.recipe import PRESETS, QuantRecipe, Reconstruction
from quant.sensitivity import trajectory_errors
from restoration.io.pictures.folders import picture_crops
from restoration.metrics import psnr
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import KINDS, MISSING, make_mask
from solvers import solver_by_name
from toolbox.api import load
from toolbox.support.cost import Cost

IO = ("conv_in", "conv_out")
W8, W4 = QuantRecipe(), QuantRecipe(weight_bits=4)
E4 = replace(W4, range="p2.4")
LEARNED = Reconstruction(lr_weight=5e-2)
RECIPES: dict[str, QuantRecipe] = {
    "w8a8 nearest": W8,
    "w8a8 range max": replace(W8, range="max"),
    "w8a8 range mse": replace(W8, range="mse"),
    "w8a8 range p2.4": replace(W8, range="p2.4"),
    "w8a8 split": replace(W8, split_shortcut=True),
    "w8a8 equalize 0.5": replace(W8, equalize=0.5),
    "w8a8 max, split": replace(W8, range="max", split_shortcut=True),
    "w8a8 max, equalize 0.5": replace(W8, range="max", equalize=0.5),
    "w8a8 max, equalize 0.7": replace(W8, range="max", equalize=0.7),
    "w8a8 max, equalize 0.5, split": replace(W8, range="max", equalize=0.5, split_shortcut=True),
    "w8a8 int shortcuts": replace(W8, skip=IO),
    "w8a8 int shortcuts, max, equalize 0.7, split": replace(
        W8, skip=IO, range="max", equalize=0.7, split_shortcut=True
    ),
    "w4a8 nearest": W4,
    "w4a8 gptq": replace(W4, rounding="gptq"),
    "w4a8 max, equalize 0.7": replace(W4, range="max", equalize=0.7),
    "w4a8 p2.4, nearest": E4,
    "w4a8 p2.4, gptq": replace(E4, rounding="gptq"),
    "w4a8 max, equalize 0.5, gptq": replace(W4, range="max", equalize=0.5, rounding="gptq"),
    "w4a8 max, equalize 0.7, gptq": replace(W4, range="max", equalize=0.7, rounding="gptq"),
    "w4a8 p2.4, adaround": replace(E4, rounding="adaround", reconstruction=LEARNED),
    "w4a8 p2.4, fbr": replace(E4, rounding="fbr", reconstruction=LEARNED),
    "w4a8 p2.4, fbr, steps": replace(
        E4, rounding="fbr", reconstruction=replace(LEARNED, lr_step=5e-4)
    ),
    **{f"preset {name}": recipe for name, recipe in PRESETS.items()},
}


def study(
    network: nn.Module,
    calibration: CalibrationSet,
    test: CalibrationSet,
    recipes: dict[str, QuantRecipe],
    restored: Callable[[QuantizedNetwork], float] | None = None,
    seen: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Quantize with every recipe and measure.

    Args:
        network: float.
        calibration, test: recorded with that network, of different pictures.
        recipes: by row name.
        restored: PSNR of pictures restored with a quantized network.
        seen: called with each row as it is done.

    Returns:
        Rows: ``name``; relative output error ``mean``, ``first``, ``last`` over the timesteps;
            ``psnr``; ``cpu_seconds`` and
        ``peak_mb`` to quantize (:class:`toolbox.support.cost.Cost`; a later row reuses memory that
            an earlier one freed, so ask for one alone).

    Raises:
        ValueError: ``test`` was recorded with another network.
    """
    test.check(network)
    rows = []
    for name, recipe in recipes.items():
        with Cost() as cost:
            quantized = quantize(network, calibration, recipe)
        errors = list(trajectory_errors(quantized, network, test).values())
        row = {
            "name": name,
            "mean": sum(errors) / len(errors),
            "first": errors[0],
            "last": errors[-1],
        } | cost.to_dict()
        row["psnr"] = None if restored is None else restored(quantized)
        rows.append(row)
        seen(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/quant_study.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model")
    parser.add_argument(
        "--calibration", type=Path, required=True, help="file of `restobox calibrate`"
    )
    parser.add_argument("--test", type=Path, required=True, help="another one, of other pictures")
    parser.add_argument("--data", type=Path, help="pictures to restore")
    parser.add_argument("--count", type=int, default=4, help="how many of them")
    parser.add_argument("--side", type=int, default=192, help="side of the crops, in pixels")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--only", action="append", help="rows; all by default: " + "; ".join(RECIPES)
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - set(RECIPES):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known: {'; '.join(RECIPES)}")
    denoiser = load(options.model)
    calibration, test = (
        CalibrationSet.load(path, denoiser.network) for path in (options.calibration, options.test)
    )
    restored, reference = None, ""
    if options.data is not None:
        restored = _restorer(denoiser, options)
        reference = f"; float: {restored(denoiser.network):.3f} dB"
    print(
        f"{len(calibration)} calibration, {len(test)} test inputs at {len(test.grid)}"
        f" timesteps{reference}",
        flush=True,
    )
    print(
        "| recipe | mean | first | last | PSNR dB | CPU s | peak MB"
        " |\n|---|---|---|---|---|---|---|",
        flush=True,
    )

    def show(row: dict) -> None:
        quality = "" if row["psnr"] is None else f"{row['psnr']:.3f}"
        figures = " | ".join(f"{row[key]:.4f}" for key in ("mean", "first", "last"))
        print(
            f"| {row['name']} | {figures} | {quality} | {row['cpu_seconds']:.0f} |"
            f" {row['peak_mb'] or 0:.0f} |",
            flush=True,
        )

    study(
        denoiser.network,
        calibration,
        test,
        {name: RECIPES[name] for name in options.only or RECIPES},
        restored,
        show,
    )


def _restorer(denoiser, options) -> Callable[[nn.Module], float]:
    float_network = denoiser.network
    cases = []
    for k, (_, image) in enumerate(picture_crops(options.data, options.count, options.side, 0)):
        kind = KINDS[k % len(KINDS)]
        cases.append((image, make_mask(kind, *image.shape[1:], MISSING[kind], k)))

    def restored(network: nn.Module) -> float:
        denoiser.network = network
        try:
            task = InpaintingTask(denoiser, solver_by_name("ddim"), options.steps)
            results = [
                task(torch.from_numpy(i), torch.from_numpy(m), seed=k).mean.numpy()
                for k, (i, m) in enumerate(cases)
            ]
        finally:
            denoiser.network = float_network
        return float(np.mean([psnr(r, i) for r, (i, _) in zip(results, cases, strict=True)]))

    return restored


if __name__ == "__main__":
    main()
