"""Samplers of other libraries on our levels, for comparison: azula's and k-diffusion's, where they
are installed (the extra ``peers``).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from solvers import Grid
from solvers.solver import DenoiserLike

# from the start state and the grid to the image, with one network call per node
Peer = Callable[[DenoiserLike, Tensor, Grid], Tensor]
AZULA = {
    "azula-zab3": ("zABSampler", 3),
    "azula-zeab2": ("zEABSampler", 2),
    "azula-zeab3": ("zEABSampler", 3),
    "azula-xeab3": ("xEABSampler", 3),
}
K_DIFFUSION = {"k-lms": "sample_lms", "k-dpmpp-2m": "sample_dpmpp_2m"}


def installed() -> dict[str, Peer]:
    """The samplers of whatever is installed, by name."""
    found: dict[str, Peer] = {}
    with contextlib.suppress(ImportError):
        importlib.import_module("azula.sample")
        found |= {name: partial(_azula, *made) for name, made in AZULA.items()}
    with contextlib.suppress(ImportError):
        importlib.import_module("k_diffusion.sampling")
        found |= {name: partial(_k_diffusion, made) for name, made in K_DIFFUSION.items()}
    return found


def _azula(made: str, order: int, denoiser: DenoiserLike, x: Tensor, grid: Grid) -> Tensor:
    """Down to the last noisy node, whose image estimate is the result."""
    sampler = importlib.import_module("azula.sample")
    process, times = denoiser.process, torch.tensor(grid.times[:-1], dtype=torch.float64)

    class Asked:
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return process.a(t.double()).to(x), process.b(t.double()).to(x)

        def __call__(self, state: Tensor, t: Tensor, **_: Any) -> Any:
            return SimpleNamespace(mean=denoiser(state, float(t)).x0)

    fixed = type(made, (getattr(sampler, made),), {"timesteps": times})
    end = fixed(Asked(), order=order, steps=max(len(times) - 1, 1), silent=True)(x)
    return denoiser(end, grid.times[-2]).x0


def _k_diffusion(made: str, denoiser: DenoiserLike, x: Tensor, grid: Grid) -> Tensor:
    """On ``x/a`` with the noise levels of the nodes, to zero."""
    sample = getattr(importlib.import_module("k_diffusion.sampling"), made)
    process = denoiser.process
    times = {process.kappa(t): t for t in grid.times}
    sigmas = torch.tensor(list(times), dtype=x.dtype)

    def ask(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        kappa = min(times, key=lambda k: abs(k - float(sigma[0])))
        return denoiser(process.a(times[kappa]) * state, times[kappa]).x0

    end: Tensor = sample(ask, x / process.a(grid.times[0]), sigmas, disable=True)
    return end
