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
from typing import Protocol

import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import Prediction
from solvers.process import Process

RNG = torch.Generator | Sequence[torch.Generator] | Callable[[torch.Size], Tensor] | None


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


class Solver(Protocol):
    def run(
        self, problem: Problem, grid: Grid, x: Tensor
    ) -> Generator[Query, Prediction, Tensor]: ...


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


@torch.no_grad()
def solve(
    solver: Solver,
    denoiser,
    x: Tensor,
    grid: Grid,
    *,
    process: Process | None = None,
    y: Tensor | None = None,
    generator: RNG = None,
    callback: Callable[[Step], bool | None] | None = None,
) -> Solution:
    """Run ``solver`` from ``x`` over ``grid``; ``denoiser(x, t) -> Prediction`` answers its
    queries.

    Gradients are off; a correction that needs them through the network turns them on for itself.

    Args:
        solver: any object with ``run(problem, grid, x)``, or a diffusers scheduler, whose update
            rule then runs on ``grid`` (:class:`solvers.DiffusersSolver`).
        denoiser: callable with an attribute ``process``. If it has a method ``bind(times, noise)``,
            what that returns is asked instead: ``times`` are the grid's nodes as times of the
            denoiser's process, ``noise(like)`` is the run's noise source.
        x: start state at ``grid.times[0]``, ``(B, C, H, W)`` in the denoiser's value range. Half
            precision is kept in single precision during the run, where its rounding would add up.
        grid: descending times of ``process``.
        process: the process the solver follows; the denoiser's own by default. Another one is
            answered by level matching.
        y: the lifted degraded image, ``x``'s shape, where the process, or the denoiser's own, has a
            ``c`` term.
        generator: one ``torch.Generator``, or one per sample (sample i then does not depend on the
            batch); or a function from a shape to N(0, I) noise of that shape, for noise that comes
            from elsewhere (a traced graph's input).
        callback: called after each network call; returning True ends the run with the current image
            estimate.

    Raises:
        ValueError: ``x`` holds NaN or infinity, the grid leaves the process, or a solver that
            combines answers of several steps (``keeps_history``) is given a denoiser whose answers
            hold fresh noise (``draws_noise``).
    """
    solver = as_solver(solver)
    if not all_finite(x):
        raise ValueError("the start state holds NaN or infinite values")
    process = denoiser.process if process is None else process
    if grid.times[0] > process.end:
        raise ValueError(
            f"the grid starts at t={grid.times[0]} but the process ends at t={process.end:g}"
        )
    if getattr(denoiser, "draws_noise", False) and getattr(solver, "keeps_history", False):
        raise ValueError(
            f"{type(denoiser).__name__} puts fresh noise into its answers, which"
            f" {type(solver).__name__} would combine over several steps: use a one-step solver such"
            " as DDIM"
        )
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    problem = Problem(process, y, generator)
    native = denoiser.process
    if callable(getattr(denoiser, "bind", None)):
        times = (
            grid.times
            if process == native
            else tuple(native.time_at(process.log_snr(t)) for t in grid.times)
        )
        denoiser = denoiser.bind(times, problem.noise)
    ask = denoiser if process == native else LevelMatched(denoiser, process, y)
    run = solver.run(problem, grid, x)
    nfe = 0
    try:
        query = next(run)
        while True:
            prediction = ask(query.x, query.t)
            nfe += 1
            if callback is not None and callback(Step(nfe - 1, query, prediction)):
                run.close()
                return Solution(prediction.x0.to(dtype), nfe)
            query = run.send(prediction)
    except StopIteration as end:
        return Solution(end.value.to(dtype), nfe)


def drive(run: Generator[Query, Prediction, Tensor], denoiser) -> Tensor:
    """The end ``(B, C, H, W)`` of a run whose queries ``denoiser(x, t) -> Prediction`` answers;
    gradients as the caller has them.
    """
    try:
        query = next(run)
        while True:
            query = run.send(denoiser(query.x, query.t))
    except StopIteration as end:
        return end.value


def as_solver(solver) -> Solver:
    """``solver`` itself, the solver behind a ``SolverScheduler``, or the update rule of any other
    diffusers scheduler.

    Raises:
        TypeError: none of these.
        ValueError: a scheduler that can't serve (:class:`solvers.DiffusersSolver`).
    """
    if callable(getattr(solver, "run", None)):
        return solver
    if callable(getattr(solver, "set_timesteps", None)) and callable(getattr(solver, "step", None)):
        from solvers.interop.diffusers_solver import DiffusersSolver

        return solver.solver if hasattr(solver, "solver") else DiffusersSolver.of(solver)
    raise TypeError(
        f"{solver!r} is no solver: give an object with run(problem, grid, x), or a diffusers"
        " scheduler"
    )


@dataclass(frozen=True)
class LevelMatched:
    """A denoiser of one process answering for another, at the level with the same log-SNR (DESIGN
    3.1).

    With ``z = (x - c y)/sqrt(a^2 + b^2)`` the estimate E[x0 | z, y] depends on t only through a/b.
    The state shown to the denoiser holds its own process's share of ``y``. Levels beyond the native
    process (a network that was never shown pure noise, asked about it) are answered at its nearest
    end; the noise estimate is then the one that explains the state that was asked about.

    Args:
        denoiser: ``denoiser(x, t) -> Prediction`` with an attribute ``process``.
        process: the process of the questions.
        y: the degraded image, where one of the two processes holds it.
    """

    denoiser: object
    process: Process
    y: Tensor | None = None

    def __call__(self, x: Tensor, t: float) -> Prediction:
        p, native = self.process, self.denoiser.process
        x = p.unshifted(x, t, self.y)
        level = p.log_snr(t)
        s = native.time_at(level)
        scale = ((native.a(s) ** 2 + native.b(s) ** 2) / (p.a(t) ** 2 + p.b(t) ** 2)) ** 0.5
        z, c = x * scale, native.c(s)
        if c != 0:
            if self.y is None:
                raise ValueError(
                    "the denoiser's own process holds the degraded image: pass it as y"
                )
            z = z + c * self.y
        answer = self.denoiser(z, s)
        if s == native.end and (level < native.log_snr(s) or p.a(t) < 0):
            return Prediction.from_x0(answer.x0, x, p.a(t), p.b(t))
        return answer


def randn(shape, generator: RNG = None, *, device="cpu", dtype=torch.float32) -> Tensor:
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


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite. Also true while a graph is traced, when there are no
    values yet.
    """
    return torch.compiler.is_exporting() or bool(torch.isfinite(x).all())


def generators(seed: int, count: int) -> list[torch.Generator]:
    """``count`` CPU generators seeded ``seed, seed+1, ...``: one per sample."""
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]
