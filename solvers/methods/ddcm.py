"""DDCM: denoising diffusion consistent models, editing without inversion. Xu et al. 2024 (arXiv
2312.04965).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.loop import solve
from solvers.prediction import Prediction
from solvers.solver import RNG, DenoiserLike, Problem, Queries, Query, randn

# ``blend(source, target, layout, t)``: the target branch to go on with
Blend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class DDCM:
    """Edits an image without inverting it: two branches share all noise and differ only by what the
    network says of them.

    ``x_s = a_s f(x_t) + b_s z`` is DDIM at its largest variance, which forgets the old noise in
    every step. A known image ``x0`` is consistent with any state through ``e_cons = (x_t - a
    x0)/b``, so it needs no inversion. Source and target branches start from one state, share every
    fresh ``z``, and differ only by what the network says of them (Xu et al. 2024, alg. 1):

        ``p = x0 + ((x^g - x^s) - b (e^g - e^s))/a``
        ``x^g <- a' p  + b' (sqrt(1 - eta) (e^g - e^s + e_cons) + sqrt(eta) z)``
        ``x^s <- a' x0 + b' (sqrt(1 - eta) d + sqrt(eta) z)``

    ``p`` is the edited image so far, and ``d`` is ``e_cons`` or the layout branch's direction.

    With ``eta = 1``, ``edited = x0 - sum_i kappa_i (e^g_i - e^s_i)``: equal networks return ``x0``
    exactly and an error common to both branches cancels, so ask both in one batch with the same
    quantization. Each query stacks the branches along the batch, ``(2B or 3B, C, H, W)`` in the
    order source, target, layout; :class:`Branches` answers it with one denoiser for each,
    :func:`edit` does all of it. Without ``x0`` it is multi-step consistency sampling, one branch,
    ``p`` the network's own estimate.

    When to use it: to change what a picture shows (:func:`edit`, :func:`edit_prompt`); without
    ``x0``, to sample with consistency models.

    NFE: N, each on a batch of two or three branches.

    Reference: Xu et al. 2024, InfEdit (arXiv 2312.04965), algorithm 1.

    Where the authors' code differs: ``eta`` multiplies the variance (as here), and after the last
    time it keeps ``abar_t``, which no result shows.

    Args:
        x0: image to edit ``(B, C, H, W)``; None: sample.
        eta: share of fresh noise in the variance, in [0, 1].
        layout: a third branch with its own condition, whose direction the source follows when ``eta
            < 1``.
        mask: where the edit may act, broadcast to ``x0``: 1 = edit, 0 = keep ``x0`` exactly. Both
            branches carry the same noise: no seam.
        blend: ``(source, target, layout, t) -> target``, called on the new states after each step
            but the last, t the step's start.
        data_step: ``(image, t) -> image``, called on each ``p``: a projection on measured data,
            say.

    Raises:
        ValueError: ``eta`` outside [0, 1], a mask or layout without ``x0``; a run on a level
            without signal; a start of another shape.
    """

    x0: Tensor | None = None
    eta: float = 1.0
    layout: bool = False
    mask: Tensor | None = None
    blend: Blend | None = None
    data_step: Callable[[Tensor, float], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")
        if self.x0 is None and (self.layout or self.mask is not None or self.blend is not None):
            raise ValueError("layout, mask and blend belong to editing: give the image as x0")

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        return (
            yield from (
                self.sample(problem, grid, x)
                if self.x0 is None
                else self.edit(problem, grid, self.x0, x)
            )
        )

    def sample(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        for t, s in grid.pairs():
            answer = yield Query(x, t, editable=True)
            p = self.data_step(answer.x0, t) if self.data_step else answer.x0
            x = problem.process.add_noise(p, self.noise(problem, answer.eps, s), s, problem.y)
        return x

    def edit(self, problem: Problem, grid: Grid, image: Tensor, x: Tensor) -> Queries:
        process, x0 = problem.process, image.to(x)
        if x0.shape != x.shape:
            raise ValueError(
                f"the start state is {tuple(x.shape)} but the image to edit is {tuple(x0.shape)}"
            )
        if process.a(grid.times[0]) == 0:
            raise ValueError("DDCM can't edit from a level without signal: start the grid below it")
        source = target = layout = x
        for t, s in grid.pairs():
            a, b = process.a(t), process.b(t)
            states = [source, target, layout] if self.layout else [source, target]
            e_source, *others = (yield Query(torch.cat(states), t)).eps.chunk(len(states))
            consistent = (source - process.add_noise(x0, torch.zeros_like(x0), t, problem.y)) / b
            # as a change of x0, so that equal branches give x0 to the last bit
            images = [
                x0 + ((state - source) - b * (e - e_source)) / a
                for state, e in zip(states[1:], others, strict=True)
            ]
            directions = [e - e_source + consistent for e in others]
            if self.data_step:
                images[0] = self.data_step(images[0], t)
            z = problem.noise(x0) if process.b(s) > 0 else torch.zeros_like(x0)

            def renoise(image: Tensor, direction: Tensor, s: float = s, z: Tensor = z) -> Tensor:
                return process.add_noise(
                    image, (1 - self.eta) ** 0.5 * direction + self.eta**0.5 * z, s, problem.y
                )

            source = renoise(x0, directions[1] if self.layout else consistent)
            target = renoise(images[0], directions[0])
            layout = renoise(images[1], directions[1]) if self.layout else source
            if self.blend and process.b(s) > 0:
                target = self.blend(source, target, layout, t)
            if self.mask is not None:
                target = torch.where(self.mask.to(x.device) > 0, target, source)
        return target

    def noise(self, problem: Problem, direction: Tensor, s: float) -> Tensor:
        if self.eta == 0 or problem.process.b(s) == 0:
            return direction
        return (1 - self.eta) ** 0.5 * direction + self.eta**0.5 * problem.noise(direction)


class Branches:
    """A denoiser that answers each equal part of the batch with a denoiser of its own.

    Args:
        denoisers: one for each branch, of one process.

    Raises:
        ValueError: denoisers of different processes; a batch that can't be divided.
    """

    def __init__(self, *denoisers: DenoiserLike):
        if not denoisers or any(d.process != denoisers[0].process for d in denoisers):
            raise ValueError("branches need denoisers of one process")
        self.denoisers, self.process = denoisers, denoisers[0].process

    def __call__(self, x: Tensor, t: float) -> Prediction:
        if len(x) % len(self.denoisers):
            raise ValueError(
                f"a batch of {len(x)} can't be divided among {len(self.denoisers)} branches"
            )
        answers = [
            d(part, t) for d, part in zip(self.denoisers, x.chunk(len(self.denoisers)), strict=True)
        ]
        return Prediction(torch.cat([p.x0 for p in answers]), torch.cat([p.eps for p in answers]))


def edit(
    x0: Tensor,
    source: DenoiserLike,
    target: DenoiserLike,
    grid: Grid,
    *,
    layout: DenoiserLike | None = None,
    from_noise: bool = True,
    generator: RNG = None,
    **options: Any,
) -> Tensor:
    """Edit an image: ``source`` is the denoiser that describes it, ``target`` the one that
    describes what it should become.

    They may be classes, prompts or masks of one network, or the priors of two domains (with and
    without haze). Source, target and layout are asked once per step each.

    Args:
        x0: ``(B, C, H, W)`` in the denoisers' value range.
        grid: :func:`solvers.consistency` steps, or any other. Enter it later (``grid.start_at(t)``)
            for weaker edits.
        layout: a third denoiser; see :class:`DDCM`.
        from_noise: start from pure noise, or from the image noised to the grid's first level (what
            a grid entered late needs).
        generator: one, or one per sample.
        options: ``eta``, ``mask`` and ``blend`` of :class:`DDCM`.

    Returns:
        The edited image ``(B, C, H, W)``.
    """
    denoisers = (source, target) if layout is None else (source, target, layout)
    noise = randn(x0.shape, generator, device=x0.device, dtype=x0.dtype)
    start = noise if from_noise else source.process.add_noise(x0, noise, grid.times[0])
    solver = DDCM(x0, layout=layout is not None, **options)
    return solve(solver, Branches(*denoisers), start, grid, generator=generator).x0
