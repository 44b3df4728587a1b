"""Options of the benchmarks, in groups (:func:`toolbox.cli.options.grouped`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from toolbox.tasks.settings import Correction, Samples, Seed, Steps, Symmetries


@dataclass(frozen=True)
class Methods:
    """What is measured: every model with every solver; None: the benchmark's own choice."""

    model: Annotated[
        list[str] | None, Option("--model", "--method", help="Models, or classical methods.")
    ] = None
    solver: Annotated[list[str] | None, Option(help="Solvers, each with every model.")] = None
    steps: Annotated[
        int | None, Option(help="Solver steps.", show_default="as in `restore`", min=1)
    ] = None
    symmetries: Symmetries = 1


@dataclass(frozen=True)
class Sampling:
    """What draws samples; None: as ``restobox restore`` does."""

    model: Annotated[str, Option(help="A model.")]
    solver: Annotated[
        str | None, Option(help="Of the samples.", show_default="as in `restore`")
    ] = None
    steps: Steps = None
    correction: Correction = None


@dataclass(frozen=True)
class Extent:
    """On how much, with how many samples of each."""

    limit: Annotated[int | None, Option(help="Use the first of them only.", min=1)] = None
    samples: Samples = 1
    seed: Seed = 0
    workers: Annotated[
        int | None,
        Option(help="Processes of one thread each (extra `scale`); figures stay.", min=1, max=1024),
    ] = None


@dataclass(frozen=True)
class Scans:
    """How scans are simulated."""

    mask: Annotated[list[str] | None, Option("--mask", "-m", help="Kinds of masks.")] = None
    acceleration: Annotated[list[float] | None, Option(help="[default: 4, 8]")] = None
    coils: Annotated[
        Path | None, Option(help="Coil maps (.npz) to simulate with; 8 coils on a ring by default.")
    ] = None
    sigma: Annotated[
        float, Option(help="Simulated noise as a share of the images' 0.99 quantile.")
    ] = 0.01


@dataclass(frozen=True)
class Intervals:
    """What intervals are to hold, and what their width is fitted on."""

    level: Annotated[float, Option(help="Probability that the intervals are to hold.")] = 0.9
    calibration_limit: Annotated[
        int | None,
        Option(help="Measurements to calibrate on. [default: 40 for each factor]", min=1),
    ] = None
    side: Annotated[int, Option(help="Of the crops that measurements are made of.", min=16)] = 128
    write: Annotated[
        bool,
        Option("--write", help="Write the factors into the model's card, which `--std` goes by."),
    ] = False


@dataclass(frozen=True)
class Timing:
    """What is timed, how often, where."""

    size: Annotated[
        str, Option(help="WIDTHxHEIGHT of the network's input (half the picture's at fold 2).")
    ] = "96x64"
    batch: Annotated[int, Option(help="Pictures per call.")] = 1
    threads: Annotated[
        list[int] | None,
        Option(help="CPU threads; give it several times for several. [default: 1]"),
    ] = None
    repeats: Annotated[int, Option(help="Timed calls of each.")] = 11
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu"
    compiled: Annotated[bool, Option("--compile", help="Also time torch.compile.")] = False
