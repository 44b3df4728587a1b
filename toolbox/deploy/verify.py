"""A bundle against the model that it was made from: what ``restobox verify`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.records import RunRecord
from export.runtime.outputs import rounded_as
from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from quant.temporal.features import cached
from restoration.task import shown_to
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import float_model
from toolbox.deploy.compare import Row, compare, means, shown
from toolbox.deploy.export import options_of
from toolbox.deploy.options import Checks, Origin, Trials
from toolbox.support.html import check_report, html_table, write_report
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Restorer, Task
from toolbox.tasks.settings import Draws, Settings

ERROR = 0.05  # most relative error of a call, where no pictures are restored
USUAL = {"lift+known": "inpaint", "degraded": "paired", "degraded+mask": "paired"}
USUAL |= {"brightened": "paired", "relit+mask": "paired"}
USUAL |= {"haze": "dehaze", "mri": "mri", "joint": "hsi"}


def task_of(denoiser: Denoiser, recorded: CalibrationSet) -> Task:
    """The task that a calibration recorded; else the usual one of such a network."""
    name = recorded.provenance.task.partition(",")[0]
    if name not in ("", "generate"):
        return task_by_name(name)
    plain = "denoise" if denoiser.image_channels == 1 else "inpaint"
    return task_by_name(next((USUAL[w] for w in shown_to(denoiser) if w in USUAL), plain))


def on_recorded_grid(run: Settings, recorded: CalibrationSet) -> Settings:
    """The run on the calibration's grid, whose times the network holds, unless another is named."""
    if run.grid != "trailing":
        return run
    return replace(run, grid=recorded.provenance.grid or run.grid)


def restorers(
    task: Task, denoisers: Mapping[str, Denoiser], options: Any, run: Settings
) -> dict[str, list[Restorer]]:
    """What restores with each denoiser; where several solvers are named, one for each."""
    found = {}
    for name, denoiser in denoisers.items():
        each = [replace(run, solver=solver) for solver in run.solver.split(",")]
        found[name] = [task.restorer(denoiser, *task.deployed(options, s)) for s in each]
    return found


def run_verify(
    bundle: Path,
    origin: Origin,
    trials: Trials,
    run: Settings = Settings(steps=5),
    checks: Checks = Checks(),
) -> dict:
    """Prove a network's bundle against the model it was made from: kernels, errors along the
    trajectory, speed, restored measurements.

    The figures are put into the bundle's manifest; with ``checks.report`` also into a folder with
    ``report.html``, ``report.json`` and pictures.

    Raises:
        ValueError, OSError: bad files; nothing is written then.
    """
    from export.bundle import read_bundle, set_parity
    from export.parity import Limits, verify

    model, quantized, calibration = origin.model, origin.quantized, origin.calibration
    if calibration is None:
        raise ValueError("a network's bundle is verified on the inputs of a --calibration")
    report, device = checks.report, checks.device
    check_report(report)
    check_outputs([report], [bundle, model, quantized, calibration, trials.data])
    read_bundle(bundle)
    denoiser = float_model(model)
    made = None if quantized is None else load_quantized(quantized, denoiser.network)
    recorded = CalibrationSet.load(calibration)
    recorded.check(denoiser.network, run.solver)
    task, kept = task_of(denoiser, recorded), dict[str, list[Row]]()
    run = on_recorded_grid(run, recorded)
    if trials.data is not None:
        trials.options(task, denoiser)  # which may lack one

    def restore(d: Denoiser) -> float:
        """With the float denoiser, then with the bundle's session."""
        name = "bundle" if kept else "float"
        d.autoencoder = denoiser.autoencoder
        kept[name] = _restored(task, name, d, denoiser, trials, run)
        return float(np.mean([row.figures[name]["psnr"] for row in kept[name]]))

    parity = verify(
        denoiser,
        bundle,
        made,
        recorded,
        device=device,
        restore=None if trials.data is None else restore,
        limits=Limits(
            quality_drop=checks.psnr_drop,
            error=ERROR
            if checks.error is None and trials.data is None and made is not None
            else checks.error,
        ),
    )
    figures = parity.to_dict()
    rows = [
        Row(a.trial, a.results | b.results, a.figures | b.figures)
        for a, b in zip(*kept.values(), strict=True)
    ]
    if rows:
        figures["images"] = [_between(row) for row in rows]
    set_parity(bundle, figures)
    if report is not None:
        _write_report(report, bundle.name, figures, task, rows)
    return figures


def _restored(
    task: Task, name: str, d: Denoiser, denoiser: Denoiser, trials: Trials, run: Settings
) -> list[Row]:
    """Trials restored by one denoiser; where several solvers are named, they take turns."""
    options = trials.options(task, denoiser)
    source = task.source(trials.data, denoiser, trials.side, trials.seed)
    ways = restorers(task, {name: d}, options, run)[name]
    rows: list[Row] = []
    for k in range(trials.count):
        trial = task.trial(source, k, options)
        method = {name: ways[k % len(ways)]}
        rows += compare(task, [trial], method, Draws(trials.seed + k))
    return rows


def run_verify_restorer(
    bundle: Path,
    origin: Origin,
    trials: Trials,
    checks: Checks = Checks(),
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Restore measurements with a whole restoration's bundle and with the task around the float
    model: same noise, same trials.

    Args:
        origin: with a quantized network the task is run around its simulation too.
        checks: the device may also be ``cuda``.

    Returns:
        Kernels planned and fused, mean figures of both, PSNR between the two, per trial and in the
        mean, and ``failures``.

    Raises:
        ValueError, OSError: bad files.
    """
    from export.bundle import set_parity
    from export.runtime.session import Restorer as Graph

    report, device = checks.report, checks.device
    if trials.data is None:
        raise ValueError("a restorer is verified on pictures: give --data FOLDER")
    check_report(report)
    check_outputs([report], [bundle, origin.model, origin.quantized, trials.data])
    graph = Graph(bundle, device=device)
    run, denoiser = graph.run, float_model(origin.model)
    task, options, settings = options_of(run, denoiser)
    # a graph has no tiles
    settings = replace(settings, tile=2**31, timesteps=tuple(graph.bundle.timesteps))
    methods = {"float": task.restorer(_cached(denoiser, run), options, settings)}
    methods["bundle"] = graph.restore
    if origin.quantized is not None:
        network = load_quantized(origin.quantized, denoiser.network)
        small = denoiser.around(network.simulating(rounded_as(graph.bundle.target, device)))
        methods["simulated"] = task.restorer(_cached(small, run), options, settings)
    source = task.source(trials.data, denoiser, (run.height, run.width), trials.seed)
    shape = run.inputs.get("image", (source.channels,))  # graphs of pictures take colours
    source = replace(source, channels=shape[0])
    made = [task.trial(source, k, options) for k in range(trials.count)]
    for trial in made:
        if trial.known.shape[-2:] != (run.height, run.width):
            height, width = trial.known.shape[-2:]
            raise ValueError(
                f"{trials.data} holds one of {width} x {height} pixels, smaller than the restorer's"
                f" {run.width} x {run.height}; give larger ones"
            )
    rows: list[Row] = []
    for row in compare(task, made, methods, Draws(trials.seed)):
        rows.append(row)
        progress(len(rows))
    images = [_between(row) for row in rows]
    mean, fused, planned = means(images), _fused(graph), graph.bundle.planned
    failures = []
    if fused is not None and fused != planned:
        failures.append(f"{fused} convolutions run on integers; {planned} were planned")
    drop = mean["psnr_float"] - mean["psnr_bundle"]
    if not drop <= checks.psnr_drop:
        failures.append(f"restored images lose {drop:.3f} dB; limit {checks.psnr_drop:g} dB")
    figures: dict[str, Any] = {"device": device, "planned": planned, "fused": fused}
    figures |= mean | {"images": images, "failures": failures}
    set_parity(bundle, figures)
    if report is not None:
        _write_report(report, bundle.name, figures, task, rows)
    return figures


def _cached(denoiser: Denoiser, run: RunRecord) -> Denoiser:
    """With the graph's cache of features."""
    return denoiser if run.cache is None else cached(denoiser, run.cache)


def _between(row: Row) -> dict[str, Any]:
    found = row.flat() | {"psnr_between": row.between("bundle", "float")}
    if "simulated" in row.results:
        found["psnr_bundle_simulated"] = row.between("bundle", "simulated")
    return found


def _fused(graph) -> int | None:
    """Convolutions on integers; None where the runtime has no such kernels for the graph."""
    from export.exporter import INTEGER

    target = graph.bundle.target
    counted = target == "cpu" or (graph.device == "openvino" and target in INTEGER)
    return graph.integer_convs() if counted else None


def _write_report(folder: Path, name: str, figures: dict, task: Task, rows: list[Row]) -> None:
    plain = [(k, v) for k, v in figures.items() if not isinstance(v, (list, tuple, dict))]
    body = [html_table(("figure", "value"), plain)]
    if "timesteps" in figures:
        errors = zip(figures["timesteps"], figures["simulated"], figures["onnx"], strict=True)
        body.append("<h2>Relative error against the float network</h2>")
        body.append(html_table(("timestep", "simulated", "ONNX"), list(errors)))
    if rows:
        body.append("<h2>Restored pictures</h2>")
        flat = [_between(row) for row in rows]
        body.append(html_table(tuple(flat[0]), [tuple(row.values()) for row in flat]))
    sheets: dict[str, np.ndarray] = {}
    write_report(folder, name, figures, [*body, *shown(sheets, task, rows)], sheets)
