"""What is in a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from export.bundle import Bundle, read_bundle
from quant.temporal.table import holds
from restoration.paired.task import default_process
from restoration.photo.start import CONTRASTS
from restoration.task import KINDS, check_kind
from solvers.denoiser import Denoiser
from solvers.grid import lay
from solvers.methods import solver_by_name

STEPS = (*range(1, 21), 25, 50, 100)  # that a bundle is tried for


def inspect_bundle(folder: Path, *, placement: bool = False, device: str = "cpu") -> dict:
    """Contents of a verified bundle: purpose, settings, provenance, files, operators; with
    ``placement`` also which kernels run on ``device``.

    Raises:
        ValueError, OSError: as :func:`export.bundle.read_bundle`.
    """
    import onnx

    bundle = read_bundle(folder)
    graph = onnx.load_model(folder / bundle.model_file, load_external_data=False).graph
    content = bundle.model_dump(exclude={"process", "files", "runs", "levels"})
    content["can run"] = runs_of(bundle)
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


def runs_of(bundle: Bundle) -> dict[str, str]:
    """What a bundle can be run for, by task: the steps of the default grid whose times it holds,
    and the noise that it removes.
    """
    if (run := bundle.run) is not None:
        return {run.task: f"{run.solver} of {run.steps} steps, {run.width} x {run.height} pixels"}
    s = bundle.settings
    outputs = bundle.channels - s.fold**2 * s.condition_channels
    network = SimpleNamespace(out_channels=outputs)
    options = s.model_dump(exclude={"prediction_type"})
    d = Denoiser(network, bundle.make_process(), s.prediction_type, **options)
    return {task: _runs(task, d, bundle.timesteps) for task in KINDS if _fits(d, task)}


def _fits(denoiser: Denoiser, task: str) -> bool:
    try:
        check_kind(denoiser, task)
    except ValueError:
        return False
    return True


def _runs(task: str, d: Denoiser, times: Sequence[float]) -> str:
    width, process = d.value_range[1] - d.value_range[0], d.process
    if not times:
        return "any times"
    if task in ("denoise", "deblur", "hsi"):
        held = [process.kappa(t) / width for t in times if process.a(t) > 0]
        if not held:
            return "nothing: it holds no time with signal"
        least, most = min(held) / CONTRASTS[1], min(max(held) / CONTRASTS[0], 1.0)
        return f"noise of sigma {least:.2g} to {most:.2g}, at {len(held)} levels"
    solvers = ("rddm", "resfusion") if task in ("dehaze", "paired") else ("ddim",)
    told = []
    for solver in solvers:
        steps = [str(n) for n in STEPS if _held(task, d, solver, n, times)]
        told += [f"{', '.join(steps)} steps of {solver}"] if steps else []
    return "; ".join(told) or "no number of steps of the default grid"


def _held(task: str, d: Denoiser, solver: str, steps: int, times: Sequence[float]) -> bool:
    """Whether such a run asks at these times only."""
    try:
        process = d.process
        if task in ("dehaze", "paired"):
            process = default_process(d, solver_by_name(solver), steps)
        levels = [process.log_snr(t) for t in lay("trailing", process, steps).times[:-1]]
        return holds(times, [d.process.time_at(level) for level in levels])
    except ValueError:
        return False


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
