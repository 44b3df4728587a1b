"""``restobox restore denoise | superresolve | deblur``: pictures from linear measurements of
them.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from toolbox.cli.options import (
    DEFAULT_MODEL,
    Device,
    Grid,
    Json,
    Model,
    Picture,
    PictureOut,
    ProgressBar,
    Reference,
    Samples,
    Seed,
    Solver,
    Std,
    Steps,
    Symmetries,
    Tile,
    print_json,
)

app = typer.Typer()

SMALL_BLOCKS = "photo-x4-int8"
CORRECTIONS = "ddnm, ddnm+, ddrm, diffpir, dps, mmps, pigdm, repaint"
Correction = Annotated[
    str | None, typer.Option(help=f"{CORRECTIONS}; the noise decides by default.")
]
Sigma = Annotated[float, typer.Option(help="Noise on the picture, in units of [0, 1].", min=0)]


@app.command("denoise")
def denoise(
    image: Picture,
    out: PictureOut,
    sigma: Annotated[
        str,
        typer.Option(help="White noise in units of [0, 1] (25 of 255: 0.098), or auto: estimated."),
    ] = "auto",
    model: Model = "grey",
    solver: Solver = "ddim",
    steps: Annotated[
        int, typer.Option(help="Solver steps: 1 for the mean, more for posterior samples.")
    ] = 1,
    grid: Grid = "trailing",
    correction: Annotated[
        str | None,
        typer.Option(help=f"Run from pure noise, held to the data by one of {CORRECTIONS}."),
    ] = None,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    std: Std = False,
    reference: Reference = None,
    tile: Tile = 512,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Remove white noise from a picture."""
    _run("denoise", 0.0, **locals())


@app.command("superresolve")
def superresolve(
    image: Picture,
    out: PictureOut,
    factor: Annotated[
        int, typer.Option(help="How many times larger, 2 to 8 (the networks know 2, 3 and 4).")
    ] = 4,
    kernel: Annotated[
        str,
        typer.Option(
            help="How the large picture became the small one: block (means of blocks) or bicubic."
        ),
    ] = "block",
    sigma: Sigma = 0.0,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"By default {SMALL_BLOCKS} for means of 4 x 4 blocks, else {DEFAULT_MODEL}."
        ),
    ] = None,
    solver: Solver = "ddim",
    steps: Annotated[
        int, typer.Option(help="Solver steps: 1 for the mean, more for posterior samples.")
    ] = 1,
    grid: Grid = "trailing",
    correction: Correction = None,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    std: Std = False,
    reference: Reference = None,
    tile: Tile = 512,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Enlarge a picture."""
    model = model or (SMALL_BLOCKS if (factor, kernel) == (4, "block") else DEFAULT_MODEL)
    _run("superresolve", factor, **locals())


@app.command("deblur")
def deblur(
    image: Picture,
    out: PictureOut,
    blur: Annotated[
        float, typer.Option(help="Standard deviation of the Gaussian blur, in pixels.")
    ],
    sigma: Sigma = 0.01,
    model: Model = "grey",
    solver: Solver = "ddim",
    steps: Steps = 5,
    start_level: Annotated[
        float,
        typer.Option(
            help=(
                "Noise level (b/a, range [-1, 1]) to start at from the regularized inverse; 0:"
                " start from noise."
            ),
            min=0,
        ),
    ] = 0.4,
    grid: Grid = "trailing",
    correction: Correction = None,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    std: Std = False,
    reference: Reference = None,
    tile: Tile = 512,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Sharpen a picture that a Gaussian blurred."""
    _run("deblur", blur, **locals())


def _run(
    task: str,
    amount: float,
    *,
    steps: int,
    samples: int,
    std: bool,
    sigma,
    as_json: bool,
    factor=None,
    blur=None,
    **options,
) -> None:
    from toolbox.tasks.photo import run_linear

    if std and samples < 2:
        raise ValueError("--std needs at least two samples: add -n 4")
    if sigma != "auto":
        try:
            sigma = float(sigma)
        except ValueError:
            raise ValueError(f"--sigma must be a number or auto; got {sigma!r}") from None
    with ProgressBar("restoring", max(steps, 1) * max(samples, 1)) as bar:
        figures = run_linear(
            task=task,
            amount=amount,
            sigma=sigma,
            steps=steps,
            num_samples=samples,
            std=std,
            progress=bar.update,
            **options,
        )
    if as_json:
        return print_json(figures)
    quality = "".join(
        f", {name.upper()} {figures[name]}"
        for name in ("psnr", "ssim", "lpips")
        if isinstance(figures.get(name), float)
    )
    noise = f"sigma {figures['sigma']:.4g}, " if figures["sigma"] else ""
    print(
        f"{figures['out']}: {noise}{figures['nfe']} network calls in {figures['seconds']}"
        f" s{quality}"
    )
    if isinstance(figures.get("lpips"), str):
        print(f"no LPIPS: {figures['lpips']}", file=sys.stderr)
