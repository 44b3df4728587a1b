"""Time grids: where a solver evaluates. Always descending nodes, walked as (t, next t) pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.processes.process import CLEAN, Process, Table

ZERO_SNR_STAND_IN = -10.0
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Grid:
    """Strictly descending node times; the last is the level the run ends on (``-1`` = clean image).

    Raises:
        ValueError: fewer than two nodes, not strictly descending, not finite, or below -1.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        times = tuple(float(t) for t in self.times)
        if len(times) < 2:
            raise ValueError("a grid needs at least two times: the start and the level to end on")
        if not all(math.isfinite(t) for t in times) or times[-1] < CLEAN:
            raise ValueError(f"grid times must be finite and >= -1 (the clean level); got {times}")
        if any(s >= t for t, s in zip(times, times[1:], strict=False)):
            raise ValueError(f"grid times must descend strictly; got {times}")
        object.__setattr__(self, "times", times)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    def pairs(self) -> Iterator[tuple[float, float]]:
        return zip(self.times, self.times[1:], strict=False)

    def with_signal(self, process: Process) -> Grid:
        """The same grid below the levels without signal (zero terminal SNR), for methods that can't
        begin there.

        Raises:
            ValueError: no two nodes are left.
        """
        times = tuple(t for t in self.times if process.a(t) > 0)
        if len(times) < 2:
            raise ValueError("the grid has no step below the level without signal: take more steps")
        return self if len(times) == len(self.times) else Grid(times)

    def start_at(self, t: float) -> Grid:
        """The same grid entered at ``t``: nodes above it are dropped and ``t`` becomes the first
        node.
        """
        return Grid((t, *(s for s in self.times if s < t)))


def check_steps(num_inference_steps: int, most: int = MOST_STEPS) -> int:
    """The number of steps itself.

    Raises:
        ValueError: no whole number from 1 to ``most``.
    """
    n = num_inference_steps
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= most:
        raise ValueError(f"num_inference_steps must be a whole number from 1 to {most}; got {n!r}")
    return int(n)


def _check_steps(process: Process, num_inference_steps: int) -> int:
    """At most one for each level of the process."""
    return check_steps(num_inference_steps, process.levels or MOST_STEPS)


def _check_whole_steps(process: Process, num_inference_steps: int) -> tuple[int, int]:
    if process.levels is None:
        raise ValueError(
            "this grid counts whole levels and the process is continuous; use log_snr, karras,"
            " linspace or explicit"
        )
    return _check_steps(process, num_inference_steps), process.levels


def trailing(process: Process, num_inference_steps: int) -> Grid:
    """``T-1`` down in equal strides ``T/N`` (rounded), then clean: starts at the noisiest level
    (Lin et al. 2024, table 2).
    """
    n, T = _check_whole_steps(process, num_inference_steps)
    return Grid((*(float(np.rint(T - k * T / n)) - 1 for k in range(n)), CLEAN))


def leading(process: Process, num_inference_steps: int) -> Grid:
    """``N`` multiples of ``floor(T/N)``, from ``(N-1) floor(T/N)`` down to 0, then clean (DDIM's
    grid).
    """
    n, T = _check_whole_steps(process, num_inference_steps)
    return Grid((*(float(k * (T // n)) for k in reversed(range(n))), CLEAN))


def pndm_nodes(process: Process, num_inference_steps: int) -> Grid:
    """Every multiple of ``floor(T/N)`` below ``T``: ``ceil(T/floor(T/N))`` nodes, one more than
    ``N`` where N does not divide T.

    The grid of PNDM's released code.
    """
    n, T = _check_whole_steps(process, num_inference_steps)
    return Grid((*(float(t) for t in reversed(range(0, T, T // n))), CLEAN))


def linspace(process: Process, num_inference_steps: int) -> Grid:
    """``N`` equally spaced real times from the noisiest to the first, then clean."""
    n = _check_steps(process, num_inference_steps)
    return Grid(
        (*np.linspace(process.end, process.first, n), CLEAN) if n > 1 else (process.end, CLEAN)
    )


def log_snr(process: Process, num_inference_steps: int) -> Grid:
    """``N`` real times equally spaced in log-SNR between the noisiest level and the first, then
    clean.

    At zero terminal SNR the first node, ``T-1``, counts as log-SNR -10 for the spacing (about where
    DDPM's schedules end).
    """
    n = _check_steps(process, num_inference_steps)
    return _at_levels(
        process, np.linspace(_start_level(process), process.log_snr(process.first), n)
    )


def karras(process: Process, num_inference_steps: int, rho: float = 7.0) -> Grid:
    """``N`` real times equally spaced in ``kappa^(1/rho)``, then clean (Karras et al. 2022, eq. 5).

    Zero terminal SNR as in :func:`log_snr`.
    """
    n = _check_steps(process, num_inference_steps)
    top, bottom = (
        math.exp(-level / (2 * rho))
        for level in (_start_level(process), process.log_snr(process.first))
    )
    return _at_levels(process, -2 * rho * np.log(np.linspace(top, bottom, n)))


def consistency(
    process: Process, num_inference_steps: int, original_inference_steps: int = 50
) -> Grid:
    """Times that a latent consistency model was distilled at: some of ``k-1, 2k-1, ..., T-1`` with
    ``k = T // original``, then clean.

    The step indices are ``floor(i original/N)`` from the noisiest down. Older releases of diffusers
    chose others: store the times.

    Raises:
        ValueError: more steps than original ones, or more of those than levels.
    """
    n, count = (
        _check_steps(process, num_inference_steps),
        _check_steps(process, original_inference_steps),
    )
    if n > count:
        raise ValueError(
            f"a consistency grid of {count} original steps has no {n} steps; raise"
            " original_inference_steps"
        )
    k = len(process) // count
    return Grid((*(float(k * (count - i * count // n) - 1) for i in range(n)), CLEAN))


def explicit(times: Sequence[float], end: float = CLEAN) -> Grid:
    """The given descending times, then ``end``."""
    return Grid((*times, end))


def _start_level(process: Process) -> float:
    level = process.log_snr(process.end)
    return ZERO_SNR_STAND_IN if math.isinf(level) else level


def _at_levels(process: Process, levels: Table) -> Grid:
    times = (max(process.time_at(level), process.first) for level in levels[1:])
    return Grid((process.end, *times, CLEAN))


GRIDS: dict[str, Callable[[Process, int], Grid]] = {
    "trailing": trailing,
    "leading": leading,
    "pndm": pndm_nodes,
    "linspace": linspace,
    "log-snr": log_snr,
    "karras": karras,
}


def lay(name: str, process: Process, num_inference_steps: int) -> Grid:
    """The grid of this name in :data:`GRIDS`. ``trailing``, the default everywhere, means
    ``karras`` on a process of continuous time, which has no levels to count.

    Raises:
        ValueError: no such name, or an impossible number of steps.
    """
    if name not in GRIDS:
        raise ValueError(f"grid {name!r} is unknown; known: {', '.join(GRIDS)}")
    chosen = "karras" if name == "trailing" and process.levels is None else name
    return GRIDS[chosen](process, num_inference_steps)
