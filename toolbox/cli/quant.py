"""``restobox calibrate | quantize | report``: from a float model to scales and integer codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolbox.cli.options import (
    Json,
    ProgressBar,
    Seed,
    Solver,
    Steps,
    cost_line,
    print_json,
    print_table,
)

app = typer.Typer()


@app.command()
def calibrate(
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
        options = {
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

    options = {
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
