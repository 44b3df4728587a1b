r"""What the selections and losses of PTQ4DM, EDA-DM and TFMQ buy against uniform calibration, with
the same ranges and the same layers.

    restobox calibrate grey --task denoise --data TRAIN -o pool.safetensors --steps 5 --count 16 \
        --side 64 --per-timestep 32
    python benchmarks/quant_papers.py grey --pool pool.safetensors --test t.safetensors --count 20

Mean and standard deviation over seeds of the relative error of a call, ``|y_q - y| / |y|``, on the
inputs of ``--test``. Selections differ in the inputs alone (W8A8, the default recipe); ``--losses``
differ in how 4-bit weights are rounded, on the uniform selection.
"""

import argparse
import statistics
from dataclasses import replace

import torch

from quant.calibration.trajectory import CalibrationSet
from quant.network import QuantizedNetwork
from quant.quantize import quantize
from quant.recipe import QuantRecipe, Reconstruction
from solvers.denoiser import output_of
from toolbox.api import load
from toolbox.deploy.calibrate import select_samples

# PTQ4DM and EDA-DM choose inputs; AdaRound's loss is a layer's, EDA-DM's a block's with terms for
# its layers, TFMQ's a block's, beside features of time that are quantized jointly
LOSSES = {
    "nearest": QuantRecipe(weight_bits=4),
    "gptq": QuantRecipe(weight_bits=4, rounding="gptq"),
    "adaround": QuantRecipe(weight_bits=4, rounding="adaround"),
    "block (TFMQ's)": QuantRecipe(
        weight_bits=4, rounding="fbr", reconstruction=Reconstruction(layer_weight=0.0)
    ),
    "block and layers (EDA-DM's)": QuantRecipe(weight_bits=4, rounding="fbr"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--iterations", type=int, default=300, help="of learned rounding, a unit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = load(options.model)
    pool, test = (
        CalibrationSet.load(path, denoiser.network) for path in (options.pool, options.test)
    )
    print(f"{options.count} of {len(pool)} inputs, {options.seeds} seeds\n| | error | spread |")
    print("|---|---|---|")
    for name in ("uniform", "ptq4dm", "eda-dm"):
        errors = []
        for seed in range(options.seeds):
            chosen = select_samples(pool, denoiser, name, options.count, seed)
            errors.append(_error(quantize(denoiser.network, chosen, QuantRecipe()), test))
        _row(f"selection {name}", errors)
    for name, recipe in LOSSES.items() if options.losses else ():
        errors = []
        for seed in range(options.seeds):
            chosen = select_samples(pool, denoiser, "uniform", options.count, seed)
            learned = replace(recipe.reconstruction, iterations=options.iterations, seed=seed)
            made = replace(recipe, reconstruction=learned)
            errors.append(_error(quantize(denoiser.network, chosen, made), test))
        _row(f"W4A8, {name}", errors)


@torch.no_grad()
def _error(quantized: QuantizedNetwork, test: CalibrationSet) -> float:
    """Mean over the timesteps."""
    sums: dict[float, list[float]] = {}
    for x, t in test.batches():
        exact = output_of(quantized.float_network(x, t))
        off, all_of = sums.setdefault(float(t[0]), [0.0, 0.0])
        off += float((quantized(x, t) - exact).square().sum())
        sums[float(t[0])] = [off, all_of + float(exact.square().sum())]
    return statistics.fmean((off / all_of) ** 0.5 for off, all_of in sums.values())


def _row(name: str, errors: list[float]) -> None:
    spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
    print(f"| {name} | {statistics.fmean(errors):.4f} | {spread:.4f} |", flush=True)


if __name__ == "__main__":
    main()
