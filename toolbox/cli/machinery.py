"""``restobox bench solvers`` and ``runtime``: what is measured without pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolbox.bench.options import Timing
from toolbox.cli.output import ProgressBar, print_json, print_table
from toolbox.tasks.settings import Json, Seed


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
    peers: Annotated[
        bool, typer.Option("--peers", help="Also azula's and k-diffusion's, where installed.")
    ] = False,
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
            peers=peers,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(figures)
    for title, header, rows in tables(figures):
        print_table(title, header, rows)


def bench_runtime(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the model's network.")],
    timing: Timing,
    model: Annotated[str, typer.Option(help="The float model that they were made from.")] = "photo",
    as_json: Json = False,
) -> None:
    """Time a network's call: PyTorch, ONNX in 32 and 16 bits, and 8-bit bundles, interleaved in one
    run.
    """
    from toolbox.bench.runtime import run_bench_runtime

    with ProgressBar("measuring", timing.repeats) as bar:
        figures = run_bench_runtime(model, bundles, timing, progress=bar.update_of)
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
