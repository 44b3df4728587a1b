"""``restobox bench``: measured figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from toolbox.bench.options import Extent, Intervals, Methods, Sampling, Scans
from toolbox.cli.machinery import bench_runtime, bench_solver_errors
from toolbox.cli.options import Commands, Without
from toolbox.cli.output import ProgressBar, print_json, print_table
from toolbox.tasks.settings import Json


class _PicturesFirst(TyperGroup):
    """`restobox bench FOLDER ...` is `restobox bench pictures FOLDER ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["pictures", *args]
        return super().parse_args(ctx, args)


app = Commands(
    help="Measure models on pictures (`restobox bench FOLDER ...`), or solvers.",
    no_args_is_help=True,
    cls=_PicturesFirst,
)

# how many digits a figure is shown with; names in capitals where they are abbreviations
DIGITS = {"psnr": 2, "mpsnr": 2, "ssim": 4, "mssim": 4, "lpips": 4, "nmse": 5, "sam": 4}
DIGITS |= {"ergas": 2, "gcnr": 3, "ks_tissue": 3, "ks_blood": 3, "seconds": 2}
DIGITS |= {"seconds_per_slice": 2, "strength": 1, "acceleration": 0, "psnr_worst": 2}
DIGITS |= {"coverage_gaussian": 3, "coverage": 3, "coverage_worst": 3, "factor": 2}
DIGITS |= {"width": 4, "width_gaussian": 4}


def _print_rows(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """The columns of a benchmark's rows as a table."""
    body = []
    for row in rows:
        found = [row.get(name, "-") for name in columns]
        body.append(
            tuple(
                f"{value:.{DIGITS.get(name, 3)}f}" if isinstance(value, float) else str(value)
                for name, value in zip(columns, found, strict=True)
            )
        )
    print_table(title, tuple(name.replace("_", " ") for name in columns), body)


@app.command("pictures")
def bench_pictures(
    data: Annotated[Path, typer.Argument(help="Folder of true pictures.")],
    methods: Methods,
    extent: Extent,
    masks: Annotated[
        str | None,
        typer.Option(help="An .npz file of masks (1 = known); none: --mask takes KIND:FRACTION."),
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option("--mask", "-m", help="Masks, by name. [default: random:0.8]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure inpainting of pictures with known truth."""
    from toolbox.bench.pictures import inpainting_cases, measure

    cases = inpainting_cases(data, masks, mask or ["random:0.8"], extent)
    with ProgressBar("measuring", 1) as bar:
        rows = measure(cases, methods, extent, progress=bar.update_of)
    _pictures_table(rows, methods, extent, as_json)


@app.command("linear")
def bench_linear(
    data: Annotated[Path, typer.Argument(help="Folder of true pictures.")],
    methods: Methods,
    extent: Extent,
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            "-c",
            help=(
                "denoise:SIGMA of 255, superresolve:FACTOR (means of blocks),"
                " superresolve-bicubic:FACTOR, superresolve-jpeg:FACTOR (Lanczos, JPEG),"
                " deblur:PIXELS. "
                "[default: denoise:25, denoise:50, superresolve:4]"
            ),
        ),
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Measure the mean of the colours.")] = False,
    as_json: Json = False,
) -> None:
    """Measure denoising, super-resolution and deblurring of pictures with known truth."""
    from toolbox.bench.pictures import CASES, linear_cases, measure

    cases = linear_cases(data, case or CASES, grey, extent)
    with ProgressBar("measuring", 1) as bar:
        rows = measure(cases, methods, extent, progress=bar.update_of)
    _pictures_table(rows, methods, extent, as_json)


@app.command("dehaze")
def bench_dehaze(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of pairs: its subfolders hold hazy and clear pictures of the same names."
        ),
    ],
    methods: Annotated[Methods, Without("symmetries")],
    extent: Extent,
    hazy: Annotated[str, typer.Option(help="Name of the subfolder of hazy pictures.")] = "hazy",
    clear: Annotated[str, typer.Option(help="Name of the subfolder of clear pictures.")] = "clear",
    as_json: Json = False,
) -> None:
    """Measure dehazing on pairs of hazy and clear pictures, next to the dark channel prior."""
    from toolbox.bench.pictures import dehazing_cases, measure
    from toolbox.tasks.paired import SOLVERS

    methods = replace(methods, solver=methods.solver or [*SOLVERS])
    cases = dehazing_cases(data, hazy, clear, extent)
    with ProgressBar("measuring", 1) as bar:
        rows = measure(cases, methods, extent, progress=bar.update_of)
    _pictures_table(rows, methods, extent, as_json)


@app.command("paired")
def bench_paired(
    data: Annotated[
        Path,
        typer.Argument(help="Folder of pairs: its subfolders hold pictures of the same names."),
    ],
    methods: Annotated[Methods, Without("symmetries")],
    extent: Extent,
    degraded: Annotated[str, typer.Option(help="Subfolder of degraded pictures.")] = "degraded",
    clean: Annotated[str, typer.Option(help="Subfolder of clean pictures.")] = "clean",
    mask: Annotated[
        str, typer.Option(help="Subfolder of masks, for models that are shown one.")
    ] = "mask",
    as_json: Json = False,
) -> None:
    """Measure models of the task paired on pairs of degraded and clean pictures."""
    from toolbox.bench.pictures import measure, paired_cases

    cases = paired_cases(data, degraded, clean, mask, methods, extent)
    with ProgressBar("measuring", 1) as bar:
        rows = measure(cases, methods, extent, progress=bar.update_of)
    _pictures_table(rows, methods, extent, as_json)


def _pictures_table(
    rows: list[dict[str, Any]], methods: Methods, extent: Extent, as_json: bool
) -> None:
    if as_json:
        return print_json(rows)
    title = f"{rows[0]['pictures']} pictures, {extent.samples} samples of each"
    title += f", {methods.symmetries} symmetries" if methods.symmetries > 1 else ""
    columns = ("case", "model", "solver", "calls", "psnr", "psnr_worst", "ssim", "lpips", "seconds")
    _print_rows(title, rows, columns)


app.command("solvers")(bench_solver_errors)


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
    scans: Scans,
    methods: Annotated[Methods, Without("solver", "symmetries")],
    extent: Extent,
    as_json: Json = False,
) -> None:
    """Measure MRI reconstruction next to the classical methods."""
    from toolbox.bench.mri import run_mri_bench

    with ProgressBar("measuring", 1) as bar:
        rows = run_mri_bench(data, scans, methods, extent, progress=bar.update_of)
    if as_json:
        return print_json(rows)
    columns = ("mask", "acceleration", "model", "psnr", "ssim", "nmse", "lpips")
    title = "whole-volume figures, as fastMRI computes them"
    _print_rows(title, rows, (*columns, "seconds_per_slice"))
    if isinstance(rows[0]["lpips"], str):
        print(f"no LPIPS: {rows[0]['lpips']}", file=sys.stderr)


@app.command("coverage")
def bench_coverage(
    task: Annotated[str, typer.Argument(help="inpaint, denoise, mri ...")],
    data: Annotated[
        Path,
        typer.Argument(
            help="What to test on: a folder of pictures; mri: a file of true magnitude images."
        ),
    ],
    calibration: Annotated[Path, typer.Argument(help="Others, to fit the intervals' width on.")],
    sampling: Sampling,
    extent: Extent = Extent(samples=4),
    intervals: Intervals = Intervals(),
    as_json: Json = False,
) -> None:
    """Measure how often the truth lies in the interval that `--std` tells: by the samples' own
    spread, and calibrated on other pictures.
    """
    from toolbox.bench.coverage import run_coverage
    from toolbox.tasks import task_by_name

    one, asked = task_by_name(task), vars(sampling).copy()
    model = asked.pop("model")
    told = {"steps": None} | one.advised(model, extent.samples)
    given = {key: value for key, value in asked.items() if value is not None}
    settings = replace(one.settings, **told | given)
    with ProgressBar("measuring", 1) as bar:
        rows = run_coverage(
            task, data, calibration, model, settings, extent, intervals, progress=bar.update_of
        )
    if as_json:
        return print_json(rows)
    first = rows[0]
    title = (
        f"{first['level']:.0%} intervals, fitted on {first['calibrated_on']} others,"
        f" {first['solver']}, {first['steps']} steps"
    )
    columns = ("case", "samples", "pictures", "coverage_gaussian", "coverage", "coverage_worst")
    widths = ("factor", "width_gaussian", "width", "correlation")
    _print_rows(title, rows, (*columns, *widths))


@app.command("hsi")
def bench_hsi(
    cubes: Annotated[
        list[Path],
        typer.Argument(help="Clean cubes; `simulated`, `finch`, `vnir`, `full` make one."),
    ],
    extent: Annotated[Extent, Without("limit", "samples")],
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="A sigma of 255, or non-iid, stripe, deadline, impulse, mixture. [default: 50]"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "--method",
            help=(
                "noisy, subspace, fasthyde-nlm, fasthyde, bm4d, or a model. [default: noisy,"
                " subspace, grey]"
            ),
        ),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(help="Measured spectra (.npz) that finch, vnir and full are mixed from."),
    ] = None,
    crop: Annotated[int, typer.Option(help="Side of the part that is used.", min=11)] = 64,
    as_json: Json = False,
) -> None:
    """Measure hyperspectral denoising on cubes with known truth."""
    from toolbox.bench.hyperspectral import run_bench_hsi

    with ProgressBar("measuring", 1) as bar:
        rows = run_bench_hsi(
            cubes,
            cases=case or ["50"],
            methods=method or ["noisy", "subspace", "grey"],
            library=library,
            crop=crop,
            extent=extent,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(rows)
    columns = ("cube", "case", "method", "mpsnr", "mssim", "sam", "ergas", "seconds")
    _print_rows("hyperspectral denoising", rows, columns)


@app.command("ultrasound")
def bench_ultrasound(
    data: Annotated[Path, typer.Argument(help="Clean B-mode frames: a folder, .h5, DICOM.")],
    methods: Annotated[Methods, Without("symmetries")],
    extent: Extent,
    strength: Annotated[
        list[float] | None, typer.Option(help="Strengths of the simulated haze. [default: 0.5 1 2]")
    ] = None,
    correction: Annotated[
        str | None, typer.Option(help="With priors, as in `restobox restore ultrasound`.")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Average the channels of coloured pictures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure dehazing of clean frames with simulated haze."""
    from toolbox.bench.ultrasound import run_bench_ultrasound

    with ProgressBar("measuring", 1) as bar:
        figures = run_bench_ultrasound(
            data,
            strength or [0.5, 1.0, 2.0],
            methods,
            extent,
            correction=correction,
            grey=grey,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(figures)
    title = (
        f"{figures['frames']} frames ({figures['skipped']} without enough tissue and blood),"
        f" {figures['samples']} samples"
    )
    columns = ("strength", "method", "gcnr", "psnr", "ks_tissue", "edges_kept", "edges_invented")
    _print_rows(title, figures["rows"], (*columns, "tissue_lost", "blood_filled", "seconds"))


app.command("runtime")(bench_runtime)
