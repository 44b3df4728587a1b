r"""What the selections and losses of PTQ4DM, EDA-DM and TFMQ buy against uniform calibration, with
the same ranges and the same layers.

    restobox calibrate grey --task denoise --data TRAIN -o pool.safetensors --steps 5 --count 16 \
        --side 64 --per-timestep 32
    python benchmarks/quant_papers.py grey --pool pool.safetensors --test t.safetensors \
        --log grey.jsonl

Mean and standard deviation over seeds of the relative error of a call, ``|y_q - y| / |y|``, on the
inputs of ``--test``, which were recorded at the same timesteps. Each row changes one thing of the
one it is indented under. Figures are kept in ``--log``: a call that was cut goes on.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from quant.calibration.trajectory import CalibrationSet
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.sensitivity import trajectory_errors
from toolbox.api import load
from toolbox.deploy.calibrate import select_samples

PAPERS = QuantRecipe(range="p2.4")  # the papers' |error|^2.4, on this library's layers
FOUR = replace(PAPERS, weight_bits=4)
# name -> selection, recipe
ROWS = {
    "W8A8, squared error, uniform": ("uniform", QuantRecipe()),
    "- error to the power 2.4 (PTQ4DM's)": ("uniform", PAPERS),
    "  - PTQ4DM's selection": ("ptq4dm", PAPERS),
    "  - EDA-DM's selection": ("eda-dm", PAPERS),
    "W4A8, power 2.4, uniform, nearest rounding": ("uniform", FOUR),
    "- PTQ4DM's selection": ("ptq4dm", FOUR),
    "- EDA-DM's selection": ("eda-dm", FOUR),
    "- features of time rounded jointly (TFMQ's)": ("uniform", replace(FOUR, temporal="tiar")),
    "- rounding by blocks (TFMQ's)": ("uniform", replace(FOUR, rounding="fbr")),
    "- - against features of time rounded first (TFMQ's order)": (
        "uniform",
        replace(FOUR, rounding="fbr", temporal="tiar"),
    ),
    "- rounding by blocks and their layers (EDA-DM's)": ("uniform", replace(FOUR, rounding="fbr")),
    "- GPTQ": ("uniform", replace(FOUR, rounding="gptq")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=60, help="of learned rounding, a unit")
    parser.add_argument("--crop", type=int, default=24, help="side of its inputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = load(options.model)
    pool, test = (
        CalibrationSet.load(path, denoiser.network) for path in (options.pool, options.test)
    )
    kept = options.log.read_text().splitlines() if options.log.exists() else []
    errors = {(row["name"], row["seed"]): row["error"] for row in map(json.loads, kept)}
    for seed in range(options.seeds):
        for name in ROWS:
            if (name, seed) in errors:
                continue
            error = errors[name, seed] = _error(name, seed, denoiser, pool, test, options)
            with options.log.open("a") as log:
                log.write(json.dumps({"name": name, "seed": seed, "error": error}) + "\n")
    print(f"{options.count} of {len(pool)} inputs, {options.seeds} seeds\n| | error | spread |")
    print("|---|---|---|")
    for name in ROWS:
        found = [errors[name, seed] for seed in range(options.seeds)]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"| {name} | {statistics.fmean(found):.4f} | {spread:.4f} |")


def _error(name: str, seed: int, denoiser, pool, test, options) -> float:
    """Mean over the timesteps."""
    selection, recipe = ROWS[name]
    learned = replace(
        recipe.reconstruction,
        iterations=options.iterations,
        crop=None if recipe.rounding == "gptq" else options.crop,
        batch_size=8,
        lr_weight=0.1,  # few steps need large ones
        seed=seed,
    )
    if "TFMQ's" in name:
        learned = replace(learned, layer_weight=0.0, drop=0.0)
    chosen = select_samples(pool, denoiser, selection, options.count, seed)
    quantized = quantize(denoiser.network, chosen, replace(recipe, reconstruction=learned))
    return statistics.fmean(trajectory_errors(quantized, denoiser.network, test).values())


if __name__ == "__main__":
    main()
