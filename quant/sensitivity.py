"""Which layers the error comes from (each one quantized alone) and which to keep in float under a
budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.calibration.trajectory import CalibrationSet
from quant.layer import Layer, has_output_scale
from quant.network import QuantizedNetwork


@torch.no_grad()
def trajectory_errors(
    quantized: nn.Module, network: nn.Module, calibration: CalibrationSet
) -> dict[float, float]:
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


def mean_error(quantized: nn.Module, network: nn.Module, calibration: CalibrationSet) -> float:
    """The mean of :func:`trajectory_errors` over the timesteps."""
    errors = trajectory_errors(quantized, network, calibration).values()
    return sum(errors) / len(errors)


@torch.no_grad()
def sensitivity(
    quantized: QuantizedNetwork,
    calibration: CalibrationSet,
    target: str = "openvino",
    samples: int = 1,
) -> dict[str, float]:
    """Relative error of the network's output when one layer alone is quantized, mean over the
    timesteps, worst layer first.

    A few layers usually dominate; put them into the recipe's ``skip`` if they are cheap in float.

    Args:
        quantized: from :func:`quant.quantize.quantize`.
        calibration: the set it was made from.
        target: what is quantized: ``cpu`` includes the convolutions' outputs.
        samples: inputs used per timestep.
    """
    twin = quantized.simulating(target)
    layers = {name: twin.network.get_submodule(name) for name in twin.names}
    inputs = _first_inputs(calibration, samples)
    for layer in layers.values():
        _switch(layer, False, False)
    references = {t: twin(*pair) for t, pair in inputs.items()}
    errors = {}
    for name, layer in layers.items():
        _switch(layer, True, twin.outputs)
        ratios = [
            float((twin(*pair) - references[t]).norm() / references[t].norm())
            for t, pair in inputs.items()
        ]
        _switch(layer, False, False)
        errors[name] = sum(ratios) / len(ratios)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


@torch.no_grad()
def layer_sqnr(
    quantized: QuantizedNetwork, calibration: CalibrationSet, samples: int = 1
) -> dict[str, float]:
    """Signal to quantization noise of each layer's output in dB, its input being the float
    network's; lowest first.

    Args:
        samples: inputs used per timestep.
    """
    twin = quantized.simulating("openvino")
    power = dict.fromkeys(twin.names, 0.0)
    noise = dict.fromkeys(twin.names, 0.0)

    def hook(name: str):
        layer = twin.network.get_submodule(name)

        def see(_, inputs, output):
            power[name] += float(output.double().square().sum())
            noise[name] += float((layer(inputs[0]) - output).double().square().sum())

        return see

    handles = [
        quantized.structure.get_submodule(name).register_forward_hook(hook(name))
        for name in twin.names
    ]
    try:
        for x, t in _first_inputs(calibration, samples).values():
            quantized.structure(x, t)
    finally:
        for handle in handles:
            handle.remove()
    found = {
        name: 10 * math.log10(power[name] / noise[name]) if noise[name] else math.inf
        for name in twin.names
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


@torch.no_grad()
def image_sensitivity(
    quantized: QuantizedNetwork, restore: Callable[[nn.Module], Tensor], target: str = "openvino"
) -> dict[str, float]:
    """Root mean squared change of the *restored* image when one layer alone is quantized, worst
    layer first.

    What a layer does to one network call and to the end of the chain can differ: errors of early
    steps are partly repaired later.

    Args:
        quantized: from :func:`quant.quantize.quantize`.
        restore: restores images with the given network in place of the denoiser's own and returns
            them, in [0, 1]; it has to draw the same noise every time.
        target: what is quantized: ``cpu`` includes the convolutions' outputs.

    Raises:
        ValueError: ``restore`` gives different images for the same network.
    """
    twin = quantized.simulating(target)
    layers = {name: twin.network.get_submodule(name) for name in twin.names}
    for layer in layers.values():
        _switch(layer, False, False)
    reference = restore(twin)
    if not torch.equal(restore(twin), reference):
        raise ValueError(
            "restore gives different images for the same network; let it draw its noise from a"
            " fixed seed"
        )
    errors = {}
    for name, layer in layers.items():
        _switch(layer, True, twin.outputs)
        errors[name] = float((restore(twin) - reference).square().mean().sqrt())
        _switch(layer, False, False)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class LayerCost:
    """What keeping a layer in float costs: ``bytes`` more in the file, ``macs`` multiplications per
    call not done on integers.
    """

    bytes: int
    macs: int


@torch.no_grad()
def layer_costs(
    quantized: QuantizedNetwork, x: Tensor, t: Tensor, *, packed: bool = False
) -> dict[str, LayerCost]:
    """Costs of every quantized layer; multiplications are those of the call ``(x, t)``, per sample.

    Args:
        packed: the file holds two 4-bit codes a byte.
    """
    bits = 4 if packed and quantized.recipe.weight_bits == 4 else 8
    macs: dict[str, int] = {}

    def hook(name: str):
        def see(layer, _, output):
            places = output[0].numel() // layer.weight.shape[0]
            macs[name] = macs.get(name, 0) + places * layer.weight.numel()

        return see

    handles = [
        quantized.structure.get_submodule(name).register_forward_hook(hook(name))
        for name in quantized.names
    ]
    try:
        quantized.structure(x, t)
    finally:
        for handle in handles:
            handle.remove()
    sizes = {
        name: quantized.structure.get_submodule(name).weight.numel() for name in quantized.names
    }
    return {
        name: LayerCost(sizes[name] * (32 - bits) // 8, macs.get(name, 0))
        for name in quantized.names
    }


def choose_float_layers(
    errors: Mapping[str, float],
    costs: Mapping[str, LayerCost],
    *,
    extra_bytes: int | None = None,
    float_macs: float | None = None,
) -> list[str]:
    """Layers to keep in float (for the recipe's ``skip``): greedy by squared error removed per
    cost, within one budget.

    Squared errors of layers quantized alone add up nearly, which is what makes greedy choice sound;
    a layer that no longer fits is passed over for cheaper ones.

    Args:
        errors: from :func:`sensitivity` or :func:`image_sensitivity`.
        costs: from :func:`layer_costs`.
        extra_bytes: size budget: how much the file may grow.
        float_macs: latency budget: the share of the quantized layers' multiplications that may go
            back to float, in [0, 1].

    Raises:
        ValueError: not exactly one budget, one out of range, or a layer without a cost.
    """
    if (extra_bytes is None) == (float_macs is None):
        raise ValueError("give one budget: extra_bytes or float_macs")
    if (extra_bytes is not None and extra_bytes < 0) or (
        float_macs is not None and not 0 <= float_macs <= 1
    ):
        raise ValueError(
            "a budget must be 0 or more bytes, or a share in [0, 1]; got"
            f" {extra_bytes if float_macs is None else float_macs}"
        )
    if missing := sorted(set(errors) - set(costs)):
        raise ValueError(f"no cost is given for {', '.join(missing)}")
    price = {name: costs[name].bytes if float_macs is None else costs[name].macs for name in errors}
    left: float = extra_bytes or 0
    if float_macs is not None:
        left = float_macs * sum(costs[name].macs for name in costs)
    chosen = []
    for name in sorted(errors, key=lambda n: (-(errors[n] ** 2) / max(price[n], 1), n)):
        if errors[name] > 0 and price[name] <= left:
            chosen.append(name)
            left -= price[name]
    return chosen


def _first_inputs(calibration: CalibrationSet, samples: int) -> dict[float, tuple[Tensor, Tensor]]:
    inputs: dict[float, tuple] = {}
    for x, t in calibration.batches(samples):
        inputs.setdefault(float(t[0]), (x, t))
    return inputs


def _switch(layer: Layer, on: bool, output: bool) -> None:
    layer.input_quant.disable_quant = layer.weight_quant.disable_quant = not on
    if has_output_scale(layer):
        layer.output_quant.disable_quant = not output
