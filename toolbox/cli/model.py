"""``restobox train | convert | calibrate | quantize | report | export | verify``."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from toolbox.cli.options import FEW, Commands, Without, refuse_unused
from toolbox.cli.output import ProgressBar, cost_line, print_json, print_table
from toolbox.deploy.options import (
    Checks,
    Graph,
    Origin,
    Quantizing,
    Recording,
    Trajectories,
    Trials,
    Whole,
)
from toolbox.tasks.settings import Json, Settings

app = Commands()


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

    path = recipe if recipe.is_file() else Path(__file__).parents[1] / "recipes" / f"{recipe}.toml"
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


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A file of weights, or a diffusers folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a model folder (safetensors), which says itself what it is."""
    from toolbox.deploy.convert import run_convert

    figures = run_convert(model, out)
    if as_json:
        return print_json(figures)
    print(
        f"{out}: {figures['network']} of {figures['parameters'] / 1e6:.1f} million parameters,"
        f" {figures['process']}, {figures['prediction']}"
    )


@app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(help="A shipped float model (photo), a file of weights or a folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Calibration file to write (.safetensors).")
    ],
    runs: Trajectories,
    recording: Recording,
    data: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of pictures like those to be restored (hsi: and spectral_library.npz; mri:"
                " or a file of magnitudes)."
            )
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Record what the network sees while pictures are restored with the deployed solver. Repeat a
    call that was cut to go on.
    """
    from toolbox.deploy.calibrate import run_calibrate
    from toolbox.tasks import task_by_name

    unused = [*task_by_name(runs.task).unused]
    unused += ["partner"] if runs.task != "ultrasound" else []
    refuse_unused(unused, f"on the task {runs.task}")
    if recording.workers is not None or recording.scheduler is not None:
        refuse_unused(["threads"], "with workers, which compute on one thread each")
    with ProgressBar("calibrating", recording.count) as bar:
        figures = run_calibrate(model, data, out, runs, recording, progress=bar.update_of)
    if as_json:
        return print_json(figures)
    print(
        f"{out}: {figures['samples']} network inputs at {len(figures['timesteps'])} timesteps;"
        f" {cost_line(figures)}"
    )


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="The float model that was calibrated.")],
    calibration: Annotated[Path, typer.Option(help="File written by `restobox calibrate`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write scales and integer codes to.")
    ],
    how: Quantizing,
    as_json: Json = False,
) -> None:
    """Turn calibrated ranges into 8-bit scales and codes."""
    from toolbox.deploy.quantize import run_quantize

    with ProgressBar("rounding", 1) as bar:
        figures = run_quantize(model, calibration, out, how, progress=bar.update_of)
    if as_json:
        return print_json(figures)
    bits = f"W{figures['recipe']['weight_bits']}A{figures['recipe']['act_bits']}"
    print(f"{out}: {figures['layers']} layers at {bits}; {cost_line(figures)}")
    wanted = figures["recipe"]["selection"]
    if wanted not in (figures["selection"].partition("(")[0], "uniform"):
        note = (
            f"the recipe is made for samples chosen by {wanted}: calibrate with --select {wanted}"
            " --samples N"
        )
        print(f"{note} (these were: {figures['selection'] or 'all kept'})", file=sys.stderr)


@app.command("report")
def report_(
    quantized: Annotated[Path, typer.Argument(help="Folder written by `restobox quantize`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html, report.json and pictures.")
    ],
    origin: Annotated[Origin, Without("quantized")],
    trials: Trials = Trials(side=192),
    run: Annotated[Settings, FEW] = Settings(steps=5),
    as_json: Json = False,
) -> None:
    """Tell what quantization did: per layer, per timestep, along the chain, on restored pictures,
    in bytes.
    """
    from toolbox.deploy.report import run_report

    if trials.data is None:
        own = ("count", "side", "seed", "steps", "solver", "partner")
        refuse_unused(own, "without --data, what to restore")
    with ProgressBar("measuring", 3) as bar:
        figures = run_report(quantized, origin, out, trials, run, progress=bar.update_of)
    if as_json:
        return print_json(figures)
    rows = [
        (r["layer"], f"{r['sqnr_db']:.1f}", f"{r['error_alone']:.4f}")
        for r in figures["layers"][:10]
    ]
    print_table("layers that add most error", ("layer", "SQNR dB", "error alone"), rows)
    ratio = figures["bytes"]["total"] / figures["bytes"]["float32"]
    print(f"{out}/report.html: relative error {figures['error']:.4f}, {ratio:.2f} x the bytes")
    if "psnr_float" in figures:
        print(
            f"restored pictures: {figures['psnr_float']:.3f} dB float,"
            f" {figures['psnr_quantized']:.3f} dB quantized"
        )


# of a whole restoration; a network's graph holds none of them
RESTORER_OPTIONS = (
    *("task", "factor", "blur", "coils", "solver", "steps"),
    *("grid", "correction", "sigma", "size", "estimates", "cache"),
)


def _unused_by_restorer(task: str) -> list[str]:
    own = {"factor": "superresolve", "blur": "deblur", "coils": "mri"}
    unused = [name for name, owner in own.items() if owner != task]
    return unused + (["solver", "steps", "grid", "correction"] if task == "hsi" else [])


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The float model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.")],
    graph: Graph,
    whole: Whole,
    settings: Annotated[Settings, Without("tile", "symmetries")] = Settings(steps=5),
    as_json: Json = False,
) -> None:
    """Write an ONNX bundle that `restobox restore --model FOLDER` runs."""
    from toolbox.deploy.export import run_export, run_export_restorer

    if graph.restorer:
        unused = _unused_by_restorer(whole.task)
        refuse_unused([*unused, "times"], f"on a restorer of the task {whole.task}")
        figures = run_export_restorer(model, out, graph, whole, settings)
    else:
        refuse_unused(RESTORER_OPTIONS, "without --restorer")
        figures = run_export(model, out, graph)
    if as_json:
        return print_json(figures)
    print(f"{out}: {figures['graph']} graph for {graph.target}, {figures['bytes'] / 1e6:.2f} MB")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    origin: Origin,
    trials: Trials = Trials(),
    run: Annotated[Settings, FEW] = Settings(steps=5),
    checks: Checks = Checks(),
    as_json: Json = False,
) -> None:
    """Prove a bundle against its float model: kernels, errors, speed, restored pictures. Exit code
    3 when a limit is broken.
    """
    from export.bundle import read_bundle
    from toolbox.deploy.verify import run_verify, run_verify_restorer

    if read_bundle(bundle).graph == "restorer":
        own = ("calibration", "side", "solver", "steps", "partner", "error")
        refuse_unused(own, "on a whole restoration, which was exported with its own")
        with ProgressBar("restoring", trials.count) as bar:
            figures = run_verify_restorer(bundle, origin, trials, checks, progress=bar.update)
        rows = _restorer_rows(figures)
    else:
        if trials.data is None:
            pictures = ("count", "side", "seed", "steps", "psnr_drop", "partner")
            refuse_unused(pictures, "without --data, the pictures to restore")
        figures = run_verify(bundle, origin, trials, run, checks)
        rows = _network_rows(figures)
    if as_json:
        print_json(figures)
    else:
        print_table(str(bundle), ("", ""), rows)
    for failure in figures["failures"]:
        print(f"restobox: {failure}", file=sys.stderr)
    if figures["failures"]:
        raise typer.Exit(3)


def _network_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    worst = f"{max(figures['simulated']):.4f} / {max(figures['onnx']):.4f}"
    mean = f"{fmean(figures['simulated']):.4f} / {figures['error']:.4f}"
    speed = f"{figures['speedup']:.2f} x ONNX Runtime's float ({figures['ms']:.1f} ms, one thread)"
    rows = [
        ("integer convolutions", f"{figures['fused']} of {figures['planned']} planned"),
        ("mean error of a call, simulated / run", mean),
        ("at the worst timestep", worst),
        ("size", f"{figures['size_ratio']:.2f} x float"),
        ("speed", speed),
    ]
    if figures["agreement"] is not None:
        rows += [
            ("largest disagreement of errors", f"{figures['agreement']:.1%}"),
            ("largest difference of outputs", f"{figures['difference']:.2f} of the error"),
        ]
    if figures["drift"]:
        ends = ", ".join(f"{steps}: {value:.4f}" for steps, value in figures["drift"].items())
        rows.append(("difference at the end of a run of so many steps", ends))
    if figures["quality"]:
        both = "{:.3f} / {:.3f} dB".format(*figures["quality"])
        rows.append(("restored PSNR, float / bundle", both))
    return rows


def _restorer_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("integer convolutions", f"{figures['fused']} of {figures['planned']} planned")]
    for key, digits, unit in (("psnr", 3, " dB"), ("ssim", 4, "")):
        if f"{key}_float" in figures:
            both = " / ".join(f"{figures[f'{key}_{n}']:.{digits}f}" for n in ("float", "bundle"))
            rows.append((f"restored {key.upper()}, float / bundle", both + unit))
    rows.append(("PSNR between the two", f"{figures['psnr_between']:.2f} dB"))
    if "psnr_bundle_simulated" in figures:
        between = f"{figures['psnr_bundle_simulated']:.2f} dB"
        rows.append(("PSNR between bundle and simulation", between))
    return rows
