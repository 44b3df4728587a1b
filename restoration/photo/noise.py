"""Noise in what a network is shown as if it had none: another network takes it off, a cleaner."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.task import Restored, Run, explained
from solvers.denoiser import Denoiser
from solvers.methods.red_diff import REDDiff
from solvers.solver import Solver

Cleaner = Callable[[Tensor], Denoiser]  # the denoiser for a picture (C, H, W)
# less noise than this, under a step of 8 bits, does a network that knows none no harm
LEAST_NOISE = 0.0025


class NoisyTask(Protocol):
    """What decides who sees to the noise."""

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def solver(self) -> Solver: ...

    @property
    def correction(self) -> str | None: ...

    @property
    def cleaner(self) -> Cleaner | None: ...


def cleans(task: NoisyTask, sigma: float) -> bool:
    """Whether a task's cleaner, and not its correction, sees to the noise of data."""
    steered = task.correction is not None or isinstance(task.solver, REDDiff)
    shown = task.denoiser.condition_channels > 0
    return task.cleaner is not None and sigma > LEAST_NOISE and shown and not steered


def warned(found: Restored, task: NoisyTask, sigma: float) -> Restored:
    """With a warning where a network that takes noise for detail is held to noisy data although
    there is a cleaner.
    """
    shown = task.denoiser.condition_channels > 0
    if task.cleaner is None or sigma <= LEAST_NOISE or not shown or cleans(task, sigma):
        return found
    warning = (
        "this network takes the noise of what it is shown for detail, and"
        f" {task.correction or 'red-diff'} holds it to that: up to 7 dB worse than the default,"
        " which takes the noise off by a denoiser: leave it out"
    )
    warnings.warn(warning, RuntimeWarning, stacklevel=3)  # the task's caller
    return replace(found, warning=found.warning or warning)


@torch.no_grad()
def cleaned(found: Restored, run: Run, measured: Measurement, calls: int) -> Restored:
    """A restoration by ``run`` whose noise another network took off in ``calls`` calls, judged by
    what was measured.
    """
    judged: dict[str, Any] = {}
    if run.evidence is not None:
        misfit, warning = explained(replace(run, evidence=measured), found.mean[None])
        judged = {"misfit": misfit, "warning": warning}
    return replace(found, nfe=found.nfe + calls, **judged)
