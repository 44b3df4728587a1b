"""Bundles of a network, or of a whole restoration: what ``restobox export`` does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.bundle import Bundle
from export.jobs.base import Job
from export.records import RunRecord
from quant.files import load_quantized
from quant.network import QuantizedNetwork
from restoration.task import KINDS, check_kind
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import float_model
from toolbox.deploy.options import Graph, Whole
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Task
from toolbox.tasks.photo.superresolve import REDUCTIONS
from toolbox.tasks.settings import Settings, full_steps


def run_export(model: str, out: Path, graph: Graph) -> dict:
    """Export a model (float without a quantized network) as a bundle.

    Raises:
        ValueError, OSError: what can't be exported; nothing is written then.
    """
    from export.exporter import export_bundle

    if graph.times not in ("calibrated", "any"):
        raise ValueError(f"--times is calibrated or any; got {graph.times!r}")
    denoiser, made = _loaded(model, out, graph)
    bundle = export_bundle(
        denoiser,
        out,
        target=graph.target,
        quantized=made,
        timesteps=() if graph.times == "any" else None,
        seed=graph.seed,
        card=_card(out, graph.summary),
    )
    return _figures(out, bundle)


def run_export_restorer(
    model: str, out: Path, graph: Graph, whole: Whole, settings: Settings
) -> dict:
    """Export lift, solver, network and data consistency as one graph (:func:`make_job`).

    Raises:
        ValueError, OSError: what can't be exported; nothing is written then.
    """
    from export.exporter import export_restorer_bundle

    denoiser, made = _loaded(model, out, graph)
    times = () if made is None else tuple(made.timesteps)
    with task_by_name(whole.task).calibrated(settings):
        bundle = export_restorer_bundle(
            make_job(denoiser, whole, replace(settings, timesteps=times)),
            out,
            target=graph.target,
            quantized=made,
            estimates=whole.estimates,
            cache=full_steps(whole.cache),
            seed=graph.seed,
            card=_card(out, graph.summary),
        )
    return _figures(out, bundle)


def _loaded(model: str, out: Path, graph: Graph) -> tuple[Denoiser, QuantizedNetwork | None]:
    """The denoiser and its quantized network, once ``out`` is known to be free."""
    from export.bundle import check_bundle_free

    check_bundle_free(out)
    check_outputs([out], [model, graph.quantized])
    denoiser = float_model(model)
    if graph.quantized is None:
        return denoiser, None
    return denoiser, load_quantized(graph.quantized, denoiser.network)


def make_job(denoiser: Denoiser, whole: Whole, settings: Settings = Settings()) -> Job:
    """What ``restobox export --restorer --task`` bakes in; of ``settings.timesteps`` ``hsi`` and
    ``denoise`` ask at the nearest.

    Raises:
        ValueError: an unknown task, a network of another kind, or what the task refuses.
    """
    task = task_by_name(whole.task)
    if type(task).job is Task.job:  # none of its own: this says so
        task.job(denoiser, None, settings, parse_size(whole.size))
    channels = denoiser.image_channels
    known = channels is None or channels in {n for _, held in KINDS.values() for n in held}
    if denoiser.autoencoder is None and not known:
        raise ValueError(
            f"this network works on {channels} channels, the latents of an autoencoder: give its"
            " folder, --vae (in Python vae=)"
        )
    if whole.task in KINDS:
        check_kind(denoiser, whole.task)
    numbers = {name: getattr(whole, name) for name in ("factor", "blur", "coils")}
    if numbers["coils"] is not None or whole.task == "mri":
        numbers["coils"] = str(numbers["coils"] or 1)
    sigma = task.exported_sigma if whole.sigma is None else whole.sigma
    options = _options(task, denoiser, sigma, numbers)
    return task.job(denoiser, options, settings, parse_size(whole.size))


def options_of(run: RunRecord, denoiser: Denoiser) -> tuple[Task, Any, Settings]:
    """The task that a bundle's run was made with, its options and settings."""
    task, record = task_by_name(run.task), dict(run.operator or {})
    numbers: dict[str, Any] = {name: record[name] for name in ("factor", "blur") if name in record}
    if run.task == "deblur":  # runs of earlier bundles began with noise
        numbers["start_level"] = record.get("start_level", 0.0)
    if "factor" in numbers:
        numbers["factor"] = int(numbers["factor"])
        kernels = {of.__name__: name for name, of in REDUCTIONS.items()}
        numbers["kernel"] = kernels[str(record["operator"])]
    if run.task == "mri":
        numbers["coils"] = str(run.inputs["kspace"][0] // 2)
    # of mri the noise is an input, where there is any
    sigma = run.sigma if run.task != "mri" else 0.01 * ("sigma" in run.inputs)
    correction = None if run.correction == "none" and run.task != "mri" else run.correction
    grid = "trailing" if run.grid == "explicit" else run.grid
    settings = Settings(run.solver, run.steps, grid, correction)
    return task, _options(task, denoiser, sigma, numbers), settings


def _options(task: Task, denoiser: Denoiser, sigma: float, numbers: dict[str, Any]) -> Any:
    none = sigma == 0 and "sigma" in task.unused
    return task.simulated(denoiser, None if none else sigma, **numbers)


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` to ``(height, width)``.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise ValueError(f"size must be WIDTHxHEIGHT, such as 256x256; got {text!r}")
    return int(found[2]), int(found[1])


def _card(out: Path, summary: str) -> str:
    return f"# {out.name}\n\n{summary}" if summary else f"# {out.name}"


def _figures(out: Path, bundle: Bundle) -> dict:
    size = sum(f.size for f in bundle.files.values())
    return {"out": str(out), "target": bundle.target, "graph": bundle.graph, "bytes": size}
