"""A bundle against the model that it was made from: what ``restobox verify`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from restoration.io.folders import find_pairs, picture_crops, read_pair
from restoration.metrics import psnr, ssim
from restoration.paired.simulation import Haze, make_hazy
from restoration.paired.task import PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import KINDS, MISSING, make_mask
from restoration.task import shown_to
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import float_model
from toolbox.support.html import check_report, html_table, picture, write_report


def run_verify(
    bundle: Path,
    model: str,
    quantized: Path,
    calibration: Path,
    data: Path | None,
    *,
    count: int,
    side: int,
    steps: int,
    solver: str,
    psnr_drop: float,
    report: Path | None,
    seed: int,
    device: str = "cpu",
) -> dict:
    """Prove a bundle against the model it was made from: kernels, errors along the trajectory,
    speed, restored images.

    The figures are put into the bundle's manifest; with ``report`` also into a folder with
    ``report.html``, ``report.json`` and pictures.
    """
    from export.bundle import read_bundle, set_parity
    from export.parity import Limits, verify

    check_report(report)
    check_outputs([report], [bundle, model, quantized, calibration, data])
    read_bundle(bundle)
    denoiser = float_model(model)
    made = load_quantized(quantized, denoiser.network)
    recorded = CalibrationSet.load(calibration)
    recorded.check(denoiser.network, solver)
    paired = bool({"degraded", "haze"} & set(shown_to(denoiser)))
    cases = []
    if data is not None:
        cases = (
            _paired_cases(denoiser, data, count, side, seed)
            if paired
            else _masked_cases(data, count, side, seed)
        )
    restored: list[list[np.ndarray]] = []

    def restore(d: Denoiser) -> float:
        results = []
        for k, (_, image, shown) in enumerate(cases):
            if paired:  # its solvers take turns
                names = solver.split(",")
                pair = PairedTask(d, solver_by_name(names[k % len(names)]), steps)
                result = pair(torch.from_numpy(shown), seed=seed + k)
            else:
                task = InpaintingTask(d, solver_by_name(solver), steps)
                result = task(torch.from_numpy(image), torch.from_numpy(shown), seed=seed + k)
            results.append(result.mean.numpy())
        restored.append(results)
        return float(np.mean([psnr(r, i) for r, (_, i, _) in zip(results, cases, strict=True)]))

    limits = Limits(quality_drop=psnr_drop)
    parity = verify(
        denoiser,
        bundle,
        made,
        recorded,
        device=device,
        restore=restore if cases else None,
        limits=limits,
    )
    figures = parity.to_dict()
    if cases:
        pairs = [psnr(b, a) for a, b in zip(*restored, strict=True)]
        figures["images"] = [
            {
                "mask": kind,
                "psnr_float": psnr(a, i),
                "psnr_bundle": psnr(b, i),
                "ssim_float": ssim(a, i),
                "ssim_bundle": ssim(b, i),
                "psnr_between": p,
            }
            for (kind, i, _), a, b, p in zip(cases, *restored, pairs, strict=True)
        ]
    set_parity(bundle, figures)
    if report is not None:
        _write_report(report, bundle, figures, cases, restored)
    return figures


def _masked_cases(
    data: Path, count: int, side: int, seed: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, picture and mask."""
    cases = []
    for k, (_, image) in enumerate(picture_crops(data, count, side, seed)):
        kind = KINDS[k % len(KINDS)]
        height, width = image.shape[1:]
        cases.append((kind, image, make_mask(kind, height, width, MISSING[kind], seed + k)))
    return cases


def _paired_cases(
    denoiser: Denoiser, data: Path, count: int, side: int, seed: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, clean and degraded picture: haze is simulated on clear pictures, other degradations
    come as a folder of pairs.
    """
    if "haze" in shown_to(denoiser):
        rng = np.random.default_rng(seed)
        pairs = [
            make_hazy(torch.from_numpy(i), torch.from_numpy(i)[None], Haze(), rng)
            for _, i in picture_crops(data, count, side, seed)
        ]
        return [("haze", clear.numpy(), hazy.numpy()) for clear, hazy in pairs]
    cases = []
    for paths in find_pairs(data)[:count]:
        degraded, clean = (
            np.broadcast_to(v, (3, *v.shape[1:]))[:, :side, :side] for v in read_pair(*paths)
        )
        cases.append(("degraded", np.ascontiguousarray(clean), np.ascontiguousarray(degraded)))
    return cases


def _write_report(
    folder: Path, bundle: Path, figures: dict, cases: list, restored: list[list[np.ndarray]]
) -> None:
    body = [
        html_table(
            ("figure", "value"),
            [(k, v) for k, v in figures.items() if not isinstance(v, (list, tuple, dict))],
        )
    ]
    errors = zip(figures["timesteps"], figures["simulated"], figures["onnx"], strict=True)
    body.append("<h2>Relative error against the float network</h2>")
    body.append(
        html_table(
            ("timestep", "simulated", "ONNX"),
            [(f"{t:g}", f"{a:.4f}", f"{b:.4f}") for t, a, b in errors],
        )
    )
    sheets: dict[str, np.ndarray] = {}
    for k, (kind, image, shown) in enumerate(cases):
        panels = [
            ("original", image),
            (kind, shown) if shown.ndim == 3 else (f"{kind} missing", image * shown),
            (f"float {psnr(restored[0][k], image):.2f} dB", restored[0][k]),
            (f"bundle {psnr(restored[1][k], image):.2f} dB", restored[1][k]),
        ]
        body.append(picture(sheets, f"case-{k}.png", panels))
    write_report(folder, bundle.name, figures, body, sheets)


def float_task(
    model: str, solver: str, steps: int, grid: str, correction: str | None
) -> InpaintingTask:
    """The run to bake in or to compare with, around a PyTorch model."""
    return InpaintingTask(float_model(model), solver_by_name(solver), steps, grid, correction)


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
        simulated = replace(task, denoiser=task.denoiser.around(network))
    images, shown = [], []
    sheets: dict[str, np.ndarray] = {}
    for k, (_, image) in enumerate(picture_crops(data, count, (run.height, run.width), seed)):
        kind = KINDS[k % len(KINDS)]
        known = torch.from_numpy(make_mask(kind, run.height, run.width, MISSING[kind], seed + k))
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
    images, shown = [], []
    sheets: dict[str, np.ndarray] = {}
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
