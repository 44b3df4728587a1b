"""The settings that calls of several tasks share, in groups. Their fields are the options of the
command line (:func:`toolbox.cli.options.grouped`), their values what the tasks take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

CORRECTIONS = "ddnm, ddnm+, ddrm, diffpir, dps, mmps, pigdm, repaint"
DEFAULT_MODEL = "photo-int8"
SMALL_PICTURES = "photo-x4-int8"
COLOUR, GREY = "colour", "grey"  # denoisers

Seed = Annotated[int, Option(help="Sample k uses seed + k.", min=0, max=2**62)]
Solver = Annotated[str, Option(help="ddim, pndm, plms, ...; an unknown name lists all.")]
Steps = Annotated[
    int | None,
    Option(
        help=(
            "Solver steps: few for the mean, more for posterior samples (mri: by default the"
            " model's own, 4 for several samples)."
        )
    ),
]
Grid = Annotated[str, Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")]
Correction = Annotated[
    str | None,
    Option(
        help=(
            f"What holds the run to the data: {CORRECTIONS}; mri also consistency, alternation,"
            " none, red-diff. Settings of one follow its name, as in dps:scale=0.5. By default what"
            " suits the task and its noise."
        )
    ),
]
Samples = Annotated[
    int,
    Option(
        "--samples", "-n", help="Posterior samples; the result is their mean.", min=1, max=10_000
    ),
]
Symmetries = Annotated[
    int, Option(help="Flips and turns averaged over: 1, 2, 4, 8; each costs its own network call.")
]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout.")]


Cache = Annotated[
    str | None,
    Option(
        help=(
            "Reuse the U-Net's deep features from step to step: 2 computes them at every second"
            " one, 0,1,4 at these steps. For runs of many steps."
        )
    ),
]


@dataclass(frozen=True)
class Settings:
    """A run: the solver, its steps (None: the task's own number), their times, the correction; in
    what tiles and symmetries the network is asked.

    ``timesteps``: the only times that the network may be asked at where the noise decides them;
    empty: any, or those that an exported network holds.
    """

    solver: Solver = "ddim"
    steps: Steps = None
    grid: Grid = "trailing"
    correction: Correction = None
    tile: Annotated[
        int,
        Option(
            help="Side of the tiles for larger pictures, in pixels; 0: what suits the network, at"
            " most 512."
        ),
    ] = 0
    symmetries: Symmetries = 1
    timesteps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prior:
    """The network: which one, where it runs, and whether it reuses its features."""

    model: Annotated[
        str,
        Option(
            help=(
                "A shipped model (`restobox models`), a file of weights, a diffusers folder or an"
                " exported bundle."
            )
        ),
    ] = DEFAULT_MODEL
    device: Annotated[
        str,
        Option(
            help="cpu, cuda; for bundles openvino, openvino-bf16; auto: the fastest of them here."
        ),
    ] = "cpu"
    cache: Cache = None

    @property
    def place(self) -> dict[str, Any]:
        """What :func:`toolbox.api.load` takes beside the model.

        Raises:
            ValueError: a cache that is no number and no list of numbers.
        """
        return {"device": self.device, "cache": full_steps(self.cache)}


def full_steps(text: str | None) -> int | tuple[int, ...] | None:
    """The steps that ``--cache`` names.

    Raises:
        ValueError: no number and no list of numbers.
    """
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            "--cache is a whole number from 2, or numbers of steps ascending from 0 such as"
            f" 0,1,4; got {text!r}"
        ) from None
    return tuple(numbers) if "," in text else numbers[0]


def _said(text: str, *names: str) -> Any:
    return Option(*names, help=text, rich_help_panel="What the weights of a MODEL file don't tell")


@dataclass(frozen=True)
class Computing:
    """How a command computes, whatever it does: those that take a model have these options."""

    threads: Annotated[
        int | None,
        Option(
            help="Of the processor, for networks. [default: as many as it has cores]",
            min=1,
            max=1024,
        ),
    ] = None


@dataclass(frozen=True)
class Checkpoint:
    """What is not in the weights of a file, and is else assumed as the released ones are. Every
    command that takes a model has these options (:func:`toolbox.cli.options.grouped`).
    """

    num_head_channels: Annotated[
        int | None, _said("guided-diffusion: channels of a head of attention. [default: 64]")
    ] = None
    num_heads: Annotated[
        int | None, _said("Heads of attention, in their place. [default: improved-diffusion 4]")
    ] = None
    use_new_attention_order: Annotated[
        bool | None, _said("guided-diffusion: the later order of query, key and value.")
    ] = None
    schedule: Annotated[str | None, _said("Noise that it was trained under: linear or cosine.")] = (
        None
    )
    train_steps: Annotated[
        int | None, _said("Steps that it was trained with. [default: 1000; Resfusion 12]")
    ] = None
    sum_scale: Annotated[
        float | None, _said("RDDM: the noise's variance at the end. [default: 0.01]")
    ] = None
    objective: Annotated[
        str | None, _said("RDDM, Resfusion: what it estimates, in the authors' words.")
    ] = None
    groups: Annotated[int | None, _said("RDDM, Resfusion: groups of norms. [default: 8]")] = None
    class_label: Annotated[
        int | None, _said("The class that a class-conditional network is asked for.", "--class")
    ] = None
    prompt: Annotated[str | None, _said("Latent networks with text: what the picture shows.")] = (
        None
    )
    negative_prompt: Annotated[str | None, _said("What it doesn't show. [default: empty]")] = None
    guidance: Annotated[
        float | None,
        _said(
            "How far the answer goes from the negative prompt (0) to the prompt (1) and beyond."
            " [default: 7.5]"
        ),
    ] = None
    vae: Annotated[
        str | None, _said("A latent network's autoencoder, where it isn't in the model's folder.")
    ] = None
    decoder: Annotated[str | None, _said("Bundle of its exported decoder.")] = None


@dataclass(frozen=True)
class Draws:
    """Posterior samples and their seeds."""

    seed: Seed = 0
    samples: Samples = 1


@dataclass(frozen=True)
class Output:
    """Where results go, and what is said of them."""

    out: Annotated[
        Path,
        Option(
            "--out",
            "-o",
            help=(
                "The result; its suffix gives the format (pictures: PNG, TIFF, JPEG, WebP, .dcm;"
                " mri: .nii.gz, .h5, .dcm or a folder of them, .png; hsi: .hdr, .mat, .npz, .h5,"
                " .tif; ultrasound: a folder, .h5, .dcm or a picture)."
            ),
        ),
    ]
    std: Annotated[
        bool, Option("--std", help="Also write where the samples disagree (needs -n 2 or more).")
    ] = False
    reference: Annotated[
        Path | None, Option(help="The truth: prints how close the result comes to it.")
    ] = None
    quality: Annotated[int, Option(help="Of JPEG and WebP outputs.", min=1, max=100)] = 95
    write_samples: Annotated[
        bool,
        Option(
            "--write-samples",
            help="Also write each posterior sample, as NAME-sample-000 ... (needs -n 2 or more).",
        ),
    ] = False
    as_json: Json = False

    def sample_files(self, count: int) -> list[Path]:
        """Where samples go; none unless they are asked for.

        Raises:
            ValueError: there is one sample, which is the result.
        """
        if not self.write_samples:
            return []
        if count < 2:
            raise ValueError("--write-samples needs at least two samples: add -n 4")
        name = self.out.name
        ending = name[-7:] if name.lower().endswith(".nii.gz") else self.out.suffix
        stem = name[: len(name) - len(ending)]
        return [self.out.with_name(f"{stem}-sample-{k:03d}{ending}") for k in range(count)]


def _many(text: str, *names: str, **limits: Any) -> Any:
    return Option(*names, help=text, rich_help_panel="Several inputs", **limits)


@dataclass(frozen=True)
class Many:
    """How several measurements are restored (:mod:`toolbox.tasks.scale`)."""

    suffix: Annotated[
        str | None, _many("Ends the results' names: .tif (another format), -clean, or -clean.tif.")
    ] = None
    resume: Annotated[
        bool, _many("Go on in OUT: restore only what is missing or changed.", "--resume")
    ] = False
    dry_run: Annotated[
        bool, _many("Say what would be restored, and where to; write nothing.", "--dry-run")
    ] = False
    sheet: Annotated[
        Path | None, _many("Also write a picture of the first results beside what was given.")
    ] = None
    workers: Annotated[
        int | None,
        _many("Processes of one thread each, on this machine (extra `scale`).", min=1, max=1024),
    ] = None
    scheduler: Annotated[
        str | None, _many("Address of a Dask scheduler, whose workers do it: tcp://HOST:8786.")
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        _many("With --workers and --device cuda: 1, or less to share one.", min=0.01, max=1),
    ] = None
    clip: Annotated[
        bool,
        _many(
            "The pictures are the frames of a clip: one seed for all, in the order of the numbers"
            " in their names, and those that don't change are not restored again.",
            "--clip",
        ),
    ] = False
    still: Annotated[
        float,
        _many(
            "With --clip: the most that a pixel of an unchanged frame may differ, of 0 to 1.",
            min=0,
            max=1,
        ),
    ] = 0.0
    refresh: Annotated[
        int, _many("With --clip: at most so many frames in a row are not restored.", min=0)
    ] = 25


@dataclass(frozen=True)
class Request:
    """A call of ``restobox restore``; ``options`` are the task's own."""

    path: Path
    output: Output
    options: Any
    prior: Prior
    settings: Settings
    draws: Draws = Draws()
