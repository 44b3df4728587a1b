"""CPU graphs without the rounding of outputs, for OpenVINO.

ONNX Runtime's integer convolutions give codes, so graphs of the target ``cpu`` round outputs of
convolutions. OpenVINO's give floats, and rounding them again costs it time and the result
exactness: on loading, such convolutions are given the scales and biases that they have on the
target ``openvino``, and what reads their codes reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.content import read_graph


def rounded_as(target: str, device: str) -> str:
    """The target whose rounding a bundle has on a device: on OpenVINO those of ``cpu`` round no
    outputs.
    """
    return "openvino" if target == "cpu" and device == "openvino" else target


def keep_outputs(model: str | Path | bytes) -> bytes:
    """A graph of the ``cpu`` target whose convolutions give floats; where something but decoders of
    one grid reads codes, they stay.

    Args:
        model: file or content of the graph.

    Returns:
        The changed graph.
    """
    proto = read_graph(model, external=False)
    graph = _Graph(proto)
    for conv in [node for node in proto.graph.node if node.op_type == "Conv"]:
        graph.keep_output(conv)
    graph.finish()
    return proto.SerializeToString()


class _Graph:
    def __init__(self, proto: Any):
        import onnx

        self.graph, self.numpy = proto.graph, onnx.numpy_helper
        self.tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.decoded = {
            node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"
        }
        self.users: dict[str, list[Any]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.results = {value.name for value in proto.graph.output}
        self.made: list[Any] = []
        self.dropped: set[str] = set()  # first outputs of nodes that nothing needs any more
        self.scaled: dict[str, str] = {}  # decoded weight or bias -> the same in the layer's steps

    def keep_output(self, conv: Any) -> None:
        """Take the codes of a convolution's output out, where nothing else reads them."""
        out = conv.output[0]
        coders = self.users.get(out, [])
        if out in self.results or len(coders) != 1 or coders[0].op_type != "QuantizeLinear":
            return
        decoders = self.users.get(coders[0].output[0], [])
        grids = {tuple(node.input[1:]) for node in decoders}
        if len(grids) != 1 or any(node.op_type != "DequantizeLinear" for node in decoders):
            return
        grid, codes = grids.pop(), tuple(coders[0].input[1:])
        known = len(grid) == len(codes) == 2 and {*grid, *codes} <= set(self.tensors)
        if not known or self.results & {node.output[0] for node in decoders}:
            return
        scale, zero = (self._numbers(name) for name in grid)
        one, middle = (self._numbers(name) for name in codes)
        if scale.ndim:  # the convolution gives codes of each channel's grid
            if one != 1 or len(conv.input) < 3 or not set(conv.input[1:]) <= set(self.decoded):
                return
            shift = (middle.astype(np.float32) - zero) * scale
            self._rescale(conv, 1, scale, None)
            self._rescale(conv, 2, scale, shift)
        elif (scale, zero) != (one, middle):
            return
        for decoder in decoders:
            for node in self.users.get(decoder.output[0], []):
                for k, name in enumerate(node.input):
                    if name == decoder.output[0]:
                        node.input[k] = out
        self.dropped |= {node.output[0] for node in (coders[0], *decoders)}

    def _rescale(self, conv: Any, place: int, scale: np.ndarray, shift: np.ndarray | None) -> None:
        """Multiply a decoded weight or bias by its channels' ``scale``, and add ``shift``: to the
        scales of codes, or as floats where there is a shift.
        """
        import onnx

        name = conv.input[place]
        if name not in self.scaled:
            decoder, made = self.decoded[name], f"{name}.kept"
            steps = self._numbers(decoder.input[1]) * scale
            if shift is None:
                self._add(f"{made}.scale", steps)
                twin = onnx.NodeProto()
                twin.CopyFrom(decoder)
                twin.input[1], twin.output[0], twin.name = f"{made}.scale", made, made
                self.made.append(twin)
            else:
                self._add(made, self._numbers(decoder.input[0]) * steps + shift)
            self.scaled[name] = made
        conv.input[place] = self.scaled[name]

    def finish(self) -> None:
        """Write the nodes that are left; what is made reads constants alone, so it comes first."""
        left = [node for node in self.graph.node if node.output[0] not in self.dropped]
        copies = [type(node).FromString(node.SerializeToString()) for node in left]
        del self.graph.node[:]
        self.graph.node.extend(self.made + copies)

    def _numbers(self, name: str) -> np.ndarray:
        return self.numpy.to_array(self.tensors[name])

    def _add(self, name: str, values: np.ndarray) -> None:
        self.graph.initializer.append(self.numpy.from_array(values.astype(np.float32), name))
