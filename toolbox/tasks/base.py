"""The contract of a task: all that is special about it lies in one object, and restore, calibrate,
verify, report, bench and export read only that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from export.jobs.base import Job
from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pictures, random_window
from restoration.metrics import psnr, ssim
from restoration.task import KINDS, LATENT, Restored, check_kind
from solvers.denoiser import Denoiser
from solvers.inputs.errors import UncalibratedError
from toolbox.support.cards import Spread, advice, spread_of
from toolbox.tasks.settings import Output, Prior, Request, Settings

Progress = Callable[[int, int], None]
Size = tuple[int, int]  # (H, W)


def silent(done: int, total: int) -> None:
    """No progress is shown."""


class Restorer(Protocol):
    """Restores a measurement: tensors by name, without a batch axis, as the task's graph takes
    them.
    """

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        *,
        num_samples: int = 1,
        seed: int = 0,
        callback: Callable[..., Any] | None = None,
    ) -> Restored: ...


@dataclass(frozen=True)
class Trial:
    """A simulated measurement.

    Attributes:
        inputs: tensors by name, without a batch axis.
        truth: what a restoration should give; None where the data don't tell.
        name: of what was drawn, such as the kind of mask.
    """

    inputs: dict[str, Tensor]
    truth: Tensor | None
    name: str = ""

    @property
    def known(self) -> Tensor:
        """The truth.

        Raises:
            ValueError: there is none.
        """
        if self.truth is None:
            raise ValueError("these data hold no truth to compare a restoration with")
        return self.truth


@dataclass(frozen=True)
class Source:
    """What trials are made of.

    Attributes:
        files: in the task's own order.
        side: of the crops, a number or ``(H, W)``, in pixels.
        seed: all that is drawn for trial k depends on it and k alone.
        channels: of the network's images: pictures are made grey for 1.
        volume: magnitudes ``(slices, H, W)`` that the one file holds.
    """

    files: tuple[Any, ...]
    side: int | tuple[int, int]
    seed: int = 0
    channels: int = 3
    volume: np.ndarray | None = None

    def file(self, k: int) -> Any:
        """That of trial k: all take turns, in an order drawn from the seed."""
        order = np.random.default_rng(self.seed).permutation(len(self.files))
        return self.files[order[k % len(order)]]

    def rng(self, k: int) -> np.random.Generator:
        """What trial k draws from."""
        return np.random.default_rng([self.seed, k])

    def noise(self, k: int, like: Tensor) -> Tensor:
        """White noise of trial k, like a tensor; of no sampler's stream, which starts from ``seed +
        k``.
        """
        drawn = np.random.default_rng([self.seed, k, 1]).standard_normal(like.shape, np.float32)
        return torch.from_numpy(drawn)

    def picture(self, k: int) -> Tensor:
        """A random crop ``(1 or 3, h, w)`` in [0, 1], at most :attr:`side` large."""
        pixels = read_image(self.file(k)).pixels
        rows, columns = random_window(pixels.shape, self.side, self.rng(k))
        crop = torch.from_numpy(np.ascontiguousarray(pixels[:, rows, columns]))
        return crop.mean(0, keepdim=True) if self.channels == 1 else crop.expand(3, -1, -1)


class Task(ABC):
    """A task of the command line.

    Attributes:
        name: as ``restobox restore`` calls it.
        suffixes: of the files that folders of measurements are searched for.
        is_picture: whether measurements and results are files of single pictures.
        files: options that name a file of the measurement's, or a folder of such files.
        roles: options that name a model.
        further: options that name a further output, with its ending where that isn't the result's.
        written: suffixes that results keep; those of other files become the first of them.
        prior, settings: what a run takes by default.
        calibration_sigma: noise of the trials that a calibration records.
        exported_sigma: noise of the measurements that a whole restoration is exported for.
        sampling_steps: of a run that draws several samples, where one call gives the mean.
        sampling_solver: of such a run, where the usual one would draw the same for every seed.
        spreads: whether the spread of its samples can be compared with a truth.
        difficulties: ends of the ranges of :meth:`difficulty` that intervals are fitted for; none:
            one factor serves all measurements.
        benched: models and classical methods that a benchmark measures by default.
        unused: options of a calibration that the task has no use for.
        recorded_grid: of the runs that a calibration follows by default.
        several_solvers: whether a calibration follows several: a network may be asked at other
            levels by each.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    written: ClassVar[tuple[str, ...]] = ()
    is_picture: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[tuple[str, ...]] = ()
    further: ClassVar[Mapping[str, str | None]] = {}
    prior: ClassVar[Prior] = Prior()
    settings: ClassVar[Settings] = Settings(steps=5)
    sampling_steps: ClassVar[int | None] = None
    sampling_solver: ClassVar[str | None] = None
    calibration_sigma: ClassVar[float] = 0.0
    exported_sigma: ClassVar[float] = 0.0
    spreads: ClassVar[bool] = False
    difficulties: ClassVar[tuple[float, ...]] = ()
    benched: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()
    several_solvers: ClassVar[bool] = False
    recorded_grid: ClassVar[str] = "trailing"

    # -- the user's files --------------------------------------------------------------------------

    @abstractmethod
    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        """Read a measurement, restore it, write the result; the figures of the run.

        Everything that can be checked is checked before the first network call.

        Raises:
            ValueError, OSError: bad files, names or numbers; nothing is written then.
        """

    def is_one(self, folder: Path) -> bool:
        """Whether a folder is one measurement, such as a clip of frames; its result is a folder."""
        return False

    def ending(self, path: Path) -> str:
        """Of a measurement's result, where nobody names another."""
        suffix = path.suffix.lower()
        return suffix if suffix in self.written else self.written[0]

    def outputs(self, output: Output, options: Any, samples: int) -> list[Path]:
        """All that a measurement's restoration writes, files and folders; the result is first."""
        further = (getattr(options, name) for name in self.further)
        drawn = output.sample_files(samples) if samples > 1 else []
        out = output.out
        values = [out.with_suffix(".raw")] if out.suffix.lower() == ".hdr" else []  # ENVI's
        return [out, *values, *(place for place in further if place is not None), *drawn]

    def model_for(self, path: Path, options: Any) -> str:
        """The model where none is named.

        Raises:
            ValueError, OSError: what it depends on can't be read.
        """
        return self.prior.model

    # -- the algorithm -----------------------------------------------------------------------------

    @abstractmethod
    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        """The restoration around a network, PyTorch's or an exported one.

        Raises:
            ValueError: settings that the task doesn't take.
        """

    def job(self, denoiser: Denoiser, options: Any, settings: Settings, size: Size) -> Job:
        """The same restoration of measurements of ``size (H, W)``, for one graph.

        Raises:
            ValueError: the task has no graph.
        """
        raise ValueError(f"{self.name} has no restorer graph; export the network alone")

    def steps(self, settings: Settings, samples: int) -> int | None:
        """Solver steps of a run that draws so many samples."""
        if settings.steps is not None:
            return settings.steps
        return (self.sampling_steps if samples > 1 else None) or self.settings.steps

    def advised(self, model: str | Path | None, samples: int) -> dict[str, Any]:
        """Solver, steps and symmetries of a run that draws so many samples, as far as the task or
        the model's card says something, where nobody asks for others; None: a model without one.

        Raises:
            ModelError: a card that can't be read.
        """
        own = {"solver": self.sampling_solver} if samples > 1 and self.sampling_solver else {}
        return own if model is None else own | advice(model, self.name, samples)

    def own_spread(self, denoiser: Denoiser) -> bool:
        """Whether the standard deviation of a run with this network is another than that of its
        samples.
        """
        return False

    def difficulty(self, inputs: Mapping[str, Tensor]) -> float | None:
        """A number of a measurement, of its operator alone, on which it depends how much of the
        errors the spread of samples shows; None: nothing is known to tell that.
        """
        return None

    def spread(
        self,
        prior: Prior,
        settings: Settings,
        options: Any,
        samples: int,
        difficulty: float | None = None,
    ) -> Spread | None:
        """What the model's card knows of the spread of a run's samples; None: nothing, or the run
        is another than what intervals are calibrated for.

        Args:
            difficulty: of the measurement.

        Raises:
            ModelError: a card that can't be read.
        """
        usual = settings.grid == "trailing" and settings.symmetries == 1 and prior.cache is None
        if samples < 2 or not usual or (options is not None and not self.is_usual(options)):
            return None
        run = {"solver": settings.solver, "steps": self.steps(settings, samples)}
        run |= {"correction": settings.correction}
        return spread_of(prior.model, self.name, run, samples, difficulty)

    def is_usual(self, options: Any) -> bool:
        """Whether the options tell of the measurement only, and leave the algorithm as it is."""
        return True

    # -- simulated measurements --------------------------------------------------------------------

    @abstractmethod
    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Any:
        """Options of trials: the degradation that the network is usually deployed for, with this
        noise and other numbers where they are given.

        Raises:
            ValueError: a number that the task doesn't have.
        """

    def mixed(self, denoiser: Denoiser, k: int) -> Any:
        """Options of trial k where all trials together are to cover what the network is used for.

        Raises:
            ValueError: as :meth:`simulated`.
        """
        return self.simulated(denoiser)

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        """Solver steps of the runs that a calibration follows by default: the task's own, for the
        mean and for samples.
        """
        found = dict.fromkeys((self.settings.steps, self.sampling_steps))
        return tuple(n for n in found if n is not None) or (5,)

    @contextmanager
    def calibrated(self, settings: Settings) -> Iterator[None]:
        """In this block a run that asks at times which a network isn't calibrated for is refused
        with the command that calibrates for it.

        Raises:
            UncalibratedError: says that.
        """
        try:
            yield
        except UncalibratedError as error:
            words = [f"restobox calibrate MODEL --data DATA -o c.safetensors --task {self.name}"]
            words += [f"--solver {settings.solver}"] * (settings.solver != "ddim")
            words += [f"--grid {settings.grid}"] * (settings.grid != "trailing")
            # where the noise decides the times, the default holds enough of them
            steps = settings.steps if self.recorded_grid == "trailing" else None
            words += [] if steps is None else [f"--steps {steps}"]
            raise UncalibratedError(
                f"{error}; this does so for this run, then quantize and export: {' '.join(words)}"
            ) from None

    def check_recordable(self, denoiser: Denoiser) -> None:
        """Refuse a network that is made for, or calibrated by, another task.

        Raises:
            ValueError: says what would fit.
        """
        if self.name in KINDS or self.name in LATENT:
            check_kind(denoiser, self.name)

    def deployed(self, options: Any, settings: Settings) -> tuple[Any, Settings]:
        """The run that a calibration of a network follows, and that it is verified on."""
        return options, settings

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        """What trials are made of.

        Raises:
            ValueError, OSError: data that the task can't use.
        """
        if data is None:
            raise ValueError(
                f"--task {self.name} needs --data: a folder of pictures like those to be restored"
            )
        return Source(tuple(find_pictures(data)), side, seed, denoiser.image_channels or 3)

    @abstractmethod
    def trial(self, source: Source, k: int, options: Any) -> Trial:
        """Trial k."""

    # -- what is measured and shown ----------------------------------------------------------------

    def picture(self, result: Tensor) -> np.ndarray:
        """A result or truth as a picture ``(1 or 3, H, W)`` in [0, 1]."""
        return result.clamp(0, 1).numpy()

    def seen(self, trial: Trial) -> np.ndarray:
        """The measurement as a picture."""
        return self.picture(next(iter(trial.inputs.values())))

    def guessed(self, samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples ``(n, C, H, W)`` and truth in the values that a user reads an uncertainty of, and
        where they count (booleans like the truth).
        """
        return samples, truth, torch.ones_like(truth, dtype=torch.bool)

    def quality(self, result: Tensor, truth: Tensor) -> dict[str, float]:
        """Figures of a result; ``psnr`` in dB is among them."""
        pair = self.picture(result), self.picture(truth)
        found = {"psnr": psnr(*pair)}
        return found | ({"ssim": ssim(*pair)} if min(truth.shape[-2:]) >= 11 else {})

    def baselines(self, options: Any) -> dict[str, Callable[[Trial], Tensor]]:
        """The classical methods of the field, by name."""
        return {}


def with_numbers(options: Any, name: str, sigma: float | None, numbers: Mapping[str, Any]) -> Any:
    """``options`` with other numbers where they are given.

    Raises:
        ValueError: one that these options don't have.
    """
    given = {key: value for key, value in numbers.items() if value is not None}
    given |= {} if sigma is None else {"sigma": sigma}
    unknown = [key for key in given if key not in vars(options)]
    if unknown:
        raise ValueError(f"the task {name} knows no {', '.join(f'--{key}' for key in unknown)}")
    return replace(options, **given)
