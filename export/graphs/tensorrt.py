"""What TensorRT asks of a graph, checked without TensorRT.

The published rules of TensorRT 10 and 11 for strongly typed networks with explicit quantization
("Working with Quantized Types", and the operators that its ONNX parser knows). Where the two
differ, or a device adds to them, the stricter rule counts: on Orin (SM 8.7) a DequantizeLinear
whose scale and output differ in type is refused.

- Codes are int8, symmetric: no zero point, or zeros.
- Scales are constants, positive, and of the type of the numbers that are rounded: the input of Q,
  the output of DQ.
- Activations have one scale; constant weights one for each output channel, on the axis of those.
- A layer's weights are constants, or a DQ of such; its bias is neither Q nor DQ.
- Operators that take one type for several inputs get one: every change of type is a Cast.
- Operators of the standard domain that the parser knows, without its exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

OPSETS = (13, 22)
# operators of the ONNX parser's table that a graph of a network or of a restoration may need
_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil
Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu
Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
Greater GreaterOrEqual GroupNormalization Identity InstanceNormalization LayerNormalization
LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad
Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Shape Sigmoid Sign
Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose
Unsqueeze Where Xor
"""
KNOWN = set(_NAMES.split())
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT32", "INT64", "BOOL")
# inputs that must be constants: operator, number
CONSTANT = (
    ("CumSum", 1),
    ("InstanceNormalization", 1),
    ("InstanceNormalization", 2),
    ("Slice", 3),
    ("Squeeze", 1),
    ("TopK", 1),
    ("Unsqueeze", 1),
)
RESIZES = ("nearest", "linear", "cubic")


def check_tensorrt(model: Any) -> None:
    """Refuse a graph (``onnx.ModelProto``) that TensorRT wouldn't build.

    Raises:
        ValueError: names the first faults and how many there are.
    """
    found = list(faults(model))
    if found:
        raise ValueError(
            f"TensorRT would refuse this graph in {len(found)} places: {'; '.join(found[:3])}"
        )


def faults(model: Any) -> list[str]:
    """What breaks the rules above, each in words that name the node."""
    return list(_Lint(model).run())


class _Lint:
    def __init__(self, model: Any):
        import onnx

        self.onnx, self.model = onnx, model
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        self.nodes = list(graph.node)
        self.tensors = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for k, name in enumerate(node.input):
                self.users.setdefault(name, []).append((node, k))
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {name: t.data_type for name, t in self.tensors.items()}
        self.opset = next(e.version for e in model.opset_import if e.domain == "")

    def run(self) -> Iterator[str]:
        least, most = OPSETS
        if not least <= self.opset <= most:
            yield f"opset {self.opset}: the parser knows {least} to {most}"
        for entry in self.model.opset_import:
            if entry.domain not in ("", "ai.onnx"):
                yield f"operators of the domain {entry.domain}"
        for node in self.nodes:
            name = f"{node.op_type} {node.name or node.output[0]}"
            checks = [self._operator(node), self._types(node), self._constants(node)]
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                checks.append(self._quantizer(node))
            if node.op_type in WEIGHTED:
                checks.append(self._layer(node))
            for check in checks:
                for fault in check:
                    yield f"{name}: {fault}"

    def _operator(self, node: Any) -> Iterator[str]:
        if node.op_type not in KNOWN:
            yield "the parser doesn't know this operator"
        if node.op_type == "Resize":
            attributes = self._attributes(node)
            mode = attributes.get("mode", b"nearest").decode()
            if mode not in RESIZES or attributes.get("antialias", 0):
                yield f"resizes by {mode} with antialiasing {attributes.get('antialias', 0)}"
        if node.op_type == "Range":
            floating = self._type(node.input[0]) in ("FLOAT", "FLOAT16")
            if floating and any(self._constant(n) is None for n in node.input):
                yield "a range of floating numbers must be constant"

    def _types(self, node: Any) -> Iterator[str]:
        """Of each value, and one for all inputs that the operator's schema gives one."""
        for name in node.output:
            if (kind := self._type(name)) not in (*TYPES, ""):
                yield f"{name} is of type {kind}"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return  # their own rule is stricter
        schema = self.onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        groups: dict[str, set[str]] = {}
        formal = list(schema.inputs)
        for k, name in enumerate(node.input):
            one = formal[min(k, len(formal) - 1)]
            if name and "(" not in one.type_str and self._type(name):
                groups.setdefault(one.type_str, set()).add(self._type(name))
        for kinds in groups.values():
            if len(kinds) > 1:
                yield f"mixes the types {' and '.join(sorted(kinds))} without a Cast"

    def _constants(self, node: Any) -> Iterator[str]:
        for op, k in CONSTANT:
            given = node.op_type == op and len(node.input) > k and node.input[k]
            if given and self._constant(node.input[k]) is None:
                yield f"input {k} must be a constant"

    def _quantizer(self, node: Any) -> Iterator[str]:
        scale = self._constant(node.input[1])
        rounds = node.op_type == "QuantizeLinear"
        if scale is None:
            yield "the scale is no constant"
            return
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield "a scale is not positive"
        codes = self._type(node.output[0] if rounds else node.input[0])
        if codes != "INT8":
            yield f"the codes are {codes or 'untyped'}, not INT8"
        if len(node.input) > 2 and node.input[2]:
            zero = self._constant(node.input[2])
            if zero is None or zero.any():
                yield "the zero point is not 0"
        numbers, own = node.input[0] if rounds else node.output[0], self._type(node.input[1])
        if self._type(numbers) != own:
            yield f"the scale is {own}, the numbers {self._type(numbers) or 'untyped'}"
        constant = None if rounds else self._constant(node.input[0])
        if constant is None:
            if scale.size > 1:
                yield "an activation has several scales"
            return
        yield from self._weights(node, constant, scale)

    def _weights(self, node: Any, codes: np.ndarray, scale: np.ndarray) -> Iterator[str]:
        axis = int(self._attributes(node).get("axis", 1))
        for user, k in self.users.get(node.output[0], []):
            if user.op_type not in WEIGHTED or k != 1:
                yield f"goes to input {k} of {user.op_type}: nothing may stand before a layer"
                continue
            last = user.op_type == "MatMul"
            last = last or (user.op_type == "Gemm" and not self._attributes(user).get("transB", 0))
            wanted = codes.ndim - 1 if last else 1 if user.op_type == "ConvTranspose" else 0
            if scale.size > 1 and (
                axis % codes.ndim != wanted or scale.shape != (codes.shape[wanted],)
            ):
                yield (
                    f"scales {scale.shape} on axis {axis} of weights {codes.shape}; the output"
                    f" channels of {user.op_type} are on axis {wanted}"
                )

    def _layer(self, node: Any) -> Iterator[str]:
        maker = self.makers.get(node.input[1])
        weights = self._constant(node.input[1]) is not None
        dequantized = maker is not None and maker.op_type == "DequantizeLinear"
        if dequantized and maker is not None:
            weights = self._constant(maker.input[0]) is not None
        if node.op_type in ("Conv", "ConvTranspose") and not weights:
            yield "the weights are neither constants nor a DQ of such"
        if len(node.input) > 2 and node.input[2]:
            bias = self.makers.get(node.input[2])
            if bias is not None and bias.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield "the bias is quantized"
        first = self.makers.get(node.input[0])
        rounded = first is not None and first.op_type == "DequantizeLinear"
        if dequantized and weights and not rounded:
            yield "its weights are codes, its input is not"

    def _attributes(self, node: Any) -> dict[str, Any]:
        return {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}

    def _type(self, name: str) -> str:
        """Of a value; empty where inference finds none."""
        number = self.types.get(name, 0)
        return self.onnx.TensorProto.DataType.Name(number) if number else ""

    def _constant(self, name: str) -> np.ndarray | None:
        maker = self.makers.get(name)
        if name in self.tensors:
            return self.onnx.numpy_helper.to_array(self.tensors[name])
        if maker is not None and maker.op_type == "Constant":
            value = self._attributes(maker).get("value")
            if value is not None:
                return self.onnx.numpy_helper.to_array(value)
            return np.asarray(next(iter(self._attributes(maker).values())))
        if maker is not None and maker.op_type == "Cast":
            return self._constant(maker.input[0])
        return None
