"""Reading graphs that are to be changed or counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def read_graph(model: str | Path | bytes, *, external: bool = True) -> onnx.ModelProto:
    """The file or content of a graph as ONNX's object; ``external``: with weights that lie in files
    beside it.

    Raises:
        FileNotFoundError: no such file.
        google.protobuf.message.DecodeError: it holds no graph.
    """
    import onnx

    if isinstance(model, bytes):
        return onnx.load_from_string(model)
    return onnx.load_model(model, load_external_data=external)
