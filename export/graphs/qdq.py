"""Q/DQ placement in a float ONNX graph from calibrated scales, for one target.

``cpu``: ONNX Runtime's x86 kernels. Activations are uint8 with zero point 128 (the symmetric int8
grid, shifted), every planned convolution also has its output quantized, and its bias is int32: only
DQ -> Conv -> Q fuses to ``QLinearConv``. The output's quantizer has to be per tensor; dividing the
weights' scales by per-channel output steps makes it per channel all the same: the convolution's
result is already in codes (``Q`` has scale 1) and the DQ after it multiplies each channel by its
own step.

``tensorrt``: int8 with zero point 0 at the inputs of planned layers only, float bias: TensorRT has
kernels with int8 input and half-precision output, and residual sums stay out of 8 bits.

In both, weights are int8 initializers followed by a per-channel DequantizeLinear; no weight Q node,
no Clip. Their zero point is 0 and left out: one that several layers share would keep OpenVINO from
running them on integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from quant.network import QuantLayer

TARGETS = ("cpu", "tensorrt")


def insert_qdq(model: ir.Model, layers: Mapping[str, QuantLayer], target: str) -> ir.Model:
    """Quantize the Conv, Gemm and MatMul nodes of ``layers`` (by module name: their weight
    initializer is ``<name>.weight``).

    Args:
        model: float graph, changed in place.
        layers: module name -> scales and codes.
        target: ``cpu`` or ``tensorrt``.

    Returns:
        ``model``.

    Raises:
        ValueError: unknown target, or a layer that the graph doesn't hold.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; known: {', '.join(TARGETS)}")
    nodes = weighted_nodes(model)
    missing = sorted(set(layers) - set(nodes))
    if missing:
        raise ValueError(
            f"the graph has no Conv/Gemm/MatMul node for {', '.join(missing)}; was it exported from"
            " another network?"
        )
    editor = _Editor(model, target)
    for name, layer in layers.items():
        editor.quantize(name, nodes[name], layer)
    used = {value for node in model.graph for value in node.inputs}
    for name in [n for n, v in model.graph.initializers.items() if v not in used]:
        del model.graph.initializers[name]
    return model


def weighted_nodes(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Conv, Gemm and MatMul nodes with a constant weight, by the module that owns it (several where
    a graph calls it several times).
    """
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight = node.inputs[1]
        maker = None if weight is None else weight.producer()
        if node.op_type == "MatMul" and maker is not None and maker.op_type == "Transpose":
            weight = maker.inputs[0]
        if weight is None or not weight.is_initializer():
            continue
        if (name := weight.name or "").endswith(".weight"):
            found.setdefault(name.removesuffix(".weight"), []).append(node)
    return found


class _Editor:
    def __init__(self, model: ir.Model, target: str):
        self.graph = model.graph
        self.cpu = target == "cpu"
        self.zero = self._constant("qdq.zero", np.uint8(128) if self.cpu else np.int8(0))
        self.one = self._constant("qdq.one", np.float32(1)) if self.cpu else None

    def quantize(self, name: str, nodes: list[ir.Node], layer: QuantLayer) -> None:
        scale = np.float32(layer.input_scale)
        step, weight = (
            self._constant(f"{name}.input_scale", scale),
            self._weight(name, nodes[0], layer),
        )
        # a MatMul fuses to MatMulIntegerToFloat without an output quantizer
        conv = self.cpu and nodes[0].op_type == "Conv"
        has_bias = conv and len(nodes[0].inputs) > 2 and nodes[0].inputs[2] is not None
        bias = None
        if has_bias and layer.bias is not None:
            bias = self._bias(name, nodes[0], layer, layer.bias, scale)
        steps = layer.output_scale.astype(np.float32)
        for k, node in enumerate(nodes):
            call = name if len(nodes) == 1 else f"{name}.{k}"
            node.replace_input_with(
                0, self._round_trip(node.inputs[0], f"{call}.input", step, before=node)
            )
            node.replace_input_with(1, weight)
            if bias is not None:
                node.replace_input_with(2, bias)
            if conv:
                self._quantize_output(name, call, node, steps)

    def _weight(self, name: str, node: ir.Node, layer: QuantLayer) -> ir.Value:
        codes, axis = layer.codes, 0
        steps: np.ndarray = layer.weight_scale.astype(np.float32)
        if self.cpu and node.op_type == "Conv":
            steps = steps / layer.output_scale.astype(np.float32)
        if node.op_type == "MatMul":
            codes, axis = codes.T, 1
        q = self._constant(f"{name}.weight_codes", np.ascontiguousarray(codes))
        scale = self._constant(f"{name}.weight_scale", steps)
        return self._insert(
            "DequantizeLinear", [q, scale], f"{name}.weight_dq", before=node, axis=axis
        )

    def _bias(
        self, name: str, node: ir.Node, layer: QuantLayer, bias: np.ndarray, input_scale: np.float32
    ) -> ir.Value:
        step: np.ndarray = input_scale * layer.weight_scale.astype(np.float32)
        codes = np.clip(np.rint(bias.astype(np.float64) / step), -(2**31) + 1, 2**31 - 1).astype(
            np.int32
        )
        step = input_scale * (
            layer.weight_scale.astype(np.float32) / layer.output_scale.astype(np.float32)
        )
        inputs = [
            self._constant(f"{name}.bias_codes", codes),
            self._constant(f"{name}.bias_scale", step),
        ]
        return self._insert("DequantizeLinear", inputs, f"{name}.bias_dq", before=node, axis=0)

    def _quantize_output(self, name: str, call: str, node: ir.Node, steps: np.ndarray) -> None:
        out = node.outputs[0]
        users = list(out.uses())
        q = ir.node("QuantizeLinear", [out, self.one, self.zero], name=f"{call}.output_q")
        zeros = self._constant(f"qdq.zeros.{len(steps)}", np.full(len(steps), 128, np.uint8))
        scale = self._constant(f"{name}.output_scale", steps)
        dq = ir.node(
            "DequantizeLinear",
            [q.outputs[0], scale, zeros],
            attributes={"axis": 1},
            name=f"{call}.output_dq",
        )
        q.outputs[0].name, dq.outputs[0].name = q.name, dq.name
        self.graph.insert_after(node, [q, dq])
        for user, index in users:
            user.replace_input_with(index, dq.outputs[0])
        for k, value in enumerate(self.graph.outputs):
            if value is out:  # the last convolution: its own result is in codes
                steady = dq.outputs[0]
                steady.name, steady.shape = out.name, out.shape
                if out.dtype is not None:
                    steady.dtype = out.dtype
                out.name = f"{call}.output_codes"
                self.graph.outputs[k] = steady

    def _round_trip(
        self, value: ir.Value | None, name: str, step: ir.Value, before: ir.Node
    ) -> ir.Value:
        q = self._insert("QuantizeLinear", [value, step, self.zero], f"{name}_q", before=before)
        return self._insert("DequantizeLinear", [q, step, self.zero], f"{name}_dq", before=before)

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        if name in self.graph.initializers:  # a layer called several times
            return self.graph.initializers[name]
        tensor = ir.Tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, const_value=tensor)
        value.shape, value.dtype = tensor.shape, tensor.dtype
        self.graph.register_initializer(value)
        return value

    def _insert(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        before: ir.Node,
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes or None, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(before, node)
        return node.outputs[0]
