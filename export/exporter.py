"""From a denoiser to a bundle in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.bundle import Bundle, Tables, write_bundle
from export.graph import OPSET, export_graph
from export.qdq import TARGETS, insert_qdq
from quant.quantize import QuantizedNetwork
from quant.temporal import step_network, temporal_table
from quant.trajectory import network_hash
from solvers.denoiser import Denoiser


def export_model(denoiser: Denoiser, *, target: str = "float", quantized: QuantizedNetwork | None = None, timesteps: Sequence[float] = ()):
    """The ONNX graph of a denoiser's network.

    Args:
        denoiser: around the float network.
        target: ``float``, ``cpu`` or ``tensorrt``; the latter two need ``quantized``.
        quantized: scales and codes made from that network.
        timesteps: rows of the temporal table inside a step graph; empty for a timestep graph.

    Returns:
        ``onnx.ModelProto``, checked.

    Raises:
        ValueError: target and ``quantized`` don't go together, or ``quantized`` was made from another network.
    """
    import onnx
    import onnx_ir as ir

    if target not in ("float", *TARGETS):
        raise ValueError(f"target {target!r} is unknown; known: float, {', '.join(TARGETS)}")
    if (target == "float") == (quantized is not None):
        raise ValueError("give quantized=... for the targets cpu and tensorrt, and only for those")
    network = denoiser.network
    if quantized is not None and quantized.model_hash != network_hash(network):
        raise ValueError("the quantized network was made from another model than this denoiser holds")
    if quantized is not None:
        network = quantized.structure  # the same function, with the recipe's split and equalised layers
    kind = "timestep"
    if timesteps:
        kind, network = "step", step_network(network, temporal_table(network, timesteps))
    model = export_graph(network, input_channels(denoiser), kind=kind, multiple=denoiser.multiple)
    if quantized is not None:
        insert_qdq(model, quantized.layers(), target)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def export_bundle(
    denoiser: Denoiser,
    folder: str | Path,
    *,
    target: str = "float",
    quantized: QuantizedNetwork | None = None,
    timesteps: Sequence[float] | None = None,
    seed: int | None = None,
    card: str = "",
) -> Bundle:
    """Export a denoiser's network and write the bundle that :class:`export.session.Session` runs.

    Args:
        timesteps: for a step graph; an empty list asks for a timestep graph. None: the calibrated timesteps where the recipe says
            ``temporal="table"``, a timestep graph otherwise.
        seed: of the calibration, for the provenance.
        card: text put at the head of the model card.

    Raises:
        ValueError: as :func:`export_model`.
        FileExistsError: ``folder`` exists and is no bundle.
    """
    if timesteps is None:
        timesteps = quantized.timesteps if quantized is not None and quantized.recipe.temporal == "table" else ()
    proto = export_model(denoiser, target=target, quantized=quantized, timesteps=timesteps)
    convs = [] if quantized is None else [n for n, layer in quantized.layers().items() if layer.codes.ndim == 4]
    fields = {
        "target": target,
        "graph": "step" if timesteps else "timestep",
        "timesteps": [float(t) for t in timesteps],
        "channels": input_channels(denoiser),
        "settings": denoiser.settings | {"prediction_type": denoiser.prediction_type, "multiple": denoiser.multiple},
        "process": Tables.of(denoiser.process),
        "opset": OPSET,
        "planned": len(convs),
        "recipe": None if quantized is None else quantized.recipe.to_dict(),
        "calibration": None if quantized is None else quantized.calibration_hash,
        "model": network_hash(denoiser.network),
        "seed": seed,
    }
    return write_bundle(folder, proto.SerializeToString(), _card(card, fields), **fields)


def input_channels(denoiser: Denoiser) -> int:
    """Channels of the network's input.

    Raises:
        ValueError: the network doesn't tell.
    """
    config = getattr(denoiser.network, "config", None)
    channels = getattr(config, "in_channels", None) or getattr(denoiser.network, "in_channels", None)
    if not channels:
        raise ValueError(f"{type(denoiser.network).__name__} has no config.in_channels or in_channels; set one")
    return int(channels)


def _card(head: str, fields: dict) -> str:
    recipe = fields["recipe"]
    lines = [head or "# Restoration bundle", "", "| | |", "|---|---|", f"| target | {fields['target']} |", f"| graph | {fields['graph']} |"]
    if fields["timesteps"]:
        lines.append(f"| timesteps | {', '.join(f'{t:g}' for t in fields['timesteps'])} |")
    lines.append(f"| prediction | {fields['settings']['prediction_type']} |")
    if recipe is not None:
        lines.append(f"| weights / activations | {recipe['weight_bits']} / {recipe['act_bits']} bits |")
        lines.append(f"| integer convolutions | {fields['planned']} |")
        lines.append(f"| in float | {', '.join(recipe['skip'])}, temporal path |")
    lines += ["", "Run it with `export.session.Session(folder)`; the graph itself needs only ONNX Runtime.", ""]
    return "\n".join(lines)
