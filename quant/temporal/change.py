"""Which steps of a run compute their deep features: those after which they change most, measured on
calibration runs.

Reference: Li et al. 2023, Faster Diffusion (arXiv 2312.09608), section 3.2, which finds by eye that
features change at the ends of a run; here the best steps are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.temporal.features import CachedNetwork, split
from solvers.denoiser import Denoiser


def measured_steps(
    denoiser: Denoiser, restore: Callable[[Denoiser], Any], count: int
) -> tuple[int, ...]:
    """The ``count`` steps whose features, kept until the next of them, differ least from those of
    the steps between.

    Args:
        denoiser: of a network that can be cached.
        restore: runs what shall be deployed on the denoiser it is given, several times if it likes;
            all runs have the same number of steps.
        count: of steps computed in full, from 1 to the number of steps.

    Returns:
        Numbers of steps for :func:`quant.temporal.features.cached`.

    Raises:
        ValueError: ``count`` isn't among these, or nothing was run.
    """
    changes = feature_changes(denoiser, restore)
    if not 1 <= count <= len(changes):
        raise ValueError(f"count must be from 1 to the {len(changes)} steps; got {count}")
    return least_change(changes, count)


def feature_changes(denoiser: Denoiser, restore: Callable[[Denoiser], Any]) -> Tensor:
    """``(steps, steps)``: mean over runs of ``|f_j - f_i|^2 / |f_j|^2``, which step j errs by with
    the features of step i.

    Raises:
        ValueError: nothing was run.
    """
    seen: dict[int, list[Tensor]] = {}  # of this run's calls, step by step
    total, runs = torch.zeros(0, 0), 0

    def finish() -> None:
        nonlocal total, runs
        for features in seen.values():
            f = torch.stack([v.reshape(-1) for v in features]).double()
            found = torch.cdist(f, f).square() / f.square().sum(1)
            total, runs = found if runs == 0 else total + found, runs + 1
        seen.clear()

    def watch(step: int, call: int, features: Any) -> None:
        if step == 0 and call in seen:
            finish()
        seen.setdefault(call, []).append(torch.as_tensor(features).detach().cpu())

    restore(denoiser.around(CachedNetwork(split(denoiser.network), 1, watch)))
    finish()
    if runs == 0:
        raise ValueError("no run was made, so there is no change of features to measure")
    return total / runs


def least_change(changes: Tensor, count: int) -> tuple[int, ...]:
    """The partition of the steps into ``count`` stretches with the least sum of changes from the
    first step of each; their first steps.

    Args:
        changes: ``(steps, steps)``, as :func:`feature_changes` gives them.
        count: from 1 to the number of steps.
    """
    steps = len(changes)
    # best[k][j - 1]: least sum of the steps before j in k + 1 stretches, and where the last begins
    best = [[(float(changes[0, :j].sum()), 0) for j in range(1, steps + 1)]]
    for k in range(1, count):
        before = best[-1]
        best.append(
            [
                min((before[i - 1][0] + float(changes[i, i:j].sum()), i) for i in range(1, j))
                if j > k
                else (math.inf, 0)
                for j in range(1, steps + 1)
            ]
        )
    found, end = [], steps
    for row in reversed(best):
        end = row[end - 1][1]
        found.append(end)
    return tuple(reversed(found))
