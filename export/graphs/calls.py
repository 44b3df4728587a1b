"""A network that a run asks many times is traced once.

While the run is traced, each call is one node of the graph, which names the part of the network
that is asked; :func:`insert_parts` puts a copy of that part's own graph in its place. Parts share
their weights, and have the sizes that the run asks with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.graphs.network import most_batch, trace
from quant.temporal.features import split, tell

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "restobox"
Size = tuple[int, ...]  # (C, h, w)


@dataclass(frozen=True)
class Part:
    """What is asked of a network: it ``whole``, or ``full`` or ``shallow`` of one in two parts,
    with an image of this size.
    """

    name: str
    size: Size

    @property
    def operator(self) -> str:
        """Of the node that stands for a call."""
        return "_".join((self.name, *map(str, self.size)))


class CalledNetwork(nn.Module):
    """``network(z (B, C, h, w), row (1,))``, whole or in two parts; in a run that is being traced,
    a node for each call.

    Args:
        network: takes the row of a temporal table in place of a time.
    """

    network: Any

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.sizes: dict[Part, list[Size]] = {}  # of the answers
        tell(self, network)

    def trace(self, parts: Sequence[Part], what: str) -> dict[Part, ir.Model]:
        """The graphs ``(row, z, features of a shallow part) -> answers``, with a free batch.

        Args:
            parts: that a run asks for; a shallow one comes after the full one of its size.

        Raises:
            ValueError: torch.export can't trace the network.
        """
        batch = torch.export.Dim("batch", min=2, max=most_batch(self.network))
        graphs = {}
        for part in parts:
            sizes = [part.size]
            if part.name == "shallow":
                sizes += self.sizes[Part("full", part.size)][1:]
            graphs[part] = trace(
                _PartNetwork(self.network, part.name),
                (torch.zeros(1, dtype=torch.int64), *(torch.zeros(2, *size) for size in sizes)),
                (None, tuple({0: batch} for _ in sizes)),
                what,
            )
            self.sizes[part] = [_size(value) for value in graphs[part].graph.outputs]
        return graphs

    def split(self) -> CalledNetwork:
        split(self.network)  # or refuse
        return self

    def forward(self, z: Tensor, row: Tensor) -> Tensor:
        return self._call("whole", row, z)[0]

    def full(self, z: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        out, features = self._call("full", row, z)
        return out, features

    def shallow(self, z: Tensor, row: Tensor, features: Tensor) -> Tensor:
        return self._call("shallow", row, z, features)[0]

    def _call(self, name: str, row: Tensor, z: Tensor, *features: Tensor) -> Sequence[Tensor]:
        if not torch.compiler.is_exporting():
            return _ask(self.network, name, row, z, *features)
        part = Part(name, tuple(int(n) for n in z.shape[1:]))
        answers: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{part.operator}",
            (row, z, *features),
            dtypes=[z.dtype for _ in self.sizes[part]],
            shapes=[(z.shape[0], *size) for size in self.sizes[part]],
            version=1,
        )
        return answers


def insert_parts(model: ir.Model, graphs: Mapping[Part, ir.Model]) -> None:
    """Put copies of the parts' graphs in the places of the nodes that stand for their calls.

    Args:
        model: of the run, changed in place.
        graphs: of all parts that it asks for (:meth:`CalledNetwork.trace`); tensors of theirs that
            are no parameters get names that are unique among them.
    """
    import onnx_ir as ir

    parts = {part.operator: graph.graph for part, graph in graphs.items()}
    held = model.graph.initializers
    for operator, graph in parts.items():
        for value in list(graph.initializers.values()):
            if "." not in (value.name or ""):  # no parameter: other graphs have such a name too
                value.name = f"{operator}.{value.name}"
    for k, node in enumerate([node for node in model.graph if node.domain == DOMAIN]):
        copy = parts[node.op_type].clone()
        for inner in copy:  # names are unique
            inner.name = f"call_{k}.{inner.name}"
            for value in inner.outputs:
                value.name = f"call_{k}.{value.name}"
        for name, value in list(copy.initializers.items()):
            del copy.initializers[name]
            if name in held:
                ir.convenience.replace_all_uses_with(value, held[name])
            else:
                model.graph.register_initializer(value)
        given = [value for value in node.inputs if value is not None]
        for own, value in zip(copy.inputs, given, strict=True):
            ir.convenience.replace_all_uses_with(own, value)
        nodes, answers = list(copy), list(copy.outputs)
        copy.outputs.clear()
        copy.remove(nodes)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, list(node.outputs), answers
        )
    model.graph.opset_imports.pop(DOMAIN, None)


class _PartNetwork(nn.Module):
    """A part, with the row first."""

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self.network, self.name = network, name

    def forward(self, row: Tensor, *inputs: Tensor) -> Sequence[Tensor]:
        return _ask(self.network, self.name, row, *inputs)


def _ask(network: Any, name: str, row: Tensor, z: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
    asked = network if name == "whole" else getattr(split(network), name)
    out = asked(z, row, *features)
    if isinstance(out, tuple):
        return out
    return (out if isinstance(out, Tensor) else out.sample,)


def _size(value: ir.Value) -> Size:
    """Without the batch."""
    assert value.shape is not None
    return tuple(int(n) for n in list(value.shape)[1:])  # type: ignore[arg-type]
