"""Each graph is traced once: tracing one takes seconds, and many tests export the same network."""

import io
import pickle
from hashlib import sha256
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from solvers.files import replace_file


class _Content(pickle.Pickler):
    """All that an object holds; of a tensor its values, wherever they lie."""

    def reducer_override(self, held):
        if isinstance(held, torch.Tensor):
            values = held.detach().contiguous().view(-1).view(torch.uint8).numpy()
            kind = type(held).__name__, str(held.dtype), tuple(held.shape)
            return str, (repr((*kind, sha256(values.tobytes()).hexdigest())),)
        return NotImplemented


def _content(*objects) -> str:
    file = io.BytesIO()
    _Content(file).dump(objects)
    return sha256(file.getvalue()).hexdigest()


def _extents(shapes):
    """What torch.export reads of its dimensions: names, which hold the multiples, and limits."""
    if isinstance(shapes, dict):
        return {k: _extents(v) for k, v in shapes.items()}
    if isinstance(shapes, list | tuple):
        return [_extents(v) for v in shapes]
    return repr(shapes), *(getattr(shapes, name, None) for name in ("__name__", "min", "max"))


def remembering(trace, folder: Path):
    """``export.graphs.network.trace``, which answers a second call on the same content - the
    module's code, attributes and weights, and the inputs - with a copy of its first answer;
    ``folder`` holds the answers of all workers.
    """

    def once(module, inputs, dynamic_shapes, what):
        try:
            name = _content(module, inputs, _extents(dynamic_shapes), what)
        except (pickle.PicklingError, AttributeError, TypeError):  # a class of a test's own
            return trace(module, inputs, dynamic_shapes, what)
        known = folder / f"{name}.onnx"
        if known.exists():
            return ir.from_proto(onnx.load(known))
        model = trace(module, inputs, dynamic_shapes, what)
        replace_file(known, lambda place: onnx.save(ir.to_proto(model), place))
        return model

    return once
