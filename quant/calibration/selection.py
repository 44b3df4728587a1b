"""Choosing a calibration set of given size from what was recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quant.calibration.trajectory import CalibrationSet


@dataclass(frozen=True)
class Uniform:
    """The same number of samples of every timestep (Q-Diffusion's choice; independent reruns find
    PTQ4DM's no better).
    """

    def budgets(self, pool: CalibrationSet, count: int, seed: int = 0) -> dict[float, int]:
        """``count`` spread evenly; a remainder goes to timesteps spread over the trajectory, the
        cleanest first.
        """
        steps = len(pool.grid)
        share, rest = divmod(count, steps)
        extra = {math.floor((k + 1) * steps / rest) - 1 for k in range(rest)}
        return {t: share + (k in extra) for k, t in enumerate(pool.grid)}

    def select(self, pool: CalibrationSet, count: int, seed: int = 0) -> CalibrationSet:
        """Choose ``count`` samples.

        Raises:
            ValueError: a timestep's share is larger than what was recorded of it.
        """
        return take(pool, self.budgets(pool, count, seed), seed, f"uniform(n={count}, seed={seed})")


def take(
    pool: CalibrationSet, budgets: Mapping[float, int], seed: int, selection: str
) -> CalibrationSet:
    """``budgets[t]`` samples of each timestep, none twice, drawn with ``seed``; noisiest first,
    otherwise in the pool's order.

    Raises:
        ValueError: no sample is asked for, or more of a timestep than the pool holds.
    """
    check_budgets(pool, budgets)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for t, positions in pool.positions().items():
        order = torch.randperm(len(positions), generator=generator)[: budgets.get(t, 0)]
        chosen += [positions[k] for k in sorted(order.tolist())]
    return pool.subset(chosen, selection)


def check_budgets(pool: CalibrationSet, budgets: Mapping[float, int]) -> None:
    """Raises ValueError where no sample is asked for, or more of a timestep than the pool holds."""
    if sum(budgets.values()) < 1:
        raise ValueError(f"at least one sample must be selected; got {sum(budgets.values())}")
    short = {
        t: (n, len(pool.positions().get(t, ())))
        for t, n in budgets.items()
        if n > len(pool.positions().get(t, ()))
    }
    if short:
        t, (wanted, there) = max(short.items(), key=lambda item: item[1][0])
        raise ValueError(
            f"the selection needs {wanted} samples of timestep {t:g} but {there} were recorded: "
            f"restore more pictures (with per_timestep at least {wanted}), or select fewer samples"
        )
