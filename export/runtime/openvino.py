"""A graph on OpenVINO's CPU plugin, with the calls that :mod:`export.runtime.session` makes of an
ONNX Runtime session.

OpenVINO compiles for known sizes far better than for free ones (measured on U-Nets: 1.2 to 1.3
times the speed), so a graph is compiled when an input size is first met, and the last :data:`KEPT`
sizes stay. Each keeps as many requests as threads have run it at once: a request holds the inputs
and outputs of one call.

It runs a convolution or a matrix product on integers where Q/DQ stand at its inputs, and keeps
everything between in the layout of its kernels. Graphs of the target ``cpu`` round outputs too,
which only ONNX Runtime needs: that is taken out (:mod:`export.runtime.outputs`). What isn't
quantized runs in float32, but in bfloat16 for graphs of the targets ``openvino`` and ``tensorrt``
on processors that multiply bfloat16: the codes' own error is several times larger.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.outputs import keep_outputs
from export.runtime.providers import PROVIDERS, Placement
from solvers.inputs.errors import ModelError, reading

KEPT = 4  # compiled sizes; each holds the weights in its kernels' layout
NO_WORK = {"Const", "Input", "Output"}


class OpenVinoGraph:
    """``run(names, {input: array}) -> arrays`` of one ONNX file.

    Args:
        path: file or content of the graph, complete in itself.
        target: what it was exported for; decides the precision of the rest.
        threads: None leaves the choice to OpenVINO.
        precision: ``f32`` or ``bf16``, of what isn't quantized; None: as said above.

    Raises:
        ImportError: OpenVINO isn't installed.
    """

    def __init__(
        self,
        path: str | Path | bytes,
        target: str,
        threads: int | None = None,
        precision: str | None = None,
    ):
        self._core = openvino_core()
        with reading(
            "the graph" if isinstance(path, bytes) else path, "a graph to run", ModelError
        ):
            if target == "cpu":
                path = keep_outputs(path)
            read = BytesIO(path) if isinstance(path, bytes) else str(path)
            self._model = self._core.read_model(read)
        half = target in ("openvino", "tensorrt") and multiplies_bfloat16()
        self.precision = precision or ("bf16" if half else "f32")
        self._settings: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        # and the requests that no call is using
        self._compiled: OrderedDict[tuple[Any, ...], tuple[Any, deque[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def get_providers(self) -> list[str]:
        return [PROVIDERS["openvino"]]

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names; the arrays are the caller's."""
        compiled, idle = self._compile(feed)
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        found = request.infer(dict(feed))
        idle.append(request)
        return [found[name] for name in names]

    def inputs(self) -> dict[str, list[int]]:
        """Shapes of the inputs; 1 where one is free."""
        return _shapes(self._model.inputs)

    def outputs(self) -> dict[str, list[int]]:
        """The same of the outputs."""
        return _shapes(self._model.outputs)

    def placement(self, feed: Mapping[str, np.ndarray]) -> list[Placement]:
        """Operators that the compiled graph holds for inputs of these sizes, and the types they
        compute in (``u8``, ``i8``: integers).
        """
        operators = self._compile(feed)[0].get_runtime_model().get_ops()
        told = [
            {key: op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
            for op in operators
        ]
        counts = Counter(
            (t["layerType"], t["runtimePrecision"]) for t in told if t["layerType"] not in NO_WORK
        )
        return [
            Placement(op, PROVIDERS["openvino"], count, dtype)
            for (op, dtype), count in counts.most_common()
        ]

    def _compile(self, feed: Mapping[str, np.ndarray]) -> tuple[Any, deque[Any]]:
        key = tuple((name, value.shape) for name, value in sorted(feed.items()))
        with self._lock:
            if key not in self._compiled:
                model = self._model.clone()
                model.reshape({name: list(value.shape) for name, value in feed.items()})
                self._compiled[key] = (
                    self._core.compile_model(model, "CPU", self._settings),
                    deque(),
                )
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]


def _shapes(ports) -> dict[str, list[int]]:
    return {
        port.any_name: [d.get_length() if d.is_static else 1 for d in port.get_partial_shape()]
        for port in ports
    }


def multiplies_bfloat16() -> bool:
    """Whether this processor does.

    Raises:
        ImportError: OpenVINO isn't installed.
    """
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


_core: list[Any] = []
_making = threading.Lock()


def openvino_core() -> Any:
    """OpenVINO's core, one for the process, which holds it to its end.

    On processors with AMX each core sets a signal stack and, when it goes, puts back the one that
    it found, even where that is gone since: the next signal, Ctrl-C say, would end the process.

    Raises:
        ImportError: OpenVINO isn't installed.
    """
    try:
        from openvino import Core
    except ImportError as error:
        raise ImportError(
            "device openvino needs the package openvino: pip install 'restobox[openvino]'"
        ) from error
    with _making:
        if not _core:
            _core.append(Core())
        return _core[0]
