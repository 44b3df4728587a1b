"""Bundles of a network, or of a whole restoration: what ``restobox export`` does."""

from __future__ import annotations

import re
from pathlib import Path

from quant.files import load_quantized
from solvers.files import check_outputs
from toolbox.api import float_model


def run_export(
    model: str, quantized: Path | None, target: str, out: Path, *, seed: int, summary: str = ""
) -> dict:
    """Export a model (float without ``quantized``) as a bundle."""
    from export.bundle import check_bundle_free
    from export.exporter import export_bundle

    check_bundle_free(out)
    check_outputs([out], [model, quantized])
    denoiser = float_model(model)
    made = None if quantized is None else load_quantized(quantized, denoiser.network)
    card = f"# {out.name}\n\n{summary}" if summary else f"# {out.name}"
    bundle = export_bundle(denoiser, out, target=target, quantized=made, seed=seed, card=card)
    return {
        "out": str(out),
        "target": target,
        "graph": bundle.graph,
        "bytes": sum(f.size for f in bundle.files.values()),
    }


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` to ``(height, width)``.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise ValueError(f"size must be WIDTHxHEIGHT, such as 256x256; got {text!r}")
    return int(found[2]), int(found[1])


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
