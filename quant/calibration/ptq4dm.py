"""PTQ4DM's calibration set: timesteps drawn from a normal distribution that leans towards the clean
image (NDTC).

    j = clamp(trunc(T N(mean, std)), 0, T - 1),   T = number of solver steps, j = 0 the cleanest

Shang et al. 2023, Post-training Quantization on Diffusion Models, sec. 3.3. The released code
enumerates the reverse loop from the noisiest step, keeps the state *after* step ``k = j`` and hands
the network the label ``k`` of the cleanest-first list: noise levels and labels run in opposite
directions. Here a sample is a network input with the timestep it was shown at; the released pairing
is ``compat="released"`` of :func:`pair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibration.selection import take
from quant.calibration.trajectory import CalibrationSet


@dataclass(frozen=True)
class PTQ4DM:
    """Normally distributed timestep calibration.

    Args:
        mean, std: of the normal, as fractions of the number of solver steps (0.4 and 0.4 in the
            released scripts). It is a plain normal, clipped: the cleanest step gets the whole lower
            tail (about a sixth of the samples).

    Raises:
        ValueError: ``mean`` not finite, or ``std`` not positive.
    """

    mean: float = 0.4
    std: float = 0.4

    def __post_init__(self) -> None:
        if not (abs(self.mean) < float("inf") and 0 < self.std < float("inf")):
            raise ValueError(
                f"mean must be finite and std positive; got {self.mean} and {self.std}"
            )

    def draw(self, count: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """``count`` step indices, int64 in ``[0, num_steps)``, 0 = the cleanest."""
        return self.steps(
            torch.empty(count).normal_(self.mean, self.std, generator=generator), num_steps
        )

    @staticmethod
    def steps(draws: Tensor, num_steps: int) -> Tensor:
        """Draws of the normal, in fractions of the trajectory, to step indices: times T, truncated
        towards zero, clamped.
        """
        return (draws * num_steps).to(torch.int64).clamp(0, num_steps - 1)

    def budgets(self, pool: CalibrationSet, count: int, seed: int = 0) -> dict[float, int]:
        """How many of ``count`` samples each timestep of the pool gets."""
        drawn = self.draw(count, len(pool.grid), torch.Generator().manual_seed(seed))
        shares = torch.bincount(drawn, minlength=len(pool.grid)).tolist()
        # the grid begins with the noisiest, index T - 1
        return dict(zip(pool.grid, reversed(shares), strict=True))

    def select(self, pool: CalibrationSet, count: int, seed: int = 0) -> CalibrationSet:
        """Choose ``count`` samples.

        Raises:
            ValueError: a timestep's share is larger than what was recorded of it.
        """
        return take(
            pool,
            self.budgets(pool, count, seed),
            seed,
            f"ptq4dm(mean={self.mean:g}, std={self.std:g}, n={count}, seed={seed})",
        )


def pair(
    chain: Tensor, timesteps: Sequence[float], drawn: Tensor, compat: str | None = None
) -> tuple[Tensor, Tensor]:
    """Sample j of a trajectory's batch at step ``drawn[j]``, with the timestep to calibrate it at.

    Args:
        chain: ``(T, n, C, H, W)``, noisiest first: the network's input at each step.
        timesteps: T values, noisiest first: what the network was shown with each.
        drawn: ``(n,)`` from :meth:`PTQ4DM.draw`, 0 = the cleanest.
        compat: None, or ``released`` for the authors' pairing: ``chain`` then holds the state
            *after* each step, ``drawn`` indexes it from the noisiest, and the label is the
            cleanest-first timestep of the same index. For comparisons only.

    Returns:
        ``x (n, C, H, W)`` and ``t (n,)``.

    Raises:
        ValueError: lengths that don't fit, or an unknown ``compat``.
    """
    if len(chain) != len(timesteps) or drawn.shape != (chain.shape[1],):
        raise ValueError(
            f"chain {tuple(chain.shape)} needs {len(chain)} timesteps and {chain.shape[1]} drawn"
            f" steps; got {len(timesteps)} and {tuple(drawn.shape)}"
        )
    if compat not in (None, "released"):
        raise ValueError(f"compat must be None or 'released'; got {compat!r}")
    times, drawn = torch.as_tensor(timesteps), drawn.long()
    from_noisiest = len(chain) - 1 - drawn
    rows = drawn if compat == "released" else from_noisiest
    return chain[rows, torch.arange(len(drawn))], times[from_noisiest]
