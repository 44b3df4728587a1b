"""What each task has of its own to be set: groups like those of :mod:`toolbox.tasks.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

Sigma = Annotated[float, Option(help="Noise on the data, in units of [0, 1].", min=0)]


@dataclass(frozen=True)
class Inpainting:
    """``mask``: a picture (white = missing), ``alpha`` (what is transparent in the photo),
    ``auto:KIND`` to find defects, or ``KIND:FRACTION`` to make one.
    """

    mask: Annotated[
        str,
        Option(
            "--mask",
            "-m",
            help=(
                "A picture (white = missing), `alpha`: what is transparent in the photo,"
                " auto:scratches, auto:dust, auto:text: what looks like it, or KIND:FRACTION to"
                " make one."
            ),
        ),
    ]
    sigma: Sigma = 0.0
    mask_is: Annotated[str, Option(help="What white marks in a mask file: missing or known.")] = (
        "missing"
    )
    mask_colour: Annotated[
        str | None,
        Option(
            help=(
                "The colour that the missing pixels are painted in (red, #ff0000 ...); difference:"
                " any, on a copy of the photo."
            )
        ),
    ] = None
    grow: Annotated[
        int | None,
        Option(
            help=(
                "Take pixels this near to missing ones as missing too; by default those that show"
                " traces of what a mask file marks, as soft edges and JPEGs leave them."
            ),
            min=0,
            max=100,
        ),
    ] = None
    feather: Annotated[
        int,
        Option(help="Blend what was filled into this many known pixels around.", min=0, max=100),
    ] = 0
    sheet: Annotated[
        Path | None,
        Option(help="Also write a picture: given, what is taken to be missing, restored."),
    ] = None


@dataclass(frozen=True)
class Denoising:
    """``sigma``: a number, or ``auto``."""

    sigma: Annotated[
        str, Option(help="White noise in units of [0, 1] (25 of 255: 0.098), or auto: estimated.")
    ] = "auto"
    whole: bool = False  # from pure noise, for calibration
    gain: float = 0.0  # variance of noise that grows with brightness, at white; found with sigma


@dataclass(frozen=True)
class Enlarging:
    """``kernel``: how the large picture became the small one, ``block``, ``bicubic`` or ``any``;
    ``sigma``: a number, or ``auto``.
    """

    factor: Annotated[
        int, Option(help="How many times larger, 2 to 8 (the networks know 2, 3 and 4).")
    ] = 4
    kernel: Annotated[
        str,
        Option(
            help="How the large picture became the small one: block (means of blocks), bicubic, or"
            " any: nobody knows, JPEG perhaps."
        ),
    ] = "any"
    sigma: Annotated[
        str,
        Option(
            help="Noise on the small picture, in units of [0, 1], or auto: estimated, and taken off"
            " first where it would be seen."
        ),
    ] = "auto"


@dataclass(frozen=True)
class Deblurring:
    """``blur``: standard deviation of the Gaussian, in pixels; ``sigma``: a number, or ``auto``;
    ``start_level`` None: what suits the blur, 0: from noise.
    """

    blur: Annotated[float, Option(help="Standard deviation of the Gaussian blur, in pixels.")]
    sigma: Annotated[
        str,
        Option(
            help="Noise on the data, in units of [0, 1], or auto: estimated, JPEG's errors too."
        ),
    ] = "auto"
    start_level: Annotated[
        float | None,
        Option(
            help=(
                "Noise level (b/a, range [-1, 1]) to start at from the regularized inverse; by"
                " default what suits the blur, 0: start from noise."
            ),
            min=0,
            max=100,
        ),
    ] = None


@dataclass(frozen=True)
class Dehazing:
    """``view``: short side of the view that haze is judged on."""

    view: Annotated[
        int, Option(help="Short side, in pixels, of the view that haze is judged on.", min=16)
    ] = 128


@dataclass(frozen=True)
class Pairs:
    """``mask``: of the degraded pixels, for models that are shown one."""

    mask: Annotated[
        Path | None,
        Option(
            "--mask", "-m", help="White where the picture is degraded, for models that see one."
        ),
    ] = None


@dataclass(frozen=True)
class Scanning:
    """How a scan was sampled, or is to be simulated."""

    mask: Annotated[
        str | None,
        Option(
            "--mask",
            "-m",
            help=(
                "Sampled points: a file (.npy, .npz), or a kind to undersample by: random,"
                " equispaced, equispaced-fraction, poisson, partial. [default: as the file is"
                " sampled]"
            ),
        ),
    ] = None
    acceleration: Annotated[float, Option(help="With a kind of mask.")] = 4.0
    center_fraction: Annotated[
        float | None, Option(help="Share of central columns. [default: 0.32/acceleration]")
    ] = None
    coils: Annotated[
        str,
        Option(
            help=(
                "espirit, a file of maps (.npz), a number of coils to simulate, or auto: the maps"
                " in the file, otherwise espirit."
            )
        ),
    ] = "auto"
    sigma: Annotated[
        float | None,
        Option(help="Noise of real and imaginary part of the k-space. [default: estimated]"),
    ] = None
    volume: Annotated[
        int | None,
        Option(
            help=(
                "Of a file of several volumes (contrasts, moments, repetitions, averages) only this"
                " one, counted from 0. [default: all, one after the other]"
            ),
            min=0,
        ),
    ] = None


@dataclass(frozen=True)
class Cubes:
    """How a cube is read, and what is known of it; ``quicklook``: a picture of the result."""

    sigma: Annotated[
        str, Option(help="Noise in the cube's units, or auto: estimated per band.")
    ] = "auto"
    rank: Annotated[str, Option(help="Dimensions of the spectral subspace, or auto.")] = "auto"
    key: Annotated[str | None, Option(help="Which array of a .mat, .npz or .h5 file.")] = None
    band_axis: Annotated[
        int | None,
        Option(help="Which of its axes holds the bands (0, 1, 2); the last one by default."),
    ] = None
    dead: Annotated[
        Path | None, Option(help="A cube that is not 0 where entries are known to be dead.")
    ] = None
    quicklook: Annotated[
        Path | None, Option(help="Also write a picture: before, after, spectra.")
    ] = None


@dataclass(frozen=True)
class Frames:
    """Two priors, how a clip is read, and how its frames follow one another."""

    strength: Annotated[
        float, Option("--haze-strength", help="Above 1 more haze is taken away, below 1 less.")
    ] = 1.0
    tissue: Annotated[
        str,
        Option(
            help=(
                "A network that is shown the hazy frame, or a tissue prior: a shipped model, a"
                " diffusers folder or an exported bundle."
            )
        ),
    ] = "ultrasound"
    haze: Annotated[
        str | None,
        Option(help="Haze prior, beside a tissue prior.", show_default="ultrasound-haze"),
    ] = None
    sigma: Annotated[
        float | None,
        Option(
            help="With priors: noise that is neither tissue nor haze, in units of [0, 1].",
            show_default="0.02",
        ),
    ] = None
    warm_start: Annotated[
        float | None,
        Option(help="Enter each frame at this noise level from the last one's result."),
    ] = None
    stream: Annotated[
        bool, Option("--stream", help="Several frames in one network call (pays on a GPU).")
    ] = False
    dynamic_range: Annotated[float, Option(help="dB that are shown of signals.")] = 60.0
    grey: Annotated[bool, Option("--grey", help="Average the channels of coloured pictures.")] = (
        False
    )
    sampling_rate: Annotated[
        float | None, Option(help="Of channel data, Hz, where the file does not say.")
    ] = None
    haze_out: Annotated[Path | None, Option(help="Also write what was taken away.")] = None
    regions: Annotated[
        Path | None,
        Option(
            help='JSON {"tissue": [[top, left, bottom, right]], "blood": ...}: prints gCNR, KS.'
        ),
    ] = None


# the options of each task
OPTIONS: dict[str, type] = {
    "inpaint": Inpainting,
    "denoise": Denoising,
    "superresolve": Enlarging,
    "deblur": Deblurring,
    "dehaze": Dehazing,
    "paired": Pairs,
    "mri": Scanning,
    "hsi": Cubes,
    "ultrasound": Frames,
}
