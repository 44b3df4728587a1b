"""The command ``restobox``. Bodies import what they need, so ``--help`` answers at once."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _PicturesFirst(TyperGroup):
    """`restobox bench FOLDER ...` is `restobox bench pictures FOLDER ...`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["pictures", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="restobox",
    help="Restore images with diffusion samplers; calibrate, quantize and export the networks that do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
restore_app = typer.Typer(help="Restore a measurement of yours.", no_args_is_help=True)
app.add_typer(restore_app, name="restore")
bench_app = typer.Typer(
    help="Measure models on pictures (`restobox bench FOLDER ...`), or solvers.", no_args_is_help=True, cls=_PicturesFirst
)
app.add_typer(bench_app, name="bench")

Model = Annotated[str, typer.Option(help="A shipped model (see `restobox models`), a diffusers folder or an exported bundle.")]
Solver = Annotated[str, typer.Option(help="ddim, pndm, plms, ...; an unknown name lists all.")]
Steps = Annotated[int, typer.Option(help="Solver steps.")]
Seed = Annotated[int, typer.Option(help="Sample k uses seed + k.", min=0, max=2**62)]
Samples = Annotated[int, typer.Option("--samples", "-n", help="Posterior samples; the result is their mean.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

DEFAULT_MODEL = "photo-int8"


def main() -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input (one line on stderr), 3 a limit was broken.

    RESTOBOX_DEBUG=1 shows where an error came from.
    """
    # libraries' warnings are for developers; whatever concerns the user is said in the output
    warnings.simplefilter("ignore")
    try:
        return app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("RESTOBOX_DEBUG"):
            raise
        text = error.format_message() if hasattr(error, "format_message") else str(error) or type(error).__name__
        if text:  # empty where typer has just printed its help
            print(f"restobox: {' '.join(text.split())}", file=sys.stderr)
        return 2


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("restobox-demo"),
    model: Model = DEFAULT_MODEL,
    solver: Solver = "ddim",
    steps: Steps = 5,
    samples: Samples = 4,
    mask: Annotated[str, typer.Option(help="KIND:FRACTION of missing pixels; kinds: random, strokes, text, box.")] = "random:0.8",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Restore the embedded photo and write pictures to look at."""
    from restoration.masks import parse_mask
    from toolbox.demo import run_demo

    recipe = parse_mask(mask)
    with _Progress("restoring", steps * samples) as bar:
        figures = run_demo(out, model=model, solver=solver, steps=steps, num_samples=samples, mask=recipe, seed=seed, progress=bar.update)
    if as_json:
        return _print_json(figures)
    rows = [
        ("degraded", figures["degraded"]),
        (f"{model}, mean of {samples}", figures["restored"]),
        (f"{model}, one sample", figures["first_sample"]),
        ("inpaint_biharmonic", figures["biharmonic"]),
    ]
    _print_table(
        f"{mask} missing, {solver}, {steps} steps x {samples} samples = {figures['nfe']} network calls",
        ("", "PSNR dB", "SSIM", "seconds"),
        [(name, f"{f['psnr']:.2f}", f"{f['ssim']:.4f}", f"{f.get('seconds', '')}") for name, f in rows],
    )
    print(f"pictures: {out}/ (begin with side-by-side.png)")


@restore_app.command("inpaint")
def inpaint(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, TIFF ...; 8 or 16 bits, grey or colour, with or without alpha.")],
    mask: Annotated[str, typer.Option("--mask", "-m", help="A picture (white = missing), or KIND:FRACTION to make one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The restored picture (PNG, TIFF, JPEG, WebP).")],
    model: Model = DEFAULT_MODEL,
    solver: Solver = "ddim",
    steps: Steps = 5,
    grid: Annotated[str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")] = "trailing",
    correction: Annotated[
        str | None, typer.Option(help="ddnm, ddnm+, ddrm, diffpir, dps, mmps, pigdm, repaint; the noise decides by default.")
    ] = None,
    sigma: Annotated[float, typer.Option(help="Noise on the known pixels, in units of [0, 1].")] = 0.0,
    seed: Seed = 0,
    samples: Samples = 1,
    std: Annotated[bool, typer.Option("--std", help="Also write OUT-std.png, where the samples disagree (needs -n 2 or more).")] = False,
    reference: Annotated[Path | None, typer.Option(help="The true picture: prints PSNR, SSIM and LPIPS against it.")] = None,
    tile: Annotated[int, typer.Option(help="Side of the tiles for larger pictures, in pixels.")] = 512,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Fill the missing pixels of a photo."""
    from toolbox.restore import run_inpainting

    if std and samples < 2:
        raise ValueError("--std needs at least two samples: add -n 4")
    with _Progress("restoring", max(steps, 1) * max(samples, 1)) as bar:
        figures = run_inpainting(
            image,
            mask,
            out,
            model=model,
            solver=solver,
            steps=steps,
            grid=grid,
            correction=correction,
            sigma=sigma,
            seed=seed,
            num_samples=samples,
            std=std,
            reference=reference,
            tile=tile,
            device=device,
            progress=bar.update,
        )
    if as_json:
        return _print_json(figures)
    quality = "".join(f", {name.upper()} {figures[name]}" for name in ("psnr", "ssim", "lpips") if isinstance(figures.get(name), float))
    print(f"{figures['out']}: {figures['nfe']} network calls in {figures['seconds']} s{quality}")
    if isinstance(figures.get("lpips"), str):
        print(f"no LPIPS: {figures['lpips']}", file=sys.stderr)


@restore_app.command("mri")
def mri(
    file: Annotated[Path, typer.Argument(help="k-space (.h5, .mrd, .npz, .mat) or magnitude images (.nii.gz, DICOM) to simulate it from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Result: .nii.gz, .h5 or .png.")],
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            "-m",
            help="Sampled points: a file (.npy, .npz), or a kind to undersample by: random, equispaced, "
            "equispaced-fraction, poisson. [default: as the file is sampled]",
        ),
    ] = None,
    acceleration: Annotated[float, typer.Option(help="With a kind of mask.")] = 4.0,
    center_fraction: Annotated[float | None, typer.Option(help="Share of central columns. [default: 0.32/acceleration]")] = None,
    coils: Annotated[str, typer.Option(help="espirit, a file of coil maps (.npz), or a number of coils to simulate.")] = "espirit",
    model: Model = "mri",
    solver: Solver = "ddim",
    steps: Annotated[int, typer.Option(help="Solver steps: 1 for the mean, 4 or more for posterior samples.")] = 1,
    grid: Annotated[str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")] = "trailing",
    correction: Annotated[str | None, typer.Option(help="none, red-diff, ddnm, diffpir, pigdm, ...; the noise decides by default.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Noise of real and imaginary part of the k-space. [default: estimated]")] = None,
    seed: Seed = 0,
    samples: Samples = 1,
    std: Annotated[bool, typer.Option("--std", help="Also write where the samples disagree (needs -n 2 or more).")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Reconstruct undersampled Cartesian MRI, one coil or many."""
    from toolbox.mri import run_mri

    if samples > 1 and steps == 1:
        raise ValueError("one step gives the mean, the same for every sample: add --steps 4")
    if std and samples < 2:
        raise ValueError("--std needs at least two samples: add -n 4 --steps 4")
    with _Progress("reconstructing", 1) as bar:
        figures = run_mri(
            file,
            out,
            mask=mask,
            acceleration=acceleration,
            center_fraction=center_fraction,
            coils=coils,
            model=model,
            solver=solver,
            steps=steps,
            grid=grid,
            correction=correction,
            sigma=sigma,
            seed=seed,
            num_samples=samples,
            std=std,
            device=device,
            progress=bar.update_of,
        )
    if as_json:
        return _print_json(figures)
    quality = "".join(f", {name.upper()} {figures[name]}" for name in ("psnr", "ssim", "nmse") if name in figures)
    files = figures["out"][0] + (f" and {len(figures['out']) - 1} more" if len(figures["out"]) > 1 else "")
    effort = f"{figures['nfe']} network calls in {figures['seconds']} s"
    print(f"{files}: {figures['slices']} slices, R = {figures['acceleration']}, {effort}{quality}")


@restore_app.command("hsi")
def restore_hsi(
    cube: Annotated[Path, typer.Argument(help="A cube: ENVI (.hdr), .mat, .npz, .h5, multi-page TIFF.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The restored cube; its suffix gives the format.")],
    model: Model = "grey",
    sigma: Annotated[str, typer.Option(help="Noise in the cube's units, or auto: estimated per band.")] = "auto",
    rank: Annotated[str, typer.Option(help="Dimensions of the spectral subspace, or auto.")] = "auto",
    solver: Solver = "ddim",
    steps: Steps = 1,
    correction: Annotated[str | None, typer.Option(help="Run from pure noise, held to the data by diffpir, ddnm+ ...")] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a .mat, .npz or .h5 file.")] = None,
    band_axis: Annotated[int | None, typer.Option(help="Which of its axes holds the bands (0, 1, 2); the last one by default.")] = None,
    dead: Annotated[Path | None, typer.Option(help="A cube that is not 0 where entries are known to be dead.")] = None,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Annotated[int, typer.Option(help="Flips and turns to average: 1, 2, 4, 8.")] = 8,
    quicklook: Annotated[Path | None, typer.Option(help="Also write a picture: before, after, spectra.")] = None,
    reference: Annotated[Path | None, typer.Option(help="The true cube: prints MPSNR, MSSIM, SAM and ERGAS against it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Denoise a hyperspectral cube: random noise, stripes, dead lines and pixels, impulses."""
    from toolbox.restore_hsi import run_hsi

    with _Progress("restoring", 1) as bar:
        figures = run_hsi(
            cube,
            out,
            model=model,
            sigma=sigma,
            rank=rank,
            solver=solver,
            steps=steps,
            correction=correction,
            key=key,
            band_axis=band_axis,
            dead=dead,
            seed=seed,
            num_samples=samples,
            symmetries=symmetries,
            quicklook=quicklook,
            reference=reference,
            device=device,
            progress=bar.update,
        )
    if as_json:
        return _print_json(figures)
    quality = "".join(f", {name.upper()} {figures[name]}" for name in ("mpsnr", "mssim", "sam", "ergas") if name in figures)
    found = f"rank {figures['rank']}, sigma {figures['sigma_median']:.4g} (median), {figures['striped_columns']} striped columns"
    print(f"{figures['out']}: {found}, {figures['dead']:.2%} dead, {figures['nfe']} calls in {figures['seconds']} s{quality}")


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that ship with the package."""
    from toolbox.api import models as shipped

    found = shipped()
    if as_json:
        return _print_json([{"name": m.name, "precision": m.precision, "summary": m.summary, "folder": str(m.folder)} for m in found])
    _print_table("shipped models", ("name", "precision", "summary"), [(m.name, m.precision, m.summary) for m in found])


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, or the name of a shipped one (photo, mri).")],
    data: Annotated[Path, typer.Option(help="Folder of pictures (mri: of .npz slices), searched recursively.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; also holds the checkpoint and the log.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/checkpoint.")] = False,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    exclude: Annotated[list[str] | None, typer.Option(help="File names to leave out.")] = None,
) -> None:
    """Train a network from a recipe (several GPUs: `accelerate launch -m toolbox train ...`)."""
    from toolbox.training import Recipe
    from toolbox.training import train as run

    path = recipe if recipe.is_file() else Path(__file__).parent / "recipes" / f"{recipe}.toml"
    if not path.is_file():
        shipped = ", ".join(p.stem for p in path.parent.glob("*.toml"))
        raise FileNotFoundError(f"recipe {recipe} is neither a file nor a shipped recipe ({shipped})")
    settings = Recipe.read(path)
    with _Progress("training", settings.steps) as bar:
        run(
            settings,
            data,
            out,
            resume=resume,
            mixed_precision=mixed_precision,
            exclude=tuple(exclude or ()),
            progress=lambda step, loss: bar.update(step, f"training, loss {loss:.4f}"),
        )
    print(f"{out}: trained {settings.steps} steps")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A shipped float model (photo) or a diffusers folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Calibration file to write (.safetensors).")],
    data: Annotated[Path | None, typer.Option(help="Folder of pictures like those to be restored.")] = None,
    task: Annotated[str, typer.Option(help="inpaint, denoise, superresolve, deblur; generate: from noise, without --data.")] = "inpaint",
    solver: Solver = "ddim",
    steps: Annotated[list[int] | None, typer.Option(help="Solver steps to deploy; give it several times for several. [default: 5]")] = None,
    grid: Annotated[str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")] = "trailing",
    correction: Annotated[str | None, typer.Option(help="As in `restobox restore`.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Noise on the measurements, in units of [0, 1].", min=0)] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.", min=1)] = 16,
    side: Annotated[int | None, typer.Option(help="Side of the crops to restore, in pixels.", min=1)] = None,
    per_timestep: Annotated[int | None, typer.Option(help="Most network inputs to keep per timestep. [default: 8]", min=1)] = None,
    select: Annotated[str | None, typer.Option(help="Choose --samples of them: uniform, ptq4dm, eda-dm.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Network inputs to choose.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record what the network sees while pictures are restored with the deployed solver. Repeat a call that was cut to go on."""
    from toolbox.calibrate import run_calibrate

    steps = steps or [5]
    with _Progress("calibrating", count * len(steps)) as bar:
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
            seed=seed,
            progress=bar.update,
        )
    if as_json:
        return _print_json(figures)
    print(f"{out}: {figures['samples']} network inputs at {len(figures['timesteps'])} timesteps")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="The float model that was calibrated.")],
    calibration: Annotated[Path, typer.Option(help="File written by `restobox calibrate`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write scales and integer codes to.")],
    recipe: Annotated[Path | None, typer.Option(help="Quantization recipe (JSON); W8A8 by default.")] = None,
    preset: Annotated[str | None, typer.Option(help="best-w8a8, best-w4a8, ptq4dm-w8a8, ...; an unknown name lists all.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for finished blocks of learned rounding; a rerun goes on from it.")] = None,
    as_json: Json = False,
) -> None:
    """Turn calibrated ranges into 8-bit scales and codes."""
    from toolbox.deploy import run_quantize

    with _Progress("rounding", 1) as bar:
        figures = run_quantize(model, calibration, recipe, out, preset=preset, state=state, progress=bar.update_of)
    if as_json:
        return _print_json(figures)
    bits = f"W{figures['recipe']['weight_bits']}A{figures['recipe']['act_bits']}"
    print(f"{out}: {figures['layers']} layers at {bits}")


@app.command("report")
def report_(
    quantized: Annotated[Path, typer.Argument(help="Folder written by `restobox quantize`.")],
    model: Annotated[str, typer.Option(help="The float model.")],
    calibration: Annotated[Path, typer.Option(help="File written by `restobox calibrate`; of other pictures, for an honest error.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html, report.json and pictures.")],
    data: Annotated[Path | None, typer.Option(help="Folder of pictures to restore with both networks.")] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.", min=1)] = 8,
    side: Annotated[int, typer.Option(help="Side of the crops, in pixels.", min=16)] = 192,
    solver: Solver = "ddim",
    steps: Steps = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tell what quantization did: per layer, per timestep, along the chain, on restored pictures, in bytes."""
    from toolbox.quant_report import run_report

    options = {"data": data, "count": count, "side": side, "solver": solver, "steps": steps, "seed": seed}
    with _Progress("measuring", 3) as bar:
        figures = run_report(model, quantized, calibration, out, **options, progress=bar.update_of)
    if as_json:
        return _print_json(figures)
    rows = [(r["layer"], f"{r['sqnr_db']:.1f}", f"{r['error_alone']:.4f}") for r in figures["layers"][:10]]
    _print_table("layers that add most error", ("layer", "SQNR dB", "error alone"), rows)
    ratio = figures["bytes"]["total"] / figures["bytes"]["float32"]
    print(f"{out}/report.html: relative error {figures['error']:.4f}, {ratio:.2f} x the bytes")
    if "psnr_float" in figures:
        print(f"restored pictures: {figures['psnr_float']:.3f} dB float, {figures['psnr_quantized']:.3f} dB quantized")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The float model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.")],
    quantized: Annotated[Path | None, typer.Option(help="Folder written by `restobox quantize` (not for target float).")] = None,
    target: Annotated[str, typer.Option(help="cpu (integer kernels), tensorrt (int8 and fp16), cuda (fp16) or float.")] = "cpu",
    restorer: Annotated[bool, typer.Option("--restorer", help="The whole restoration in one graph, with the options below.")] = False,
    solver: Solver = "ddim",
    steps: Steps = 5,
    grid: Annotated[str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")] = "trailing",
    correction: Annotated[str | None, typer.Option(help="ddnm, diffpir, ddrm, repaint; the noise decides by default.")] = None,
    sigma: Annotated[float, typer.Option(help="Noise on the known pixels, in units of [0, 1].")] = 0.0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the restorer's pictures; larger ones go through in tiles.")] = "256x256",
    estimates: Annotated[bool, typer.Option("--estimates", help="The restorer also returns every call's image estimate.")] = False,
    summary: Annotated[str, typer.Option(help="A sentence for the model card.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the calibration, for the record.")] = 0,
    as_json: Json = False,
) -> None:
    """Write an ONNX bundle that `restobox restore --model FOLDER` runs."""
    if restorer:
        from toolbox.restorer import parse_size, run_export_restorer

        run = {"solver": solver, "steps": steps, "grid": grid, "correction": correction, "sigma": sigma, "estimates": estimates}
        figures = run_export_restorer(model, quantized, target, out, **run, size=parse_size(size), seed=seed, summary=summary)
    else:
        from toolbox.deploy import run_export

        figures = run_export(model, quantized, target, out, seed=seed, summary=summary)
    if as_json:
        return _print_json(figures)
    print(f"{out}: {figures['graph']} graph for {target}, {figures['bytes'] / 1e6:.2f} MB")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    model: Annotated[str, typer.Option(help="The float model.")],
    quantized: Annotated[Path | None, typer.Option(help="Folder written by `restobox quantize`.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="File written by `restobox calibrate`; not for a restorer.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of pictures to restore with both; none: only the network is compared.")] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.")] = 8,
    side: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 256,
    solver: Solver = "ddim",
    steps: Steps = 5,
    psnr_drop: Annotated[float, typer.Option(help="Largest accepted mean loss of PSNR on restored pictures, in dB.")] = 0.1,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html, report.json and pictures.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Prove a bundle against its float model: kernels, errors, speed, restored pictures. Exit code 3 when a limit is broken."""
    from export.bundle import read_bundle

    if read_bundle(bundle).graph == "restorer":
        return _verify_restorer(bundle, model, quantized, data, count, psnr_drop, report, seed, as_json)
    from toolbox.deploy import run_verify

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
    )
    if as_json:
        _print_json(figures)
    else:
        rows = [
            ("integer convolutions", f"{figures['fused']} of {figures['planned']} planned"),
            ("error, simulated / ONNX", f"{max(figures['simulated']):.4f} / {max(figures['onnx']):.4f}"),
            ("largest disagreement", f"{figures['agreement']:.1%}"),
            ("size", f"{figures['size_ratio']:.2f} x float"),
            ("speed", f"{figures['speedup']:.2f} x float ({figures['ms']:.1f} ms, one thread)"),
        ]
        if figures["quality"]:
            rows.append(("restored PSNR, float / bundle", "{:.3f} / {:.3f} dB".format(*figures["quality"])))
        _print_table(str(bundle), ("", ""), rows)
    for failure in figures["failures"]:
        print(f"restobox: {failure}", file=sys.stderr)
    if figures["failures"]:
        raise typer.Exit(3)


def _verify_restorer(bundle, model, quantized, data, count, psnr_drop, report, seed, as_json) -> None:
    from toolbox.restorer import run_verify_restorer

    if data is None:
        raise ValueError("a restorer is verified on pictures: give --data FOLDER")
    with _Progress("restoring", count) as bar:
        figures = run_verify_restorer(
            bundle,
            model,
            data,
            count=count,
            psnr_drop=psnr_drop,
            report=report,
            seed=seed,
            quantized=quantized,
            progress=bar.update,
        )
    if as_json:
        _print_json(figures)
    else:
        rows = [
            ("integer convolutions", f"{figures['fused']} of {figures['planned']} planned"),
            ("restored PSNR, float / bundle", f"{figures['psnr_float']:.3f} / {figures['psnr_bundle']:.3f} dB"),
            ("restored SSIM, float / bundle", f"{figures['ssim_float']:.4f} / {figures['ssim_bundle']:.4f}"),
            ("PSNR between the two", f"{figures['psnr_between']:.2f} dB"),
        ]
        if "psnr_simulated" in figures:
            rows.append(("PSNR between bundle and simulation", f"{figures['psnr_simulated']:.2f} dB"))
        _print_table(str(bundle), ("", ""), rows)
    for failure in figures["failures"]:
        print(f"restobox: {failure}", file=sys.stderr)
    if figures["failures"]:
        raise typer.Exit(3)


@app.command()
def doctor(
    require: Annotated[str | None, typer.Option(help="cpu, cuda or tensorrt: exit code 3 unless it can be used.")] = None,
    as_json: Json = False,
) -> None:
    """Compare what ONNX Runtime wants with what this machine has, and say what mends it."""
    from toolbox.doctor import examine

    if require not in (None, "cpu", "cuda", "tensorrt"):
        raise ValueError(f"--require {require!r} is unknown; known: cpu, cuda, tensorrt")
    report = examine()
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_table("packages", ("name", "version"), list(report.packages.items()))
        _print_table(
            f"GPU: {report.gpu or 'none'}", ("device", "can be used"), [(k, "yes" if v else "no") for k, v in report.usable.items()]
        )
        rows = [(entry.provider, entry.name, entry.found or "not found") for entry in report.libraries]
        _print_table("libraries that ONNX Runtime loads", ("provider", "library", "found"), rows)
        for line in report.advice:
            print(line)
    if require is not None and not report.usable[require]:
        print(f"restobox: {require} can't be used here", file=sys.stderr)
        raise typer.Exit(3)


@app.command("inspect")
def inspect_(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    placement: Annotated[bool, typer.Option("--placement", help="Also run it once and count kernels by provider.")] = False,
    as_json: Json = False,
) -> None:
    """Tell what a bundle holds: purpose, settings, files, operators, provenance."""
    from toolbox.inspect import inspect_bundle

    content = inspect_bundle(bundle, placement=placement)
    if as_json:
        return _print_json(content)
    for title in ("inputs", "outputs", "weights", "files", "operators", "settings", "run", "recipe", "versions"):
        if content[title]:
            _print_table(title, ("", ""), [(key, str(value)) for key, value in content[title].items()])
    if placement:
        rows = [(p["op"], p["provider"], str(p["count"])) for p in content["placement"]]
        _print_table("kernels of one run", ("operator", "provider", "count"), rows)
    print(
        f"{bundle}: {content['graph']} graph for {content['target']}, opset {content['opset']}, {content['planned']} integer convolutions"
    )


@bench_app.command("runtime")
def bench_runtime(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the model's network.")],
    model: Annotated[str, typer.Option(help="The float model that they were made from.")] = "photo",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the network's input (half the picture's at fold 2).")] = "96x64",
    batch: Annotated[int, typer.Option(help="Pictures per call.")] = 1,
    threads: Annotated[list[int] | None, typer.Option(help="CPU threads; give it several times for several. [default: 1]")] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = 11,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Also time torch.compile.")] = False,
    as_json: Json = False,
) -> None:
    """Time a network's call: PyTorch, ONNX in 32 and 16 bits, and 8-bit bundles, interleaved in one run."""
    from toolbox.bench_runtime import run_bench_runtime
    from toolbox.restorer import parse_size

    with _Progress("measuring", repeats) as bar:
        figures = run_bench_runtime(
            model,
            bundles,
            size=parse_size(size),
            batch=batch,
            threads=threads or [1],
            repeats=repeats,
            device=device,
            compiled=compiled,
            progress=bar.update_of,
        )
    if as_json:
        return _print_json(figures)
    _print_table(
        f"one call, input {' x '.join(map(str, figures['input']))}",
        ("", "device", "threads", "ms", "quartiles", "x ONNX fp32", "MB", "peak MB"),
        [
            (
                r["name"],
                r["device"],
                str(r["threads"]),
                f"{r['ms']:.1f}",
                "{:.1f}-{:.1f}".format(*r["ms_quartiles"]),
                f"{r['speedup']:.2f}",
                f"{r['mb']:.1f}",
                "" if r.get("peak_mb") is None else f"{r['peak_mb']:.0f}",
            )
            for r in figures["rows"]
        ],
    )
    print(figures["verdict"])


@bench_app.command("pictures")
def bench_pictures(
    data: Annotated[Path, typer.Argument(help="Folder of true pictures.")],
    masks: Annotated[str | None, typer.Option(help="An .npz file of masks (1 = known); none: --mask takes KIND:FRACTION.")] = None,
    mask: Annotated[list[str] | None, typer.Option("--mask", "-m", help="Masks, by name. [default: random:0.8]")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models, `biharmonic`, `push-pull`. [default: photo, photo-int8, both]")] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Solvers. [default: ddim]")] = None,
    steps: Steps = 5,
    samples: Samples = 1,
    limit: Annotated[int | None, typer.Option(help="Use the first pictures only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure models and solvers on pictures with known truth."""
    from toolbox.bench import run_bench

    models = model or ["push-pull", "biharmonic", "photo", DEFAULT_MODEL]
    names, solvers = mask or ["random:0.8"], solver or ["ddim"]
    with _Progress("measuring", 1) as bar:
        rows = run_bench(
            data,
            masks=masks,
            names=names,
            models=models,
            solvers=solvers,
            steps=steps,
            num_samples=samples,
            limit=limit,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return _print_json(rows)
    _print_table(
        f"{rows[0]['pictures']} pictures, {steps} steps x {samples} samples",
        ("mask", "model", "solver", "PSNR dB", "SSIM", "seconds"),
        [(r["mask"], r["model"], r["solver"], f"{r['psnr']:.2f}", f"{r['ssim']:.4f}", f"{r['seconds']:.2f}") for r in rows],
    )


@bench_app.command("solvers")
def bench_solver_errors(
    solver: Annotated[list[str] | None, typer.Option(help="Solvers; an unknown name lists all. [default: 18 of them]")] = None,
    nfe: Annotated[list[int] | None, typer.Option(help="Network calls. [default: 8 10 12 15 20 25 30 50]")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Time grids. [default: log-snr, trailing]")] = None,
    process: Annotated[str, typer.Option(help="ddpm (linear betas) or edm (sigma 80 to 0.002).")] = "ddpm",
    count: Annotated[int, typer.Option(help="Start points.", min=1)] = 32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure where solvers, ours and diffusers', end on a distribution whose exact flow is known."""
    from toolbox.bench_solvers import DEFAULT_GRIDS, DEFAULT_NFE, DEFAULT_SOLVERS, bench_solvers, tables

    with _Progress("measuring", 1) as bar:
        figures = bench_solvers(
            solvers=solver or DEFAULT_SOLVERS,
            nfe=nfe or DEFAULT_NFE,
            grids=grid or DEFAULT_GRIDS,
            process=process,
            count=count,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return _print_json(figures)
    for title, header, rows in tables(figures):
        _print_table(title, header, rows)


@bench_app.command("mri")
def bench_mri(
    data: Annotated[Path, typer.Argument(help="True magnitude images (.nii.gz, .npz, DICOM) or fully sampled k-space (.h5, .npz).")],
    mask: Annotated[list[str] | None, typer.Option("--mask", "-m", help="Kinds of masks. [default: equispaced-fraction]")] = None,
    acceleration: Annotated[list[float] | None, typer.Option(help="[default: 4, 8]")] = None,
    coils: Annotated[Path | None, typer.Option(help="Coil maps (.npz) to simulate with; 8 coils on a ring by default.")] = None,
    sigma: Annotated[float, typer.Option(help="Simulated noise as a share of the images' 0.99 quantile.")] = 0.01,
    model: Annotated[
        list[str] | None, typer.Option(help="Models, `zero-filled`, `cg-sense`, `l1-wavelet`. [default: the three and mri]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 1,
    samples: Samples = 1,
    limit: Annotated[int | None, typer.Option(help="Use the first slices only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure MRI reconstruction next to the classical methods."""
    from toolbox.mri_bench import CLASSICAL, run_mri_bench

    with _Progress("measuring", 1) as bar:
        rows = run_mri_bench(
            data,
            kinds=mask or ["equispaced-fraction"],
            accelerations=acceleration or [4.0, 8.0],
            maps=coils,
            sigma=sigma,
            models=model or [*CLASSICAL, "mri"],
            steps=steps,
            num_samples=samples,
            limit=limit,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return _print_json(rows)
    _print_table(
        "whole-volume figures, as fastMRI computes them",
        ("mask", "R", "method", "PSNR dB", "SSIM", "NMSE", "seconds per slice"),
        [
            (
                r["mask"],
                f"{r['acceleration']:g}",
                r["model"],
                f"{r['psnr']:.2f}",
                f"{r['ssim']:.4f}",
                f"{r['nmse']:.5f}",
                f"{r['seconds_per_slice']}",
            )
            for r in rows
        ],
    )


@bench_app.command("hsi")
def bench_hsi(
    cubes: Annotated[list[Path], typer.Argument(help="Clean cubes; `simulated` makes one.")],
    case: Annotated[
        list[str] | None, typer.Option(help="A sigma of 255, or non-iid, stripe, deadline, impulse, mixture. [default: 50]")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="noisy, subspace, fasthyde-nlm, bm4d, or a model. [default: noisy, subspace, grey]")
    ] = None,
    crop: Annotated[int, typer.Option(help="Side of the part that is used.", min=11)] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure hyperspectral denoising on cubes with known truth."""
    from toolbox.bench_hsi import run_bench_hsi

    with _Progress("measuring", 1) as bar:
        methods = method or ["noisy", "subspace", "grey"]
        rows = run_bench_hsi(cubes, cases=case or ["50"], methods=methods, crop=crop, seed=seed, progress=bar.update_of)
    if as_json:
        return _print_json(rows)
    columns = ("mpsnr", "mssim", "sam", "ergas", "seconds")
    digits = (2, 4, 4, 2, 1)
    body = [(r["cube"], r["case"], r["method"], *(f"{r[k]:.{d}f}" for k, d in zip(columns, digits, strict=True))) for r in rows]
    _print_table("hyperspectral denoising", ("cube", "case", "method", "MPSNR dB", "MSSIM", "SAM rad", "ERGAS", "seconds"), body)


# -- printing -----------------------------------------------------------------------------------------------------


class _Progress:
    """A rich progress bar on stderr; silent where stderr is no terminal."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.total)
        return self

    def update(self, done: int, title: str | None = None) -> None:
        self.bar.update(self.task, completed=done, description=title or self.title)

    def update_of(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _print_json(content: Any) -> None:
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(content: Any) -> Any:
    """JSON has no infinity (the PSNR of equal pictures): null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k == 0 or len(header) < 4 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
