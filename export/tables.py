"""A run as a table: the numbers that a solver multiplies states and answers with.

Between two calls of the network a solver adds pictures, each times a number that only process,
grid and solver decide. So do the process's conversions and, pixel by pixel, a correction that
keeps known pixels. All of a run is then a few rows of numbers: what the network is shown at each
call, and the result, as weighted sums of the start's noise, the measured picture and the answers
so far. A device follows them without any solver (:mod:`export.edge`).

The rows are read off the package's own run: "pictures" whose pixel j is 1 in the j-th of these
ingredients and 0 in the others give the weights back, exactly. A run that isn't such a sum (one
that looks at the pictures to choose its step, say) is found out by running it on random pictures
too, and has no table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.bundle import RUNNER, RUNNER_SOURCE, Bundle, entry_of, read_bundle, replace_manifest
from export.records import Level, RunTable
from quant.temporal.table import holds
from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.paired.task import default_process
from restoration.photo.start import PRIOR_STD
from restoration.posterior import correction_by_name
from restoration.task import Run, shown_to
from solvers.denoiser import Denoiser
from solvers.files import replace_file, together
from solvers.grid import lay
from solvers.methods import solver_by_name
from solvers.prediction import HEADS
from solvers.solver import Solver

# steps of the runs that a network's bundle holds where its times allow them; the first is the
# runner's default
STEPS = {"inpaint": (1, 2, 3, 5, 10), "paired": (5, 1, 2, 3, 10)}
# a network that is shown nothing is steered by the known pixels alone, which takes some calls
UNSHOWN = (10, 5)
# noise, in units of the network's range, of the levels that a graph of free times is tabulated at
LEVELS = np.geomspace(0.004, 2.0, 100)


@dataclass(frozen=True)
class Tables:
    """What a network's bundle can be run for without this package."""

    runs: tuple[RunTable, ...] = ()
    levels: tuple[Level, ...] = ()


def tables_of(denoiser: Denoiser, timesteps: Sequence[float] = ()) -> Tables:
    """All tables for a network, of the tasks that need no more than pictures: inpainting, pairs,
    denoising.

    Args:
        timesteps: the only times that its graph answers at; empty: any.
    """
    kinds, channels = shown_to(denoiser), denoiser.image_channels
    inpaints = channels in (1, 3) and (
        (denoiser.condition_channels == channels + 1 and "lift+known" in kinds)
        or kinds == ("none",)
    )
    paired = channels == 3 and bool({"degraded", "degraded+mask"} & set(kinds)) and not inpaints
    plain = kinds == ("none",) and channels in (1, 3) and not denoiser.process.holds_image
    runs = []
    for name, wanted in (("inpaint", inpaints), ("paired", paired)):
        counts = UNSHOWN if kinds == ("none",) else STEPS[name]
        for steps in counts if wanted else ():
            found = run_table(denoiser, name, "ddim" if name == "inpaint" else "rddm", steps)
            if found is not None and (not timesteps or holds(timesteps, found.times)):
                runs.append(found)
    levels = noise_levels(denoiser, timesteps) if plain else ()
    return Tables(tuple(runs), tuple(levels))


def run_table(
    denoiser: Denoiser, task: str, solver: str, steps: int, grid: str = "trailing"
) -> RunTable | None:
    """The table of one run of ``inpaint`` or ``paired``; None where the run is no such sum, or is
    refused.
    """
    make = {"inpaint": _inpainting, "paired": _pairing}[task]

    def ready(d: Denoiser, y: Tensor, known: Tensor) -> Run:
        return make(d, y, known, solver_by_name(solver), steps, grid)

    heads = HEADS.get(denoiser.prediction_type, 1)
    kinds = 2 if task == "inpaint" else 1
    try:
        calls, draws = _counted(ready, denoiser, heads)
        count = 1 + calls * heads + draws
        # row 0: pixels that are missing, row 1: known ones; column j: ingredient j
        known = torch.tensor([0.0, 1.0])[:kinds, None].expand(1, 1, kinds, count)
        unit = torch.eye(count, dtype=torch.float64)[:, None, None].expand(-1, 1, kinds, count)
        seen = _Follower(denoiser, unit[1 : 1 + calls * heads], heads)
        end = seen.follow(ready, unit[:1], known, unit[1 + calls * heads :])
    except ValueError:
        return None
    made = RunTable(
        task="inpaint" if task == "inpaint" else "paired",
        solver=solver,
        steps=steps,
        grid=grid,
        correction="ddnm" if task == "inpaint" else "none",
        draws=draws,
        times=seen.times,
        asked=torch.stack(seen.asked)[:, 0, 0].transpose(0, 1).tolist(),
        end=end[0, 0].tolist(),
    )
    return made if _is_sum(ready, denoiser, made, heads) else None


def noise_levels(denoiser: Denoiser, timesteps: Sequence[float] = ()) -> list[Level]:
    """One for each time that the graph answers at and that holds some signal; least noise first."""
    process = denoiser.process
    times = timesteps or sorted({process.time_at(-2 * float(np.log(k))) for k in LEVELS})
    found = []
    for t in times:
        if t < process.first or process.a(t) <= 0 or process.b(t) <= 0:
            continue
        unit = torch.eye(2, dtype=torch.float64)[:, None, None].expand(-1, 1, 1, 2)
        seen = _Follower(denoiser, unit[1:], 1)
        x0 = seen.traced()(unit[:1], t).x0[0, 0, 0]
        found.append(
            Level(
                t=t,
                kappa=process.kappa(t),
                a=process.a(t),
                shown=float(seen.asked[0][0, 0, 0, 0]),
                state=float(x0[0]),
                answer=float(x0[1]),
            )
        )
    return sorted(found, key=lambda level: level.kappa)


def renew_bundle(folder: str | Path, *, runner: bool = True) -> Bundle:
    """Give a bundle of an earlier format what this one holds beside the graph, which stays as it
    is: the tables of its runs, and ``run.py``.

    Args:
        runner: whether ``run.py`` is put in.

    Raises:
        ValueError: as :func:`read_bundle`.
    """
    from export.runtime.session import Session

    folder, bundle = Path(folder), read_bundle(folder)
    changes: dict[str, Any] = {}
    if bundle.graph != "restorer":
        tables = tables_of(Session(folder), bundle.timesteps)
        changes |= {"runs": list(tables.runs), "levels": list(tables.levels)}
    with together():  # a runner of which the manifest doesn't know would damage the bundle
        if runner:
            content = RUNNER_SOURCE.read_bytes()
            changes["files"] = bundle.files | {RUNNER: entry_of(content)}
            replace_file(folder / RUNNER, lambda part: part.write_bytes(content))
        return replace_manifest(folder, bundle, **changes)


# a run on a measured picture and what is known of each pixel, both (1, 1, H, W) in the network's
# range
Ready = Callable[[Denoiser, Tensor, Tensor], Run]


def _inpainting(
    d: Denoiser, y: Tensor, known: Tensor, solver: Solver, steps: int, grid: str
) -> Run:
    if d.condition_channels:
        d.condition = torch.cat([y, known.to(y)], dim=1)
    measurement = Measurement(Inpainting(known), known * y)
    asked = correction_by_name("ddnm", d, measurement, steps=steps, prior_std=PRIOR_STD)
    return Run(asked, solver, lay(grid, d.process, steps), _shape(y))


def _pairing(d: Denoiser, y: Tensor, known: Tensor, solver: Solver, steps: int, grid: str) -> Run:
    d.condition = y.expand(-1, d.condition_channels, -1, -1)
    process = default_process(d, solver, steps)
    own = y if process.holds_image else None
    return Run(d, solver, lay(grid, process, steps), _shape(y), process=process, y=own)


def _shape(y: Tensor) -> tuple[int, int, int]:
    return 1, int(y.shape[-2]), int(y.shape[-1])


class _Follower:
    """Runs with given answers ``(calls * heads, 1, H, W)``, and what the network is shown then."""

    def __init__(self, denoiser: Denoiser, answers: Tensor, heads: int):
        self.denoiser, self.answers, self.heads = denoiser, answers, heads
        self.asked: list[Tensor] = []
        self.times: list[float] = []
        self.drawn = 0

    def traced(self) -> Denoiser:
        """The denoiser, with every conversion but without its network."""
        return _Traced(self)

    def follow(self, ready: Ready, y: Tensor, known: Tensor, noise: Tensor) -> Tensor:
        def draw(shape: Sequence[int]) -> Tensor:
            self.drawn += 1
            return noise[self.drawn - 1].expand(tuple(shape))

        run = ready(self.traced(), y, known)
        start = run.first_state(draw).to(torch.float64)
        return run.solve(start, draw).x0


class _Traced(Denoiser):
    def __init__(self, follower: _Follower):
        self.__dict__ |= follower.denoiser.__dict__
        self.follower = follower

    def answer(self, z: Tensor, t: Any) -> Tensor:
        f = self.follower
        k = len(f.times) * f.heads
        f.asked.append(z)
        f.times.append(float(t))
        return f.answers[k : k + f.heads, 0][None].to(z)


def _counted(ready: Ready, denoiser: Denoiser, heads: int) -> tuple[int, int]:
    """Calls and draws of a run."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    seen = _Follower(denoiser, zero.expand(400, 1, 1, 1), heads)
    seen.follow(ready, zero, torch.zeros(1, 1, 1, 1), zero.expand(400, 1, 1, 1))
    return len(seen.times), seen.drawn


def _is_sum(ready: Ready, denoiser: Denoiser, made: RunTable, heads: int) -> bool:
    """Whether the table gives what the run gives, on random pictures."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(len(made.end[0]), 1, 4, 6, generator=generator, dtype=torch.float64)
    known = (torch.rand(1, 1, 4, 6, generator=generator) < 0.5).float()
    seen = _Follower(denoiser, pictures[1 : 1 + len(made.times) * heads], heads)
    noise = pictures[1 + len(made.times) * heads :]
    end = seen.follow(ready, pictures[:1], known, noise)
    rows = torch.tensor([[*kind, row] for kind, row in zip(made.asked, made.end, strict=True)])
    for k, picture in enumerate((*seen.asked, end)):
        sums = torch.einsum("ki,ichw->kchw", rows[:, k].double(), pictures)
        wanted = sums[0] if len(sums) == 1 else torch.where(known[0] > 0, sums[1], sums[0])
        if not torch.allclose(picture[0], wanted, rtol=1e-6, atol=1e-6):
            return False
    return True
