"""The one loop that runs every solver: it answers the solver's queries with a denoiser."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.interop.diffusers_solver import as_solver
from solvers.prediction import Prediction
from solvers.processes.level_matching import LevelMatched
from solvers.processes.process import Process
from solvers.solver import (
    RNG,
    Callback,
    DenoiserLike,
    Problem,
    Query,
    Solution,
    Solver,
    Step,
    all_finite,
    bound,
    draws_noise,
    keeps_history,
)

End = TypeVar("End")


@torch.no_grad()
def solve(
    solver: Solver,
    denoiser: DenoiserLike,
    x: Tensor,
    grid: Grid,
    *,
    process: Process | None = None,
    y: Tensor | None = None,
    generator: RNG = None,
    callback: Callback | None = None,
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
        ValueError: ``x`` or the end of the run holds NaN or infinity, the grid leaves the process,
            or a solver that combines answers of several steps (``keeps_history``) is given a
            denoiser whose answers hold fresh noise (``draws_noise``).
    """
    solver = as_solver(solver)
    if not all_finite(x):
        raise ValueError("the start state holds NaN or infinite values")
    process = denoiser.process if process is None else process
    if grid.times[0] > process.end:
        raise ValueError(
            f"the grid starts at t={grid.times[0]} but the process ends at t={process.end:g}"
        )
    if draws_noise(denoiser) and keeps_history(solver):
        raise ValueError(
            f"{type(denoiser).__name__} puts fresh noise into its answers, which"
            f" {type(solver).__name__} would combine over several steps: use a one-step solver such"
            " as DDIM"
        )
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    problem = Problem(process, y, generator)
    native = denoiser.process
    times = (
        grid.times
        if process == native
        else tuple(native.time_at(process.log_snr(t)) for t in grid.times)
    )
    denoiser = bound(denoiser, times, problem.noise)
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
                return Solution(_finite(prediction.x0).to(dtype), nfe)
            query = run.send(prediction)
    except StopIteration as end:
        return Solution(_finite(end.value).to(dtype), nfe)


def _finite(x0: Tensor) -> Tensor:
    """``x0``: an image that isn't one must not be taken for one, whatever made it so."""
    if not all_finite(x0):
        raise ValueError(
            "the run ended in NaN or infinite values: the network, or a correction, answered with"
            " them; check the model's weights, and half precision, which overflows beyond 65504"
        )
    return x0


def drive(run: Generator[Query, Prediction, End], denoiser: DenoiserLike) -> End:
    """The end of a run whose queries ``denoiser(x, t) -> Prediction`` answers; gradients as the
    caller has them.
    """
    try:
        query = next(run)
        while True:
            query = run.send(denoiser(query.x, query.t))
    except StopIteration as end:
        return end.value
