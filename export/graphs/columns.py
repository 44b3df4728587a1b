"""A convolution on integers whose outputs stay in float: a product of matrices.

ONNX Runtime's CPU kernels convolve codes to codes (``QLinearConv``), so outputs are rounded to 8
bits, or to int32 by a kernel many times slower (``ConvInteger``). Its product of matrices of codes
gives floats (``com.microsoft.MatMulIntegerToFloat``) at the same rate. So the codes that lie under
the kernel's places are put side by side, and what was a convolution is

    y (B, h, w, C_out) = columns (B, h, w, k_h k_w C_in)  W (k_h k_w C_in, C_out)

Padding is the zero point. What OpenVINO computes, ONNX Runtime then computes too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN, PRODUCT = "com.microsoft", "MatMulIntegerToFloat"
END = 2**62  # of an axis, whatever its size


def foldable(node: ir.Node) -> bool:
    """Whether a convolution is such a product: two axes, one group, padding in numbers."""
    weight = node.inputs[1]
    return (
        node.op_type == "Conv"
        and weight is not None
        and weight.shape is not None
        and len(weight.shape) == 4
        and _numbers(node, "group", [1]) == [1]
        and ("auto_pad" not in node.attributes or node.attributes["auto_pad"].value == "NOTSET")
    )


def columns(node: ir.Node, codes: ir.Value, zero: ir.Value, kernel: tuple[int, ...]) -> list:
    """New nodes that put side by side what a convolution's kernel lies on; the last one's output is
    ``(B, h, w, k_h k_w C_in)``, places in rows first, channels last.

    Args:
        node: the convolution.
        codes: its input in codes ``(B, C_in, H, W)``.
        zero: the code of 0.
        kernel: height and width.
    """
    made = [ir.node("Transpose", [codes], {"perm": [0, 2, 3, 1]})]
    strides, dilations = (_numbers(node, key, [1, 1]) for key in ("strides", "dilations"))
    top, left, bottom, right = _numbers(node, "pads", [0, 0, 0, 0])
    if top or left or bottom or right:
        pads = _whole([0, top, left, 0, 0, bottom, right, 0])
        made += [pads, ir.node("Pad", [made[-1].outputs[0], pads.outputs[0], zero])]
    padded = made[-1].outputs[0]
    height, width = ((n - 1) * d for n, d in zip(kernel, dilations, strict=True))
    if (height, width) == (0, 0) and strides == [1, 1]:
        return made
    axes, steps = _whole([1, 2]), _whole(strides)
    made += [axes, steps]
    parts = []
    for y in range(0, height + 1, dilations[0]):
        for x in range(0, width + 1, dilations[1]):
            first, last = _whole([y, x]), _whole([y - height or END, x - width or END])
            ends = (n.outputs[0] for n in (first, last, axes, steps))
            part = ir.node("Slice", [padded, *ends])
            made += [first, last, part]
            parts.append(part.outputs[0])
    return made if len(parts) == 1 else [*made, ir.node("Concat", parts, {"axis": 3})]


def flat(codes: np.ndarray) -> np.ndarray:
    """Weights ``(C_out, C_in, k_h, k_w)`` as the product's ``(k_h k_w C_in, C_out)``."""
    return np.ascontiguousarray(codes.transpose(2, 3, 1, 0).reshape(-1, len(codes)))


def products(model: Any) -> int:
    """How many convolutions of a graph, an ``onnx.ModelProto``, are such products."""
    return sum(node.op_type == PRODUCT for node in model.graph.node)


def _whole(numbers: list[int]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})


def _numbers(node: ir.Node, key: str, default: list[int]) -> list[int]:
    if key not in node.attributes:
        return default
    value = node.attributes[key].value
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]
