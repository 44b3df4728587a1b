"""``restobox restore``: a measurement of the user's in, an image out."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolbox.cli.options import (
    Commands,
    ListedCommand,
    Pictures,
    Without,
    given,
    refuse_missing,
    refuse_unused,
    written_as_folder,
)
from toolbox.cli.output import CountLine, ProgressBar, print_json, print_table
from toolbox.tasks.options import (
    Cubes,
    Deblurring,
    Dehazing,
    Denoising,
    Enlarging,
    Frames,
    Inpainting,
    Pairs,
    Scanning,
)
from toolbox.tasks.settings import (
    COLOUR,
    DEFAULT_MODEL,
    GREY,
    SMALL_PICTURES,
    Draws,
    Many,
    Output,
    Prior,
    Settings,
)

if TYPE_CHECKING:
    from toolbox.tasks.scale.job import Job

app = Commands(help="Restore a measurement of yours.", no_args_is_help=True)
RDDM = Settings("rddm", 5)
ByColour = Annotated[
    str | None, typer.Option(help=f"By default {COLOUR}, for grey pictures {GREY}.")
]


@app.command("inpaint", cls=ListedCommand)
def inpaint(
    inputs: Pictures,
    output: Output,
    options: Inpainting,
    prior: Prior = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    many: Annotated[Many, Without("sheet")] = Many(),
) -> None:
    """Fill the missing pixels of a photo."""
    from toolbox.api import holds_restoration

    if holds_restoration(prior.model):
        own = ("solver", "steps", "grid", "correction", "tile", "symmetries", "cache")
        refuse_unused(own, "on a whole restoration, which was exported with its own")
    if options.mask is not None and not Path(options.mask).exists():
        refuse_unused(("mask_is", "mask_colour"), "without a mask file")
    _restore(inputs, many, _job("inpaint", output, options, prior, settings, draws))


@app.command("denoise")
def denoise(
    inputs: Pictures,
    output: Output,
    options: Denoising,
    model: ByColour = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Remove white noise from a picture."""
    prior = replace(prior, model=model or "")
    _restore(inputs, many, _job("denoise", output, options, prior, settings, draws))


@app.command("superresolve")
def superresolve(
    inputs: Pictures,
    output: Output,
    options: Enlarging,
    model: Annotated[
        str | None,
        typer.Option(help=f"By default {SMALL_PICTURES} for factor 4, else {DEFAULT_MODEL}."),
    ] = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Enlarge a picture."""
    prior = replace(prior, model=model or "")
    _restore(inputs, many, _job("superresolve", output, options, prior, settings, draws))


@app.command("deblur", cls=ListedCommand)
def deblur(
    inputs: Pictures,
    output: Output,
    options: Deblurring,
    model: ByColour = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(steps=5),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Sharpen a picture that a Gaussian blurred."""
    prior = replace(prior, model=model or "")
    _restore(inputs, many, _job("deblur", output, options, prior, settings, draws))


@app.command("dehaze")
def dehaze(
    inputs: Pictures,
    output: Output,
    options: Dehazing,
    prior: Prior = Prior("haze-int8"),
    settings: Annotated[Settings, Without("correction", "tile", "symmetries")] = Settings(
        "rddm", 5
    ),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Take the haze out of a photo."""
    _restore(inputs, many, _job("dehaze", output, options, prior, settings, draws))


@app.command("paired")
def paired(
    inputs: Pictures,
    output: Output,
    options: Pairs,
    model: Annotated[
        str,
        typer.Option(
            help="low-light, shadow (with --mask), or a model folder trained on pairs, or its"
            " bundle."
        ),
    ],
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Annotated[Settings, Without("correction", "symmetries")] = RDDM,
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Restore a photo (rain drops, shadow, low light ...) with a model trained on pairs of degraded
    and clean ones.
    """
    prior = replace(prior, model=model)
    _restore(inputs, many, _job("paired", output, options, prior, settings, draws))


@app.command("mri")
def mri(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help=(
                "k-space (.h5, .mrd, .npz, .mat) or magnitude images (.nii.gz, DICOM) to simulate"
                " it from."
            )
        ),
    ],
    output: Annotated[Output, Without("reference", "quality")],
    options: Scanning,
    prior: Prior = Prior("mri"),
    settings: Annotated[Settings, Without("tile", "symmetries")] = Settings(),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Reconstruct undersampled Cartesian MRI, one coil or many."""
    if options.mask is None or Path(options.mask).exists():
        own = ("acceleration", "center_fraction")
        refuse_unused(own, "without a kind of --mask to undersample by")
    _restore(inputs, many, _job("mri", output, options, prior, settings, draws))


@app.command("hsi")
def hsi(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="A cube: ENVI (.hdr), .mat, .npy, .npz, .h5, .he5, .nc, TIFF, a folder of bands."
        ),
    ],
    output: Annotated[Output, Without("std", "quality", "write_samples")],
    options: Cubes,
    prior: Prior = Prior("grey"),
    settings: Annotated[Settings, Without("grid", "tile")] = Settings(steps=1, symmetries=8),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Denoise a hyperspectral cube: random noise, stripes, dead lines and pixels, impulses."""
    _restore(inputs, many, _job("hsi", output, options, prior, settings, draws))


@app.command("ultrasound")
def ultrasound(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="B-mode clip: a picture, a folder, .h5 (zea), .mat (channel data), DICOM, a video."
        ),
    ],
    output: Annotated[Output, Without("std", "quality")],
    options: Frames,
    prior: Annotated[Prior, Without("model")] = Prior(""),
    settings: Annotated[Settings, Without("grid", "tile", "symmetries")] = Settings(),
    draws: Draws = Draws(),
    many: Many = Many(),
) -> None:
    """Take the haze out of ultrasound frames."""
    _restore(inputs, many, _job("ultrasound", output, options, prior, settings, draws))


def _job(
    task: str, output: Output, options: Any, prior: Prior, settings: Settings, draws: Draws
) -> Job:
    from toolbox.api import checkpoint_options
    from toolbox.tasks.scale.job import Job

    asked = frozenset(given() & {f.name for f in fields(settings)})
    return Job(task, output, options, prior, settings, draws, asked, checkpoint_options())


def _restore(inputs: list[Path], many: Many, job: Job) -> None:
    from restoration.io.video import is_video
    from toolbox.tasks.scale.search import is_single

    if not (is_single(job.one, inputs) and not _into_folder(job)):
        return _restore_many(inputs, many, job)
    refuse_missing()
    own = inputs[0].suffix.lower() in job.one.suffixes
    if is_video(inputs[0]) and not (own or inputs[0].is_dir()):
        return _restore_video(inputs[0], many, job)
    refuse_unused([f.name for f in fields(many) if f.name != "sheet"], "on a single measurement")
    if not hasattr(job.options, "sheet"):
        refuse_unused(["sheet"], "on a single measurement")
    request = job.request(inputs[0])
    with ProgressBar(job.task, (request.settings.steps or 1) * request.draws.samples) as bar:
        figures = job.one.restore(request, bar.update_of)
    if "warning" in figures:
        print(f"warning: {figures['warning']}", file=sys.stderr)
    for note in (figures.get("note"), figures.get("lpips")):
        if isinstance(note, str):
            print(note, file=sys.stderr)
    if job.output.as_json:
        return print_json(figures)
    print(in_words(figures))


def _restore_video(path: Path, many: Many, job: Job) -> None:
    from toolbox.tasks.scale.video import restore_video

    own = ("clip", "still", "refresh")
    refuse_unused([f.name for f in fields(many) if f.name not in own], "on a video")
    with ProgressBar(job.task, 1) as bar:
        figures = restore_video(job, path, many, bar.update_of)
    if job.output.as_json:
        return print_json(figures)
    print(in_words(figures))
    if "note" in figures:
        print(figures["note"], file=sys.stderr)


def _into_folder(job: Job) -> bool:
    """Whether the result of a single picture goes into a folder, under the picture's name: it is
    written with a slash.
    """
    return job.one.is_picture and written_as_folder("out")


def _restore_many(inputs: list[Path], many: Many, job: Job) -> None:
    from toolbox.tasks.scale.engine import lines_of, prepared, restore_all
    from toolbox.tasks.scale.search import find_items

    refuse_unused(["threads"], "on many measurements, whose --workers compute on one thread each")
    if hasattr(job.options, "sheet"):
        many = replace(many, sheet=job.options.sheet)
        job = replace(job, options=replace(job.options, sheet=None))
    found = find_items(job.one, inputs, job.output.out)
    if found.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.others.most_common(5))
        print(f"left out, of other kinds: {kinds}", file=sys.stderr)
    if many.dry_run:
        _, ready, _ = prepared(job, inputs, many, found)
        rows = list(lines_of(ready))
        if job.output.as_json:
            names = ("item", "does", "out")
            items = [dict(zip(names, row, strict=True)) for row in rows]
            return print_json({"task": job.task, "items": items})
        header = ("item", "", "result, or reason")
        return print_table(f"{job.task}: nothing is written", header, rows)
    line = CountLine(job.task)
    try:
        tally = restore_all(job, inputs, many, line, found)
    finally:
        line.close()
    figures = {"task": job.task, "out": str(job.output.out)} | tally.figures()
    if job.output.as_json:
        print_json(figures)
    else:
        table = [(name, str(figures[name])) for name in ("done", "kept", "failed", "left")]
        table += [("seconds", f"{figures['seconds']:.1f}"), ("network calls", str(tally.nfe))]
        table += [("items/s", f"{figures['items_per_second']:.3g}")]
        table += [("warnings (see the manifest)", str(tally.warnings))] if tally.warnings else []
        table += [(f"mean {n.replace('_', ' ')}", f"{v:.4g}") for n, v in figures["means"].items()]
        print_table(f"{job.task}: {job.output.out}", ("", ""), table)
    for item, reason in tally.reasons:
        print(f"{item}: {reason}", file=sys.stderr)
    if tally.failed > len(tally.reasons):
        print(f"and {tally.failed - len(tally.reasons)} more: see the manifest", file=sys.stderr)
    if tally.failed or tally.stopped:
        raise typer.Exit(4)


FOUND = (
    *(
        "slices",
        "volumes",
        "frames",
        "stills",
        "acceleration",
        "rank",
        "sigma",
        "gain",
        "sigma_median",
        "dead",
        "missing",
    ),
    "bad_bands",
)
QUALITY = (
    *("psnr", "ssim", "lpips", "nmse", "mpsnr", "mssim", "sam", "ergas"),
    *("gcnr_before", "gcnr_after", "ks_tissue"),
)


def in_words(figures: dict[str, Any]) -> str:
    """A run's figures in a line: the file, what was found, the effort, the quality."""
    out = figures["out"]
    files = [out] if isinstance(out, str) else out
    name = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    found = [f"{key.replace('_', ' ')} {figures[key]:.4g}" for key in FOUND if figures.get(key)]
    if "striped_columns" in figures:
        found.append(
            f"{figures['striped_columns']} striped columns and {figures['striped_rows']} rows"
        )
    found.append(f"{figures['nfe']} network calls in {figures['seconds']} s")
    for key in QUALITY:
        if isinstance(figures.get(key), float):
            before = figures.get(f"{key}_input")
            more = "" if before is None else f" ({before} before)"
            found.append(f"{key.replace('_', ' ').upper()} {figures[key]}{more}")
    return f"{name}: {', '.join(found)}"
