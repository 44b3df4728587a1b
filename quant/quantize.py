"""Quantize a U-Net with brevitas: symmetric integer weights, and activations with a zero point at
the inputs of Conv2d and Linear.

    x ~ s_x (q_x - z),  q_x in [0, 255],     s_x = (high - low)/255   (TensorRT: z = 128)
    W_c ~ s_c q_c,      q_c in [-127, 127]   (weight_bits 8)

brevitas supplies the quantizers (rounding to even, clamping, fixed scales); the thresholds come
from :mod:`quant.ranges.measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quant.calibration.trajectory import CalibrationSet
from quant.layer import (
    grid_between,
    has_output_scale,
    least_scales,
    output_grids,
    set_grid,
    set_weight_scales,
    weight_scales,
)
from quant.network import (
    TARGETS,
    QuantizedNetwork,
    build,
    quantizable_layers,
    quantizes_time,
    structured,
)
from quant.ranges.channels import channel_grids
from quant.ranges.measure import Ranges, measure_ranges
from quant.ranges.search import search_symmetric_steps
from quant.recipe import DEFAULT, QuantRecipe
from quant.rounding.learned import gptq
from quant.rounding.reconstruction import Kept, Plan, fingerprint_of, reconstruct
from quant.rounding.units import spread_samples, stacked
from quant.sensitivity import choose_float_layers, layer_costs, mean_error, sensitivity
from quant.structure.equalize import apply_factors, groups, smooth_factors
from quant.temporal.table import temporal_block
from quant.temporal.tiar import quantized_table
from solvers.denoiser import Network

TRIAL = 48  # inputs of a trial
# of the error: what gained less on inputs held back lost on other pictures
# (docs/quantization-studies.md)
CLEARLY = 0.8
# the range of least squared error clips what was seen; other pictures' values lie further out
FURTHER = 1.15
# Outputs' grids reach beyond what calibration showed, by standard deviations of the inputs' own
# ends: 100 over their number, two and a half at most. Coarser steps of a channel lose little,
# values that are cut off much (docs/quantization-studies.md).
SPREADS, MOST_SPREADS = 100, 2.5


def quantize(
    network: nn.Module,
    calibration: CalibrationSet,
    recipe: QuantRecipe | None = None,
    *,
    batch_size: int = 8,
    state: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizedNetwork:
    """Calibrate and quantize ``network`` (which is left as it is). The same seed, data and machine
    give the same bytes.

    Args:
        network: the float network that ``calibration`` was recorded with, in eval mode.
        calibration: from :func:`quant.calibration.trajectory.record`.
        recipe: :data:`quant.recipe.DEFAULT` where none is given.
        state: folder in which learned rounding keeps its finished units, to go on after an
            interruption.
        progress: called with finished and total layers (gptq) or units (adaround, fbr).

    Raises:
        ValueError: another model's calibration set, a network without quantizable layers, or an
            option that it has no place for.
    """
    recipe = recipe or DEFAULT
    if recipe.equalize == "auto":
        kind = better_grids(network, calibration, recipe, batch_size=batch_size)
        recipe = replace(recipe, equalize=kind)
    if recipe.float_macs:
        recipe = with_float_layers(network, calibration, recipe, batch_size=batch_size)
    if quantizes_time(recipe):
        temporal_block(network)  # refuses before the long work
    structure = structured(network.eval(), recipe)
    names = quantizable_layers(structure, recipe.skip)
    calibration.check(network)
    inputs, outputs = measure_ranges(structure, names, calibration.batches(batch_size))
    factors, own = _equalized(structure, names, inputs, recipe)
    if factors and not own:
        inputs, outputs = measure_ranges(structure, names, calibration.batches(batch_size))
    silent = [name for k, name in enumerate(names) if inputs.amax[k].max() == 0]
    if silent:
        raise ValueError(
            f"calibration never reached (or only showed zeros to) {', '.join(silent)}; add them to"
            " skip or record other data"
        )
    quantized = build(
        structure,
        network,
        names,
        recipe,
        calibration.grid,
        calibration.hash,
        calibration.provenance.model,
    )
    spreads = min(MOST_SPREADS, SPREADS / len(calibration))
    reach = FURTHER if recipe.range == "mse" else 1.0
    for name in names:
        layer = quantized.network.get_submodule(name)
        if name in own:
            step, zero = grid_between(*own[name])
            symmetric = float(np.abs(own[name]).max()) / 127
        else:
            low, high = inputs.interval(name, recipe.range, recipe.percentile)
            step, zero = grid_between(reach * low, reach * high)
            symmetric = reach * inputs.threshold(name, recipe.range, recipe.percentile) / 127
        weight = structure.get_submodule(name).weight
        scales = weight_scales(weight, recipe.weight_bits)
        if recipe.range == "p2.4":
            scales = search_symmetric_steps(weight.detach(), recipe.weight_bits, per_channel=True)
        set_grid(layer.input_quant, float(step), int(zero))
        output = torch.zeros(len(scales))
        if has_output_scale(layer):
            ends = outputs[name].reaching(spreads)
            output, zeros = (torch.from_numpy(v) for v in output_grids(ends))
            set_grid(layer.output_quant, output, zeros)
        bias = structure.get_submodule(name).bias
        least = least_scales(bias, output, min(float(step), symmetric))
        set_weight_scales(layer, scales.maximum(least))
        quantized.symmetric[name] = symmetric
    quantized.ranges, quantized.factors = inputs, factors
    if quantizes_time(recipe):  # before weights, which are rounded against it (TFMQ's order)
        options = {"act_bits": recipe.act_bits, "seed": recipe.reconstruction.seed}
        quantized.use_table(
            quantized_table(
                network, calibration.grid, recipe.temporal, recipe.weight_bits, **options
            )
        )
    if recipe.rounding == "gptq":
        _gptq_where_it_helps(quantized, calibration, recipe, progress)
    elif recipe.rounding != "nearest":
        with _asked_by_times(quantized):
            _round(quantized, calibration, recipe, state, progress)
    return quantized


def _equalized(
    structure: Network, names: list[str], inputs: Ranges, recipe: QuantRecipe
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Divide inputs and multiply weights of ``structure`` in place, as the recipe asks; the factors
    ``(C,)`` by place, and the ends of layers whose grids are found with them.
    """
    readers, ends = groups(structure, names), {}
    if recipe.equalize is None:
        return {}, {}
    if recipe.equalize == "channels":
        grids = channel_grids(structure, names, inputs, recipe.weight_bits)
        factors = {place: grid.factors for place, grid in grids.items()}
        ends = {name: grid.ends for place, grid in grids.items() for name in readers[place]}
    elif readers:
        tops = zip(names, (torch.from_numpy(seen.tops) for seen in inputs.channels), strict=True)
        factors = smooth_factors(structure, names, dict(tops), float(recipe.equalize))
    else:
        raise ValueError(
            f"{type(structure).__name__} has nothing to equalize: no quantized layer reads a"
            " normalisation or residuals"
        )
    apply_factors(structure, factors, names)
    return factors, ends


def better_grids(
    network: nn.Module, calibration: CalibrationSet, recipe: QuantRecipe, *, batch_size: int = 8
) -> str | None:
    """``channels``, or None where one grid for all channels errs clearly less: by a fifth, in the
    geometric mean over the targets, on every fourth input of a few timesteps, where the others give
    the ranges. What each target rounds is simulated, with nearest rounding and outputs in 8 bits:
    recipes that differ by those answer alike. Inputs held back are of the same pictures, whose
    values one grid may clip at little cost; others' lie further out.

    Weights in 4 bits hold most of the error and little of the spread: they are rounded as the
    recipe asks, and what errs less is taken.

    None too where there are fewer inputs than that, which don't show how far channels reach.
    """
    plain = replace(recipe, float_macs=0.0, temporal="table", outputs="int8")
    coarse = recipe.weight_bits == 4
    if not (coarse and recipe.rounding == "gptq"):
        plain = replace(plain, rounding="nearest")
    structure = structured(network, replace(plain, equalize="channels"))
    parts = calibration.held_back(TRIAL)
    if parts is None or not groups(structure, quantizable_layers(structure, recipe.skip)):
        return None
    seen, unseen = parts
    errors = {}
    for kind in (None, "channels"):
        trial = quantize(network, seen, replace(plain, equalize=kind), batch_size=batch_size)
        errors[kind] = _errors(trial, network, unseen)
    gain = math.prod(errors[None]) / math.prod(errors["channels"])
    return None if gain < (1.0 if coarse else CLEARLY ** len(TARGETS)) else "channels"


def with_float_layers(
    network: nn.Module, calibration: CalibrationSet, recipe: QuantRecipe, *, batch_size: int = 8
) -> QuantRecipe:
    """The recipe with the layers of its budget ``float_macs`` in ``skip``, judged whole and with
    nearest rounding.
    """
    # both changes of structure give layers other names
    plain = replace(recipe, split_shortcut=False, equalize=None)
    plain = replace(plain, float_macs=0.0, rounding="nearest", temporal="table")
    trial = quantize(network, calibration, plain, batch_size=batch_size)
    x, t = next(iter(calibration.batches(1)))
    chosen = choose_float_layers(
        sensitivity(trial, calibration), layer_costs(trial, x, t), float_macs=recipe.float_macs
    )
    return replace(recipe, float_macs=0.0, skip=(*recipe.skip, *chosen))


@torch.no_grad()
def _gptq_where_it_helps(
    quantized: QuantizedNetwork, calibration: CalibrationSet, recipe: QuantRecipe, progress
) -> None:
    """Round by GPTQ, and take it back where nearest rounding errs less on some target, on inputs
    held back; where there are too few to hold any back, it stays.
    """
    settings, network = recipe.reconstruction, quantized.float_network
    seen, unseen = calibration.held_back(settings.samples) or (calibration, None)
    samples = spread_samples(seen, settings.samples, settings.crop, settings.seed)
    before = _errors(quantized, network, unseen)
    layers = [quantized.network.get_submodule(name) for name in quantized.names]
    nearest = [layer.weight.clone() for layer in layers]
    with _asked_by_times(quantized):
        # sums over samples, whatever the batch; a convolution's unfolded inputs take nine times the
        # memory of its inputs
        gptq(quantized.network, stacked(samples, min(4, settings.batch_size)), progress)
    after = _errors(quantized, network, unseen)
    if any(new > old for new, old in zip(after, before, strict=True)):
        for layer, weight in zip(layers, nearest, strict=True):
            layer.weight.copy_(weight)


def _errors(
    quantized: QuantizedNetwork, network: nn.Module, unseen: CalibrationSet | None
) -> list[float]:
    """The mean error on each target."""
    if unseen is None:
        return []
    return [mean_error(quantized.simulating(target), network, unseen) for target in TARGETS]


@contextmanager
def _asked_by_times(quantized: QuantizedNetwork) -> Iterator[None]:
    """Its network is asked by times, where one with a table is asked by rows."""
    clock = quantized.network.register_forward_pre_hook(
        lambda _, told: (told[0], quantized.rows(told[1]))
    )
    try:
        yield
    finally:
        clock.remove()


def _round(
    quantized: QuantizedNetwork, calibration: CalibrationSet, recipe: QuantRecipe, state, progress
) -> None:
    settings = recipe.reconstruction
    samples = spread_samples(calibration, settings.samples, settings.crop, settings.seed)
    layers = {
        n: (torch.from_numpy(layer.weight_scale), (layer.input_scale, layer.input_zero))
        for n, layer in quantized.layers().items()
    }

    @torch.no_grad()
    def write(name: str, codes: Tensor, input_step: float) -> None:
        layer, (scale, (step, zero)) = quantized.network.get_submodule(name), layers[name]
        layer.weight.copy_(codes.float() * scale.reshape(-1, *[1] * (codes.ndim - 1)))
        set_grid(layer.input_quant, input_step, zero)
        quantized.symmetric[name] *= input_step / step

    fingerprint = fingerprint_of(recipe.to_dict(), quantized.calibration_hash, quantized.model_hash)
    quantized.losses = reconstruct(
        quantized.structure,
        quantized.network,
        layers,
        write,
        samples,
        Plan(settings, recipe.weight_bits, recipe.rounding == "fbr"),
        kept=None if state is None else Kept(Path(state), fingerprint),
        progress=progress,
    )
