"""Half precision, typed in the graph: the network in float16, everything that needs more in
float32.

Strongly typed engines (TensorRT 10 and 11) and the CUDA provider compute in the types that a graph
says. Normalisations, softmax, reductions and the temporal path (an angle of 999 radians has no
third digit in half precision) stay in float32, so do a restorer graph's lift, solver and data
consistency; inputs and outputs are float32 as before.
"""

from __future__ import annotations

import ast

import numpy as np
import onnx_ir as ir

SINGLE = {
    *(
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "BatchNormalization",
        "Softmax",
        "LogSoftmax",
    ),
    *(
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceL2",
        "ReduceProd",
        "CumSum",
        "Exp",
        "Log",
        "Pow",
        "Sqrt",
    ),
    *("Range", "Sin", "Cos", "Erf", "DFT"),
}
QDQ = {"QuantizeLinear", "DequantizeLinear"}
HALF_OPSET = 19  # Q/DQ with float16 scales
LEAST_NORMAL = float(np.finfo(np.float16).tiny)


def to_half(model: ir.Model) -> ir.Model:
    """The same graph with its network in float16.

    Args:
        model: float32 or Q/DQ graph from :mod:`export.graphs.network` or
            :mod:`export.graphs.restorer`; left as it is.

    Returns:
        A new model of opset 19 or more.
    """
    import onnx

    proto = ir.to_proto(model)
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, HALF_OPSET)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    _Halver(model.graph).run()
    return model


class _Halver:
    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.half: set[ir.Value] = set()
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        temporal = _from_time_only(self.graph)
        for node in list(self.graph):
            single = (
                node in temporal
                or node.op_type in SINGLE
                or not (node.op_type in QDQ or _in_network(node))
                or _tiny_scales(node)
            )
            for k, value in enumerate(node.inputs):
                if (
                    value is None
                    or not _is_float(value)
                    or (node.op_type == "Resize" and k in (1, 2))
                ):
                    continue
                if single == (value in self.half):
                    node.replace_input_with(
                        k, self._cast(value, ir.DataType.FLOAT if single else ir.DataType.FLOAT16)
                    )
            if single:
                continue
            if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
            if (
                node.op_type in ("Constant", "ConstantOfShape")
                and "value" in node.attributes
                and _is_float(node.outputs[0])
            ):
                array = node.attributes["value"].as_tensor().numpy().astype(np.float16)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
            for out in node.outputs:
                if _is_float(out):
                    out.dtype = ir.DataType.FLOAT16
                    self.half.add(out)
        for k, out in enumerate(self.graph.outputs):
            if out in self.half:
                cast, name = self._cast(out, ir.DataType.FLOAT), out.name
                out.name, cast.name = f"{name}_half", name
                self.graph.outputs[k] = cast
        used = {value for node in self.graph for value in node.inputs} | set(self.graph.outputs)
        for name in [n for n, v in self.graph.initializers.items() if v not in used]:
            del self.graph.initializers[name]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) in self.casts:
            return self.casts[value, dtype]
        short = "half" if dtype == ir.DataType.FLOAT16 else "single"
        if value.const_value is not None and value.is_initializer():
            array = value.const_value.numpy().astype(dtype.numpy())
            cast = ir.Value(
                name=f"{value.name}.{short}",
                const_value=ir.tensor(array, name=f"{value.name}.{short}"),
            )
            self.graph.register_initializer(cast)
        else:
            node = ir.node(
                "Cast", [value], attributes={"to": int(dtype)}, name=f"{value.name}.{short}"
            )
            cast = node.outputs[0]
            cast.name = node.name
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
        cast.dtype, cast.shape = dtype, value.shape
        self.casts[value, dtype] = cast
        if dtype == ir.DataType.FLOAT16:
            self.half.add(cast)
        return cast


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _in_network(node: ir.Node) -> bool:
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return any(scope == "network" or scope.startswith("network.") for scope in scopes)


def _tiny_scales(node: ir.Node) -> bool:
    """Whether a Q or DQ node has a scale that float16 can't hold to its usual precision."""
    if node.op_type not in QDQ:
        return False
    scale = node.inputs[1]
    if scale is None or scale.const_value is None:
        return False
    return float(scale.const_value.numpy().min()) < LEAST_NORMAL


def _from_time_only(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that depend on the input ``t`` and on no other."""
    time = {value for value in graph.inputs if value.name == "t"}
    found = set()
    for node in graph:
        varying = [
            v for v in node.inputs if v is not None and not v.is_initializer() and not _constant(v)
        ]
        if varying and all(v in time for v in varying):
            found.add(node)
            time |= set(node.outputs)
    return found


def _constant(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Constant"
