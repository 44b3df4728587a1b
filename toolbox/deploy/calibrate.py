"""Calibrate any diffusers U-Net on the trajectories of its deployment: what ``restobox calibrate``
does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quant.calibration.collect import collect
from quant.calibration.eda_dm import EDADM
from quant.calibration.ptq4dm import PTQ4DM
from quant.calibration.selection import Uniform
from quant.calibration.trajectory import CalibrationSet
from restoration.io.folders import find_pairs, find_pictures
from restoration.posterior import CORRECTIONS
from restoration.task import shown_to
from solvers import GRIDS, solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_file, check_outputs
from toolbox.api import float_model
from toolbox.support.cost import Cost
from toolbox.tasks.trials import (
    CubeRestorations,
    MRIRestorations,
    PairedRestorations,
    Restorations,
    UltrasoundRestorations,
)

TASKS = (
    "inpaint",
    "denoise",
    "superresolve",
    "deblur",
    "mri",
    "ultrasound",
    "dehaze",
    "paired",
    "hsi",
    "generate",
)
SELECTIONS = ("uniform", "ptq4dm", "eda-dm")


def run_calibrate(
    model: str,
    data: Path | None,
    out: Path,
    *,
    task: str = "inpaint",
    solver: str = "ddim",
    steps: Sequence[int] = (5,),
    grid: str = "trailing",
    correction: str | None = None,
    sigma: float | None = None,
    count: int = 16,
    side: int | None = None,
    per_timestep: int | None = None,
    select: str | None = None,
    samples: int | None = None,
    partner: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Restore ``count`` pictures with the deployed solver at each number of steps and record what
    the network sees.

    Masks take turns through all kinds. An interrupted call goes on when it is repeated. Returns the
    figures that the command prints.

    Args:
        model: a shipped float model, or any diffusers ``UNet2DModel``/``UNet2DConditionModel``
            folder.
        data: folder of pictures (``hsi``: with ``spectral_library.npz``); for ``mri`` a file of
            true magnitudes; None for ``generate``.
        solver: the one to deploy; for ``dehaze`` and ``paired`` also several, separated by commas.
        sigma: noise on the measurements, in units of [0, 1]; by default 0.1 for ``denoise``, 0.01
            for ``mri``, else 0.
        side: of the crops, in pixels; by default what the network's config says it was trained on,
            else 256.
        per_timestep: most network inputs kept per timestep; by default 8, and all that a selection
            may need where there is one.
        partner: for ``ultrasound``, the other prior, ``tissue:MODEL`` or ``haze:MODEL``.
        select, samples: keep ``samples`` of the recorded inputs, chosen in this way (``uniform``
            where only their number is given).

    Raises:
        ValueError, OSError: bad names, numbers or files; ``out`` is not written then.
    """
    check_file(out)
    check_outputs([out], [model, data])
    _check_names(
        task=(task, TASKS),
        grid=(grid, GRIDS),
        correction=(correction, (None, *CORRECTIONS)),
        select=(select, (None, *SELECTIONS)),
    )
    if samples is not None and samples < 1:
        raise ValueError(f"--samples must be at least 1; got {samples}")
    if select is not None and samples is None:
        raise ValueError(f"--select {select} needs --samples: how many network inputs to choose")
    denoiser = float_model(model, None if task == "generate" else task)
    sigma = {"denoise": 0.1, "mri": 0.01}.get(task, 0.0) if sigma is None else sigma
    files = _files(denoiser, task, data)
    side = _side(denoiser) if side is None else side
    steps = tuple(steps)
    paired = task in ("dehaze", "paired")
    solvers = solver.split(",") if paired else [solver]
    for n in () if paired else steps:
        GRIDS[grid](denoiser.process, n)
    restore: Callable[[int], None]
    if paired:
        restore = PairedRestorations(denoiser, task, files, solvers, steps, grid, side, seed)
    elif task == "mri":
        restore = MRIRestorations(
            denoiser, files[0], solver_by_name(solver), steps, grid, correction, sigma, seed
        )
    elif task == "hsi":
        restore = CubeRestorations(denoiser, files, side, seed)
    elif task == "ultrasound":
        restore = UltrasoundRestorations(
            denoiser, partner, files, solver_by_name(solver), steps, correction, side, seed
        )
    else:
        restore = Restorations(
            denoiser,
            task,
            files,
            solver_by_name(solver),
            steps,
            grid,
            correction,
            sigma,
            side,
            seed,
        )
    total = count * len(steps) * len(solvers)
    chosen = select or ("uniform" if samples is not None else None)
    pool = out if chosen is None else out.with_name(f".{out.name}.pool")
    hashes = sorted(
        {
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (f[0] if isinstance(f, tuple) else f for f in files)
        }
    )
    with Cost() as cost:
        try:
            recorded = collect(
                denoiser,
                restore,
                total,
                pool,
                per_timestep=per_timestep or samples or 8,
                crop=_crop(denoiser, side),
                seed=seed,
                solver=solver,
                steps=max(steps),
                task=f"{task}, steps {', '.join(map(str, steps))}, sigma {sigma:g}, side {side}",
                grid=grid,
                correction=correction or "",
                data=hashes,
                progress=progress,
            )
            if chosen is not None and samples is not None:
                recorded = select_samples(recorded, denoiser, chosen, samples, seed)
                recorded.save(out)
        finally:
            if pool != out:
                pool.unlink(missing_ok=True)
    shares = {f"{t:g}": len(positions) for t, positions in recorded.positions().items()}
    figures = {
        "out": str(out),
        "samples": len(recorded),
        "timesteps": list(recorded.grid),
        "per_timestep": shares,
    }
    return figures | {
        "selection": recorded.provenance.selection,
        "hash": recorded.hash,
        "cost": cost.to_dict(),
    }


def select_samples(
    pool: CalibrationSet, denoiser: Denoiser, name: str, count: int, seed: int
) -> CalibrationSet:
    """``count`` samples of a recorded set, chosen in one of the ways in ``SELECTIONS``."""
    if name == "eda-dm":
        return EDADM().select(pool, denoiser.network, count, seed)
    return {"uniform": Uniform, "ptq4dm": PTQ4DM}[name]().select(pool, count, seed)


def _files(denoiser: Denoiser, task: str, data: Path | None) -> tuple[Any, ...]:
    """Pictures, or pairs of them."""
    if task == "generate":
        if data is not None:
            raise ValueError("the task generate starts from noise and takes no --data")
        return ()
    if task == "mri":
        if data is None or not data.is_file():
            raise ValueError(
                "--task mri needs --data: a file of magnitude images (.nii.gz, .npz, DICOM) to"
                " simulate scans of"
            )
        return (data,)
    if task == "hsi":
        return _scene_files(denoiser, data)
    if data is None:
        raise ValueError(
            f"--task {task} needs --data: a folder of pictures like those to be restored"
        )
    if task == "paired" and "degraded+mask" in shown_to(denoiser):
        return tuple(find_pairs(data, "degraded", "mask"))
    return tuple(find_pictures(data))


def _scene_files(denoiser: Denoiser, data: Path | None) -> tuple[Path, ...]:
    if "joint" not in shown_to(denoiser):
        raise ValueError(
            "--task hsi fits networks of joint latents (recipe hsi); calibrate those of single"
            " planes with --task denoise"
        )
    if data is None or not data.is_dir():
        raise ValueError(
            f"--task hsi needs --data: a folder of pictures and spectral_library.npz; got {data}"
        )
    library = sorted(data.rglob("spectral_library.npz"))[:1]
    if not library:
        raise ValueError(f"{data} must hold spectral_library.npz, for simulated scenes")
    return (*library, *find_pictures(data))


def _side(denoiser: Denoiser) -> int:
    size = denoiser.network.config.sample_size
    size = min(size) if isinstance(size, (list, tuple)) else size
    return 256 if size is None else size * denoiser.fold


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
