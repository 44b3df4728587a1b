"""The command ``restobox``. Bodies import what they need, so ``--help`` answers at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Annotated

import typer

from toolbox.cli import bench, bench_tasks, linear, quant, restore
from toolbox.cli.options import (
    DEFAULT_MODEL,
    Json,
    Model,
    ProgressBar,
    Samples,
    Seed,
    Solver,
    Steps,
    print_json,
    print_table,
)

app = typer.Typer(
    name="restobox",
    help=(
        "Restore images with diffusion samplers; calibrate, quantize and export the networks that"
        " do it."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(restore.app, name="restore")
restore.app.registered_commands += linear.app.registered_commands
bench.app.registered_commands += bench_tasks.app.registered_commands
app.add_typer(bench.app, name="bench")


def main() -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input (one line on stderr), 3 a limit was
    broken.

    RESTOBOX_DEBUG=1 shows where an error came from.
    """
    # libraries' warnings are for developers; whatever concerns the user is said in the output
    warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:
        return app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("RESTOBOX_DEBUG"):
            raise
        text = (
            error.format_message()
            if hasattr(error, "format_message")
            else str(error) or type(error).__name__
        )
        if text:  # empty where typer has just printed its help
            print(f"restobox: {' '.join(text.split())}", file=sys.stderr)
        return 2


def _stop(number: int, frame: object) -> None:
    """Leave as Ctrl-C does: what is half written goes away."""
    raise SystemExit(128 + number)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path(
        "restobox-demo"
    ),
    model: Model = DEFAULT_MODEL,
    solver: Solver = "ddim",
    steps: Steps = 5,
    samples: Samples = 4,
    mask: Annotated[
        str,
        typer.Option(help="KIND:FRACTION of missing pixels; kinds: random, strokes, text, box."),
    ] = "random:0.8",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Restore the embedded photo and write pictures to look at."""
    from restoration.photo.masks import parse_mask
    from toolbox.support.demo import run_demo

    recipe = parse_mask(mask)
    with ProgressBar("restoring", steps * samples) as bar:
        figures = run_demo(
            out,
            model=model,
            solver=solver,
            steps=steps,
            num_samples=samples,
            mask=recipe,
            seed=seed,
            progress=bar.update,
        )
    if as_json:
        return print_json(figures)
    rows = [
        ("degraded", figures["degraded"]),
        (f"{model}, mean of {samples}", figures["restored"]),
        (f"{model}, one sample", figures["first_sample"]),
        ("inpaint_biharmonic", figures["biharmonic"]),
    ]
    print_table(
        f"{mask} missing, {solver}, {steps} steps x {samples} samples = {figures['nfe']} network"
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
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help=(
                "A TOML recipe, or the name of a shipped one (photo, grey, mri, hsi, haze, paired"
                " ...)."
            )
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of pictures (mri: of .npz slices; hsi: with spectral_library.npz)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Model folder to write; also holds the checkpoint and the log."
        ),
    ],
    start_from: Annotated[
        str | None,
        typer.Option(help="Shipped model, or model folder, whose weights are trained further."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/checkpoint.")] = False,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    exclude: Annotated[list[str] | None, typer.Option(help="File names to leave out.")] = None,
) -> None:
    """Train a network from a recipe (several GPUs: `accelerate launch -m toolbox train ...`)."""
    from toolbox.training.loop import train as run
    from toolbox.training.recipe import TrainingRecipe

    path = recipe if recipe.is_file() else Path(__file__).parent / "recipes" / f"{recipe}.toml"
    if not path.is_file():
        shipped = ", ".join(p.stem for p in path.parent.glob("*.toml"))
        raise FileNotFoundError(
            f"recipe {recipe} is neither a file nor a shipped recipe ({shipped})"
        )
    settings = TrainingRecipe.read(path)
    with ProgressBar("training", settings.steps) as bar:
        run(
            settings,
            data,
            out,
            start_from=start_from,
            resume=resume,
            mixed_precision=mixed_precision,
            exclude=tuple(exclude or ()),
            progress=lambda step, loss: bar.update(step, f"training, loss {loss:.4f}"),
        )
    print(f"{out}: trained {settings.steps} steps")


app.registered_commands += quant.app.registered_commands


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The float model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.")],
    quantized: Annotated[
        Path | None,
        typer.Option(help="Folder written by `restobox quantize` (not for target float)."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="cpu (integer kernels), tensorrt (int8 and fp16), cuda (fp16) or float."),
    ] = "cpu",
    restorer: Annotated[
        bool,
        typer.Option(
            "--restorer", help="The whole restoration in one graph, with the options below."
        ),
    ] = False,
    task: Annotated[
        str,
        typer.Option(
            help="Restorer: inpaint, denoise, superresolve, deblur, mri, hsi, dehaze, paired."
        ),
    ] = "inpaint",
    factor: Annotated[int, typer.Option(help="Of superresolve.")] = 4,
    blur: Annotated[float, typer.Option(help="Of deblur: standard deviation in pixels.")] = 1.6,
    coils: Annotated[int, typer.Option(help="Of mri.")] = 1,
    solver: Solver = "ddim",
    steps: Steps = 5,
    grid: Annotated[
        str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")
    ] = "trailing",
    correction: Annotated[
        str | None, typer.Option(help="ddnm, diffpir, ddrm, repaint; the noise decides by default.")
    ] = None,
    sigma: Annotated[
        float,
        typer.Option(help="Noise of the data in units of [0, 1]; mri: 0 = exact, else an input."),
    ] = 0.0,
    size: Annotated[
        str,
        typer.Option(
            help="WIDTHxHEIGHT of the restorer's pictures; larger ones go through in tiles."
        ),
    ] = "256x256",
    estimates: Annotated[
        bool,
        typer.Option("--estimates", help="The restorer also returns every call's image estimate."),
    ] = False,
    summary: Annotated[str, typer.Option(help="A sentence for the model card.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the calibration, for the record.")] = 0,
    as_json: Json = False,
) -> None:
    """Write an ONNX bundle that `restobox restore --model FOLDER` runs."""
    if restorer:
        from toolbox.deploy.export import parse_size, run_export_restorer

        run = {
            "solver": solver,
            "steps": steps,
            "grid": grid,
            "correction": correction,
            "sigma": sigma,
            "estimates": estimates,
        }
        run |= {"task": task, "factor": factor, "blur": blur, "coils": coils}
        figures = run_export_restorer(
            model, quantized, target, out, **run, size=parse_size(size), seed=seed, summary=summary
        )
    else:
        from toolbox.deploy.export import run_export

        figures = run_export(model, quantized, target, out, seed=seed, summary=summary)
    if as_json:
        return print_json(figures)
    print(f"{out}: {figures['graph']} graph for {target}, {figures['bytes'] / 1e6:.2f} MB")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    model: Annotated[str, typer.Option(help="The float model.")],
    quantized: Annotated[
        Path | None, typer.Option(help="Folder written by `restobox quantize`.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File written by `restobox calibrate`; not for a restorer.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures to restore with both; none: only the network is compared."
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.")] = 8,
    side: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 256,
    solver: Solver = "ddim",
    steps: Steps = 5,
    psnr_drop: Annotated[
        float, typer.Option(help="Largest accepted mean loss of PSNR on restored pictures, in dB.")
    ] = 0.1,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.json and pictures.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="What runs the bundle: cpu (ONNX Runtime) or openvino.")
    ] = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Prove a bundle against its float model: kernels, errors, speed, restored pictures. Exit code
    3 when a limit is broken.
    """
    from export.bundle import read_bundle

    if read_bundle(bundle).graph == "restorer":
        return _verify_restorer(
            bundle, model, quantized, data, count, psnr_drop, report, device, seed, as_json
        )
    from toolbox.deploy.verify import run_verify

    if quantized is None or calibration is None:
        raise ValueError("a network's bundle is verified against --quantized and --calibration")
    figures = run_verify(
        bundle,
        model,
        quantized,
        calibration,
        data,
        count=count,
        side=side,
        steps=steps,
        solver=solver,
        psnr_drop=psnr_drop,
        report=report,
        seed=seed,
        device=device,
    )
    if as_json:
        print_json(figures)
    else:
        rows = [
            ("integer convolutions", f"{figures['fused']} of {figures['planned']} planned"),
            (
                "error, simulated / ONNX",
                f"{max(figures['simulated']):.4f} / {max(figures['onnx']):.4f}",
            ),
            ("largest disagreement", f"{figures['agreement']:.1%}"),
            ("size", f"{figures['size_ratio']:.2f} x float"),
            (
                "speed",
                (
                    f"{figures['speedup']:.2f} x ONNX Runtime's float ({figures['ms']:.1f} ms, one"
                    " thread)"
                ),
            ),
        ]
        if figures["quality"]:
            rows.append(
                ("restored PSNR, float / bundle", "{:.3f} / {:.3f} dB".format(*figures["quality"]))
            )
        print_table(str(bundle), ("", ""), rows)
    for failure in figures["failures"]:
        print(f"restobox: {failure}", file=sys.stderr)
    if figures["failures"]:
        raise typer.Exit(3)


def _verify_restorer(
    bundle, model, quantized, data, count, psnr_drop, report, device, seed, as_json
) -> None:
    from toolbox.deploy.verify import run_verify_restorer

    if data is None:
        raise ValueError("a restorer is verified on pictures: give --data FOLDER")
    with ProgressBar("restoring", count) as bar:
        figures = run_verify_restorer(
            bundle,
            model,
            data,
            count=count,
            psnr_drop=psnr_drop,
            report=report,
            device=device,
            seed=seed,
            quantized=quantized,
            progress=bar.update,
        )
    if as_json:
        print_json(figures)
    else:
        rows = [
            ("integer convolutions", f"{figures['fused']} of {figures['planned']} planned"),
            (
                "restored PSNR, float / bundle",
                f"{figures['psnr_float']:.3f} / {figures['psnr_bundle']:.3f} dB",
            ),
            (
                "restored SSIM, float / bundle",
                f"{figures['ssim_float']:.4f} / {figures['ssim_bundle']:.4f}",
            ),
            ("PSNR between the two", f"{figures['psnr_between']:.2f} dB"),
        ]
        if "psnr_simulated" in figures:
            rows.append(
                ("PSNR between bundle and simulation", f"{figures['psnr_simulated']:.2f} dB")
            )
        print_table(str(bundle), ("", ""), rows)
    for failure in figures["failures"]:
        print(f"restobox: {failure}", file=sys.stderr)
    if figures["failures"]:
        raise typer.Exit(3)


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


if __name__ == "__main__":
    sys.exit(main())
