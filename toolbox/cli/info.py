"""``restobox demo | models | doctor | inspect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolbox.cli.options import FEW, Commands, Without
from toolbox.cli.output import ProgressBar, print_json, print_table
from toolbox.tasks.settings import Draws, Json, Prior, Settings

app = Commands()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path(
        "restobox-demo"
    ),
    prior: Annotated[Prior, Without("device", "cache")] = Prior(),
    settings: Annotated[Settings, FEW] = Settings(steps=5),
    draws: Draws = Draws(samples=4),
    mask: Annotated[
        str,
        typer.Option(help="KIND:FRACTION of missing pixels; kinds: random, strokes, text, box."),
    ] = "random:0.8",
    as_json: Json = False,
) -> None:
    """Restore the embedded photo and write pictures to look at."""
    from toolbox.support.demo import run_demo

    with ProgressBar("restoring", (settings.steps or 5) * draws.samples) as bar:
        figures = run_demo(out, mask, prior, settings, draws, progress=bar.update)
    if as_json:
        return print_json(figures)
    rows = [
        ("degraded", figures["degraded"]),
        (f"{prior.model}, mean of {draws.samples}", figures["restored"]),
        (f"{prior.model}, one sample", figures["first_sample"]),
        ("inpaint_biharmonic", figures["biharmonic"]),
    ]
    print_table(
        f"{mask} missing, {settings.solver}, {settings.steps} steps x {draws.samples} samples ="
        f" {figures['nfe']} network"
        " calls",
        ("", "PSNR dB", "SSIM", "seconds"),
        [
            (name, f"{f['psnr']:.2f}", f"{f['ssim']:.4f}", f"{f.get('seconds', '')}")
            for name, f in rows
        ],
    )
    print(f"pictures: {out}/ (begin with side-by-side.png)")


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that ship with the package."""
    from toolbox.api import models as shipped

    found = shipped()
    if as_json:
        return print_json([vars(m) | {"folder": str(m.folder)} for m in found])
    print_table(
        "shipped models",
        ("name", "precision", "summary"),
        [(m.name, m.precision, m.summary) for m in found],
    )


@app.command()
def doctor(
    require: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, tensorrt or openvino: exit code 3 unless it can be used."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare what ONNX Runtime wants with what this machine has, and say what mends it."""
    from toolbox.support.doctor import examine

    if require not in (None, "cpu", "cuda", "tensorrt", "openvino"):
        raise ValueError(f"--require {require!r} is unknown; known: cpu, cuda, tensorrt, openvino")
    report = examine()
    if as_json:
        print_json(report.to_dict())
    else:
        print_table("packages", ("name", "version"), list(report.packages.items()))
        print_table(
            f"GPU: {report.gpu or 'none'}",
            ("device", "can be used"),
            [(k, "yes" if v else "no") for k, v in report.usable.items()],
        )
        rows = [
            (entry.provider, entry.name, entry.found or "not found") for entry in report.libraries
        ]
        print_table("libraries that ONNX Runtime loads", ("provider", "library", "found"), rows)
        for line in report.advice:
            print(line)
    if require is not None and not report.usable[require]:
        print(f"restobox: {require} can't be used here", file=sys.stderr)
        raise typer.Exit(3)


@app.command("inspect")
def inspect_(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    placement: Annotated[
        bool, typer.Option("--placement", help="Also run it once and count kernels by provider.")
    ] = False,
    device: Annotated[str, typer.Option(help="For --placement: cpu, openvino or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Tell what a bundle holds: purpose, settings, files, operators, provenance."""
    from toolbox.support.inspect import inspect_bundle

    content = inspect_bundle(bundle, placement=placement, device=device)
    if as_json:
        return print_json(content)
    for title in (
        "inputs",
        "outputs",
        "weights",
        "files",
        "operators",
        "settings",
        "can run",
        "run",
        "recipe",
        "versions",
    ):
        if content[title]:
            print_table(
                title, ("", ""), [(key, str(value)) for key, value in content[title].items()]
            )
    if placement:
        rows = [(p["op"], p["provider"], p["dtype"], str(p["count"])) for p in content["placement"]]
        print_table("kernels of one run", ("operator", "provider", "type", "count"), rows)
    print(
        f"{bundle}: {content['graph']} graph for {content['target']}, opset {content['opset']},"
        f" {content['planned']} integer convolutions"
    )
