"""What all tasks share: sample the posterior of a measurement, one sample after the other, in
bounded memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from restoration.posterior import CORRECTIONS
from restoration.wrappers.symmetry import COUNTS
from solvers.grid import GRIDS, Grid
from solvers.loop import solve
from solvers.processes.process import Process
from solvers.solver import DenoiserLike, Solver, Step, device_of, randn


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
    if task.correction is not None and task.correction not in CORRECTIONS:
        raise ValueError(
            f"correction {task.correction!r} is unknown; known: {', '.join(CORRECTIONS)}"
        )


@dataclass(frozen=True)
class Restored:
    """The result of a restoration.

    Attributes:
        samples: ``(n, C, H, W)`` in [0, 1], on the CPU, one per seed.
        mean: ``(C, H, W)``, their mean: the estimate with the smallest squared error (equal to the
            sample for n = 1).
        std: ``(C, H, W)``, their standard deviation (zeros for n = 1): where the samples disagree,
            the picture is guessed.
        nfe: network calls, all samples together.
        seconds: wall-clock time of the sampling.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    nfe: int
    seconds: float


@torch.no_grad()
def sample(
    denoiser: DenoiserLike,
    shape: tuple[int, int, int],
    grid: Grid,
    solver: Solver,
    *,
    num_samples: int = 1,
    seed: int = 0,
    process: Process | None = None,
    y: Tensor | None = None,
    start: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] = lambda x: x,
    callback: Callable[[int, Step], None] | None = None,
    calls: int = 1,
) -> Restored:
    """Draw ``num_samples`` images of ``shape (C, H, W)``; sample k uses seed ``seed + k`` alone.

    Args:
        denoiser: conditioned and corrected, answers in its own value range.
        start: ``(1, C, H, W)``, the state that every run starts from; noise by default.
        finish: from the end of a run ``(1, C, H, W)`` to an image in [0, 1].
        callback: called with the sample's number and the step.
        calls: network calls that the denoiser makes for one answer.

    Raises:
        ValueError: ``num_samples`` below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}")
    process = denoiser.process if process is None else process
    began, nfe, samples = time.perf_counter(), 0, []
    for k in range(num_samples):
        generator = torch.Generator().manual_seed(seed + k)
        x = start
        if x is None:
            noise = randn((1, *shape), generator, device=device_of(denoiser))
            x = process.b(grid.times[0]) * noise
        if y is not None:
            # y stands in for the image, as in Process.start
            x = x + (process.a(grid.times[0]) + process.c(grid.times[0])) * y
        watch = None if callback is None else partial(callback, k)
        run = solve(
            solver, denoiser, x, grid, process=process, y=y, generator=[generator], callback=watch
        )
        samples.append(finish(run.x0)[0].cpu())
        nfe += calls * run.nfe
    stack = torch.stack(samples)
    std = stack.std(0) if num_samples > 1 else torch.zeros_like(stack[0])
    mean = stack.double().mean(0).to(stack.dtype)  # of equal values: that value, to the bit
    return Restored(stack, mean, std, nfe, time.perf_counter() - began)
