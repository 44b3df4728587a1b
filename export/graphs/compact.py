"""The same graph in fewer bytes: what only the exporter needed goes, and most names become short.

Inputs, outputs, weights, biases and codes keep their names (``<module>.weight``,
``<module>.weight_codes``); nodes with weights are called after their module. The other nodes, the
other tensors and the values between nodes have a number: ONNX allows nodes without a name, but ONNX
Runtime up to 1.21 calls what it fuses after them and refuses a graph where two are called the same.
"""

from __future__ import annotations

from itertools import count

import onnx_ir as ir

from export.graphs.qdq import weighted_nodes

KEPT = (".weight", ".weight_codes", ".bias", ".weight.half", ".bias.half")


def name_layers(model: ir.Model) -> set[str]:
    """Call nodes with weights after the module that owns them, ``<module>.<call>`` where it is
    called several times.

    Returns:
        Their names.
    """
    named = set()
    for name, nodes in weighted_nodes(model).items():
        for k, node in enumerate(nodes):
            node.name = name if len(nodes) == 1 else f"{name}.{k}"
            named.add(node.name)
    return named


def compact(model: ir.Model, layers: set[str]):
    """``onnx.ModelProto`` of ``model``, which is changed in place.

    Types and shapes of the values between nodes are left out, runtimes infer them; so is where each
    node and value came from in the source, which is as long as the graph itself.

    Args:
        layers: names of the nodes that keep theirs.
    """
    graph = model.graph
    tensors, between = (
        list(graph.initializers.values()),
        [value for node in graph for value in node.outputs],
    )
    kept = {
        *graph.inputs,
        *graph.outputs,
        *(value for value in tensors if (value.name or "").endswith(KEPT)),
    }
    taken = {value.name for value in (*kept, *tensors, *between)}
    names = (name for k in count() if (name := f"v{k}") not in taken)
    graph.metadata_props.clear()
    for value in {*tensors, *between, *kept}:
        value.metadata_props.clear()
    for value in (*tensors, *between):
        if value not in kept and value.name:
            value.name = next(names)
    numbers = (name for k in count() if (name := f"n{k}") not in layers)
    for node in graph:
        node.metadata_props.clear()
        node.name = node.name if node.name in layers else next(numbers)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto
