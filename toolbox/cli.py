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

app = typer.Typer(
    name="restobox",
    help="Restore images with diffusion samplers; calibrate, quantize and export the networks that do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
restore_app = typer.Typer(help="Restore a measurement of yours.", no_args_is_help=True)
app.add_typer(restore_app, name="restore")

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
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, or the name of a shipped one (photo).")],
    data: Annotated[Path, typer.Option(help="Folder of pictures, searched recursively.")],
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
    data: Annotated[Path, typer.Option(help="Folder of pictures like those to be restored.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Calibration file to write (.safetensors).")],
    solver: Solver = "ddim",
    steps: Annotated[list[int] | None, typer.Option(help="Solver steps to deploy; give it several times for several. [default: 5]")] = None,
    count: Annotated[int, typer.Option(help="Pictures to restore.")] = 16,
    side: Annotated[int, typer.Option(help="Side of the crops to restore, in pixels.")] = 256,
    per_timestep: Annotated[int, typer.Option(help="Network inputs to keep per timestep.")] = 8,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record what the network sees while pictures are restored with the deployed solver."""
    from toolbox.deploy import run_calibrate

    steps = steps or [5]
    with _Progress("calibrating", count * len(steps)) as bar:
        figures = run_calibrate(
            model, data, out, solver=solver, steps=steps, count=count, side=side, per_timestep=per_timestep, seed=seed, progress=bar.update
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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The float model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.")],
    quantized: Annotated[Path | None, typer.Option(help="Folder written by `restobox quantize` (not for target float).")] = None,
    target: Annotated[str, typer.Option(help="cpu (ONNX Runtime integer kernels), tensorrt, or float.")] = "cpu",
    summary: Annotated[str, typer.Option(help="A sentence for the model card.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the calibration, for the record.")] = 0,
    as_json: Json = False,
) -> None:
    """Write an ONNX bundle that `restobox restore --model FOLDER` runs."""
    from toolbox.deploy import run_export

    figures = run_export(model, quantized, target, out, seed=seed, summary=summary)
    if as_json:
        return _print_json(figures)
    print(f"{out}: {figures['graph']} graph for {target}, {figures['bytes'] / 1e6:.2f} MB")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `restobox export`.")],
    model: Annotated[str, typer.Option(help="The float model.")],
    quantized: Annotated[Path, typer.Option(help="Folder written by `restobox quantize`.")],
    calibration: Annotated[Path, typer.Option(help="File written by `restobox calibrate`.")],
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
    from toolbox.deploy import run_verify

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


@app.command()
def bench(
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
