"""Float ONNX graphs of a network: ``(x, t)``, or ``(x, index)`` with the temporal table inside."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import math
import threading
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 18
KINDS = ("timestep", "step")
MOST_BATCH = 63  # diffusers' upsampling takes another path from 64 on
_tracing = threading.Lock()


class _Plain(nn.Module):
    """Tensor in, tensor out, with fixed argument names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.network(x, t)
        return out if isinstance(out, Tensor) else out.sample


class _PlainStep(_Plain):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return super().forward(x, index)


def export_graph(network: nn.Module, channels: int, *, kind: str = "timestep", multiple: int = 1):
    """Trace ``network`` to a float32 ONNX model with free batch (up to 63, under guidance 31),
    height and width.

    Args:
        network: ``network(x (B, channels, h, w), t (B,) float)``, or ``(x, index (B,) int64)`` for
            ``kind="step"``.
        channels: input channels.
        kind: ``timestep`` or ``step``: how the second input is called and typed.
        multiple: height and width are multiples of this.

    Returns:
        ``onnx_ir.Model``, opset 18. Weights keep the names of their parameters
            (``down_blocks.0....weight``; those of
        MatMul nodes are transposed).

    Raises:
        ValueError: unknown kind, or a network that torch.export can't trace.
    """
    if kind not in KINDS:
        raise ValueError(f"graph kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    wrapper = (_Plain if kind == "timestep" else _PlainStep)(network.eval())
    side = multiple * max(2, math.ceil(8 / multiple))
    x = torch.zeros(2, channels, side, side + multiple)
    second = torch.zeros(2) if kind == "timestep" else torch.zeros(2, dtype=torch.int64)
    dim = torch.export.Dim
    batch, height, width = (
        dim("batch", min=2, max=most_batch(network)),
        dim("height", min=2, max=4096),
        dim("width", min=2, max=4096),
    )
    shapes = ({0: batch, 2: multiple * height, 3: multiple * width}, {0: batch})
    model = trace(wrapper, (x, second), shapes, type(network).__name__)
    model.graph.outputs[0].name = "output"
    return model


def most_batch(network: Any) -> int:
    """The largest batch that a graph takes: under guidance each call is one of twice the size."""
    return MOST_BATCH // (2 if hasattr(network, "guidance") else 1)


def trace(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any, what: str
) -> ir.Model:
    """``module`` as an ``onnx_ir.Model``; the parameters of its attribute ``network`` keep their
    own names.

    Raises:
        ValueError: torch.export can't trace it.
        ImportError: onnxscript isn't installed.
    """
    if find_spec("onnxscript") is None:
        raise ImportError("exporting needs the package onnxscript: pip install 'restobox[export]'")
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(
                module, inputs, dynamic_shapes=dynamic_shapes, strict=False
            )
            exported: Any = torch.onnx.export(
                program, opset_version=OPSET, dynamo=True, optimize=True, verbose=False
            )
            model = exported.model
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"{what} can't be traced by torch.export: {type(error).__name__}: {first}"
            ) from error
    for name, value in list(model.graph.initializers.items()):
        if name.startswith("network."):
            value.name = name.removeprefix("network.")
    _name_transposed(model)
    return model


def _name_transposed(model) -> None:
    """A linear layer's weight is folded to a nameless transposed constant: give it its name back
    from the node's module path.
    """
    for node in model.graph:
        if (
            node.op_type != "MatMul"
            or node.inputs[1] is None
            or not node.inputs[1].is_initializer()
        ):
            continue
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        name = f"{scopes[-2].removeprefix('network.')}.weight" if len(scopes) > 1 else ""
        if name and name not in model.graph.initializers:
            node.inputs[1].name = name


@contextlib.contextmanager
def _quiet():
    """The exporter prints its progress and warns about its own internals.

    One thread at a time: output, filters and the exporter's own state belong to the whole process.
    """
    with _tracing:
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
