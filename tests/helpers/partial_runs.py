"""Runs that start from a noised image, against the exact flow."""

import torch
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

from solvers import CLEAN, GRIDS, VP, solve


def partial_runs(solver, name, n, strengths):
    """Median errors and calls of a full run and of runs from noised images, each against the exact
    flow from its own start.
    """
    process, mixture = VP.linear(), small_mixture(components=5)
    grid = GRIDS[name](process, n)
    clean, eps = mixture.sample(32, torch.Generator().manual_seed(3)), noise(32, 4)
    errors, calls = [], []
    for part in (grid, *(grid.start_at(grid.times[round(n * (1 - s))]) for s in strengths)):
        x = process.add_noise(clean, eps, part.times[0])
        run = solve(solver, mixture.denoiser(process), x, part)
        errors.append(median_rmse(run.x0, exact_flow(mixture, process, x, part.times[0], CLEAN)))
        calls.append(run.nfe)
    return errors, calls
