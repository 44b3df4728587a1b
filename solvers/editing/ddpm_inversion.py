"""Edit-friendly DDPM inversion: the noise maps that make ancestral sampling end on a given image.
Huberman-Spiegelglas et al. 2024.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.loop import drive, solve
from solvers.prediction import Prediction
from solvers.processes.process import Process
from solvers.solver import RNG, DenoiserLike, Problem, Queries, Query


@dataclass(frozen=True, eq=False)
class Inversion:
    """What :func:`invert` found, in the grid's order (noisiest first).

    Attributes:
        grid: N steps.
        states: ``(N + 1, B, C, H, W)``: a state for each node; the last is the image.
        noises: ``(N, B, C, H, W)``: the noise of each step, in units of the step's own deviation.
        eta: as given to :func:`invert`.
        compat: as given to :func:`invert`.
    """

    grid: Grid
    states: Tensor
    noises: Tensor
    eta: float
    compat: bool


@dataclass(frozen=True, eq=False)
class DDPMInversion:
    """Samples again with the noise maps of an inversion, so that the same network gives the image
    back and another one edits it.

    ``x_s = mu(x_t) + eta sqrt(V) z`` with ``mu = a_s x0 + sqrt(b_s^2 - eta^2 V) eps`` and ``V =
    b_s^2 (1 - (kappa_s/kappa_t)^2)``. Under the denoiser of the inversion the image comes back
    exactly; under another one (a class, a prompt, a stronger guidance) it is edited and keeps its
    structure. The grid must be the inversion's, entered at any node: the later, the closer to the
    image (the paper skips 36 of 100 steps).

        found = invert(denoiser, image, grid, generator=rng)
        edited = regenerate(found, other_denoiser, skip=36)

    When to use it: to edit with a changed class, prompt or guidance where the picture's structure
    must stay; to draw variations.

    NFE: N for the inversion, N less the skipped steps for each edit.

    Reference: Huberman-Spiegelglas et al. 2024 (arXiv 2304.06140), algorithm 1.

    Args:
        inversion: from :func:`invert`.

    Raises:
        ValueError: a run over steps that the inversion does not have.
    """

    inversion: Inversion

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        found = self.inversion
        steps = {pair: k for k, pair in enumerate(found.grid.pairs())}
        for t, s in grid.pairs():
            if (t, s) not in steps:
                raise ValueError(
                    f"the inversion has no step from t={t} to t={s}; run its own grid, entered at"
                    " one of its times"
                )
            p = yield Query(x, t)
            mean, std = transition(problem.process, p, t, s, found.eta, found.compat, problem.y)
            x = mean + std * found.noises[steps[t, s]].to(x)
        return x


def inverting(
    problem: Problem, grid: Grid, x0: Tensor, eta: float, compat: bool
) -> Generator[Query, Prediction, Inversion]:
    """The questions of :func:`invert`: every level gets its own independent noise, then each step's
    ``z`` is solved for.

    Independent levels are no sample of the reverse chain: neighbouring states differ more, so the
    ``z`` have a deviation above 1 and carry the image's structure. Each state is then rewritten as
    ``mu + eta sqrt(V) z``, which removes the drift of rounding.
    """
    process = problem.process
    # drawn from the cleanest level up, as the authors do; the image itself stands at the last node
    states = [
        x0,
        *(
            process.add_noise(x0, problem.noise(x0), t, problem.y)
            for t in reversed(grid.times[:-1])
        ),
    ][::-1]
    noises = []
    for k, (t, s) in enumerate(grid.pairs()):
        p = yield Query(states[k], t)
        mean, std = transition(process, p, t, s, eta, compat, problem.y)
        noises.append((states[k + 1] - mean) / std)
        states[k + 1] = mean + std * noises[k]
    if compat:
        noises[-1] = torch.zeros_like(x0)
    return Inversion(grid, torch.stack(states), torch.stack(noises), eta, compat)


@torch.no_grad()
def invert(
    denoiser: DenoiserLike,
    x0: Tensor,
    grid: Grid,
    *,
    eta: float = 1.0,
    generator: RNG = None,
    compat: bool = False,
) -> Inversion:
    """Find states and noises for an image (any size and batch); N network calls.

    A step without noise of its own (the last one of a grid that ends clean, any step at ``eta=0``)
    stores the difference itself, so every grid reconstructs.

    Args:
        denoiser: callable with ``process``; conditioned on the image's own content where it can be.
        x0: ``(B, C, H, W)`` in the denoiser's value range.
        grid: N steps; an image can't be followed to a level without signal, so such nodes are left
            out.
        eta: share of fresh noise in each step, in [0, 1].
        generator: one, or one per sample.
        compat: repeat the authors' code: the last noise is set to zero, so the image comes back
            only up to ``sqrt(V) z`` of the cleanest step, and ``eta V`` stands for ``eta^2 V`` in
            the mean.

    Raises:
        ValueError: ``eta`` outside [0, 1], or a grid without a step below zero SNR.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")
    process = denoiser.process
    grid = grid.with_signal(process)
    return drive(inverting(Problem(process, None, generator), grid, x0, eta, compat), denoiser)


def regenerate(inversion: Inversion, denoiser: DenoiserLike, skip: int = 0) -> Tensor:
    """The image ``(B, C, H, W)`` that the inversion's noises lead to under ``denoiser``, leaving
    out the ``skip`` noisiest steps.

    Raises:
        ValueError: ``skip`` leaves no step.
    """
    if not 0 <= skip < len(inversion.grid):
        raise ValueError(f"skip must lie between 0 and {len(inversion.grid) - 1}; got {skip}")
    grid = Grid(inversion.grid.times[skip:])
    return solve(DDPMInversion(inversion), denoiser, inversion.states[skip], grid).x0


def transition(
    process: Process, p: Prediction, t: float, s: float, eta: float, compat: bool, y: Tensor | None
) -> tuple[Tensor, float]:
    """Mean and standard deviation of the step t -> s; a deviation of 1 where the step has none of
    its own.
    """
    b = process.b(s)
    variance = b**2 * (1 - (process.kappa(s) / process.kappa(t)) ** 2)
    taken = eta * variance if compat else eta**2 * variance
    along = max(1 - taken / b**2, 0.0) ** 0.5 if b > 0 else 1.0
    return process.add_noise(p.x0, along * p.eps, s, y), eta * variance**0.5 or 1.0
