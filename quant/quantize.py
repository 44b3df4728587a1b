"""Quantize a U-Net with brevitas: symmetric integer weights and activations at the inputs of Conv2d
and Linear.

    x ~ s_x q_x, q_x in [-128, 127];   W_c ~ s_c q_c, q_c in [-127, 127] (weight_bits 8);   s_x =
    threshold/127

brevitas supplies the quantizers (rounding to even, clamping, fixed scales); the thresholds come
from :mod:`quant.ranges.measure`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quant.calibration.trajectory import CalibrationSet, network_hash
from quant.ranges.measure import Ranges, measure_ranges
from quant.ranges.search import search_symmetric_steps
from quant.recipe import FLOAT_LAYERS, OPTIONAL_LAYERS, QuantRecipe
from quant.rounding.learned import gptq
from quant.rounding.reconstruction import fingerprint_of, reconstruct
from quant.rounding.units import spread_samples, stacked
from quant.sensitivity import choose_float_layers, layer_costs, sensitivity
from quant.structure.equalize import apply_factors, groups, insert_scales, smooth_factors
from quant.structure.split import split_shortcuts
from quant.temporal.table import TemporalTable, step_network, temporal_block, temporal_table
from quant.temporal.tfmq import table_of
from quant.temporal.tiar import quantized_table

TEMPORAL_PARTS = (
    "time_proj",
    "time_embedding",
    "time_emb_proj",
    "class_embedding",
    "add_embedding",
)


@dataclass(frozen=True)
class QuantLayer:
    """One quantized layer: ``x ~ input_scale q``, ``W_c ~ weight_scale_c codes_c``, output ``y_c ~
    output_scale_c q_c``.

    Args:
        input_scale: step of the input activations, positive.
        output_scale: float32 ``(C_out,)``: steps of the layer's output (bias included); only
            targets that quantize outputs use them.
        weight_scale: float32 ``(C_out,)``.
        codes: int8 ``(C_out, ...)``.
        bias: float32 ``(C_out,)`` or None.
    """

    input_scale: float
    output_scale: np.ndarray
    weight_scale: np.ndarray
    codes: np.ndarray
    bias: np.ndarray | None = None


class QuantizedNetwork(nn.Module):
    """A network with brevitas layers, called like the float one: ``network(x, t) -> (B, C_out, h,
    w)``.

    ``Denoiser``'s network can be replaced by it; it then samples with simulated 8-bit arithmetic.

    Attributes:
        float_network: the network that was quantized (shared, not copied, and left as it is).
        structure: the float network with the recipe's splits and equalisation: same function, the
            modules of this one. It is what gets exported; ``float_network`` itself where the recipe
            asks for neither.
        factors: equalisation factors ``(C,)`` by place.
        losses: learned rounding: unit -> loss before and after.
        recipe, calibration_hash, model_hash: provenance.
        timesteps: the calibrated timesteps, noisiest first (the rows of an exported table).
        table: the quantized temporal features, where the recipe asks for such; the network then
            knows the calibrated timesteps only.
        outputs: also quantize the outputs of convolutions, as ONNX Runtime's CPU kernels do. Off by
            default.
    """

    def __init__(
        self,
        network,
        structure,
        float_network,
        names,
        recipe: QuantRecipe,
        timesteps,
        calibration_hash: str,
        model_hash: str,
    ):
        super().__init__()
        self.network = network
        # not a part: neither moved nor saved with this one
        object.__setattr__(self, "float_network", float_network)
        object.__setattr__(self, "structure", structure)
        self.factors: dict[str, Tensor] = {}
        self.losses: dict[str, tuple[float, float]] = {}
        self.names = tuple(names)
        self.recipe = recipe
        self.timesteps = tuple(timesteps)
        self.calibration_hash = calibration_hash
        self.model_hash = model_hash
        self.ranges: tuple[Ranges, Ranges] | None = None
        self.table: TemporalTable | None = None
        self.outputs = False

    def use_table(self, table: TemporalTable) -> None:
        """Put ``table`` in the place of the temporal layers."""
        self.network, self.table = step_network(self.network, table), table

    def tabulate(self, timesteps: Sequence[float]) -> TemporalTable:
        """The features that a graph for ``timesteps`` holds: exact, or rows of :attr:`table`.

        Raises:
            ValueError: a timestep that was not calibrated, where features are quantized.
        """
        if self.table is None:
            return temporal_table(self.float_network, timesteps)
        rows = [self.table.index(t) for t in timesteps]
        return TemporalTable(timesteps, self.table.features[rows], self.table.slices)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.table is not None:
            t = torch.tensor([self.table.index(v) for v in t.reshape(-1).tolist()], device=x.device)
        out = self.network(x, t)
        return out if isinstance(out, Tensor) else out.sample

    @property
    def outputs(self) -> bool:
        return self._outputs

    @outputs.setter
    def outputs(self, on: bool) -> None:
        self._outputs = bool(on)
        for name in self.names:
            layer = self.network.get_submodule(name)
            if isinstance(layer, nn.Conv2d):
                layer.output_quant.disable_quant = not on

    def simulating(self, target: str) -> QuantizedNetwork:
        """A copy (weights shared) that quantizes what an exported graph for ``target`` (``cpu``,
        ``tensorrt``) quantizes.
        """
        shared = {
            id(p): p
            for p in [*self.parameters(), *self.buffers(), self.float_network, self.structure]
        }
        twin = copy.deepcopy(self, memo=shared)
        twin.outputs = target == "cpu"
        return twin

    @torch.no_grad()
    def layers(self) -> dict[str, QuantLayer]:
        """Scales and integer codes of every quantized layer, by module name."""
        found = {}
        for name in self.names:
            layer = self.network.get_submodule(name)
            weight = layer.quant_weight()
            found[name] = QuantLayer(
                float(layer.input_quant.scale()),
                _output_scale(layer),
                weight.scale.detach().reshape(-1).cpu().numpy(),
                weight.int().cpu().numpy(),
                None if layer.bias is None else layer.bias.detach().cpu().numpy(),
            )
        return found


def quantizable_layers(network: nn.Module, skip: Iterable[str] = FLOAT_LAYERS) -> list[str]:
    """Names of the Conv2d and Linear layers that a recipe with this ``skip`` quantizes, in network
    order.

    Raises:
        ValueError: none is left, or an entry of ``skip`` (beyond the defaults) matches no layer.
    """
    every = [name for name, m in network.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    for pattern in skip:
        if pattern not in OPTIONAL_LAYERS and not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(
                f"skip names {pattern!r}, which matches no layer; layers: {', '.join(every)}"
            )
    spatial = [name for name in every if not set(name.split(".")) & set(TEMPORAL_PARTS)]
    chosen = [name for name in spatial if not any(fnmatchcase(name, pattern) for pattern in skip)]
    if not chosen:
        raise ValueError(
            f"{type(network).__name__} has nothing to quantize: {len(every)} Conv2d/Linear layers,"
            f" of which {len(every) - len(spatial)} are temporal (always float) and the rest are"
            f" skipped ({', '.join(skip) or 'nothing'})"
        )
    return chosen


def structured(
    network: nn.Module, recipe: QuantRecipe, factors: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The float modules that a recipe quantizes: ``network`` itself, or a copy with split shortcuts
    and equalisation.

    Raises:
        ValueError: the recipe splits shortcuts and there are none, or ``factors`` don't fit.
    """
    if not recipe.split_shortcut and recipe.equalize is None:
        return network
    structure = copy.deepcopy(network).eval()
    if recipe.split_shortcut:
        split_shortcuts(structure, recipe.skip)
    if recipe.equalize is not None:
        insert_scales(structure, quantizable_layers(structure, recipe.skip))
    if factors:
        names = quantizable_layers(structure, recipe.skip)
        if set(factors) - set(groups(structure, names)):
            raise ValueError(
                f"there is no place for the equalisation factors of {', '.join(sorted(factors))}"
            )
        apply_factors(structure, factors, names)
    return structure


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
        recipe: W8A8 with the first and last convolution in float by default.
        state: folder in which learned rounding keeps its finished units, to go on after an
            interruption.
        progress: called with finished and total layers (gptq) or units (adaround, fbr).

    Raises:
        ValueError: another model's calibration set, a network without quantizable layers, or an
            option that it has no place for.
    """
    recipe = recipe or QuantRecipe()
    if recipe.float_macs:
        recipe = with_float_layers(network, calibration, recipe, batch_size=batch_size)
    if quantizes_time(recipe):
        temporal_block(network)  # refuses before the long work
    structure = structured(network.eval(), recipe)
    names = quantizable_layers(structure, recipe.skip)
    calibration.check(network)
    inputs, outputs = measure_ranges(structure, names, calibration.batches(batch_size))
    factors: dict[str, Tensor] = {}
    if recipe.equalize is not None:
        channels = {
            name: torch.from_numpy(seen) for name, seen in zip(names, inputs.channels, strict=True)
        }
        factors = smooth_factors(structure, names, channels, recipe.equalize)
        if not factors:
            raise ValueError(
                f"{type(network).__name__} has nothing to equalize: no quantized layer reads a"
                " normalisation or residuals"
            )
        apply_factors(structure, factors, names)
        inputs, outputs = measure_ranges(structure, names, calibration.batches(batch_size))
    silent = [name for k, name in enumerate(names) if inputs.amax[k].max() == 0]
    if silent:
        raise ValueError(
            f"calibration never reached (or only showed zeros to) {', '.join(silent)}; add them to"
            " skip or record other data"
        )
    quantized = _build(
        structure,
        network,
        names,
        recipe,
        calibration.grid,
        calibration.hash,
        calibration.provenance.model,
    )
    for k, name in enumerate(names):
        layer = quantized.network.get_submodule(name)
        threshold = inputs.threshold(name, recipe.range, recipe.percentile)
        output = torch.from_numpy(outputs.channels[k]).clamp(min=1e-6) / 127
        weight = structure.get_submodule(name).weight
        scales = weight_scales(weight, recipe.weight_bits)
        if recipe.range == "p2.4":
            scales = search_symmetric_steps(weight.detach(), recipe.weight_bits, per_channel=True)
        set_scales(layer, threshold / 127, output, scales)
    quantized.ranges, quantized.factors = (inputs, outputs), factors
    if recipe.rounding != "nearest":
        _round(quantized, calibration, recipe, state, progress)
    if quantizes_time(recipe):
        options = {"act_bits": recipe.act_bits, "seed": recipe.reconstruction.seed}
        quantized.use_table(
            quantized_table(
                network, calibration.grid, recipe.temporal, recipe.weight_bits, **options
            )
        )
    return quantized


def with_float_layers(
    network: nn.Module, calibration: CalibrationSet, recipe: QuantRecipe, *, batch_size: int = 8
) -> QuantRecipe:
    """The recipe with the layers of its budget ``float_macs`` in ``skip``, judged whole and with
    nearest rounding.
    """
    plain = replace(
        recipe, float_macs=0.0, rounding="nearest", split_shortcut=False, temporal="table"
    )
    trial = quantize(network, calibration, plain, batch_size=batch_size)
    x, t = next(iter(calibration.batches(1)))
    chosen = choose_float_layers(
        sensitivity(trial, calibration), layer_costs(trial, x, t), float_macs=recipe.float_macs
    )
    return replace(recipe, float_macs=0.0, skip=(*recipe.skip, *chosen))


def quantizes_time(recipe: QuantRecipe) -> bool:
    """Whether the temporal features are quantized, rather than exact."""
    return recipe.temporal not in ("table", "float")


def _round(
    quantized: QuantizedNetwork, calibration: CalibrationSet, recipe: QuantRecipe, state, progress
) -> None:
    settings = recipe.reconstruction
    samples = spread_samples(calibration, settings.samples, settings.crop, settings.seed)
    if recipe.rounding == "gptq":
        # sums over samples, whatever the batch; a convolution's unfolded inputs take nine times the
        # memory of its inputs
        gptq(quantized.network, stacked(samples, min(4, settings.batch_size)), progress)
        return
    layers = {
        n: (torch.from_numpy(layer.weight_scale), layer.input_scale)
        for n, layer in quantized.layers().items()
    }

    @torch.no_grad()
    def write(name: str, codes: Tensor, input_step: float) -> None:
        layer, scale = quantized.network.get_submodule(name), layers[name][0]
        layer.weight.copy_(codes.float() * scale.reshape(-1, *[1] * (codes.ndim - 1)))
        _scaling(layer.input_quant.fused_activation_quant_proxy).value.fill_(input_step * 128)

    quantized.losses = reconstruct(
        quantized.structure,
        quantized.network,
        layers,
        write,
        samples,
        settings,
        bits=recipe.weight_bits,
        blocks=recipe.rounding == "fbr",
        state=None if state is None else Path(state),
        fingerprint=fingerprint_of(
            recipe.to_dict(), quantized.calibration_hash, quantized.model_hash
        ),
        progress=progress,
    )


@torch.no_grad()
def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """Per output channel ``(C_out,)``: max |W| at 8 bits; at 4, the largest of 80 shrunken maxima
    with least squared error.
    """
    top = 2 ** (bits - 1) - 1
    flat = weight.detach().flatten(1)
    best = flat.abs().amax(1).clamp(min=1e-12) / top
    if bits == 8:
        return best
    full, least = best, torch.full_like(best, torch.inf)
    for shrink in torch.linspace(1.0, 0.2, 80).tolist():
        step = (full * shrink)[:, None]
        error = ((flat / step).round().clamp(-top, top) * step - flat).square().sum(1)
        best, least = torch.where(error < least, full * shrink, best), torch.minimum(error, least)
    return best


@torch.no_grad()
def set_scales(
    layer: nn.Module, input_scale: float, output_scale: Tensor, weight_scale: Tensor
) -> None:
    """Write fixed scales into a brevitas layer made here. brevitas stores the magnitude of the
    lowest code: 128 (or 127, 7) steps.
    """
    _scaling(layer.input_quant.fused_activation_quant_proxy).value.fill_(input_scale * 128)
    if isinstance(layer, nn.Conv2d):
        value = _scaling(layer.output_quant.fused_activation_quant_proxy).value
        value.copy_((output_scale.to(value) * 128).reshape(value.shape))
    value = _scaling(layer.weight_quant).value
    top = float(2 ** (int(layer.weight_quant.bit_width()) - 1) - 1)
    value.copy_((weight_scale.to(value) * top).reshape(value.shape))


def _scaling(proxy: nn.Module) -> nn.Module:
    return proxy.tensor_quant.scaling_impl


def _output_scale(layer: nn.Module) -> np.ndarray:
    if not isinstance(layer, nn.Conv2d):
        return np.ones(layer.out_features, np.float32)
    return (
        (_scaling(layer.output_quant.fused_activation_quant_proxy).value / 128)
        .reshape(-1)
        .cpu()
        .numpy()
    )


@torch.no_grad()
def _build(
    structure,
    network,
    names,
    recipe: QuantRecipe,
    timesteps,
    calibration_hash: str,
    model_hash: str,
) -> QuantizedNetwork:
    """Swap the named layers of a copy for brevitas layers whose scales are plain parameters."""
    import brevitas.nn as qnn
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    class Activation(Int8ActPerTensorFloat):
        scaling_impl_type = ScalingImplType.PARAMETER
        scaling_init = 1.0

    class Weight(Int8WeightPerChannelFloat):
        scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
        bit_width = recipe.weight_bits

    class Output(Activation):
        scaling_per_output_channel = True

    linear = {"input_quant": Activation, "weight_quant": Weight, "return_quant_tensor": False}
    conv = linear | {
        "output_quant": Output,
        "output_per_channel_broadcastable_shape": lambda m: (1, m.out_channels, 1, 1),
    }
    kept = set(names)
    others = [
        name
        for name, m in structure.named_modules()
        if type(m) in (nn.Conv2d, nn.Linear) and name not in kept
    ]
    swapped = layerwise_quantize(
        copy.deepcopy(structure).eval(),
        {nn.Conv2d: (qnn.QuantConv2d, conv), nn.Linear: (qnn.QuantLinear, linear)},
        name_blacklist=others,
    )
    for name in names:
        # initialises the scale parameter from the weights
        swapped.get_submodule(name).quant_weight()
    swapped.eval().requires_grad_(False)
    return QuantizedNetwork(
        swapped, structure, network, names, recipe, timesteps, calibration_hash, model_hash
    )


def rebuild(
    network: nn.Module,
    recipe: QuantRecipe,
    layers: dict[str, QuantLayer],
    timesteps,
    calibration_hash: str,
    factors: Mapping[str, Tensor] | None = None,
    features: Tensor | None = None,
) -> QuantizedNetwork:
    """The quantized network that these scales and codes describe, on top of the float ``network``
    they were made from.
    """
    structure = structured(network, recipe, factors)
    quantized = _build(
        structure, network, list(layers), recipe, timesteps, calibration_hash, network_hash(network)
    )
    quantized.factors = dict(factors or {})
    with torch.no_grad():
        for name, made in layers.items():
            layer = quantized.network.get_submodule(name)
            scale = torch.from_numpy(made.weight_scale)
            codes = torch.from_numpy(made.codes).float()
            layer.weight.copy_(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)))
            set_scales(layer, made.input_scale, torch.from_numpy(made.output_scale), scale)
    if features is not None:
        block = temporal_block(network)
        quantized.use_table(
            table_of(
                block,
                timesteps,
                features.split([e.out_features for e in block.projections.values()], dim=1),
            )
        )
    return quantized
