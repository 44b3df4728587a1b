"""What all tasks share: sample the posterior of a measurement, one sample after the other, in
bounded memory.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.posterior.by_name import check_correction
from restoration.wrappers.symmetry import COUNTS
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS, Grid
from solvers.loop import solve
from solvers.processes.process import Process
from solvers.solver import RNG, DenoiserLike, Solution, Solver, Step, device_of, randn

MOST_SAMPLES, MOST_NOISE = 10_000, 10
ALIKE = (
    "this run is the same for every seed, so several samples tell nothing of what is uncertain:"
    " take one sample, or a solver that draws noise, such as ddpm"
)


class PictureTask(Protocol):
    """The settings that picture tasks share."""

    @property
    def grid(self) -> str: ...

    @property
    def tile(self) -> int: ...

    @property
    def overlap(self) -> int: ...

    @property
    def symmetries(self) -> int: ...

    @property
    def correction(self) -> str | None: ...

    @property
    def correction_options(self) -> Mapping[str, Any]: ...


def check_settings(task: PictureTask) -> None:
    """Raises ValueError where the grid, tiles, symmetries or correction of a picture task can't
    be.
    """
    if task.grid not in GRIDS:
        raise ValueError(f"grid {task.grid!r} is unknown; known: {', '.join(GRIDS)}")
    if task.tile < 16 or task.overlap < 0:
        raise ValueError(
            f"tile must be at least 16 pixels and overlap at least 0; got {task.tile} and"
            f" {task.overlap}"
        )
    if task.symmetries not in COUNTS:
        raise ValueError(
            f"symmetries must be one of {', '.join(map(str, COUNTS))}; got {task.symmetries}"
        )
    if task.correction is not None:
        check_correction(task.correction, task.correction_options)
    elif task.correction_options:
        raise ValueError("correction_options are those of a correction: give its name too")


# what the network of a denoiser can be shown beside the state
SHOWN = {
    "none": "nothing",
    "lift+known": "the lifted picture and what is known of each pixel",
    "degraded": "the degraded picture",
    "degraded+mask": "the degraded picture and a mask",
    "brightened": "a dark picture, brightened",
    "relit+mask": "a picture with its shadows brightened, and their mask",
    "haze": "a hazy picture and what is known of its haze",
    "mri": "a SENSE image and where it may be wrong",
    "joint": "measured latents of a cube and their noise",
    "masked-latents": "a mask and the latents of what it leaves of the picture",
    "latents": "latents, which it decodes",
}
# what it can be by the channels of image and condition, for models that don't say
INFERRED = {
    (3, 4): ("lift+known", "degraded+mask"),
    (1, 2): ("lift+known",),
    (3, 3): ("degraded",),
    (3, 7): ("haze",),
    (2, 7): ("mri",),
}
# what a task shows its network, and on how many channels it works
KINDS = {
    "inpaint": (("lift+known", "none"), (1, 3)),
    "denoise": (("lift+known", "none"), (1, 3)),
    "superresolve": (("lift+known", "none"), (1, 3)),
    "deblur": (("lift+known", "none"), (1, 3)),
    "dehaze": (("haze", "degraded"), (3,)),
    "paired": (("degraded", "degraded+mask", "brightened", "relit+mask", "haze"), (3,)),
    "ultrasound": (("none", "degraded"), (1,)),
    "mri": (("mri", "none"), (2,)),
    "hsi": (("none", "joint"), (1, 8)),
}
# what a task shows a network of an autoencoder's latents
LATENT = {"inpaint": ("masked-latents", "none"), "decode": ("latents",)}


def shown_to(denoiser: Denoiser) -> tuple[str, ...]:
    """What the network is shown, words of :data:`SHOWN`: as its model says, or all that it can be
    by its channels; empty where neither tells.
    """
    if denoiser.shown is not None:
        return (denoiser.shown,)
    if denoiser.condition_channels == 0:
        return ("none",)
    channels = denoiser.image_channels
    if channels == 8:
        return ("joint",)
    return INFERRED.get((channels or 3, denoiser.condition_channels), ())


def check_kind(denoiser: Denoiser, task: str) -> None:
    """Refuse a network that was made for something else.

    Raises:
        ValueError: what it is shown, or the number of its image channels, is not the task's.
    """
    found, own = shown_to(denoiser), denoiser.image_channels
    latent = denoiser.autoencoder is not None
    if latent and task not in LATENT:
        raise ValueError(
            f"{task} takes a network of pictures, and this one works on an autoencoder's latents:"
            " where pixels are missing latents are too, and inpaint fills them, but noise, blur and"
            " reductions of a picture are none of its latents"
        )
    kinds, channels = (LATENT[task], (own,)) if latent else KINDS.get(task, ((), ()))
    if set(found) & set(kinds) and (own is None or own in channels):
        return
    wanted = " or ".join(SHOWN[kind] for kind in kinds or LATENT[task])
    counts = " or ".join(map(str, channels)) or "latent"
    beside = " or ".join(SHOWN.get(word, word) for word in found)
    beside = beside or f"{denoiser.condition_channels} channels of an unknown kind"
    more = ""
    if task in LATENT and not latent and set(found) & set(LATENT[task]):
        more = "; one of latents needs its autoencoder's folder, --vae (in Python vae=)"
    raise ValueError(
        f"{task} takes a network of {counts}-channel images that is shown {wanted}; this one has"
        f" {own or 'unknown'} image channels and is shown {beside}{more}"
    )


@dataclass(frozen=True)
class Restored:
    """The result of a restoration; every task's has these.

    Attributes:
        samples: ``(n, C, H, W)``, on the CPU, one per seed; pictures in [0, 1].
        mean: ``(C, H, W)``, their mean: the estimate with the smallest squared error (equal to the
            sample for n = 1).
        std: ``(C, H, W)``, their standard deviation (zeros for n = 1): where the samples disagree,
            the picture is guessed; with a ``level`` as large as the errors of such runs are.
        nfe: network calls, all samples together.
        seconds: wall-clock time of the sampling.
        metrics: ``psnr`` and others, where a reference is known.
        misfit: root mean square of what the mean leaves of the data, ``y - A x``, in units of
            [0, 1]: about the noise's sigma where all went well; None where a task has no operator.
        level: the share of what is guessed whose truth lies in ``mean +- z std``, with z of the
            normal distribution (1.645 for 0.9), as measured on other pictures; None: ``std`` is
            the samples' own spread, which nobody compared with errors.
        warning: a sentence, if the mean explains the data worse than what the run started from;
            else None.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    nfe: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict, kw_only=True)
    misfit: float | None = field(default=None, kw_only=True)
    level: float | None = field(default=None, kw_only=True)
    warning: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Part:
    """How far one network call is that is made part by part: ``done`` of ``total``."""

    done: int
    total: int


# what a restoration calls after each network call: the sample's number, and the step where the call
# is one; a call that is made part by part is told after each of them
Watch = Callable[[int, Step | Part | None], None]


@dataclass(frozen=True)
class Run:
    """One run on a batch of measurements: what a task's ``prepare`` makes of them, in tensor
    operations only. The host's loop, calibration and exported graphs run the same.

    Attributes:
        denoiser: what the solver asks, conditioned and corrected.
        solver: or a diffusers scheduler.
        grid: times of the process.
        shape: ``(C, H, W)`` of the state.
        finish: from the end of a run ``(B, C, H, W)`` to the result, pictures in [0, 1].
        start: the state to start from; None: noise, and the degraded image where the process holds
            it.
        stirred: whether several samples start with noise on :attr:`start`, from one level up;
            one alone starts as it is.
        process: that the run follows; None: the denoiser's.
        y: the degraded image, where the process holds it.
        calls: network calls that the denoiser makes for one answer.
        evidence: what was measured, of pictures in [0, 1], to tell afterwards whether the result
            explains it; None: nothing is checked.
    """

    denoiser: DenoiserLike
    solver: Solver
    grid: Grid
    shape: tuple[int, int, int]
    finish: Callable[[Tensor], Tensor] = lambda x: x
    start: Tensor | None = None
    stirred: bool = False
    process: Process | None = None
    y: Tensor | None = None
    calls: int = 1
    evidence: Measurement | None = None

    def first_state(
        self, draw: Callable[[tuple[int, ...]], Tensor], count: int = 1, *, several: bool = False
    ) -> Tensor:
        """``(count, C, H, W)``: :attr:`start`, or noise by ``draw(shape)`` at the first level.

        The degraded image stands in for the clean one, as in ``Process.start``: ``(a + c) y``. That
        is ``c y`` where the grid begins without signal, and matters where it doesn't (``leading``).
        """
        process, t = self.process or self.denoiser.process, self.grid.times[0]
        if self.start is not None and several and self.stirred:
            return self.start + process.b(t) * draw((count, *self.shape))
        if self.start is not None:
            return self.start
        x = process.b(t) * draw((count, *self.shape))
        return x if self.y is None else x + (process.a(t) + process.c(t)) * self.y

    def solve(
        self, x: Tensor, generator: RNG, callback: Callable[[Step], bool | None] | None = None
    ) -> Solution:
        """From the state ``x`` to the end."""
        return solve(
            self.solver,
            self.denoiser,
            x,
            self.grid,
            process=self.process,
            y=self.y,
            generator=generator,
            callback=callback,
        )


def check_noise(sigma: float) -> None:
    """Raises ValueError for a noise level that no picture in [0, 1] has."""
    if not 0 <= sigma <= MOST_NOISE:
        raise ValueError(
            f"sigma is the noise's standard deviation in units of [0, 1], from 0 to {MOST_NOISE};"
            f" got {sigma:g}"
        )


def check_samples(num_samples: int) -> None:
    """Raises ValueError for a number of samples that can't be."""
    if not 1 <= num_samples <= MOST_SAMPLES:
        raise ValueError(f"num_samples must be from 1 to {MOST_SAMPLES}; got {num_samples}")


@torch.no_grad()
def sample(
    run: Run, *, num_samples: int = 1, seed: int = 0, callback: Watch | None = None
) -> Restored:
    """Draw ``num_samples`` results of a run on one measurement; sample k uses ``seed + k`` alone.

    Args:
        callback: called with the sample's number and the step.

    Raises:
        ValueError: ``num_samples`` below 1 or above 10,000, or a run that begins at a state of its
            own and draws nothing, so that all samples are one.
    """
    check_samples(num_samples)
    began, nfe, samples = time.perf_counter(), 0, []
    for k in range(num_samples):
        generator = torch.Generator().manual_seed(seed + k)
        draw = partial(randn, generator=generator, device=device_of(run.denoiser))
        watch = None if callback is None else partial(callback, k)
        end = run.solve(run.first_state(draw, several=num_samples > 1), [generator], watch)
        samples.append(run.finish(end.x0)[0].cpu())
        nfe += run.calls * end.nfe
        if k == 1 and run.start is not None and torch.equal(*samples):
            raise ValueError(ALIKE)
    stack, mean, std = summary(samples)
    misfit, warning = (None, None) if run.evidence is None else explained(run, mean[None])
    seconds = time.perf_counter() - began
    return Restored(stack, mean, std, nfe, seconds, misfit=misfit, warning=warning)


def summary(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``(C, H, W)`` as one tensor, their mean and their standard deviation."""
    if len(samples) == 1:  # without a copy: pictures may be large
        return samples[0][None], samples[0], torch.zeros_like(samples[0])
    stack = torch.stack(list(samples))
    mean = stack.double().mean(0).to(stack.dtype)  # of equal values: that value, to the bit
    return stack, mean, stack.std(0)


def explained(run: Run, picture: Tensor) -> tuple[float, str | None]:
    """How far a result ``(1, C, H, W)`` in [0, 1] is from the run's evidence, and a warning if that
    exceeds each of 1.25 times the misfit of the run's start (middle grey for runs from noise), 2
    sigma, and 0.01.
    """
    assert run.evidence is not None
    m = run.evidence
    picture = picture.to(m.y.device)

    def misfit(x: Tensor) -> float:
        residual = m.residual(x)
        return float(torch.linalg.vector_norm(residual)) / math.sqrt(residual.numel())

    begun = torch.full_like(picture, 0.5)
    if run.start is not None:
        process = run.process or run.denoiser.process
        begun = run.finish(run.start / process.a(run.grid.times[0]))
    before, found = misfit(begun), misfit(picture)
    if found <= max(1.25 * before, 2 * m.sigma, 0.01):
        return found, None
    warning = (
        f"the result explains the data worse (misfit {found:.3g}) than what the run started from"
        f" ({before:.3g}): don't use it; take the task's default correction, or more steps"
    )
    warnings.warn(warning, RuntimeWarning, stacklevel=5)  # the task's caller
    return found, warning
