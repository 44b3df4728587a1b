"""The generator protocol and its one driver.

A solver is a frozen dataclass with one method::

    def run(self, problem, grid, x):
        ...
        p = yield Query(x, t)      # one network call; p is a Prediction
        ...
        return x

Whoever drives it answers the queries: :func:`solve` with a denoiser, calibration by recording them,
the diffusers adapter with a pipeline's own network. History lives in the running generator, so no
run can inherit another's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import Prediction
from solvers.processes.process import Process

RNG = torch.Generator | Sequence[torch.Generator] | Callable[[torch.Size], Tensor] | None
# N(0, I) noise of the shape, dtype and device of a tensor
Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Query:
    """A question to the network: the state ``x (B, C, H, W)`` and its time ``t``.

    ``editable`` says that the run goes on from ``a x0 + c y + b eps`` of the answer, so whoever
    changes the state before asking (a blend with known pixels) changes the run. Trial points of
    Runge-Kutta stages are not editable.
    """

    x: Tensor
    t: float
    editable: bool = False


@dataclass(frozen=True)
class Problem:
    """What a run is about: the process to follow, the lifted degraded image (if the process holds
    it), the noise source.
    """

    process: Process
    y: Tensor | None = None
    generator: RNG = None

    def noise(self, like: Tensor) -> Tensor:
        """Fresh N(0, I) noise of the shape, dtype and device of ``like``."""
        return randn(like.shape, self.generator, device=like.device, dtype=like.dtype)


# what ``run`` of a solver gives: questions, each answered by a prediction, then the end of the run
Queries = Generator[Query, Prediction, Tensor]


class Solver(Protocol):
    """Anything with ``run``; one whose property ``keeps_history`` is True combines the answers of
    several steps.
    """

    def run(self, problem: Problem, grid: Grid, x: Tensor, /) -> Queries: ...


class DenoiserLike(Protocol):
    """What a solver's questions are answered by: a callable with the process that its times are of.

    What else it can have is asked for in one place each: :func:`bound` (``bind``),
    :func:`draws_noise` and :func:`device_of` (``device``).
    """

    @property
    def process(self) -> Process: ...

    def __call__(self, x: Tensor, t: float, /) -> Prediction: ...


def bound(denoiser: DenoiserLike, times: Sequence[float], noise: Noise) -> DenoiserLike:
    """What its ``bind(times, noise)`` returns, or the denoiser itself where it has no such method:
    ``times`` are the run's nodes as times of the denoiser's process, ``noise`` is its noise source.
    """
    bind = getattr(denoiser, "bind", None)
    return bind(times, noise) if callable(bind) else denoiser


def device_of(denoiser: DenoiserLike) -> torch.device:
    """Where its states must live: its ``device``, the CPU where it has none."""
    return torch.device(getattr(denoiser, "device", "cpu"))


def draws_noise(denoiser: DenoiserLike) -> bool:
    """Whether its answers hold fresh noise."""
    return bool(getattr(denoiser, "draws_noise", False))


def keeps_history(solver: Solver) -> bool:
    """Whether it combines the answers of several steps."""
    return bool(getattr(solver, "keeps_history", False))


def combines_noise(solver: Solver) -> bool:
    """Whether it combines the noise estimates of several steps, and looks at nothing else."""
    return bool(getattr(solver, "combines_noise", False))


@dataclass(frozen=True)
class Step:
    """What a callback sees after each network call: its number (from 0), the query and the
    answer.
    """

    index: int
    query: Query
    prediction: Prediction


@dataclass(frozen=True)
class Solution:
    """The end of a run: the image ``x0 (B, C, H, W)`` and the number of network calls it took."""

    x0: Tensor
    nfe: int


# what a callback of a run says: True ends it
Callback = Callable[[Step], bool | None]


def randn(
    shape: Sequence[int],
    generator: RNG = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, I) noise ``(B, ...)``; with a list of generators sample i is drawn from the i-th alone.

    Raises:
        ValueError: a list whose length is not the batch size.
    """
    if callable(generator):
        return generator(torch.Size(shape)).to(device, dtype)
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators were given for a batch of {shape[0]}")
    draws = [
        torch.randn(shape[1:], generator=g, device=g.device, dtype=dtype).to(device)
        for g in generator
    ]
    return torch.stack(draws)


def weighted_sum(weights: Sequence[float | Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """``sum_j w_j x_j``, of as many weights as tensors."""
    return reduce(add, (w * x for w, x in zip(weights, tensors, strict=True)))


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite. Also true while a graph is traced, when there are no
    values yet.
    """
    if torch.compiler.is_exporting() or x.numel() == 0:
        return True
    values = torch.view_as_real(x) if x.is_complex() else x
    # NaN goes through; isfinite(x) would need a copy, and pictures may be large
    return bool(torch.isfinite(torch.stack(torch.aminmax(values.detach()))).all())


def generators(seed: int, count: int) -> list[torch.Generator]:
    """``count`` CPU generators seeded ``seed, seed+1, ...``: one per sample."""
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]
