"""``restobox bench``: measured figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from toolbox.cli.options import DEFAULT_MODEL, Commands, Json, Samples, Seed, Steps, Symmetries
from toolbox.cli.output import ProgressBar, print_json, print_table


class _PicturesFirst(TyperGroup):
    """`restobox bench FOLDER ...` is `restobox bench pictures FOLDER ...`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["pictures", *args]
        return super().parse_args(ctx, args)


app = Commands(
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


@app.command("mri")
def bench_mri(
    data: Annotated[
        Path,
        typer.Argument(
            help=(
                "True magnitude images (.nii.gz, .npz, DICOM) or fully sampled k-space (.h5, .npz)."
            )
        ),
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option("--mask", "-m", help="Kinds of masks. [default: equispaced-fraction]"),
    ] = None,
    acceleration: Annotated[list[float] | None, typer.Option(help="[default: 4, 8]")] = None,
    coils: Annotated[
        Path | None,
        typer.Option(help="Coil maps (.npz) to simulate with; 8 coils on a ring by default."),
    ] = None,
    sigma: Annotated[
        float, typer.Option(help="Simulated noise as a share of the images' 0.99 quantile.")
    ] = 0.01,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Models, `zero-filled`, `cg-sense`, `l1-wavelet`. [default: the three and mri]"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Solver steps. [default: as for `restore mri`]")
    ] = None,
    samples: Samples = 1,
    limit: Annotated[int | None, typer.Option(help="Use the first slices only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure MRI reconstruction next to the classical methods."""
    from toolbox.bench.mri import CLASSICAL, run_mri_bench

    with ProgressBar("measuring", 1) as bar:
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
        return print_json(rows)
    print_table(
        "whole-volume figures, as fastMRI computes them",
        ("mask", "R", "method", "PSNR dB", "SSIM", "NMSE", "LPIPS", "seconds per slice"),
        [
            (
                r["mask"],
                f"{r['acceleration']:g}",
                r["model"],
                f"{r['psnr']:.2f}",
                f"{r['ssim']:.4f}",
                f"{r['nmse']:.5f}",
                f"{r['lpips']:.4f}" if isinstance(r["lpips"], float) else "-",
                f"{r['seconds_per_slice']}",
            )
            for r in rows
        ],
    )
    if isinstance(rows[0]["lpips"], str):
        print(f"no LPIPS: {rows[0]['lpips']}", file=sys.stderr)


@app.command("mri-coverage")
def bench_mri_coverage(
    data: Annotated[
        Path,
        typer.Argument(help="Slices to test on: true magnitude images or fully sampled k-space."),
    ],
    calibration: Annotated[
        Path, typer.Argument(help="Other slices, to fit the intervals' width on.")
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask", "-m", help="Kinds of masks. [default: equispaced-fraction, poisson]"
        ),
    ] = None,
    acceleration: Annotated[list[float] | None, typer.Option(help="[default: 4, 8]")] = None,
    coils: Annotated[
        Path | None,
        typer.Option(help="Coil maps (.npz) to simulate with; 8 coils on a ring by default."),
    ] = None,
    sigma: Annotated[
        float, typer.Option(help="Simulated noise as a share of the images' 0.99 quantile.")
    ] = 0.01,
    model: Annotated[str, typer.Option(help="A model.")] = "mri",
    steps: Steps = 4,
    samples: Samples = 8,
    level: Annotated[float, typer.Option(help="Probability that the intervals are to hold.")] = 0.9,
    limit: Annotated[
        int | None, typer.Option(help="Test on this many slices, evenly spread.", min=1)
    ] = None,
    calibration_limit: Annotated[
        int | None, typer.Option(help="Calibrate on this many slices, evenly spread.", min=1)
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure how often the truth lies in the uncertainty map's interval, raw and calibrated on
    other slices.
    """
    from toolbox.bench.coverage import run_mri_coverage

    with ProgressBar("measuring", 1) as bar:
        rows = run_mri_coverage(
            data,
            calibration,
            kinds=mask or ["equispaced-fraction", "poisson"],
            accelerations=acceleration or [4.0, 8.0],
            maps=coils,
            sigma=sigma,
            model=model,
            steps=steps,
            num_samples=samples,
            calibration_limit=calibration_limit,
            limit=limit,
            level=level,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    first = rows[0]
    print_table(
        f"{first['level']:.0%} intervals, {first['test_slices']} slices, fitted on"
        f" {first['calibration_slices']} others, {first['steps']} steps x {first['samples']}"
        " samples",
        (
            "mask",
            "R",
            "gaussian",
            "calibrated",
            "worst slice",
            "factor",
            "half width",
            "gaussian's",
        ),
        [
            (
                r["mask"],
                f"{r['acceleration']:g}",
                *(f"{r[k]:.3f}" for k in ("coverage_gaussian", "coverage", "coverage_worst_slice")),
                f"{r['factor']:.2f}",
                *(f"{r[k]:.4f}" for k in ("width", "width_gaussian")),
            )
            for r in rows
        ],
    )


@app.command("hsi")
def bench_hsi(
    cubes: Annotated[
        list[Path],
        typer.Argument(help="Clean cubes; `simulated`, `finch`, `vnir`, `full` make one."),
    ],
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="A sigma of 255, or non-iid, stripe, deadline, impulse, mixture. [default: 50]"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "noisy, subspace, fasthyde-nlm, fasthyde, bm4d, or a model. [default: noisy,"
                " subspace, grey]"
            )
        ),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(help="Measured spectra (.npz) that finch, vnir and full are mixed from."),
    ] = None,
    crop: Annotated[int, typer.Option(help="Side of the part that is used.", min=11)] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure hyperspectral denoising on cubes with known truth."""
    from toolbox.bench.hyperspectral import run_bench_hsi

    with ProgressBar("measuring", 1) as bar:
        methods = method or ["noisy", "subspace", "grey"]
        rows = run_bench_hsi(
            cubes,
            cases=case or ["50"],
            methods=methods,
            library=library,
            crop=crop,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    columns = ("mpsnr", "mssim", "sam", "ergas", "seconds")
    digits = (2, 4, 4, 2, 1)
    body = [
        (
            r["cube"],
            r["case"],
            r["method"],
            *(f"{r[k]:.{d}f}" for k, d in zip(columns, digits, strict=True)),
        )
        for r in rows
    ]
    print_table(
        "hyperspectral denoising",
        ("cube", "case", "method", "MPSNR dB", "MSSIM", "SAM rad", "ERGAS", "seconds"),
        body,
    )


@app.command("ultrasound")
def bench_ultrasound(
    data: Annotated[Path, typer.Argument(help="Clean B-mode frames: a folder, .h5, DICOM.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "hazy, equalize, clahe, gamma, nlm, bm3d, or two models TISSUE+HAZE. [default: all,"
                " the shipped ones]"
            )
        ),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Strengths of the simulated haze. [default: 0.5 1 2]")
    ] = None,
    steps: Steps = 4,
    solver: Annotated[str, typer.Option(help="Solver.")] = "ddim",
    correction: Annotated[
        str, typer.Option(help="As in `restobox restore ultrasound`.")
    ] = "diffpir",
    samples: Samples = 1,
    limit: Annotated[
        int | None, typer.Option(help="Use this many frames, evenly spread.", min=1)
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Average the channels of coloured pictures.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure dehazing of clean frames with simulated haze."""
    from toolbox.bench.ultrasound import CLASSICAL, run_bench_ultrasound

    with ProgressBar("measuring", 1) as bar:
        figures = run_bench_ultrasound(
            data,
            methods=method or [*CLASSICAL, "ultrasound-tissue+ultrasound-haze"],
            strengths=strength or [0.5, 1.0, 2.0],
            steps=steps,
            solver=solver,
            correction=correction,
            num_samples=samples,
            limit=limit,
            seed=seed,
            grey=grey,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(figures)
    rows = [
        (
            f"{r['strength']:g}",
            r["method"],
            *(f"{r[k]:.3f}" for k in ("gcnr", "ks_tissue", "ks_blood")),
            f"{r['psnr']:.2f}",
            f"{r['seconds']:.2f}",
        )
        for r in figures["rows"]
    ]
    title = (
        f"{figures['frames']} frames ({figures['skipped']} without enough tissue and blood),"
        f" {steps} steps x {samples} samples"
    )
    print_table(
        title, ("haze", "method", "gCNR", "KS tissue", "KS blood", "PSNR dB", "seconds"), rows
    )


@app.command("dehaze")
def bench_dehaze(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of pairs: its subfolders hold hazy and clear pictures of the same names."
        ),
    ],
    hazy: Annotated[str, typer.Option(help="Name of the subfolder of hazy pictures.")] = "hazy",
    clear: Annotated[str, typer.Option(help="Name of the subfolder of clear pictures.")] = "clear",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Models, `input`, `dark-channel`. [default: these two, haze and haze-int8]"
        ),
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="Solvers. [default: resfusion, rddm, evodiff, ddim]")
    ] = None,
    steps: Steps = 5,
    samples: Samples = 1,
    limit: Annotated[int | None, typer.Option(help="Use the first pairs only.", min=1)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure dehazing on pairs of hazy and clear pictures, next to the dark channel prior."""
    from toolbox.tasks.paired import CLASSICAL, SOLVERS, run_bench_dehaze

    with ProgressBar("measuring", 1) as bar:
        rows = run_bench_dehaze(
            data,
            hazy=hazy,
            clear=clear,
            models=model or [*CLASSICAL, "haze", "haze-int8"],
            solvers=solver or SOLVERS,
            steps=steps,
            num_samples=samples,
            limit=limit,
            seed=seed,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    print_table(
        f"{rows[0]['pictures']} pairs",
        ("method", "solver", "calls", "PSNR dB", "SSIM", "seconds"),
        [
            (
                r["model"],
                r["solver"],
                f"{r['nfe']}",
                f"{r['psnr']:.2f}",
                f"{r['ssim']:.4f}",
                f"{r['seconds']}",
            )
            for r in rows
        ],
    )
