"""A quantized network: brevitas layers with fixed scales in the place of Conv2d and Linear."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quant.calibration.trajectory import network_hash
from quant.layer import (
    ZERO,
    QuantLayer,
    grid_of,
    has_output_scale,
    output_grid,
    set_grid,
    set_layer,
)
from quant.ranges.measure import Ranges
from quant.recipe import FLOAT_LAYERS, OPTIONAL_LAYERS, QuantRecipe
from quant.structure.equalize import apply_factors, behind_scale, groups, insert_scales
from quant.structure.split import split_shortcuts
from quant.temporal.table import TemporalTable, step_network, temporal_block, temporal_table
from quant.temporal.tfmq import table_of
from solvers.denoiser import Network, output_of

TARGETS = ("cpu", "openvino", "tensorrt")  # whose graphs round differently
TEMPORAL_PARTS = (
    "time_proj",
    "time_embedding",
    "time_emb_proj",
    "class_embedding",
    "add_embedding",
)
# of transformers: what embeds time, norms that it scales and shifts, and the first layer, which
# reads the state itself
FLOAT_KINDS = ("Timestep", "AdaLayerNorm", "PatchEmbed")


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
        symmetric: the inputs' steps on grids without zero point, by layer.
        losses: learned rounding: unit -> loss before and after.
        recipe, calibration_hash, model_hash: provenance.
        timesteps: the calibrated timesteps, noisiest first (the rows of an exported table).
        table: the quantized temporal features, where the recipe asks for such; the network then
            knows the calibrated timesteps only.
        outputs: also quantize the outputs of convolutions, as ONNX Runtime's CPU kernels do. Off by
            default.
    """

    float_network: Network
    structure: Network
    network: Network

    @property
    def config(self) -> Any:
        """The float network's, which tells its channels."""
        return self.float_network.config

    @property
    def outputs(self) -> bool:
        return self._outputs

    @outputs.setter
    def outputs(self, on: bool) -> None:
        self._outputs = bool(on)
        for name in self.names:
            layer = self.network.get_submodule(name)
            if has_output_scale(layer):
                layer.output_quant.disable_quant = not on

    def __init__(
        self,
        network: Network,
        structure: Network,
        float_network: Network,
        names: Sequence[str],
        recipe: QuantRecipe,
        timesteps: Sequence[float],
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
        self.symmetric = dict.fromkeys(names, 1.0)
        self.names = tuple(names)
        self.recipe = recipe
        self.timesteps = tuple(timesteps)
        self.calibration_hash = calibration_hash
        self.model_hash = model_hash
        self.ranges: Ranges | None = None
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
        return output_of(self.network(x, self.rows(t)))

    def rows(self, t: Tensor) -> Tensor:
        """What the network inside is asked with for the times ``t (B,)``: themselves, or the
        numbers of their rows in :attr:`table`.
        """
        if self.table is None:
            return t
        return torch.tensor([self.table.index(v) for v in t.reshape(-1).tolist()], device=t.device)

    def simulating(self, target: str) -> QuantizedNetwork:
        """A copy (weights shared) that quantizes what an exported graph for ``target`` (``cpu``,
        ``openvino``, ``tensorrt``) quantizes.
        """
        shared = {
            id(p): p
            for p in [*self.parameters(), *self.buffers(), self.float_network, self.structure]
        }
        if target == "tensorrt":  # which sets other steps of inputs
            for name in self.names:
                for p in self.network.get_submodule(name).input_quant.parameters():
                    del shared[id(p)]
        twin = copy.deepcopy(self, memo=shared)
        twin.outputs = target == "cpu" and self.recipe.outputs == "int8"
        if target == "tensorrt":
            for name, step in self.symmetric.items():
                set_grid(twin.network.get_submodule(name).input_quant, step, ZERO)
        return twin

    @torch.no_grad()
    def layers(self) -> dict[str, QuantLayer]:
        """Scales and integer codes of every quantized layer, by module name."""
        found = {}
        for name in self.names:
            layer = self.network.get_submodule(name)
            weight = layer.quant_weight()
            step, zero = grid_of(layer.input_quant)
            found[name] = QuantLayer(
                float(step),
                int(zero),
                float(np.float32(self.symmetric[name])),
                *output_grid(layer),
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
        if pattern not in OPTIONAL_LAYERS and not any(_means(pattern, name) for name in every):
            raise ValueError(
                f"skip names {pattern!r}, which matches no layer; layers: {', '.join(every)}"
            )
    kept = [
        n for n, m in network.named_modules() if any(k in type(m).__name__ for k in FLOAT_KINDS)
    ]
    spatial = [
        name
        for name in every
        if not set(name.split(".")) & set(TEMPORAL_PARTS)
        and not name.startswith(tuple(f"{n}." for n in kept))
    ]
    chosen = [name for name in spatial if not any(_means(pattern, name) for pattern in skip)]
    if not chosen:
        raise ValueError(
            f"{type(network).__name__} has nothing to quantize: {len(every)} Conv2d/Linear layers,"
            f" of which {len(every) - len(spatial)} are temporal (always float) and the rest are"
            f" skipped ({', '.join(skip) or 'nothing'})"
        )
    return chosen


def _means(pattern: str, name: str) -> bool:
    """Whether an entry of ``skip`` names a layer: by its own name, or by the one that it has behind
    factors of equalisation, which is what reports of such networks call it.
    """
    return fnmatchcase(name, pattern) or pattern == behind_scale(name)


def structured(
    network: Network, recipe: QuantRecipe, factors: Mapping[str, Tensor] | None = None
) -> Network:
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


@torch.no_grad()
def build(
    structure: Network,
    network: Network,
    names: Sequence[str],
    recipe: QuantRecipe,
    timesteps: Sequence[float],
    calibration_hash: str,
    model_hash: str,
) -> QuantizedNetwork:
    """Swap the named layers of a copy for brevitas layers whose scales are plain parameters."""
    import brevitas.nn as qnn
    from brevitas.core.zero_point import ParameterZeroPoint
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.inject import this
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8ActPerTensorFloat

    class Activation(ShiftedUint8ActPerTensorFloat):
        scaling_impl_type = ScalingImplType.PARAMETER
        scaling_init = 1.0
        zero_point_impl = ParameterZeroPoint
        zero_point_init = 0.0
        zero_point_shape = ()

    class Weight(Int8WeightPerChannelFloat):
        scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
        bit_width = recipe.weight_bits

    class Output(Activation):
        scaling_per_output_channel = True
        zero_point_shape = this.per_channel_broadcastable_shape

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
        layer = swapped.get_submodule(name)
        layer.quant_weight()  # initialises the scale parameter from the weights
        for part in (layer.input_quant, layer.output_quant):
            part.skip_create_quant_tensor = True  # plain tensors go on
    swapped.eval().requires_grad_(False)
    return QuantizedNetwork(
        swapped, structure, network, names, recipe, timesteps, calibration_hash, model_hash
    )


def rebuild(
    network: nn.Module,
    recipe: QuantRecipe,
    layers: dict[str, QuantLayer],
    timesteps: Sequence[float],
    calibration_hash: str,
    factors: Mapping[str, Tensor] | None = None,
    features: Tensor | None = None,
) -> QuantizedNetwork:
    """The quantized network that these scales and codes describe, on top of the float ``network``
    they were made from.
    """
    structure = structured(network, recipe, factors)
    quantized = build(
        structure, network, list(layers), recipe, timesteps, calibration_hash, network_hash(network)
    )
    quantized.factors = dict(factors or {})
    with torch.no_grad():
        for name, made in layers.items():
            layer = quantized.network.get_submodule(name)
            scale = torch.from_numpy(made.weight_scale)
            codes = torch.from_numpy(made.codes).float()
            layer.weight.copy_(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)))
            set_layer(layer, made)
            quantized.symmetric[name] = made.symmetric_scale
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


def quantizes_time(recipe: QuantRecipe) -> bool:
    """Whether the temporal features are quantized, rather than exact."""
    return recipe.temporal not in ("table", "float")
