"""Q/DQ placement in a float ONNX graph from calibrated scales, for one target.

``cpu``: ONNX Runtime's x86 kernels. Activations are uint8 with a zero point, every planned
convolution also has its output quantized, and its bias is int32: only DQ -> Conv -> Q fuses to
``QLinearConv``. The output's quantizer has to be per tensor; dividing the weights' scales by
per-channel output steps, and a bias that shifts each channel, makes it per channel all the same:
the convolution's result is already in codes (``Q`` has scale 1 and zero point 128) and the DQ after
it gives each channel its own step and zero point. Where all channels share a grid, weights, bias
and quantizer are plain.

``openvino``: uint8 with a zero point at the inputs of planned layers only, float bias.

``tensorrt``: the same in int8 without zero point: TensorRT has kernels with int8 input and
half-precision output, and residual sums stay out of 8 bits.

Equalisation's product before a convolution is part of the quantizer's steps, which may differ by
channel, for the first two; TensorRT's may not.

In all, weights are int8 initializers followed by a per-channel DequantizeLinear; no weight Q node,
no Clip. Their zero point is 0 and left out: one that several layers share would keep OpenVINO from
running them on integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.graphs.columns import DOMAIN, PRODUCT, columns, flat, foldable
from quant.layer import ZERO, QuantLayer

FACTOR = ".factor"  # of quant.structure.equalize.ChannelScale
LEAST_HALF = np.finfo(np.float16).tiny.astype(np.float32)  # of the normal numbers
TARGETS = ("cpu", "openvino", "tensorrt")
# what ONNX Runtime computes in codes between decoded inputs and an encoded output, whose grids must
# then be of the whole tensor
FUSED = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")


def insert_qdq(
    model: ir.Model, layers: Mapping[str, QuantLayer], target: str, *, outputs: bool = True
) -> ir.Model:
    """Quantize the Conv, Gemm and MatMul nodes of ``layers`` (by module name: their weight
    initializer is ``<name>.weight``).

    Args:
        model: float graph, changed in place.
        layers: module name -> scales and codes.
        target: ``cpu``, ``openvino`` or ``tensorrt``.
        outputs: ``cpu``: quantize the outputs of convolutions; False: they are products of matrices
            with outputs in float (:mod:`export.graphs.columns`).

    Returns:
        ``model``.

    Raises:
        ValueError: unknown target, or a layer that the graph doesn't hold.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; known: {', '.join(TARGETS)}")
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    nodes = weighted_nodes(model)
    missing = sorted(set(layers) - set(nodes))
    if missing:
        raise ValueError(
            f"the graph has no Conv/Gemm/MatMul node for {', '.join(missing)}; was it exported from"
            " another network?"
        )
    editor = _Editor(model, target, outputs)
    for name, layer in layers.items():
        editor.quantize(name, nodes[name], layer)
    if target == "cpu":
        editor.keep_sums_apart()
    RemoveUnusedNodesPass()(model)  # products that quantizers took over
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
    def __init__(self, model: ir.Model, target: str, outputs: bool):
        self.graph = model.graph
        self.opsets, self.outputs = model.opset_imports, outputs
        self.cpu, self.symmetric = target == "cpu", target == "tensorrt"
        self.one = self._constant("qdq.one", np.float32(1)) if self.cpu else None
        self.middle = self._constant("qdq.middle", np.uint8(ZERO)) if self.cpu else None

    def quantize(self, name: str, nodes: list[ir.Node], layer: QuantLayer) -> None:
        scale = layer.input_scale
        if self.symmetric:  # decoded in float16, as weights are (_within_half)
            scale = max(layer.symmetric_scale, float(LEAST_HALF))
        zero = np.int8(0) if self.symmetric else np.uint8(layer.input_zero)
        grid = (
            self._constant(f"{name}.input_scale", np.float32(scale)),
            self._constant(f"qdq.zero.{int(zero)}", zero),
        )
        if self.cpu and not self.outputs and foldable(nodes[0]):
            for k, node in enumerate(nodes):
                self._multiply(name, name if len(nodes) == 1 else f"{name}.{k}", node, layer, grid)
            return
        weight = self._weight(name, nodes[0], layer)
        # a MatMul fuses to MatMulIntegerToFloat without an output quantizer
        conv = self.cpu and nodes[0].op_type == "Conv"
        bias = self._bias(name, nodes[0], layer) if conv else None
        for k, node in enumerate(nodes):
            call = name if len(nodes) == 1 else f"{name}.{k}"
            read = self._round_trip(node.inputs[0], f"{call}.input", grid, before=node)
            node.replace_input_with(0, read)
            node.replace_input_with(1, weight)
            if bias is not None:
                node.resize_inputs(3)
                node.replace_input_with(2, bias)
                self._quantize_output(name, call, node, layer)

    def _weight(self, name: str, node: ir.Node, layer: QuantLayer) -> ir.Value:
        codes, axis = layer.codes, 0
        steps: np.ndarray = layer.weight_scale.astype(np.float32)
        if self.symmetric:
            codes, steps = _within_half(codes, steps)
        elif self.cpu and node.op_type == "Conv" and not _shared(layer):
            steps = steps / layer.output_scale.astype(np.float32)
        if node.op_type == "MatMul":
            codes, axis = codes.T, 1
        q = self._constant(f"{name}.weight_codes", np.ascontiguousarray(codes))
        scale = self._constant(f"{name}.weight_scale", steps)
        return self._insert(
            "DequantizeLinear", [q, scale], f"{name}.weight_dq", before=node, axis=axis
        )

    def _bias(self, name: str, node: ir.Node, layer: QuantLayer) -> ir.Value:
        """In steps of input times weights; with what brings each output channel's zero point to the
        quantizer's.
        """
        input_scale, weights = np.float32(layer.input_scale), layer.weight_scale.astype(np.float32)
        bias = np.zeros(len(weights)) if layer.bias is None else layer.bias.astype(np.float64)
        outputs, shift = np.ones_like(weights), np.zeros(len(weights))
        if not _shared(layer):
            outputs = layer.output_scale.astype(np.float32)
            shift = (layer.output_zero.astype(np.float64) - ZERO) * outputs
        codes = np.rint((bias + shift) / (input_scale * weights))
        codes = codes.clip(-(2**31) + 1, 2**31 - 1).astype(np.int32)
        inputs = [
            self._constant(f"{name}.bias_codes", codes),
            self._constant(f"{name}.bias_scale", input_scale * (weights / outputs)),
        ]
        return self._insert("DequantizeLinear", inputs, f"{name}.bias_dq", before=node, axis=0)

    def _quantize_output(self, name: str, call: str, node: ir.Node, layer: QuantLayer) -> None:
        out = node.outputs[0]
        users = list(out.uses())
        scale, zeros = layer.output_scale.astype(np.float32), layer.output_zero
        if shared := _shared(layer):
            scale, zeros = scale[0], zeros[0]
        grid = (
            self._constant(f"{name}.output_scale", scale),
            self._constant(f"{name}.output_zero", zeros),
        )
        codes = grid if shared else (self.one, self.middle)
        q = ir.node("QuantizeLinear", [out, *codes], name=f"{call}.output_q")
        dq = ir.node(
            "DequantizeLinear",
            [q.outputs[0], *grid],
            attributes=None if shared else {"axis": 1},
            name=f"{call}.output_dq",
        )
        q.outputs[0].name, dq.outputs[0].name = q.name, dq.name
        self.graph.insert_after(node, [q, dq])
        self._take_over(out, users, dq.outputs[0], f"{call}.output_codes")

    def _take_over(self, out: ir.Value, users: list, steady: ir.Value, name: str) -> None:
        """Give ``users`` of ``out``, and the graph where it is a result, ``steady`` instead;
        ``name``: what ``out`` is called then.
        """
        for user, index in users:
            user.replace_input_with(index, steady)
        for k, value in enumerate(self.graph.outputs):
            if value is out:
                steady.name, steady.shape = out.name, out.shape
                if out.dtype is not None:
                    steady.dtype = out.dtype
                out.name = name
                self.graph.outputs[k] = steady

    def _multiply(
        self,
        name: str,
        call: str,
        node: ir.Node,
        layer: QuantLayer,
        grid: tuple[ir.Value, ir.Value],
    ) -> None:
        """A product of matrices in the place of a convolution."""
        self.opsets[DOMAIN] = 1
        codes = self._codes(node.inputs[0], f"{call}.input", grid, before=node)
        made = columns(node, codes, grid[1], layer.codes.shape[2:])
        factors: list[ir.Value | None] = [
            self._constant(f"{name}.weight_codes", flat(layer.codes)),
            grid[0],
            self._constant(f"{name}.weight_scale", layer.weight_scale.astype(np.float32)),
            grid[1],
            None,
        ]
        if layer.bias is not None:
            factors.append(self._constant(f"{name}.bias", layer.bias.astype(np.float32)))
        product = ir.node(PRODUCT, [made[-1].outputs[0], *factors], name=node.name, domain=DOMAIN)
        back = ir.node("Transpose", [product.outputs[0]], {"perm": [0, 3, 1, 2]})
        for k, one in enumerate((*made, product, back)):
            one.outputs[0].name = f"{call}.columns.{k}"
        out = node.outputs[0]
        self.graph.insert_after(node, [*made, product, back])
        self._take_over(out, list(out.uses()), back.outputs[0], f"{call}.convolved")
        node.name = f"{call}.convolution"

    def keep_sums_apart(self) -> None:
        """Decode by plain arithmetic where a sum of convolutions' outputs, which have a grid for
        each channel, is quantized at once.
        """
        for node in [n for n in self.graph if n.op_type in FUSED]:
            users = list(node.outputs[0].uses())
            makers = [None if v is None else v.producer() for v in node.inputs]
            decoded = [m for m in makers if m is not None and m.op_type == "DequantizeLinear"]
            if len(decoded) < len(makers) or not users:
                continue
            if any(user.op_type != "QuantizeLinear" for user, _ in users):
                continue
            for k, maker in enumerate(decoded):
                scale = maker.inputs[1]
                if scale is not None and _numbers(scale).size > 1:
                    node.replace_input_with(k, self._decoded(maker, f"{node.name}.{k}", node))

    def _decoded(self, maker: ir.Node, name: str, before: ir.Node) -> ir.Value:
        """What a DequantizeLinear with a grid for each channel makes of its codes, from the codes'
        own grid on.
        """
        codes, scale, zero = maker.inputs
        assert scale is not None
        assert zero is not None
        steps = _numbers(scale).astype(np.float32)
        shift = (ZERO - _numbers(zero).astype(np.float32)) * steps
        plain = self._insert(
            "DequantizeLinear", [codes, self.one, self.middle], f"{name}.plain", before
        )
        factors, terms = (
            self._constant(f"{maker.name}.{kind}", values.reshape(1, -1, 1, 1))
            for kind, values in (("factors", steps), ("terms", shift))
        )
        product = self._insert("Mul", [plain, factors], f"{name}.scaled", before)
        return self._insert("Add", [product, terms], f"{name}.decoded", before)

    def _round_trip(
        self, value: ir.Value | None, name: str, grid: tuple[ir.Value, ir.Value], before: ir.Node
    ) -> ir.Value:
        q = self._codes(value, name, grid, before)
        return self._insert("DequantizeLinear", [q, *grid], f"{name}_dq", before=before)

    def _codes(
        self, value: ir.Value | None, name: str, grid: tuple[ir.Value, ir.Value], before: ir.Node
    ) -> ir.Value:
        scaled = None if self.symmetric else self._channel_factors(value)
        if scaled is None:
            return self._insert("QuantizeLinear", [value, *grid], f"{name}_q", before=before)
        value, factors = scaled
        step, zero = (_numbers(v) for v in grid)
        steps = self._constant(f"{name}_steps", step / factors)
        zeros = self._constant(f"qdq.zeros.{len(factors)}.{zero}", np.full(len(factors), zero))
        return self._insert(
            "QuantizeLinear", [value, steps, zeros], f"{name}_q", before=before, axis=1
        )

    def _channel_factors(self, value: ir.Value | None) -> tuple[ir.Value, np.ndarray] | None:
        """Of equalisation's product with one factor for each channel, which a quantizer's steps
        can hold: what it multiplies, and the factors ``(C,)``.
        """
        product = None if value is None else value.producer()
        if product is None or product.op_type != "Mul":
            return None
        held = product.inputs[1]
        if held is None or not held.is_initializer() or product.inputs[0] is None:
            return None
        if not (held.name or "").endswith(FACTOR):
            return None
        return product.inputs[0], _numbers(held).reshape(-1)

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


def _shared(layer: QuantLayer) -> bool:
    """Whether all channels of the output have one grid."""
    grids = np.stack([layer.output_scale, layer.output_zero.astype(np.float32)])
    return bool((grids == grids[:, :1]).all())


def _within_half(codes: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same weights with no step below what float16 holds to its usual precision, so that they
    are decoded in it: channels that are almost zero get fewer codes.
    """
    wide = np.maximum(steps, LEAST_HALF)
    shrunk = codes * (steps / wide).reshape(-1, *[1] * (codes.ndim - 1))
    return np.rint(shrunk).astype(codes.dtype), wide


def _numbers(value: ir.Value) -> np.ndarray:
    """Of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()
