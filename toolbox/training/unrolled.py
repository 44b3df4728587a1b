"""Training through the sampler: a few steps with data consistency become one network.

The idea is IDM's (Chen et al. 2025, "Invertible diffusion models for compressed sensing"), without
its reversible wiring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.denoiser import Denoiser
from solvers.grid import trailing
from solvers.loop import drive
from solvers.methods.ddim import DDIM
from solvers.solver import DenoiserLike, Problem, bound, device_of
from toolbox.training.sections import Loss


@dataclass(frozen=True)
class Measured:
    """A batch of examples with what was measured of them.

    Attributes:
        x0: ``(B, C, H, W)`` in the network's range.
        condition: ``(B, K, H, W)``, the lift in its first C channels.
        missing: ``(B, 1, H, W)``, how much of each pixel is to be found out.
        correct: from a denoiser to the same one with the task's correction around it; None where
            nothing was measured.
    """

    x0: Tensor
    condition: Tensor
    missing: Tensor
    correct: Callable[[Denoiser], DenoiserLike] | None

    def corrected(self, denoiser: Denoiser) -> DenoiserLike:
        """``denoiser`` with the condition shown to it, and the correction around it if any."""
        shown = denoiser.conditioned(self.condition)
        return shown if self.correct is None else self.correct(shown)


def unroll(denoiser: DenoiserLike, shape: tuple[int, ...], steps: int) -> Tensor:
    """The end of a DDIM run of ``steps`` trailing steps from zero noise, with gradients.

    Without noise every state is the last estimate, scaled: network and data consistency take turns
    on it, as in an unrolled scheme.
    """
    grid = trailing(denoiser.process, steps)
    run = DDIM().run(
        Problem(denoiser.process), grid, torch.zeros(shape, device=device_of(denoiser))
    )
    return drive(run, bound(denoiser, grid.times, torch.zeros_like))


def unrolled_loss(denoiser: Denoiser, example: Measured, steps: int, loss: Loss) -> Tensor:
    """Squared error at the end of the run over what the lift leaves to be found, per sample
    (``loss.floor`` bounds that from below).
    """
    x0, missing = example.x0, example.missing.expand_as(example.x0)
    end = unroll(example.corrected(denoiser), tuple(x0.shape), steps)
    dims = (1, 2, 3)
    gap = (missing * (x0 - example.condition[:, : x0.shape[1]]) ** 2).sum(dims) / missing.sum(
        dims
    ).clamp(min=1)
    error = (missing * (x0 - end) ** 2).sum(dims) / missing.sum(dims).clamp(min=1)
    return (error / gap.clamp(min=loss.floor * denoiser.data_std**2)).mean()


@torch.no_grad()
def unrolled_gain(denoiser: Denoiser, batch: list[Measured], steps: int) -> float:
    """How much better the end of a run is than the lift, in dB: the mean over the batch."""
    gains = []
    for e in batch:
        end = unroll(e.corrected(denoiser), tuple(e.x0.shape), steps)
        errors = [
            (x - e.x0).square().mean((1, 2, 3)).clamp(min=1e-12)
            for x in (e.condition[:, : e.x0.shape[1]], end)
        ]
        gains.append(10 * torch.log10(errors[0] / errors[1]))
    return float(torch.cat(gains).mean())
