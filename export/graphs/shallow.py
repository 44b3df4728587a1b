"""The two graphs of a U-Net whose deep features are kept from step to step
(:mod:`quant.temporal.features`), cut from the one graph of a bundle when it is loaded: nothing is
stored twice, and every bundle of such a network can be run so.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Any

from export.runtime.content import read_graph

FEATURES = "deep_features"
_LAYER = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.conv1")


def cut(model: str | Path | bytes) -> tuple[bytes, bytes]:
    """The full graph, ``output`` and ``deep_features`` from the network's inputs, and the shallow
    one, ``output`` from those inputs and ``deep_features``.

    Args:
        model: file or content of a network's graph, of any target.

    Raises:
        ValueError: the graph has no last residual block that joins features and a skip connection.
    """
    import onnx
    from onnx import TensorProto, helper

    proto = read_graph(model)
    name = _deep(proto.graph)
    types = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    found = types.get(name)
    kind = TensorProto.FLOAT if found is None else found.type.tensor_type.elem_type
    shape = ["batch", None, "height", "width"]
    outside = helper.make_tensor_value_info(FEATURES, kind, shape)
    for node in proto.graph.node:
        node.input[:] = [FEATURES if n == name else n for n in node.input]
        node.output[:] = [FEATURES if n == name else n for n in node.output]
    proto.graph.output.append(outside)
    full = proto.SerializeToString()
    del proto.graph.output[-1]
    proto.graph.input.append(outside)
    _prune(proto.graph)
    return full, proto.SerializeToString()


def _deep(graph: Any) -> str:
    """The value that the last residual block joins with the skip connection."""
    makers = {name: node for node in graph.node for name in node.output}
    levels = [
        ((int(m[1]), int(m[2])), node) for node in graph.node if (m := _LAYER.match(node.name))
    ]
    waiting = deque([max(levels, key=lambda level: level[0])[1]] if levels else [])
    seen: set[str] = set()
    while waiting:
        node = waiting.popleft()
        axis = next((a.i for a in node.attribute if a.name == "axis"), None)
        if node.op_type == "Concat" and axis == 1 and len(node.input) == 2:
            return str(node.input[0])
        fresh = [name for name in node.input if name in makers and name not in seen]
        seen.update(fresh)
        waiting.extend(makers[name] for name in fresh)
    raise ValueError(
        "the cache of features is for graphs of diffusers' UNet2DModel, whose last block joins deep"
        " features and a skip connection; this graph has none: leave out the cache"
    )


def _prune(graph: Any) -> None:
    """Remove what the outputs don't need."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and FEATURES not in node.output:
            kept.append(node)
            needed.update(node.input)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)
