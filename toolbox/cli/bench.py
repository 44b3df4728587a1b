"""``restobox bench``: measured figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from toolbox.cli.options import (
    DEFAULT_MODEL,
    Json,
    ProgressBar,
    Samples,
    Seed,
    Steps,
    Symmetries,
    print_json,
    print_table,
)


class _PicturesFirst(TyperGroup):
    """`restobox bench FOLDER ...` is `restobox bench pictures FOLDER ...`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["pictures", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Measure models on pictures (`restobox bench FOLDER ...`), or solvers.",
    no_args_is_help=True,
    cls=_PicturesFirst,
)


@app.command("runtime")
def bench_runtime(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the model's network.")],
    model: Annotated[str, typer.Option(help="The float model that they were made from.")] = "photo",
    size: Annotated[
        str,
        typer.Option(help="WIDTHxHEIGHT of the network's input (half the picture's at fold 2)."),
    ] = "96x64",
    batch: Annotated[int, typer.Option(help="Pictures per call.")] = 1,
    threads: Annotated[
        list[int] | None,
        typer.Option(help="CPU threads; give it several times for several. [default: 1]"),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = 11,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Also time torch.compile.")] = False,
    as_json: Json = False,
) -> None:
    """Time a network's call: PyTorch, ONNX in 32 and 16 bits, and 8-bit bundles, interleaved in one
    run.
    """
    from toolbox.bench.runtime import run_bench_runtime
    from toolbox.deploy.export import parse_size

    with ProgressBar("measuring", repeats) as bar:
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
        return print_json(figures)
    print_table(
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
    for name, reason in figures.get("skipped", {}).items():
        print(f"{name} left out: {reason}")
    print(figures["verdict"])


@app.command("pictures")
def bench_pictures(
    data: Annotated[Path, typer.Argument(help="Folder of true pictures.")],
    masks: Annotated[
        str | None,
        typer.Option(help="An .npz file of masks (1 = known); none: --mask takes KIND:FRACTION."),
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option("--mask", "-m", help="Masks, by name. [default: random:0.8]")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Models, `biharmonic`, `push-pull`. [default: photo, photo-int8, both]"),
    ] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Solvers. [default: ddim]")] = None,
    steps: Steps = 5,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    limit: Annotated[int | None, typer.Option(help="Use the first pictures only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure models and solvers on pictures with known truth."""
    from toolbox.bench.inpainting import run_bench

    models = model or ["push-pull", "biharmonic", "photo", DEFAULT_MODEL]
    names, solvers = mask or ["random:0.8"], solver or ["ddim"]
    with ProgressBar("measuring", 1) as bar:
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
            symmetries=symmetries,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    print_table(
        f"{rows[0]['pictures']} pictures, {steps} steps x {samples} samples x {symmetries}"
        " symmetries",
        ("mask", "model", "solver", "PSNR dB", "SSIM", "seconds"),
        [
            (
                r["mask"],
                r["model"],
                r["solver"],
                f"{r['psnr']:.2f}",
                f"{r['ssim']:.4f}",
                f"{r['seconds']:.2f}",
            )
            for r in rows
        ],
    )


@app.command("linear")
def bench_linear(
    data: Annotated[Path, typer.Argument(help="Folder of true pictures.")],
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            "-c",
            help=(
                "denoise:SIGMA of 255, superresolve:FACTOR (means of blocks),"
                " superresolve-bicubic:FACTOR, deblur:PIXELS. "
                "[default: denoise:25, denoise:50, superresolve:4]"
            ),
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Models, or plain, nlm, bm3d. [default: plain, grey]")
    ] = None,
    solver: Annotated[str, typer.Option(help="Any solver; an unknown name lists all.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Solver steps.", min=1)] = 1,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    grey: Annotated[bool, typer.Option("--grey", help="Measure the mean of the colours.")] = False,
    limit: Annotated[int | None, typer.Option(help="Use the first pictures only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure denoising, super-resolution and deblurring of pictures with known truth."""
    from toolbox.bench.linear import CASES, run_bench_linear

    with ProgressBar("measuring", 1) as bar:
        rows = run_bench_linear(
            data,
            cases=case or CASES,
            models=model or ("plain", "grey"),
            solver=solver,
            steps=steps,
            num_samples=samples,
            symmetries=symmetries,
            grey=grey,
            limit=limit,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    print_table(
        f"{rows[0]['pictures']} pictures, {steps} steps x {samples} samples x {symmetries}"
        " symmetries",
        ("case", "model", "PSNR dB", "SSIM", "seconds"),
        [
            (r["case"], r["model"], f"{r['psnr']:.2f}", f"{r['ssim']:.4f}", f"{r['seconds']:.2f}")
            for r in rows
        ],
    )


@app.command("solvers")
def bench_solver_errors(
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Solvers; an unknown name lists all. [default: 18 of them]"),
    ] = None,
    nfe: Annotated[
        list[int] | None, typer.Option(help="Network calls. [default: 8 10 12 15 20 25 30 50]")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Time grids. [default: log-snr, trailing]")
    ] = None,
    process: Annotated[
        str, typer.Option(help="ddpm (linear betas) or edm (sigma 80 to 0.002).")
    ] = "ddpm",
    count: Annotated[int, typer.Option(help="Start points.", min=1)] = 32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure where solvers, ours and diffusers', end on a distribution whose exact flow is
    known.
    """
    from toolbox.bench.solvers import (
        DEFAULT_GRIDS,
        DEFAULT_NFE,
        DEFAULT_SOLVERS,
        bench_solvers,
        tables,
    )

    with ProgressBar("measuring", 1) as bar:
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
        return print_json(figures)
    for title, header, rows in tables(figures):
        print_table(title, header, rows)
