"""Calibrate any diffusers U-Net on the trajectories of its deployment: what ``restobox calibrate``
does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quant.calibration.collect import collected, record_all
from quant.calibration.eda_dm import EDADM
from quant.calibration.ptq4dm import PTQ4DM
from quant.calibration.selection import Uniform
from quant.calibration.shards import Collection, recorded_in
from quant.calibration.trajectory import CalibrationSet, Provenance, check_recordable, network_hash
from restoration.posterior import CORRECTIONS
from restoration.task import KINDS
from solvers import GRIDS
from solvers.denoiser import Denoiser
from solvers.files import check_file, check_outputs
from toolbox.api import checkpoint_options, float_model, keeping_models, reading_with
from toolbox.deploy.options import Recording, Trajectories
from toolbox.support.cost import Cost
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Source, Task
from toolbox.tasks.settings import Settings

SELECTIONS = ("uniform", "ptq4dm", "eda-dm")


def run_calibrate(
    model: str,
    data: Path | None,
    out: Path,
    runs: Trajectories = Trajectories(),
    recording: Recording = Recording(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Restore ``recording.count`` simulated measurements with the deployed solver at each number of
    steps and record what the network sees.

    An interrupted call goes on when it is repeated, also with another number of workers. Returns
    the figures that the command prints.

    Args:
        model: a shipped float model, or any diffusers ``UNet2DModel``/``UNet2DConditionModel``
            folder.
        data: as the task's ``source`` takes it.
        runs: their noise is the task's own by default.
        recording: crops have by default the side that the network's config says it was trained on,
            else 256; 8 inputs are kept per timestep by default, and all that a selection may need
            where there is one.

    Raises:
        ValueError, OSError: bad names, numbers or files; ``out`` is not written then.
    """
    check_file(out)
    _check_replaceable(out)
    check_outputs([out], [model, data])
    select, samples = recording.select, recording.samples
    _check_names(
        grid=(runs.grid, GRIDS),
        correction=(runs.correction, (None, *CORRECTIONS)),
        select=(select, (None, *SELECTIONS)),
    )
    if samples is not None and samples < 1:
        raise ValueError(f"--samples must be at least 1; got {samples}")
    if select is not None and samples is None:
        raise ValueError(f"--select {select} needs --samples: how many network inputs to choose")
    if recording.workers is not None and recording.scheduler is not None:
        raise ValueError(
            "--workers starts processes on this machine and --scheduler takes those of a cluster;"
            " give one of them"
        )
    chosen = select or ("uniform" if samples is not None else None)
    pool = out if chosen is None else out.with_name(f".{out.name}.pool")
    call = _Call(model, data, pool, runs, recording, checkpoint_options())
    denoiser, restore, what = call.prepared()
    with Cost() as cost:
        try:
            recorded = collected(
                what,
                lambda todo, told: _record(call, denoiser, restore, what, todo, told),
                lambda done: progress(done, what.count),
            )
            if chosen is not None and samples is not None:
                recorded = select_samples(recorded, denoiser, chosen, samples, recording.seed)
                recorded.save(out)
        finally:
            if pool != out:
                pool.unlink(missing_ok=True)
    shares = {f"{t:g}": len(positions) for t, positions in recorded.positions().items()}
    figures = {"out": str(out), "samples": len(recorded), "timesteps": list(recorded.grid)}
    figures |= {"per_timestep": shares, "selection": recorded.provenance.selection}
    return figures | {"hash": recorded.hash, "cost": cost.to_dict()}


@dataclass(frozen=True)
class _Call:
    """What is to be recorded, in words that a worker can act on.

    Attributes:
        pool: the file that the recorded set goes to.
        checkpoint: what is said of a file of weights (:func:`toolbox.api.reading_with`).
    """

    model: str
    data: Path | None
    pool: Path
    runs: Trajectories
    recording: Recording
    checkpoint: dict[str, Any]

    def prepared(self) -> tuple[Denoiser, Callable[[int], None], Collection]:
        """The network, what restores number k, and what is kept.

        Raises:
            ValueError, OSError: as :func:`run_calibrate`.
        """
        runs, recording, task = self.runs, self.recording, task_by_name(self.runs.task)
        denoiser = float_model(self.model, runs.task if runs.task in KINDS else None)
        task.check_recordable(denoiser)
        side = recording.side or _side(denoiser, latents=runs.task == "generate")
        source = task.source(self.data, denoiser, side, recording.seed)
        steps = tuple(runs.steps or task.recorded_steps(denoiser))
        if not runs.steps:
            grid = task.recorded_grid if runs.grid == "trailing" else runs.grid
            runs = replace(runs, steps=list(steps), grid=grid)
        sigma = task.calibration_sigma if runs.sigma is None else runs.sigma
        restore, ways = restorations(task, denoiser, source, runs, sigma)
        provenance = Provenance(
            network_hash(denoiser.network),
            recording.seed,
            runs.solver,
            max(steps),
            f"{runs.task}, steps {', '.join(map(str, steps))}, sigma {sigma:g}, side {side}",
            tuple(_hashes(source)),
            runs.grid,
            runs.correction or "",
        )
        crop = _crop(denoiser, side)
        per_timestep = recording.per_timestep or recording.samples or 8
        check_recordable(denoiser, per_timestep, crop)
        count = recording.count * ways
        return denoiser, restore, Collection(self.pool, count, provenance, per_timestep, crop)


def _record(
    call: _Call,
    denoiser: Denoiser,
    restore: Callable[[int], None],
    what: Collection,
    todo: list[int],
    told: Callable[[int], object],
) -> None:
    """Here, or by workers, each of which takes a share of ``todo``."""
    workers, scheduler = call.recording.workers, call.recording.scheduler
    if workers is None and scheduler is None:
        record_all(what, denoiser, restore, todo, told)
        return
    from toolbox.tasks.scale.cluster import client_of, in_shares, need_dask

    need_dask()
    data = call.data and call.data.absolute()
    call = replace(call, data=data, pool=call.pool.absolute())
    before = recorded_in(what.folder)
    with client_of(scheduler, [{}] * (workers or 1)) as client:
        in_shares(client, _share, call, todo, told=lambda: told(recorded_in(what.folder) - before))


def _share(call: _Call, todo: list[int], turn: int, count: int) -> None:
    """What one of ``count`` workers records. Ways of restoring take turns in ``todo``, so that
    neighbours together are about as much work in every share.
    """
    from toolbox.tasks.scale.worker import working

    first, end = (len(todo) * k // count for k in (turn, turn + 1))
    # a network of its own: what it is shown is recorded
    with working(), keeping_models({}, threads=1), reading_with(call.checkpoint):
        denoiser, restore, what = call.prepared()
        record_all(what, denoiser, restore, todo[first:end])


def restorations(
    task: Task, denoiser: Denoiser, source: Source, runs: Trajectories, sigma: float
) -> tuple[Callable[[int], None], int]:
    """What restores number k, and in how many ways each trial is restored: numbers of steps, and
    for pairs also solvers, take turns. All that is drawn for it depends on the seed and k alone.
    """
    partner = {} if runs.partner is None else {"partner": runs.partner}
    own = None if "sigma" in task.unused else sigma
    options = task.simulated(denoiser, own, **partner)
    solvers = runs.solver.split(",") if task.several_solvers else [runs.solver]
    each = [
        Settings(solver, n, runs.grid, runs.correction)
        for n in runs.steps or (5,)
        for solver in solvers
    ]
    ways = [task.restorer(denoiser, *task.deployed(options, s)) for s in each]

    def restore(k: int) -> None:
        trial = task.trial(source, k // len(ways), options)
        ways[k % len(ways)](trial.inputs, seed=source.seed + k)

    return restore, len(ways)


def _check_replaceable(out: Path) -> None:
    """Refuse to write over a file that is no calibration set."""
    if not out.is_file():
        return
    try:
        with safe_open(out, "pt") as file:
            ours = "calibration" in (file.metadata() or {})
    except (SafetensorError, OSError):
        ours = False
    if not ours:
        raise ValueError(f"{out} exists and is no calibration set; give another name")


def _hashes(source: Source) -> list[str]:
    """Of the measured files."""
    first = [f[0] if isinstance(f, tuple) else f for f in source.files]
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in first})


def select_samples(
    pool: CalibrationSet, denoiser: Denoiser, name: str, count: int, seed: int
) -> CalibrationSet:
    """``count`` samples of a recorded set, chosen in one of the ways in ``SELECTIONS``."""
    if name == "eda-dm":
        return EDADM().select(pool, denoiser.network, count, seed)
    return {"uniform": Uniform, "ptq4dm": PTQ4DM}[name]().select(pool, count, seed)


def _side(denoiser: Denoiser, *, latents: bool) -> int:
    """Of a network of latents in pixels, unless they are what is made."""
    size = denoiser.network.config.get("sample_size")
    size = min(size) if isinstance(size, (list, tuple)) else size
    if size is None:
        return 256
    autoencoder = denoiser.autoencoder
    return size * denoiser.fold * (1 if latents or autoencoder is None else autoencoder.fold)


def _crop(denoiser: Denoiser, side: int) -> int | None:
    """Convolutions see the same statistics on a part of the picture; attention looks at all of
    it.
    """
    if any("Attention" in type(m).__name__ for m in denoiser.network.modules()):
        return None
    return min(side // denoiser.fold, 64) // denoiser.multiple * denoiser.multiple


def _check_names(**choices: tuple) -> None:
    for what, (given, known) in choices.items():
        if given not in known:
            raise ValueError(
                f"{what} {given!r} is unknown; known: {', '.join(name for name in known if name)}"
            )
