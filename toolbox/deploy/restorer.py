"""A whole restoration as one file: what ``restobox export --restorer`` and ``verify`` on its bundle
do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quant.files import load_quantized
from restoration.metrics import psnr, ssim
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import KINDS, make_mask
from solvers import solver_by_name
from solvers.files import check_outputs
from toolbox.deploy.network import MISSING, float_model, pictures
from toolbox.support.html import check_report, html_table, picture, write_report


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` to ``(height, width)``.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise ValueError(f"size must be WIDTHxHEIGHT, such as 256x256; got {text!r}")
    return int(found[2]), int(found[1])


def float_task(
    model: str, solver: str, steps: int, grid: str, correction: str | None
) -> InpaintingTask:
    """The run to bake in or to compare with, around a PyTorch model."""
    return InpaintingTask(float_model(model), solver_by_name(solver), steps, grid, correction)


def run_export_restorer(
    model: str,
    quantized: Path | None,
    target: str,
    out: Path,
    *,
    solver: str,
    steps: int,
    grid: str,
    correction: str | None,
    sigma: float,
    size: tuple[int, int],
    estimates: bool,
    seed: int,
    summary: str = "",
    task: str = "inpaint",
    factor: int = 4,
    blur: float = 1.6,
    coils: int = 1,
) -> dict:
    """Export lift, solver, network and data consistency as one graph
    (:func:`toolbox.deploy.jobs.make_job`).
    """
    from export.bundle import check_bundle_free
    from export.exporter import export_restorer_bundle
    from toolbox.deploy.jobs import make_job

    check_bundle_free(out)
    check_outputs([out], [model, quantized])
    denoiser = float_model(model)
    made = None if quantized is None else load_quantized(quantized, denoiser.network)
    job = make_job(
        denoiser,
        task,
        solver=solver,
        steps=steps,
        grid=grid,
        correction=correction,
        sigma=sigma,
        size=size,
        factor=factor,
        blur=blur,
        coils=coils,
        timesteps=() if made is None else made.timesteps,
    )
    card = f"# {out.name}\n\n{summary}" if summary else f"# {out.name}"
    bundle = export_restorer_bundle(
        job, out, target=target, quantized=made, estimates=estimates, seed=seed, card=card
    )
    return {
        "out": str(out),
        "target": target,
        "graph": bundle.graph,
        "bytes": sum(f.size for f in bundle.files.values()),
    }


def run_verify_restorer(
    bundle: Path,
    model: str,
    data: Path,
    *,
    count: int,
    psnr_drop: float,
    seed: int,
    quantized: Path | None = None,
    report: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Restore pictures with the bundle and with the float model's own loop: same noise, same masks.

    Args:
        quantized: for an 8-bit bundle: also run the host's loop around the simulated 8-bit network
            and compare with that.
        report: folder for ``report.html``, ``report.json`` and the pictures.
        device: what runs the bundle, ``cpu`` (ONNX Runtime), ``openvino`` or ``cuda``.

    Returns:
        Kernels planned and fused, mean PSNR and SSIM of both, PSNR between the two, per picture and
            in the mean, and ``failures``.

    Raises:
        ValueError, OSError: bad files.
    """
    from export.bundle import set_parity
    from export.runtime.session import Restorer

    check_report(report)
    check_outputs([report], [bundle, model, quantized, data])
    restorer = Restorer(bundle, device=device)
    run = restorer.run
    if run.task != "inpaint":
        return _verify_job(
            restorer, model, data, count, psnr_drop, seed, quantized, report, progress
        )
    task = float_task(model, run.solver, run.steps, run.grid, run.correction)
    simulated = None
    if quantized is not None:
        network = load_quantized(quantized, task.denoiser.network).simulating(
            restorer.bundle.target
        )
        denoiser = copy.copy(task.denoiser)
        denoiser.network = network
        simulated = replace(task, denoiser=denoiser)
    images, shown, sheets = [], [], {}
    for k, (_, image) in enumerate(pictures(data, count, (run.height, run.width), seed)):
        kind = KINDS[k % len(KINDS)]
        known = torch.from_numpy(make_mask(kind, *image.shape[1:], MISSING[kind], seed + k))
        truth = torch.from_numpy(image)
        ours = restorer(truth, known, seed=seed + k).mean.numpy()
        host = task(truth, known, sigma=run.sigma, seed=seed + k).mean.numpy()
        entry = {"mask": kind, "psnr_float": psnr(host, image), "psnr_bundle": psnr(ours, image)}
        entry |= {
            "ssim_float": ssim(host, image),
            "ssim_bundle": ssim(ours, image),
            "psnr_between": psnr(ours, host),
        }
        if simulated is not None:
            entry["psnr_simulated"] = psnr(
                ours, simulated(truth, known, sigma=run.sigma, seed=seed + k).mean.numpy()
            )
        images.append(entry)
        if report is not None:
            titles = (
                "original",
                f"{kind} missing",
                f"float {entry['psnr_float']:.2f} dB",
                f"bundle {entry['psnr_bundle']:.2f} dB",
            )
            shown.append(
                picture(
                    sheets,
                    f"case-{k}.png",
                    zip(titles, (image, image * known.numpy(), host, ours), strict=True),
                )
            )
        progress(k + 1)
    mean = {
        key: float(np.mean([entry[key] for entry in images])) for key in images[0] if key != "mask"
    }
    fused = _fused(restorer)
    failures = []
    if fused is not None and fused != restorer.bundle.planned:
        failures.append(
            f"{fused} convolutions run on integers; {restorer.bundle.planned} were planned"
        )
    if mean["psnr_float"] - mean["psnr_bundle"] > psnr_drop:
        failures.append(
            f"restored images lose {mean['psnr_float'] - mean['psnr_bundle']:.3f} dB; limit"
            f" {psnr_drop:g} dB"
        )
    figures = (
        {"device": device, "planned": restorer.bundle.planned, "fused": fused}
        | mean
        | {"images": images, "failures": failures}
    )
    set_parity(bundle, figures)
    if report is not None:
        rows = [(key, value) for key, value in figures.items() if not isinstance(value, list)]
        write_report(
            report, bundle.name, figures, [html_table(("figure", "value"), rows), *shown], sheets
        )
    return figures


def _verify_job(restorer, model, data, count, psnr_drop, seed, quantized, report, progress) -> dict:
    """:func:`run_verify_restorer` for the other tasks: measurements of pictures, the graph's job in
    PyTorch as the host's loop.
    """
    from export.bundle import set_parity
    from export.graphs.restorer import run_job
    from solvers.solver import randn
    from toolbox.deploy.jobs import make_job, measurements, record_of, simulated

    run, bundle = restorer.run, restorer.bundle
    job = make_job(
        float_model(model), run.task, **record_of(run), timesteps=tuple(bundle.timesteps)
    )
    hosts = {"float": job}
    if quantized is not None:
        hosts["simulated"] = simulated(
            job, load_quantized(quantized, job.denoiser.network).simulating(bundle.target)
        )
    images, shown, sheets = [], [], {}
    for k, (inputs, truth) in enumerate(measurements(job, data, count, seed)):
        results = {
            "bundle": (
                restorer.restore(
                    {name: value[0] for name, value in inputs.items()}, seed=seed + k
                ).mean
            )
        }
        for name, host in hosts.items():
            generator = torch.Generator().manual_seed(seed + k)
            results[name] = run_job(
                host, inputs, lambda shape, g=generator: randn(tuple(shape), g)
            )[0]
        panels = {
            name: _shown(value, run.task) for name, value in ({"truth": truth[0]} | results).items()
        }
        entry = {
            f"psnr_{name}": psnr(panels[name], panels["truth"]) for name in ("float", "bundle")
        }
        entry |= {
            f"ssim_{name}": ssim(panels[name], panels["truth"]) for name in ("float", "bundle")
        }
        entry["psnr_between"] = psnr(panels["bundle"], panels["float"])
        if quantized is not None:
            entry["psnr_simulated"] = psnr(panels["bundle"], panels["simulated"])
        images.append(entry)
        if report is not None:
            titles = [
                (f"{name}", np.broadcast_to(panel, (3, *panel.shape[1:])))
                for name, panel in panels.items()
            ]
            shown.append(picture(sheets, f"case-{k}.png", titles))
        progress(k + 1)
    mean = {key: float(np.mean([entry[key] for entry in images])) for key in images[0]}
    fused = _fused(restorer)
    failures = []
    if fused is not None and fused != bundle.planned:
        failures.append(f"{fused} convolutions run on integers; {bundle.planned} were planned")
    if mean["psnr_float"] - mean["psnr_bundle"] > psnr_drop:
        failures.append(
            f"restored images lose {mean['psnr_float'] - mean['psnr_bundle']:.3f} dB; limit"
            f" {psnr_drop:g} dB"
        )
    figures = (
        {"device": restorer.device, "planned": bundle.planned, "fused": fused}
        | mean
        | {"images": images, "failures": failures}
    )
    set_parity(restorer.folder, figures)
    if report is not None:
        rows = [(key, value) for key, value in figures.items() if not isinstance(value, list)]
        write_report(
            report,
            restorer.folder.name,
            figures,
            [html_table(("figure", "value"), rows), *shown],
            sheets,
        )
    return figures


def _fused(restorer) -> int | None:
    """Convolutions on integers; None where the runtime has no such kernels for the graph."""
    target = restorer.bundle.target
    return (
        restorer.integer_convs()
        if target == "cpu" or (restorer.device == "openvino" and target == "tensorrt")
        else None
    )


def _shown(result: torch.Tensor, task: str) -> np.ndarray:
    """A result ``(C, H, W)`` as a picture in [0, 1]; of a complex image the magnitude."""
    image = result.square().sum(0, keepdim=True).sqrt() if task == "mri" else result
    return image.clamp(0, 1).numpy()
