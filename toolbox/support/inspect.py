"""What is in a bundle."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from export.bundle import read_bundle


def inspect_bundle(folder: Path, *, placement: bool = False, device: str = "cpu") -> dict:
    """Contents of a verified bundle: purpose, settings, provenance, files, operators; with
    ``placement`` also which kernels run on ``device``.

    Raises:
        ValueError, OSError: as :func:`export.bundle.read_bundle`.
    """
    import onnx

    bundle = read_bundle(folder)
    graph = onnx.load_model(folder / bundle.model_file, load_external_data=False).graph
    content = bundle.model_dump(exclude={"process", "files"})
    content["process"] = bundle.process["kind"]
    content["files"] = {name: entry.size for name, entry in bundle.files.items()}
    content["inputs"] = {value.name: _type(value) for value in graph.input}
    content["outputs"] = {value.name: _type(value) for value in graph.output}
    content["operators"] = dict(Counter(node.op_type for node in graph.node).most_common())
    content["weights"] = _weights(graph)
    if placement:
        from export.runtime.session import Restorer, Session

        session = (Restorer if bundle.graph == "restorer" else Session)(folder, device=device)
        content["placement"] = [asdict(row) for row in session.placement()]
    return content


def _type(value) -> str:
    import onnx

    tensor = value.type.tensor_type
    sides = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} ({', '.join(sides)})"


def _weights(graph) -> dict[str, int]:
    """Bytes of the constants, by type."""
    import onnx

    total: Counter = Counter()
    for tensor in graph.initializer:
        total[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += (
            onnx.numpy_helper.to_array(tensor).nbytes
        )
    return dict(total.most_common())
