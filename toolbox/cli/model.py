"""``restobox train | calibrate | quantize | report | export | verify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from toolbox.cli.options import Commands, Json, Seed, Solver, Steps, refuse_unused
from toolbox.cli.output import ProgressBar, cost_line, print_json, print_table

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
def calibrate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A shipped float model (photo) or a diffusers folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Calibration file to write (.safetensors).")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures like those to be restored (hsi: and spectral_library.npz)."
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help=(
                "inpaint, denoise, superresolve, deblur, mri, ultrasound, dehaze, paired, hsi;"
                " generate: from noise, no --data."
            )
        ),
    ] = "inpaint",
    solver: Solver = "ddim",
    steps: Annotated[
        list[int] | None,
        typer.Option(
            help="Solver steps to deploy; give it several times for several. [default: 5]"
        ),
    ] = None,
    grid: Annotated[
        str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")
    ] = "trailing",
    correction: Annotated[str | None, typer.Option(help="As in `restobox restore`.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Noise on the measurements, in units of [0, 1].", min=0)
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.", min=1)] = 16,
    side: Annotated[
        int | None, typer.Option(help="Side of the crops to restore, in pixels.", min=1)
    ] = None,
    per_timestep: Annotated[
        int | None,
        typer.Option(help="Most network inputs to keep per timestep. [default: 8]", min=1),
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="Choose --samples of them: uniform, ptq4dm, eda-dm.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", "-n", help="Network inputs to choose.")
    ] = None,
    partner: Annotated[
        str | None, typer.Option(help="ultrasound: the other prior, tissue:MODEL or haze:MODEL.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record what the network sees while pictures are restored with the deployed solver. Repeat a
    call that was cut to go on.
    """
    from toolbox.deploy.calibrate import run_calibrate

    steps = steps or [5]
    if task != "ultrasound":
        refuse_unused(context, ["partner"], f"on the task {task}")
    if task in ("generate", "hsi", "dehaze", "paired"):
        refuse_unused(context, ["correction", "sigma"], f"on the task {task}")
    if task in ("hsi", "ultrasound"):
        refuse_unused(context, ["grid"], f"on the task {task}")
    with ProgressBar("calibrating", count * len(steps)) as bar:
        figures = run_calibrate(
            model,
            data,
            out,
            task=task,
            solver=solver,
            steps=steps,
            grid=grid,
            correction=correction,
            sigma=sigma,
            count=count,
            side=side,
            per_timestep=per_timestep,
            select=select,
            samples=samples,
            partner=partner,
            seed=seed,
            progress=bar.update,
        )
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
    recipe: Annotated[
        Path | None, typer.Option(help="Quantization recipe (JSON); W8A8 by default.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="best-w8a8, best-w4a8, ptq4dm-w8a8, ...; an unknown name lists all."),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="The solver to deploy; refused if the calibration followed another."),
    ] = None,
    float_macs: Annotated[
        float | None,
        typer.Option(
            help=(
                "Share of the multiplications that may stay in float, where that helps most."
                " [default: the recipe's, 0]"
            )
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for finished blocks of learned rounding; a rerun goes on from it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn calibrated ranges into 8-bit scales and codes."""
    from toolbox.deploy.quantize import run_quantize

    with ProgressBar("rounding", 1) as bar:
        options: dict[str, Any] = {
            "preset": preset,
            "solver": solver,
            "float_macs": float_macs,
            "state": state,
            "progress": bar.update_of,
        }
        figures = run_quantize(model, calibration, recipe, out, **options)
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
    model: Annotated[str, typer.Option(help="The float model.")],
    calibration: Annotated[
        Path,
        typer.Option(
            help="File written by `restobox calibrate`; of other pictures, for an honest error."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html, report.json and pictures.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures to restore with both networks.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.", min=1)] = 8,
    side: Annotated[int, typer.Option(help="Side of the crops, in pixels.", min=16)] = 192,
    solver: Solver = "ddim",
    steps: Steps = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tell what quantization did: per layer, per timestep, along the chain, on restored pictures,
    in bytes.
    """
    from toolbox.deploy.report import run_report

    options: dict[str, Any] = {
        "data": data,
        "count": count,
        "side": side,
        "solver": solver,
        "steps": steps,
        "seed": seed,
    }
    with ProgressBar("measuring", 3) as bar:
        figures = run_report(model, quantized, calibration, out, **options, progress=bar.update_of)
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
    "task",
    "factor",
    "blur",
    "coils",
    "solver",
    "steps",
    "grid",
    "correction",
    "sigma",
    "size",
    "estimates",
)


def _unused_by_restorer(task: str) -> list[str]:
    own = {"factor": "superresolve", "blur": "deblur", "coils": "mri"}
    unused = [name for name, owner in own.items() if owner != task]
    return unused + (["solver", "steps", "grid", "correction"] if task == "hsi" else [])


@app.command()
def export(
    context: typer.Context,
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
        refuse_unused(context, _unused_by_restorer(task), f"on a restorer of the task {task}")
        from toolbox.deploy.export import parse_size, run_export_restorer

        run: dict[str, Any] = {
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

        refuse_unused(context, RESTORER_OPTIONS, "without --restorer")
        figures = run_export(model, quantized, target, out, seed=seed, summary=summary)
    if as_json:
        return print_json(figures)
    print(f"{out}: {figures['graph']} graph for {target}, {figures['bytes'] / 1e6:.2f} MB")


@app.command()
def verify(
    context: typer.Context,
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
    count: Annotated[int, typer.Option(help="Pictures to restore.", min=1)] = 8,
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
        own = ("calibration", "side", "solver", "steps")
        refuse_unused(context, own, "on a whole restoration, which was exported with its own")
        return _verify_restorer(
            bundle, model, quantized, data, count, psnr_drop, report, device, seed, as_json
        )
    from toolbox.deploy.verify import run_verify

    if quantized is None or calibration is None:
        raise ValueError("a network's bundle is verified against --quantized and --calibration")
    if data is None:
        pictures = ("count", "side", "steps", "psnr_drop")
        refuse_unused(context, pictures, "without --data, the pictures to restore")
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
