"""Solvers measured against the truth: where they end on an exact Gaussian mixture, how fast that
converges, what a step costs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from solvers import (
    CLEAN,
    GRIDS,
    SOLVERS,
    VE,
    VP,
    DiffusersSolver,
    GaussianMixture,
    Grid,
    Prediction,
    Process,
    Solver,
    solve,
    solver_by_name,
)
from toolbox.bench.peers import installed

# names beside those of SOLVERS, for comparison alone
EXTRA: dict[str, Callable[[], Solver]] = {
    "evodiff-paper": partial(solver_by_name, "evodiff", mode="paper"),
    "unipc-3": partial(DiffusersSolver, "UniPCMultistepScheduler", {"solver_order": 3}),
    "deis-3": partial(DiffusersSolver, "DEISMultistepScheduler", {"solver_order": 3}),
    "heun": partial(DiffusersSolver, "HeunDiscreteScheduler"),
}
RANDOM = ("ddpm", "resfusion", "ddcm")  # solvers that draw noise in every step: they follow no flow
DEFAULT_SOLVERS = (*(name for name in SOLVERS if name not in (*RANDOM, "rddm")), *EXTRA)
DEFAULT_NFE = (8, 10, 12, 15, 20, 25, 30, 50)
DEFAULT_GRIDS = ("log-snr", "trailing")
PROCESSES: dict[str, Callable[[], Process]] = {"ddpm": VP.linear, "edm": VE}
ORDER_NFE = (30, 100)
COST_SHAPE, COST_STEPS, COST_ROUNDS = (1, 3, 128, 128), 10, 5


def mixture(
    seed: int, components: int = 5, shape: tuple[int, int, int] = (3, 4, 4)
) -> GaussianMixture:
    """Well separated images: weights ~ U(0.5, 1.5), means ~ U(-0.8, 0.8), standard deviations per
    pixel ~ U(0.08, 0.3).
    """
    g = torch.Generator().manual_seed(seed)
    weights = 0.5 + torch.rand(components, generator=g, dtype=torch.float64)
    means = 1.6 * torch.rand((components, *shape), generator=g, dtype=torch.float64) - 0.8
    stds = 0.08 + 0.22 * torch.rand((components, *shape), generator=g, dtype=torch.float64)
    return GaussianMixture(weights, means, stds)


def bench_solvers(
    *,
    solvers: Sequence[str] = DEFAULT_SOLVERS,
    nfe: Sequence[int] = DEFAULT_NFE,
    grids: Sequence[str] = DEFAULT_GRIDS,
    process: str = "ddpm",
    count: int = 32,
    seed: int = 0,
    peers: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Errors, orders and costs of solvers, ours and diffusers', in one run.

    *Error*: the median over ``count`` start points of the root mean square distance to the end of
    the exact flow, from pure noise to the clean image. Each solver gets as many steps as ``nfe``
    network calls allow; where they are fewer (Heun: odd numbers only) the row says how many.
    *Order*: the slope of that error between 30 and 100 calls on a log-SNR grid between two noisy
    levels, so that the last jump to the clean level does not hide it. *Cost*: a step's own
    arithmetic, without the network, on a state of 3 x 128 x 128 values, as a multiple of DDIM's,
    medians of interleaved rounds.

    Args:
        solvers: names in ``solvers.SOLVERS`` or :data:`EXTRA`, of deterministic solvers.
        nfe: numbers of network calls, 1 or more.
        grids: names in ``solvers.GRIDS``.
        process: ``ddpm`` (linear betas) or ``edm`` (variance exploding, 80 to 0.002).
        count: start points.
        seed: of the mixture; the start points use ``seed + 1``.
        peers: also samplers of other libraries, as far as they are installed
            (:mod:`toolbox.bench.peers`).

    Returns:
        ``errors``: rows with grid, solver, nfe, steps, median and rms; ``solvers``: rows with
            solver, origin, order and cost.

    Raises:
        ValueError: unknown names, solvers that draw noise, or counts below 1.
    """
    chosen = {name: _named(name) for name in solvers}
    if process not in PROCESSES:
        raise ValueError(f"process {process!r} is unknown; known: {', '.join(PROCESSES)}")
    for name in grids:
        if name not in GRIDS:
            raise ValueError(f"grid {name!r} is unknown; known: {', '.join(GRIDS)}")
    if not nfe or min(nfe) < 1 or count < 1:
        raise ValueError(
            f"network calls and start points must be at least 1; got {list(nfe)} and {count}"
        )
    p, prior = PROCESSES[process](), mixture(seed)
    denoiser = prior.denoiser(p)
    x = p.b(p.end) * torch.randn(
        (count, *prior.means.shape[1:]),
        generator=torch.Generator().manual_seed(seed + 1),
        dtype=torch.float64,
    )
    total, done = len(chosen) * (len(grids) * len(nfe) + 1 + COST_ROUNDS) + 2, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    exact = prior.flow(p, x, p.end, CLEAN)
    tick()
    steps = {
        name: {calls: _steps(solver, p, GRIDS[grids[0]], calls) for calls in nfe}
        for name, solver in chosen.items()
    }
    errors = []
    for grid in grids:
        for name, solver in chosen.items():
            for calls, n in steps[name].items():
                if n:
                    result = solve(solver, denoiser, x, GRIDS[grid](p, n))
                    row = {
                        "grid": grid,
                        "solver": name,
                        "nfe": calls,
                        "calls": result.nfe,
                        "steps": n,
                    }
                    errors.append(row | _distances(result.x0, exact))
                tick()
    others = installed() if peers else {}
    if peers and not others:
        raise ValueError(
            "neither azula nor k-diffusion is installed: pip install 'restobox[peers]'"
        )
    for grid, (name, sample), calls in itertools.product(grids, others.items(), nfe):
        with torch.no_grad():
            end = sample(denoiser, x, GRIDS[grid](p, calls))
        row = {"grid": grid, "solver": name, "nfe": calls, "calls": calls, "steps": calls}
        errors.append(row | _distances(end, exact))
    noisy_end = prior.flow(p, x, p.end, p.first)
    tick()
    orders = {}
    for name, solver in chosen.items():
        orders[name] = _order(solver, denoiser, x, noisy_end)
        tick()
    costs = _costs(chosen, tick)
    table = [
        {
            "solver": name,
            "origin": "diffusers" if isinstance(solver, DiffusersSolver) else "restobox",
            "order": orders[name],
        }
        | costs[name]
        for name, solver in chosen.items()
    ]
    unknown = dict.fromkeys(("order", "cost", "ms_per_call"))
    table += [{"solver": name, "origin": "peer"} | unknown for name in others]
    return {
        "process": process,
        "start_points": count,
        "seed": seed,
        "errors": errors,
        "solvers": table,
    }


def _named(name: str) -> Solver:
    if name in RANDOM:
        raise ValueError(
            f"solver {name!r} draws noise in every step and follows no flow; choose from"
            f" {', '.join(DEFAULT_SOLVERS)}"
        )
    if name in EXTRA:
        return EXTRA[name]()
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown; known: {', '.join((*SOLVERS, *EXTRA))}")
    return solver_by_name(name)


def _distances(x: torch.Tensor, exact: torch.Tensor) -> dict:
    each = (x - exact).square().mean(dim=(1, 2, 3))
    return {"median": each.sqrt().median().item(), "rms": each.mean().sqrt().item()}


class _Still:
    """Answers at once: the cost of a run is then the solver's own."""

    def __init__(self, process: Process, shape: tuple[int, ...]):
        g = torch.Generator().manual_seed(0)
        self.process, self.answer = (
            process,
            Prediction(torch.randn(shape, generator=g), torch.randn(shape, generator=g)),
        )

    def __call__(self, x: torch.Tensor, t: float) -> Prediction:
        return self.answer


def _steps(
    solver: Solver, process: Process, lay: Callable[[Process, int], Grid], calls: int
) -> int:
    """The most steps that take no more than ``calls`` network calls; 0 if even one takes more."""
    still, x = _Still(process, (1, 1, 1, 1)), torch.zeros(1, 1, 1, 1)
    return next(
        (n for n in range(calls, 0, -1) if solve(solver, still, x, lay(process, n)).nfe <= calls), 0
    )


def _order(solver: Solver, denoiser, x: torch.Tensor, exact: torch.Tensor) -> float:
    p = denoiser.process
    found = []
    for n in ORDER_NFE:
        run = solve(solver, denoiser, x, Grid(GRIDS["log-snr"](p, n + 1).times[:-1]))
        found.append((math.log(run.nfe), math.log(_distances(run.x0, exact)["median"])))
    (calls, error), (more, less) = found
    return round((error - less) / (more - calls), 2)


def _costs(chosen: dict[str, Solver], tick: Callable[[], None]) -> dict[str, dict]:
    """Time per network call spent outside the network, as a multiple of DDIM's."""
    process = VP.linear()
    grid, still, x = (
        GRIDS["trailing"](process, COST_STEPS),
        _Still(process, COST_SHAPE),
        torch.randn(COST_SHAPE),
    )
    timed = {"ddim": solver_by_name("ddim"), **chosen}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(COST_ROUNDS + 1):  # the first warms up
        for name, solver in timed.items():
            began = time.perf_counter()
            run = solve(solver, still, x, grid)
            if turn:
                seconds[name].append((time.perf_counter() - began) / run.nfe)
        for _ in chosen if turn else ():
            tick()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "cost": round(medians[name] / medians["ddim"], 2),
            "ms_per_call": round(1e3 * medians[name], 3),
        }
        for name in chosen
    }


def tables(figures: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """One table per grid, as title, header and rows: median errors by network calls, then order and
    cost.
    """
    grids = list(dict.fromkeys(row["grid"] for row in figures["errors"]))
    nfe = sorted({row["nfe"] for row in figures["errors"]})
    found = {(row["grid"], row["solver"], row["nfe"]): row for row in figures["errors"]}
    made = []
    for grid in grids:
        rows = []
        for solver in figures["solvers"]:
            cells = (_cell(found.get((grid, solver["solver"], n))) for n in nfe)
            name = (
                solver["solver"]
                if solver["origin"] != "diffusers"
                else f"{solver['solver']} (diffusers)"
            )
            last = ("-" if solver[k] is None else f"{solver[k]:.1f}" for k in ("order", "cost"))
            rows.append((name, *cells, *last))
        title = (
            f"median error on {grid} grids, {figures['process']} process (* = fewer network calls)"
        )
        made.append((title, ("network calls:", *map(str, nfe), "order", "cost"), rows))
    return made


def _cell(row: dict | None) -> str:
    return (
        "-" if row is None else f"{row['median']:.1e}" + ("*" if row["calls"] < row["nfe"] else "")
    )
