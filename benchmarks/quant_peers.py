"""Error of a diffusion U-Net in 8 bits along its trajectory: ours, ONNX Runtime's quantize_static,
OpenVINO's NNCF, brevitas by its own calibration and NVIDIA's Model Optimizer in one table.

    pip install nncf openvino 'nvidia-modelopt[onnx]'
    python benchmarks/quant_peers.py photo --calibration c.safetensors --test t.safetensors
    python benchmarks/quant_peers.py large     # 36 M parameters, random weights, generated inputs

Every tool gets the same calibration inputs; the error ``|y_q - y| / |y|`` is measured on
``--test``, a file of other pictures, and its mean, first (noisiest) and last value over the
timesteps are printed, with what quantizing took: processor time, and memory beyond what there was.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from more_peers import brevitas_networks, modelopt_graphs
from runtime_peers import (
    ARCHITECTURES,
    generated,
    onnx_call,
    openvino_graphs,
    random_denoiser,
    static_graphs,
)

from export.exporter import export_model
from quant.calibration.trajectory import CalibrationSet
from quant.quantize import quantize
from quant.recipe import DEFAULT, QuantRecipe
from toolbox.api import load
from toolbox.support.cost import Cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"or with random weights: {', '.join(ARCHITECTURES)}")
    parser.add_argument("--calibration")
    parser.add_argument("--test")
    parser.add_argument(
        "--preset", action="append", help="ours, default, or none; without: best-w8a8 and default"
    )
    parser.add_argument(
        "--peer", action="append", help="only the other tools' rows that hold this text"
    )
    options = parser.parse_args()
    peers = options.peer or [""]
    torch.set_num_threads(1)
    if options.model in ARCHITECTURES:
        denoiser = random_denoiser(options.model)
        calibration, test = generated(denoiser, 4), generated(denoiser, 2, seed=100)
    else:
        denoiser = load(options.model)
        calibration, test = (
            CalibrationSet.load(path, denoiser.network)
            for path in (options.calibration, options.test)
        )
    network = denoiser.network
    inputs = [(x.numpy(), t.numpy()) for x, t in calibration.batches(1)]
    print(
        f"{len(calibration)} calibration and {len(test)} test inputs\n| tool | mean | first | last"
        " | CPU s | peak MB |\n|---|---|---|---|---|---|"
    )
    for name in options.preset or ["best-w8a8", "default"]:
        if name == "none":
            continue
        with Cost() as cost:
            quantized = quantize(
                network, calibration, DEFAULT if name == "default" else QuantRecipe.preset(name)
            )
        for target in ("openvino", "cpu", "tensorrt"):
            simulated = quantized.simulating(target)
            _row(
                f"ours, {name}, {target} placement",
                lambda x, t, q=simulated: _numpy(q, x, t),
                network,
                test,
                cost,
            )
    for (name, made), cost in _costed(
        brevitas_networks(network, list(calibration.batches()), peers)
    ):
        _row(name, lambda x, t, q=made: _numpy(q, x, t), network, test, cost)
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / "plain.onnx"
        onnx.save(export_model(denoiser), plain)
        for graphs in (static_graphs, openvino_graphs):
            for (name, (run, _)), cost in _costed(graphs(plain, inputs, Path(place), peers)):
                _row(name, run, network, test, cost)
        for (name, made), cost in _costed(modelopt_graphs(plain, inputs, Path(place), peers)):
            _row(name, onnx_call(made, ("x", "t"))[0], network, test, cost)


def _costed(items):
    """Each of them, and what making it took."""
    while True:
        with Cost() as cost:
            item = next(items, None)
        if item is None:
            return
        yield item, cost


def _numpy(network, x, t):
    with torch.no_grad():
        out = network(torch.from_numpy(x), torch.from_numpy(t))
    return (out if isinstance(out, torch.Tensor) else out.sample).numpy()


def _row(name: str, run, network, test: CalibrationSet, cost: Cost) -> None:
    sums: dict[float, np.ndarray] = {}
    for x, t in test.batches(1):
        reference = _numpy(network, x.numpy(), t.numpy())
        pair = [np.square(run(x.numpy(), t.numpy()) - reference).sum(), np.square(reference).sum()]
        sums[float(t[0])] = sums.get(float(t[0]), 0) + np.array(pair, float)
    errors = [float(np.sqrt(a / b)) for _, (a, b) in sorted(sums.items(), reverse=True)]
    told = f"{np.mean(errors):.4f} | {errors[0]:.4f} | {errors[-1]:.4f}"
    print(f"| {name} | {told} | {cost.seconds:.0f} | {cost.mb or 0:.0f} |", flush=True)


if __name__ == "__main__":
    main()
