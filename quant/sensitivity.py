"""Which layers the error comes from: each one quantized alone, on the recorded trajectory."""

from __future__ import annotations

import torch
from torch import nn

from quant.quantize import QuantizedNetwork
from quant.trajectory import CalibrationSet


@torch.no_grad()
def trajectory_errors(quantized: nn.Module, network: nn.Module, calibration: CalibrationSet) -> dict[float, float]:
    """``|y_q - y| / |y|`` of the networks' outputs at every recorded timestep, noisiest first.

    Take inputs that the quantized network was not calibrated on.
    """
    sums: dict[float, list[float]] = {}
    for x, t in calibration.batches():
        out = network(x, t)
        reference = out if isinstance(out, torch.Tensor) else out.sample
        pair = sums.setdefault(float(t[0]), [0.0, 0.0])
        pair[0] += float((quantized(x, t) - reference).double().square().sum())
        pair[1] += float(reference.double().square().sum())
    return {t: (error / power) ** 0.5 for t, (error, power) in sorted(sums.items(), reverse=True)}


@torch.no_grad()
def sensitivity(quantized: QuantizedNetwork, calibration: CalibrationSet, target: str = "tensorrt", samples: int = 1) -> dict[str, float]:
    """Relative error of the network's output when one layer alone is quantized, mean over the timesteps, worst layer first.

    A few layers usually dominate; put them into the recipe's ``skip`` if they are cheap in float.

    Args:
        quantized: from :func:`quant.quantize.quantize`.
        calibration: the set it was made from.
        target: what is quantized: ``cpu`` includes the convolutions' outputs.
        samples: inputs used per timestep.
    """
    twin = quantized.simulating(target)
    layers = {name: twin.network.get_submodule(name) for name in twin.names}
    inputs: dict[float, tuple] = {}
    for x, t in calibration.batches(samples):
        inputs.setdefault(float(t[0]), (x, t))
    for layer in layers.values():
        _switch(layer, False, False)
    references = {t: twin(*pair) for t, pair in inputs.items()}
    errors = {}
    for name, layer in layers.items():
        _switch(layer, True, twin.outputs)
        ratios = [float((twin(*pair) - references[t]).norm() / references[t].norm()) for t, pair in inputs.items()]
        _switch(layer, False, False)
        errors[name] = sum(ratios) / len(ratios)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _switch(layer: nn.Module, on: bool, output: bool) -> None:
    layer.input_quant.disable_quant = layer.weight_quant.disable_quant = not on
    if isinstance(layer, nn.Conv2d):
        layer.output_quant.disable_quant = not output
