"""``restobox restore``: a measurement of the user's in, an image out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from toolbox.cli.options import Commands, Picture, Without, given, refuse_unused
from toolbox.cli.output import ProgressBar, print_json
from toolbox.tasks.options import (
    COLOUR,
    DEFAULT_MODEL,
    GREY,
    SMALL_BLOCKS,
    Cubes,
    Deblurring,
    Dehazing,
    Denoising,
    Draws,
    Enlarging,
    Frames,
    Inpainting,
    Json,
    Output,
    Pairs,
    Prior,
    Request,
    Scanning,
    Settings,
)

app = Commands(help="Restore a measurement of yours.", no_args_is_help=True)
RDDM = Settings("rddm", 5)
ByColour = Annotated[
    str | None, typer.Option(help=f"By default {COLOUR}, for grey pictures {GREY}.")
]


@app.command("inpaint")
def inpaint(
    image: Picture,
    output: Output,
    options: Inpainting,
    prior: Prior = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Fill the missing pixels of a photo."""
    from toolbox.api import holds_restoration

    if holds_restoration(prior.model):
        own = ("solver", "steps", "grid", "correction", "tile", "symmetries", "cache")
        refuse_unused(own, "on a whole restoration, which was exported with its own")
    if not Path(options.mask).exists():
        refuse_unused(("mask_is", "mask_colour"), "without a mask file")
    _restore("inpaint", Request(image, output, options, prior, settings, draws), as_json)


@app.command("denoise")
def denoise(
    image: Picture,
    output: Output,
    options: Denoising,
    model: ByColour = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Remove white noise from a picture."""
    prior = replace(prior, model=model or by_colour(image))
    _restore("denoise", Request(image, output, options, prior, settings, draws), as_json)


@app.command("superresolve")
def superresolve(
    image: Picture,
    output: Output,
    options: Enlarging,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"By default {SMALL_BLOCKS} for means of 4 x 4 blocks, else {DEFAULT_MODEL}."
        ),
    ] = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Enlarge a picture."""
    small = (options.factor, options.kernel) == (4, "block")
    model = model or (SMALL_BLOCKS if small else DEFAULT_MODEL)
    prior = replace(prior, model=model)
    _restore("superresolve", Request(image, output, options, prior, settings, draws), as_json)


@app.command("deblur")
def deblur(
    image: Picture,
    output: Output,
    options: Deblurring,
    model: ByColour = None,
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Settings = Settings(steps=5),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Sharpen a picture that a Gaussian blurred."""
    prior = replace(prior, model=model or by_colour(image))
    _restore("deblur", Request(image, output, options, prior, settings, draws), as_json)


@app.command("dehaze")
def dehaze(
    image: Picture,
    output: Output,
    options: Dehazing,
    prior: Prior = Prior("haze-int8"),
    settings: Annotated[Settings, Without("correction", "tile", "symmetries")] = Settings(
        "rddm", 5
    ),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Take the haze out of a photo."""
    _restore("dehaze", Request(image, output, options, prior, settings, draws), as_json)


@app.command("paired")
def paired(
    image: Picture,
    output: Output,
    options: Pairs,
    model: Annotated[
        str, typer.Option(help="A model folder trained by the recipe `paired`, or its bundle.")
    ],
    prior: Annotated[Prior, Without("model")] = Prior(),
    settings: Annotated[Settings, Without("correction", "symmetries")] = RDDM,
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Restore a photo (rain drops, shadow, low light ...) with a model trained on pairs of degraded
    and clean ones.
    """
    prior = replace(prior, model=model)
    _restore("paired", Request(image, output, options, prior, settings, draws), as_json)


@app.command("mri")
def mri(
    file: Annotated[
        Path,
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
    as_json: Json = False,
) -> None:
    """Reconstruct undersampled Cartesian MRI, one coil or many."""
    if options.mask is None or Path(options.mask).exists():
        own = ("acceleration", "center_fraction")
        refuse_unused(own, "without a kind of --mask to undersample by")
    _restore("mri", Request(file, output, options, prior, settings, draws), as_json)


@app.command("hsi")
def hsi(
    cube: Annotated[
        Path,
        typer.Argument(
            help="A cube: ENVI (.hdr), .mat, .npy, .npz, .h5, .he5, .nc, TIFF, a folder of bands."
        ),
    ],
    output: Annotated[Output, Without("std", "quality", "write_samples")],
    options: Cubes,
    prior: Prior = Prior("grey"),
    settings: Annotated[Settings, Without("grid", "tile")] = Settings(steps=1, symmetries=8),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Denoise a hyperspectral cube: random noise, stripes, dead lines and pixels, impulses."""
    _restore("hsi", Request(cube, output, options, prior, settings, draws), as_json)


@app.command("ultrasound")
def ultrasound(
    clip: Annotated[
        Path,
        typer.Argument(
            help="B-mode clip: a picture, a folder, .h5 (zea), .mat (channel data), DICOM."
        ),
    ],
    output: Annotated[Output, Without("std", "quality")],
    options: Frames,
    prior: Annotated[Prior, Without("model")] = Prior(""),
    settings: Annotated[Settings, Without("grid", "tile", "symmetries")] = Settings(
        steps=4, correction="diffpir"
    ),
    draws: Draws = Draws(),
    as_json: Json = False,
) -> None:
    """Take the haze out of ultrasound frames."""
    _restore("ultrasound", Request(clip, output, options, prior, settings, draws), as_json)


def by_colour(image: Path) -> str:
    """The denoiser of a picture: one of planes where its colours are one."""
    from restoration.io.images import read_image
    from toolbox.tasks.photo import denoiser_of

    return denoiser_of(read_image(image).pixels)


def _restore(task: str, request: Request, as_json: bool) -> None:
    from toolbox.api import advice
    from toolbox.tasks import task_by_name

    told, asked = advice(request.prior.model, task, request.draws.samples), given()
    own = {name: value for name, value in told.items() if name not in asked}
    request = replace(request, settings=replace(request.settings, **own))
    with ProgressBar(task, (request.settings.steps or 1) * request.draws.samples) as bar:
        figures = task_by_name(task).restore(request, bar.update_of)
    if as_json:
        return print_json(figures)
    print(in_words(figures))
    for note in (figures.get("note"), figures.get("lpips")):
        if isinstance(note, str):
            print(note, file=sys.stderr)


FOUND = (
    *("slices", "frames", "acceleration", "rank", "sigma", "sigma_median", "dead", "missing"),
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
