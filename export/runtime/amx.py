"""Codes shifted by one, for processors with AMX.

ONNX Runtime sends convolutions whose weights have zero point 0 to a kernel of its own that doesn't
know AMX; with zero point -1 and codes one less, which is the same weight, they go through its
matrix product, which does. Measured: 1.3 to 2.1 times the speed of a convolution of 128 channels
and more, so the session does it on loading where the processor has AMX.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from export.runtime.content import read_graph

# inner dimension and output channels from which the matrix product pays
LEAST_INNER, LEAST_OUT = (512, 64)


@cache
def has_amx() -> bool:
    """Whether this processor multiplies 8-bit tiles (Linux tells; elsewhere False)."""
    information = Path("/proc/cpuinfo")
    return information.is_file() and "amx_int8" in information.read_text()


def shift_codes(model: str | Path | bytes) -> bytes:
    """A CPU graph with the codes of its larger convolutions, and their zero points, one less: the
    same weights, by another kernel.

    Args:
        model: file or content of a graph of the ``cpu`` target.

    Returns:
        The changed graph.
    """
    import onnx

    proto = read_graph(model, external=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {
        node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"
    }
    weights = {
        node.input[1]: makers[node.input[1]]
        for node in proto.graph.node
        if node.op_type == "Conv" and node.input[1] in makers
    }
    for maker in weights.values():
        codes = onnx.numpy_helper.to_array(tensors[maker.input[0]])
        shifted = len(maker.input) > 2 and onnx.numpy_helper.to_array(tensors[maker.input[2]]).any()
        if (
            shifted
            or codes[0].size < LEAST_INNER
            or len(codes) < LEAST_OUT
            or codes.min() == np.iinfo(np.int8).min
        ):
            continue
        tensors[maker.input[0]].CopyFrom(
            onnx.numpy_helper.from_array(codes - np.int8(1), maker.input[0])
        )
        zero = onnx.numpy_helper.from_array(
            np.full(len(codes), -1, np.int8), f"{maker.input[0]}_zero"
        )
        del maker.input[2:]
        maker.input.append(zero.name)
        proto.graph.initializer.append(zero)
    return proto.SerializeToString()
