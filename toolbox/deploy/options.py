"""Options of the deployment's commands, in groups (:func:`toolbox.cli.options.grouped`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from toolbox.tasks.settings import Cache, Correction, Grid, Seed

if TYPE_CHECKING:
    from solvers.denoiser import Denoiser
    from toolbox.tasks.base import Task

TASKS = "inpaint, denoise, superresolve, deblur, mri, ultrasound, dehaze, paired, hsi"


@dataclass(frozen=True)
class Trajectories:
    """The runs that a calibration follows: those that are to be deployed."""

    task: Annotated[
        str,
        Option(
            help=(
                f"{TASKS}; generate: from noise, no --data; decode: an autoencoder's decoder, MODEL"
                " is its vae/."
            )
        ),
    ] = "inpaint"
    solver: Annotated[
        str, Option(help="The one to deploy; of dehaze and paired also several: rddm,resfusion.")
    ] = "ddim"
    steps: Annotated[
        list[int] | None,
        Option(
            help=(
                "Solver steps to deploy; give it several times for several. [default: those of the"
                " task's default runs; denoise: 101 levels of noise]"
            )
        ),
    ] = None
    grid: Grid = "trailing"
    correction: Correction = None
    sigma: Annotated[
        float | None, Option(help="Noise on the measurements, in units of [0, 1].", min=0)
    ] = None
    partner: Annotated[
        str | None, Option(help="ultrasound: the other prior, tissue:MODEL or haze:MODEL.")
    ] = None


@dataclass(frozen=True)
class Recording:
    """How much of it is recorded."""

    count: Annotated[int, Option(help="Measurements to restore.", min=1)] = 16
    side: Annotated[int | None, Option(help="Side of the crops to restore, in pixels.", min=1)] = (
        None
    )
    per_timestep: Annotated[
        int | None, Option(help="Most network inputs to keep per timestep. [default: 8]", min=1)
    ] = None
    select: Annotated[
        str | None, Option(help="Choose --samples of them: uniform, ptq4dm, eda-dm.")
    ] = None
    samples: Annotated[int | None, Option("--samples", "-n", help="Network inputs to choose.")] = (
        None
    )
    seed: Seed = 0
    workers: Annotated[
        int | None,
        Option(
            help="Processes of one thread each (extra `scale`): the same bytes for any number.",
            min=1,
            max=1024,
        ),
    ] = None
    scheduler: Annotated[
        str | None, Option(help="Address of a Dask scheduler, whose workers do it.")
    ] = None


@dataclass(frozen=True)
class Origin:
    """What a bundle or quantized network was made from."""

    model: Annotated[str, Option(help="The float model.")]
    quantized: Annotated[Path | None, Option(help="Folder written by `restobox quantize`.")] = None
    calibration: Annotated[
        Path | None,
        Option(
            help=(
                "File written by `restobox calibrate` (for an honest error, of other pictures); not"
                " for a restorer."
            )
        ),
    ] = None


@dataclass(frozen=True)
class Trials:
    """Simulated measurements with their truth."""

    data: Annotated[
        Path | None,
        Option(
            help="What to restore in every way, as for `calibrate`; none: networks are compared."
        ),
    ] = None
    count: Annotated[int, Option(help="Measurements to restore.", min=1)] = 8
    side: Annotated[int, Option(help="Side of the crops, in pixels.", min=16)] = 256
    seed: Seed = 0
    partner: Annotated[
        str | None, Option(help="ultrasound: the other prior, tissue:MODEL or haze:MODEL.")
    ] = None

    def options(self, task: Task, denoiser: Denoiser) -> Any:
        """Of the task's trials."""
        numbers: dict[str, Any] = {} if self.partner is None else {"partner": self.partner}
        return task.simulated(denoiser, **numbers)


@dataclass(frozen=True)
class Checks:
    """What breaks a limit, what is written of it, and what runs the bundle."""

    psnr_drop: Annotated[
        float, Option(help="Largest accepted mean loss of PSNR on restored pictures, in dB.")
    ] = 0.1
    error: Annotated[
        float | None,
        Option(
            help=(
                "Largest accepted mean relative error of a call. [default: 0.05 where no pictures"
                " are restored]"
            ),
            min=0,
        ),
    ] = None
    report: Annotated[
        Path | None, Option(help="Folder for report.html, report.json and pictures.")
    ] = None
    device: Annotated[str, Option(help="What runs the bundle: cpu (ONNX Runtime) or openvino.")] = (
        "cpu"
    )


@dataclass(frozen=True)
class Graph:
    """A bundle: for what runtime, of a network or of a whole restoration."""

    quantized: Annotated[
        Path | None, Option(help="Folder written by `restobox quantize` (not for target float).")
    ] = None
    target: Annotated[
        str,
        Option(
            help=(
                "cpu (ONNX Runtime's integer kernels), openvino, tensorrt (int8 and fp16), cuda"
                " (fp16) or float."
            )
        ),
    ] = "cpu"
    restorer: Annotated[
        bool,
        Option("--restorer", help="The whole restoration in one graph, with the options below."),
    ] = False
    summary: Annotated[str, Option(help="A sentence for the model card.")] = ""
    seed: Annotated[int, Option(help="Seed of the calibration, for the record.")] = 0
    times: Annotated[
        str,
        Option(
            help=(
                "Where an 8-bit network answers: calibrated (its table of times), or any (the"
                " layers of time stay in the graph)."
            )
        ),
    ] = "calibrated"


@dataclass(frozen=True)
class Whole:
    """The restoration that one graph holds."""

    task: Annotated[
        str, Option(help="inpaint, denoise, superresolve, deblur, mri, hsi, dehaze, paired.")
    ] = "inpaint"
    factor: Annotated[int | None, Option(help="Of superresolve. [default: 4]")] = None
    blur: Annotated[
        float | None, Option(help="Of deblur: standard deviation in pixels. [default: 1.6]")
    ] = None
    coils: Annotated[int | None, Option(help="Of mri. [default: 1]")] = None
    sigma: Annotated[
        float | None,
        Option(
            help=(
                "Noise of the data in units of [0, 1]; mri: 0 = exact, else an input. [default: 0,"
                " deblur: 0.01]"
            )
        ),
    ] = None
    size: Annotated[
        str,
        Option(help="WIDTHxHEIGHT of the restorer's pictures; larger ones go through in tiles."),
    ] = "256x256"
    estimates: Annotated[
        bool, Option("--estimates", help="The graph also returns every call's image estimate.")
    ] = False
    cache: Cache = None


@dataclass(frozen=True)
class Quantizing:
    """Which recipe, and how much of it may be left out."""

    recipe: Annotated[Path | None, Option(help="Quantization recipe (JSON); W8A8 by default.")] = (
        None
    )
    preset: Annotated[
        str | None,
        Option(help="best-w8a8, best-w4a8, ptq4dm-w8a8, ...; an unknown name lists all."),
    ] = None
    solver: Annotated[
        str | None,
        Option(help="The solver to deploy; refused if the calibration followed another."),
    ] = None
    float_macs: Annotated[
        float | None,
        Option(
            help=(
                "Share of the multiplications that may stay in float, where that helps most."
                " [default: the recipe's, 0]"
            )
        ),
    ] = None
    iterations: Annotated[
        int | None,
        Option(
            help="Steps for each unit of learned rounding. [default: the recipe's, 300; the papers:"
            " 5000 to 20 000]"
        ),
    ] = None
    lambda_round: Annotated[
        float | None,
        Option(
            "--lambda",
            help="Weight of learned rounding's regulariser; 0: EDA-DM's release. [default: the"
            " recipe's, 0.01]",
        ),
    ] = None
    state: Annotated[
        Path | None,
        Option(help="Folder for finished blocks of learned rounding; a rerun goes on from it."),
    ] = None
