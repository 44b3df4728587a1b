"""``restobox restore``: a measurement of the user's in, an image out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolbox.cli.options import (
    DEFAULT_MODEL,
    Commands,
    Device,
    Grid,
    Json,
    Model,
    Picture,
    PictureOut,
    Reference,
    Samples,
    Seed,
    Solver,
    Std,
    Steps,
    Symmetries,
    Tile,
    refuse_unused,
)
from toolbox.cli.output import ProgressBar, print_json

app = Commands(help="Restore a measurement of yours.", no_args_is_help=True)


SMALL_BLOCKS = "photo-x4-int8"
CORRECTIONS = "ddnm, ddnm+, ddrm, diffpir, dps, mmps, pigdm, repaint"
Correction = Annotated[
    str | None, typer.Option(help=f"{CORRECTIONS}; the noise decides by default.")
]
Sigma = Annotated[float, typer.Option(help="Noise on the picture, in units of [0, 1].", min=0)]


@app.command("inpaint")
def inpaint(
    context: typer.Context,
    image: Annotated[
        Path,
        typer.Argument(
            help="PNG, JPEG, WebP, TIFF ...; 8 or 16 bits, grey or colour, with or without alpha."
        ),
    ],
    mask: Annotated[
        str,
        typer.Option(
            "--mask", "-m", help="A picture (white = missing), or KIND:FRACTION to make one."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The restored picture (PNG, TIFF, JPEG, WebP).")
    ],
    model: Model = DEFAULT_MODEL,
    solver: Solver = "ddim",
    steps: Steps = 5,
    grid: Annotated[
        str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")
    ] = "trailing",
    correction: Annotated[
        str | None,
        typer.Option(
            help=(
                "ddnm, ddnm+, ddrm, diffpir, dps, mmps, pigdm, repaint; the noise decides by"
                " default."
            )
        ),
    ] = None,
    sigma: Annotated[
        float, typer.Option(help="Noise on the known pixels, in units of [0, 1].")
    ] = 0.0,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Symmetries = 1,
    std: Annotated[
        bool,
        typer.Option(
            "--std", help="Also write OUT-std.png, where the samples disagree (needs -n 2 or more)."
        ),
    ] = False,
    reference: Annotated[
        Path | None, typer.Option(help="The true picture: prints PSNR, SSIM and LPIPS against it.")
    ] = None,
    tile: Annotated[
        int, typer.Option(help="Side of the tiles for larger pictures, in pixels.")
    ] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Fill the missing pixels of a photo."""
    from toolbox.api import holds_restoration
    from toolbox.tasks.photo import run_inpainting

    if holds_restoration(model):
        own = ("solver", "steps", "grid", "correction", "tile", "symmetries")
        refuse_unused(context, own, "on a whole restoration, which was exported with its own")

    if std and samples < 2:
        raise ValueError("--std needs at least two samples: add -n 4")
    with ProgressBar("restoring", max(steps, 1) * max(samples, 1)) as bar:
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
            symmetries=symmetries,
            device=device,
            progress=bar.update,
        )
    if as_json:
        return print_json(figures)
    quality = "".join(
        f", {name.upper()} {figures[name]}"
        for name in ("psnr", "ssim", "lpips")
        if isinstance(figures.get(name), float)
    )
    print(f"{figures['out']}: {figures['nfe']} network calls in {figures['seconds']} s{quality}")
    if isinstance(figures.get("lpips"), str):
        print(f"no LPIPS: {figures['lpips']}", file=sys.stderr)


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
    _linear("denoise", 0.0, **locals())


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
    _linear("superresolve", factor, **locals())


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
    _linear("deblur", blur, **locals())


def _linear(
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


@app.command("mri")
def mri(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help=(
                "k-space (.h5, .mrd, .npz, .mat) or magnitude images (.nii.gz, DICOM) to simulate"
                " it from."
            )
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Result: .nii.gz, .h5 or .png.")],
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            "-m",
            help=(
                "Sampled points: a file (.npy, .npz), or a kind to undersample by: random,"
                " equispaced, "
                "equispaced-fraction, poisson. [default: as the file is sampled]"
            ),
        ),
    ] = None,
    acceleration: Annotated[float, typer.Option(help="With a kind of mask.")] = 4.0,
    center_fraction: Annotated[
        float | None, typer.Option(help="Share of central columns. [default: 0.32/acceleration]")
    ] = None,
    coils: Annotated[
        str,
        typer.Option(
            help=(
                "espirit, a file of maps (.npz), a number of coils to simulate, or auto: the maps"
                " in the file, otherwise espirit."
            )
        ),
    ] = "auto",
    model: Model = "mri",
    solver: Solver = "ddim",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Solver steps. [default: the model's own for one sample, the mean; 4 for several]"
        ),
    ] = None,
    grid: Annotated[
        str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")
    ] = "trailing",
    correction: Annotated[
        str | None,
        typer.Option(
            help=(
                "consistency, alternation, none, red-diff, ddnm, diffpir, pigdm, ...; by default"
                " what suits the model."
            )
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Noise of real and imaginary part of the k-space. [default: estimated]"),
    ] = None,
    seed: Seed = 0,
    samples: Samples = 1,
    std: Annotated[
        bool,
        typer.Option("--std", help="Also write where the samples disagree (needs -n 2 or more)."),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Reconstruct undersampled Cartesian MRI, one coil or many."""
    from toolbox.tasks.mri import run_mri

    if mask is None or Path(mask).exists():
        own = ("acceleration", "center_fraction")
        refuse_unused(context, own, "without a kind of --mask to undersample by")

    if samples > 1 and steps == 1:
        raise ValueError("one step gives the mean, the same for every sample: leave --steps out")
    if std and samples < 2:
        raise ValueError("--std needs at least two samples: add -n 4")
    with ProgressBar("reconstructing", 1) as bar:
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
        return print_json(figures)
    quality = "".join(
        f", {name.upper()} {figures[name]}" for name in ("psnr", "ssim", "nmse") if name in figures
    )
    files = figures["out"][0] + (
        f" and {len(figures['out']) - 1} more" if len(figures["out"]) > 1 else ""
    )
    effort = f"{figures['nfe']} network calls in {figures['seconds']} s"
    print(f"{files}: {figures['slices']} slices, R = {figures['acceleration']}, {effort}{quality}")
    if "note" in figures:
        print(figures["note"], file=sys.stderr)


@app.command("hsi")
def restore_hsi(
    cube: Annotated[
        Path, typer.Argument(help="A cube: ENVI (.hdr), .mat, .npz, .h5, multi-page TIFF.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The restored cube; its suffix gives the format.")
    ],
    model: Model = "grey",
    sigma: Annotated[
        str, typer.Option(help="Noise in the cube's units, or auto: estimated per band.")
    ] = "auto",
    rank: Annotated[
        str, typer.Option(help="Dimensions of the spectral subspace, or auto.")
    ] = "auto",
    solver: Solver = "ddim",
    steps: Steps = 1,
    correction: Annotated[
        str | None, typer.Option(help="Run from pure noise, held to the data by diffpir, ddnm+ ...")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Which array of a .mat, .npz or .h5 file.")
    ] = None,
    band_axis: Annotated[
        int | None,
        typer.Option(help="Which of its axes holds the bands (0, 1, 2); the last one by default."),
    ] = None,
    dead: Annotated[
        Path | None, typer.Option(help="A cube that is not 0 where entries are known to be dead.")
    ] = None,
    seed: Seed = 0,
    samples: Samples = 1,
    symmetries: Annotated[int, typer.Option(help="Flips and turns to average: 1, 2, 4, 8.")] = 8,
    quicklook: Annotated[
        Path | None, typer.Option(help="Also write a picture: before, after, spectra.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="The true cube: prints MPSNR, MSSIM, SAM and ERGAS against it."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Denoise a hyperspectral cube: random noise, stripes, dead lines and pixels, impulses."""
    from toolbox.tasks.hyperspectral import run_hsi

    with ProgressBar("restoring", 1) as bar:
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
        return print_json(figures)
    quality = "".join(
        f", {name.upper()} {figures[name]}"
        for name in ("mpsnr", "mssim", "sam", "ergas")
        if name in figures
    )
    found = f"rank {figures['rank']}, sigma {figures['sigma_median']:.4g} (median)"
    found += f", {figures['striped_columns']} striped columns and {figures['striped_rows']} rows"
    print(
        f"{figures['out']}: {found}, {figures['dead']:.2%} dead, {figures['nfe']} calls in"
        f" {figures['seconds']} s{quality}"
    )


@app.command("ultrasound")
def ultrasound(
    clip: Annotated[
        Path,
        typer.Argument(
            help="B-mode clip: a picture, a folder, .h5 (zea), .mat (channel data), DICOM."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder, a .h5 file, or a picture for one frame.")
    ],
    strength: Annotated[
        float,
        typer.Option("--haze-strength", help="Above 1 more haze is taken away, below 1 less."),
    ] = 1.0,
    tissue: Annotated[
        str,
        typer.Option(
            help="Tissue prior: a shipped model, a diffusers folder or an exported bundle."
        ),
    ] = "ultrasound-tissue",
    haze: Annotated[str, typer.Option(help="Haze prior.")] = "ultrasound-haze",
    sigma: Annotated[
        float, typer.Option(help="Noise that is neither tissue nor haze, in units of [0, 1].")
    ] = 0.02,
    solver: Solver = "ddim",
    steps: Steps = 4,
    correction: Annotated[
        str,
        typer.Option(
            help="diffpir, ddnm+, ddrm, repaint; pigdm, dps, mmps differentiate the networks."
        ),
    ] = "diffpir",
    seed: Seed = 0,
    samples: Samples = 1,
    warm_start: Annotated[
        float | None,
        typer.Option(help="Enter each frame at this noise level from the last one's result."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Several frames in one network call (pays on a GPU).")
    ] = False,
    dynamic_range: Annotated[float, typer.Option(help="dB that are shown of signals.")] = 60.0,
    grey: Annotated[
        bool, typer.Option("--grey", help="Average the channels of coloured pictures.")
    ] = False,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Of channel data, Hz, where the file does not say.")
    ] = None,
    haze_out: Annotated[Path | None, typer.Option(help="Also write what was taken away.")] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            help='JSON {"tissue": [[top, left, bottom, right]], "blood": ...}: prints gCNR, KS.'
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The clip without haze: prints PSNR and SSIM against it.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Take the haze out of ultrasound frames."""
    from toolbox.tasks.ultrasound import run_ultrasound

    with ProgressBar("dehazing", 1) as bar:
        figures = run_ultrasound(
            clip,
            out,
            tissue=tissue,
            haze=haze,
            strength=strength,
            sigma=sigma,
            solver=solver,
            steps=steps,
            correction=correction,
            seed=seed,
            num_samples=samples,
            warm_start=warm_start,
            stream=stream,
            dynamic_range=dynamic_range,
            grey=grey,
            sampling_rate=sampling_rate,
            haze_out=haze_out,
            regions=regions,
            reference=reference,
            device=device,
            progress=bar.update_of,
        )
    if as_json:
        return print_json(figures)
    names = ("psnr", "ssim", "gcnr_before", "gcnr_after", "ks_tissue")
    quality = "".join(f", {name} {figures[name]}" for name in names if name in figures)
    print(
        f"{figures['out']}: {figures['frames']} frames, {figures['nfe']} network calls in"
        f" {figures['seconds']} s{quality}"
    )


@app.command("dehaze")
def dehaze(
    image: Annotated[Path, typer.Argument(help="The hazy picture: PNG, JPEG, WebP, TIFF ...")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The restored picture (PNG, TIFF, JPEG, WebP).")
    ],
    model: Model = "haze-int8",
    solver: Solver = "rddm",
    steps: Steps = 5,
    seed: Seed = 0,
    samples: Samples = 1,
    reference: Annotated[
        Path | None, typer.Option(help="The clear picture: prints PSNR and SSIM against it.")
    ] = None,
    view: Annotated[
        int, typer.Option(help="Short side, in pixels, of the view that haze is judged on.", min=16)
    ] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Take the haze out of a photo."""
    options = {
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "num_samples": samples,
        "reference": reference,
        "view": view,
    }
    _paired(
        image, out, as_json, mask=None, tile=512, model=model, device=device, haze=True, **options
    )


@app.command("paired")
def paired(
    image: Annotated[
        Path, typer.Argument(help="The degraded picture (rain drops, shadow, low light ...).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The restored picture (PNG, TIFF, JPEG, WebP).")
    ],
    model: Annotated[
        str, typer.Option(help="A model folder trained by the recipe `paired`, or its bundle.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask", "-m", help="White where the picture is degraded, for models that see one."
        ),
    ] = None,
    solver: Solver = "rddm",
    steps: Steps = 5,
    seed: Seed = 0,
    samples: Samples = 1,
    reference: Annotated[
        Path | None, typer.Option(help="The clean picture: prints PSNR and SSIM against it.")
    ] = None,
    tile: Annotated[
        int, typer.Option(help="Side of the tiles for larger pictures, in pixels.")
    ] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Restore a photo with a model trained on pairs of degraded and clean ones."""
    options = {
        "solver": solver,
        "steps": steps,
        "seed": seed,
        "num_samples": samples,
        "reference": reference,
        "tile": tile,
    }
    _paired(
        image, out, as_json, mask=mask, view=None, model=model, device=device, haze=False, **options
    )


def _paired(image: Path, out: Path, as_json: bool, **options) -> None:
    from toolbox.tasks.paired import run_paired

    with ProgressBar("restoring", max(options["steps"], 1) * max(options["num_samples"], 1)) as bar:
        figures = run_paired(image, out, **options, progress=bar.update)
    if as_json:
        return print_json(figures)
    quality = "".join(
        f", {name.upper()} {figures[name]} ({figures[f'{name}_input']} before)"
        for name in ("psnr", "ssim")
        if name in figures
    )
    print(f"{figures['out']}: {figures['nfe']} network calls in {figures['seconds']} s{quality}")
