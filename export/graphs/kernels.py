"""What ONNX Runtime's x86 kernels are fastest with; the results stay what they were.

Attention in one operator: scores, softmax and the product with the values run tile by tile in the
cache (flash attention), and the transposes around the heads go. Measured on one thread: 1.1 to 1.25
times the whole network's speed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HEADS_FIRST = [0, 2, 1, 3]


def fuse_attention(model: ir.Model) -> int:
    """Replace the attentions of ``model`` (changed in place) by
    ``com.microsoft.MultiHeadAttention``; returns how many.

    An attention is softmax(scale q k^T) v with heads split off ``(B, S, heads * d)`` and put
    together again, without mask; whatever else looks like one is left alone.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    count = 0
    for node in list(model.graph):
        if node.op_type == "Softmax" and _fuse(model.graph, node, f"attention.{count}"):
            count += 1
    if count:
        model.opset_imports["com.microsoft"] = 1
        RemoveUnusedNodesPass()(model)
    return count


def _fuse(graph: ir.Graph, softmax: ir.Node, name: str) -> bool:
    scores, mixed = _producer(softmax.inputs[0], "MatMul"), _only_user(softmax, "MatMul")
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    if (
        scores is None
        or mixed is None
        or mixed.inputs[0] is not softmax.outputs[0]
        or axis not in (-1, 3)
    ):
        return False
    parts = (
        _heads(scores.inputs[0]),
        _heads(scores.inputs[1], transposed=True),
        _heads(mixed.inputs[1]),
    )
    found = [part for part in parts if part is not None]
    joined = _only_user(mixed, "Transpose")
    out = None if joined is None or _perm(joined) != HEADS_FIRST else _only_user(joined, "Reshape")
    if (
        out is None
        or len(found) < 3
        or len({heads for _, heads, _ in found}) != 1
        or found[2][2] != 1
    ):
        return False
    (_, heads, q_scale), (_, _, k_scale), _ = found
    attributes = {"num_heads": heads, "scale": q_scale * k_scale}
    fused = ir.node(
        "MultiHeadAttention",
        [value for value, *_ in found],
        attributes=attributes,
        domain="com.microsoft",
        name=name,
    )
    value, old = fused.outputs[0], out.outputs[0]
    value.name, value.shape = name, old.shape
    if old.dtype is not None:
        value.dtype = old.dtype
    graph.insert_before(out, fused)
    for user, index in list(old.uses()):
        user.replace_input_with(index, value)
    return True


def _heads(value: ir.Value | None, transposed: bool = False) -> tuple[ir.Value, int, float] | None:
    """Of ``(B, heads, S, d)``, or with its last two axes exchanged: what it was split from ``(B, S,
    heads * d)``, heads, factor.
    """
    scale = 1.0
    while value is not None and (node := value.producer()) is not None:
        if (
            node.op_type == "Mul"
            and (factor := _numbers(node.inputs[1])) is not None
            and factor.size == 1
        ):
            scale *= float(factor.item())
        elif transposed and node.op_type == "Transpose" and _perm(node) == [0, 1, 3, 2]:
            transposed = False
        elif (
            transposed
            and node.op_type == "Reshape"
            and (first := _flat_transpose(node)) is not None
        ):
            node, transposed = first, False
        else:
            break
        value = node.inputs[0]
    split = _producer(value, "Transpose")
    split = (
        None
        if split is None or transposed or _perm(split) != HEADS_FIRST
        else _producer(split.inputs[0], "Reshape")
    )
    whole = None if split is None else split.inputs[0]
    if split is None or whole is None or whole.shape is None or len(whole.shape) != 3:
        return None
    heads = _entry(split.inputs[1], 2)
    return None if heads is None or heads < 1 else (whole, heads, scale)


def _flat_transpose(reshape: ir.Node) -> ir.Node | None:
    """The first of Reshape, Transpose (0, 2, 1), Reshape: the exporter's way of exchanging the last
    two of four axes.
    """
    middle = _producer(reshape.inputs[0], "Transpose")
    return (
        None
        if middle is None or _perm(middle) != [0, 2, 1]
        else _producer(middle.inputs[0], "Reshape")
    )


def _entry(shape: ir.Value | None, k: int) -> int | None:
    """The k-th number of a shape that is a constant, or put together from numbers that are."""
    joined = _producer(shape, "Concat")
    if joined is not None and len(joined.inputs) > k:
        shape, k = joined.inputs[k], 0
    numbers = _numbers(shape)
    return None if numbers is None or numbers.size <= k else int(numbers[k])


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """Of a constant."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def _only_user(node: ir.Node, op: str) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op else None


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())
