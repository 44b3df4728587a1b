"""From a denoiser to a bundle in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.bundle import Bundle, write_bundle
from export.graphs.columns import products
from export.graphs.compact import compact, name_layers
from export.graphs.kernels import fuse_attention
from export.graphs.network import export_graph
from export.graphs.precision import to_half
from export.graphs.qdq import insert_qdq
from export.graphs.restorer import export_restorer
from export.graphs.tensorrt import check_tensorrt
from export.jobs.base import Job
from export.records import MOST_BYTES, RunRecord
from export.tables import tables_of
from quant.calibration.trajectory import network_hash
from quant.network import QuantizedNetwork
from quant.temporal.features import FullSteps
from quant.temporal.table import has_table, step_network, temporal_table
from solvers import SOLVERS
from solvers.denoiser import Denoiser
from solvers.interop.description import describe

TARGETS = ("float", "cuda", "cpu", "openvino", "tensorrt")
INTEGER, HALF = ("cpu", "openvino", "tensorrt"), ("cuda", "tensorrt")


def export_model(
    denoiser: Denoiser,
    *,
    target: str = "float",
    quantized: QuantizedNetwork | None = None,
    timesteps: Sequence[float] = (),
):
    """The ONNX graph of a denoiser's network.

    Args:
        denoiser: around the float network.
        target: ``float``; ``cuda`` (float16, since that provider has no integer convolution);
            ``cpu``, ``openvino`` or ``tensorrt`` (8 bits, the last with the rest in float16), which
            need ``quantized``.
        quantized: scales and codes made from that network.
        timesteps: rows of the temporal table inside a step graph; empty for a timestep graph.

    Returns:
        ``onnx.ModelProto``, checked.

    Raises:
        ValueError: target and ``quantized`` don't go together, or ``quantized`` was made from
            another network.
    """
    check_target(denoiser, target, quantized)
    kind, network = "timestep", _structure(denoiser, quantized)
    if timesteps:
        table = (
            temporal_table(network, timesteps)
            if quantized is None
            else quantized.tabulate(timesteps)
        )
        kind, network = "step", step_network(network, table)
    return finish(
        export_graph(network, input_channels(denoiser), kind=kind, multiple=denoiser.multiple),
        target,
        quantized,
    )


def _structure(denoiser: Denoiser, quantized: QuantizedNetwork | None):
    """The float modules of the graph; the same function with the recipe's split and equalised
    layers where it asks for such.
    """
    return denoiser.network if quantized is None else quantized.structure


def check_target(denoiser: Denoiser, target: str, quantized: QuantizedNetwork | None) -> None:
    """Refuse an unknown target, one that ``quantized`` doesn't go with, and scales of another
    network.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; known: {', '.join(TARGETS)}")
    if (target in INTEGER) != (quantized is not None):
        others = ", ".join(t for t in TARGETS if t not in INTEGER)
        raise ValueError(
            f"the target {target} takes "
            + (
                f"a quantized network: give one (--quantized, quantized=), or a target of: {others}"
                if target in INTEGER
                else f"no quantized network; those are for {', '.join(INTEGER)}"
            )
        )
    if quantized is not None and quantized.model_hash != network_hash(denoiser.network):
        raise ValueError(
            "the quantized network was made from another model than this denoiser holds"
        )


def finish(model, target: str, quantized: QuantizedNetwork | None):
    """From the float graph to the target's ``onnx.ModelProto``: Q/DQ, precision, check."""
    import onnx

    if target == "cpu":
        fuse_attention(model)
    layers = name_layers(model)
    if quantized is not None:
        outputs = quantized.recipe.outputs == "int8"
        insert_qdq(model, quantized.layers(), target, outputs=outputs)
    if target in HALF:
        model = to_half(model)
    tensors = (value.const_value for value in model.graph.initializers.values())
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if weights > MOST_BYTES:
        raise ValueError(
            f"the graph has {weights / 1e9:.1f} GB of weights, and one ONNX file holds at most"
            f" {MOST_BYTES / 1e9:.1f}: export a quantized network (--quantized), or in 16 bits"
            " (--target cuda)"
        )
    proto = compact(model, layers)
    onnx.checker.check_model(proto, full_check=True)
    if target == "tensorrt":
        check_tensorrt(proto)
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
    """Export a denoiser's network and write the bundle that :class:`export.runtime.session.Session`
    runs.

    Args:
        timesteps: for a step graph; an empty list asks for a timestep graph. None: the calibrated
            timesteps where the recipe puts them into a table and the network's layers of time can
            be, a timestep graph otherwise.
        seed: of the calibration, for the provenance.
        card: text put at the head of the model card.

    Raises:
        ValueError: as :func:`export_model`.
        FileExistsError: ``folder`` exists and is no bundle.
    """
    if timesteps is None:
        timesteps = (
            quantized.timesteps
            if quantized is not None
            and quantized.recipe.temporal != "float"
            and has_table(denoiser.network)
            else ()
        )
    proto = export_model(denoiser, target=target, quantized=quantized, timesteps=timesteps)
    graph = {
        "graph": "step" if timesteps else "timestep",
        "timesteps": [float(t) for t in timesteps],
        **vars(tables_of(denoiser, timesteps)),
    }
    return _write(denoiser, folder, proto, target, quantized, seed, card, graph)


def export_restorer_bundle(
    job: Job,
    folder: str | Path,
    *,
    target: str = "float",
    quantized: QuantizedNetwork | None = None,
    estimates: bool = False,
    cache: FullSteps | None = None,
    seed: int | None = None,
    card: str = "",
) -> Bundle:
    """Export a whole restoration (:func:`export.graphs.restorer.export_restorer`) and write the
    bundle that :class:`export.runtime.session.Restorer` runs.

    Args:
        job: one of :mod:`export.jobs`.
        cache: see :class:`export.graphs.restorer.RestorerNetwork`.

    Raises:
        ValueError: as :func:`export_model` and :func:`export.graphs.restorer.export_restorer`.
        FileExistsError: ``folder`` exists and is no bundle.
    """
    denoiser = job.denoiser
    check_target(denoiser, target, quantized)
    calibrated = None if quantized is None else quantized.timesteps
    shown = denoiser.around(_structure(denoiser, quantized))
    tabulate = (
        temporal_table
        if quantized is None
        else lambda network, timesteps: quantized.tabulate(timesteps)
    )
    model, module = export_restorer(
        job.around(shown), estimates=estimates, timesteps=calibrated, tabulate=tabulate, cache=cache
    )
    task = job.task
    run = RunRecord(
        task=job.name,
        solver=_solver_name(getattr(task, "solver", None)),
        steps=job.steps or len(module.timesteps),
        grid=task.grid if isinstance(getattr(task, "grid", None), str) else "explicit",
        correction=job.correction,
        sigma=job.sigma,
        height=job.size[0],
        width=job.size[1],
        draws=module.draws,
        calls=module.calls,
        estimates=estimates,
        inputs={name: list(shape) for name, shape in job.inputs.items()},
        state=job.state,
        operator=job.operator_record,
        cache=cache if cache is None or isinstance(cache, int) else list(cache),
    )
    graph = {"graph": "restorer", "timesteps": list(module.timesteps), "run": run}
    return _write(
        denoiser, folder, finish(model, target, quantized), target, quantized, seed, card, graph
    )


def _solver_name(solver) -> str:
    """The name that ``solver_by_name`` makes an equal solver of; its text form where there is
    none.
    """
    return next((name for name, make in SOLVERS.items() if make() == solver), repr(solver))


def _write(denoiser, folder, proto, target, quantized, seed, card, graph: dict) -> Bundle:
    fields = graph | {
        "target": target,
        "channels": input_channels(denoiser),
        "settings": (
            denoiser.settings
            | {"prediction_type": denoiser.prediction_type, "multiple": denoiser.multiple}
        ),
        "process": describe(denoiser.process),
        "opset": next(entry.version for entry in proto.opset_import if entry.domain == ""),
        "planned": _planned(proto),
        "recipe": None if quantized is None else quantized.recipe.to_dict(),
        "calibration": None if quantized is None else quantized.calibration_hash,
        "model": network_hash(denoiser.network),
        "seed": seed,
    }
    return write_bundle(folder, proto.SerializeToString(), _card(card, fields), **fields)


def _planned(proto) -> int:
    """Convolutions whose inputs are codes."""
    decoded = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    return products(proto) + sum(
        node.op_type == "Conv" and decoded.issuperset(node.input[:2]) for node in proto.graph.node
    )


def input_channels(denoiser: Denoiser) -> int:
    """Channels of the network's input.

    Raises:
        ValueError: the network doesn't tell.
    """
    config = getattr(denoiser.network, "config", None)
    channels = getattr(config, "in_channels", None) or getattr(
        denoiser.network, "in_channels", None
    )
    if not channels:
        raise ValueError(
            f"{type(denoiser.network).__name__} has no config.in_channels or in_channels; set one"
        )
    return int(channels)


def _card(head: str, fields: dict) -> str:
    recipe = fields["recipe"]
    lines = [
        head or "# Restoration bundle",
        "",
        "| | |",
        "|---|---|",
        f"| target | {fields['target']} |",
        f"| graph | {fields['graph']} |",
    ]
    if fields["timesteps"]:
        lines.append(f"| timesteps | {', '.join(f'{t:g}' for t in fields['timesteps'])} |")
    if "run" in fields:
        r = fields["run"]
        lines.append(
            f"| task | {r.task}: {r.solver}, {r.steps} steps ({r.calls} network calls),"
            f" {r.correction}, sigma {r.sigma:g} |"
        )
        if r.cache is not None:
            lines.append(f"| deep features computed | at the steps of the cache {r.cache} |")
        lines.append(f"| size | {r.width} x {r.height} pixels |")
        lines.append(
            "| inputs |"
            f" {', '.join(f'{name} {tuple(shape)}' for name, shape in r.inputs.items())} |"
        )
    lines.append(f"| prediction | {fields['settings']['prediction_type']} |")
    if recipe is not None:
        lines.append(
            f"| weights / activations | {recipe['weight_bits']} / {recipe['act_bits']} bits |"
        )
        lines.append(f"| integer convolutions | {fields['planned']} |")
        lines.append(f"| in float | {', '.join(recipe['skip'])}, temporal path |")
    runner = "Restorer" if "run" in fields else "Session"
    lines += [
        "",
        (
            f"Run it with `export.runtime.session.{runner}(folder)`, or without restobox by"
            " `python run.py --help` (onnxruntime, NumPy and Pillow)."
        ),
        "",
    ]
    return "\n".join(lines)
