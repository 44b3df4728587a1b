"""A scene larger than memory, denoised: every step of the run sweeps over all its tiles.

The network sees the tiles that it sees of a picture in memory, and their answers are blended to the
same numbers (:class:`restoration.wrappers.sweep.Sweep`), so that parts have no seams, whatever the
network looks at. Between the steps the state lies on the disk. Dask orders the tiles, so that few
of their answers are held at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.io.scenes import Scene, check_scene_writable, open_scene, write_scene
from restoration.metrics import noise_level
from restoration.operators.linear import Denoising
from restoration.operators.measurement import Measurement
from restoration.photo.linear import LinearTask
from restoration.wrappers.sweep import Sweep, noise_at, parts
from solvers.files import check_outputs, reserve, room_beside
from solvers.grid import Grid
from solvers.inputs.errors import InputError
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.solver import RNG
from toolbox.tasks.base import Progress
from toolbox.tasks.settings import Request

PART = 512  # about the side of the parts that are written
SHARD = 2048  # most side of a part that is a whole shard of a Zarr array
WINDOWS, WINDOW = 4, 512  # along a side, that the noise is estimated from; their side in pixels


def denoise_scene(
    task: LinearTask, request: Request, sigma: float | None, progress: Progress
) -> dict[str, Any]:
    """Restore a scene and write it; the figures of the run.

    Args:
        task: the algorithm.
        sigma: noise in units of [0, 1], of black and white; None: estimated from windows that are
            spread over the scene.

    Raises:
        ValueError, OSError: a file or settings that scenes don't take; nothing is written then.
    """
    began, out = time.perf_counter(), request.output.out
    check_request(request, task)
    check_outputs([out], [request.path, request.prior.model])
    scene = open_scene(request.path)
    check_scene_writable(out, scene)
    level = _estimated(scene) if sigma is None else sigma
    layers = list(scene.layers)
    runs = [_LayerRun(scene, layer, task, level, request.draws.seed) for layer in layers]
    total = sum(run.parts for run in runs) * len(runs[0].grid.times[:-1])
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def fill(target: Any) -> None:
        for run in runs:
            run.into(target, out.absolute(), count)

    write_scene(out, scene, fill)
    height, width = scene.size
    figures: dict[str, Any] = {"task": "denoise", "image": str(request.path), "out": str(out)}
    figures |= {"size": [width, height], "planes": len(layers), "sigma": level}
    figures |= {"black": scene.low, "white": scene.high, "model": request.prior.model}
    figures |= {"solver": request.settings.solver, "steps": len(runs[0].grid.times) - 1}
    figures |= {"seed": request.draws.seed, "samples": 1, "tiles": sum(r.tiles for r in runs)}
    figures["nfe"] = figures["steps"] * len(layers)
    figures |= {"note": scene.note} if scene.note else {}
    return figures | {"seconds": round(time.perf_counter() - began, 2)}


def check_request(request: Request, task: LinearTask) -> None:
    """Refuse what has no meaning for parts.

    Raises:
        InputError: says what to leave out.
    """
    if find_spec("dask") is None:
        raise InputError("scenes are restored by Dask: pip install 'restobox[scale]'")
    wrong = {
        "--samples": request.draws.samples > 1,
        "--std": request.output.std,
        "--reference": request.output.reference is not None,
        "--symmetries": task.symmetries > 1,
        "--cache": request.prior.cache is not None,
    }
    if given := [name for name, bad in wrong.items() if bad]:
        raise InputError(
            f"{request.path} is a scene, which is restored by parts: leave out {', '.join(given)}"
        )
    if not isinstance(task.solver, DDIM):
        raise InputError(
            "scenes take the solvers ddim and ddpm, whose steps need no state but the last; got"
            f" {request.settings.solver}"
        )


def _estimated(scene: Scene) -> float:
    """The noise of windows spread over the first layer: their median."""
    height, width = scene.size
    side = min(WINDOW, height, width)
    layer, found = next(iter(scene.layers)), []
    for i in range(WINDOWS):
        for j in range(WINDOWS):
            top, left = (
                round(k * (n - side) / (WINDOWS - 1)) for k, n in ((i, height), (j, width))
            )
            part = scene.read(layer, slice(top, top + side), slice(left, left + side))
            if np.ptp(part) > 0:
                found.append(noise_level(part))
    level = float(np.median(found or [0.0]))
    if not level > 1e-4:
        raise InputError(f"{scene.path} shows no noise to estimate; give --sigma")
    return level


@dataclass
class _LayerRun:
    """The run of one layer."""

    scene: Scene
    layer: tuple[int, ...]
    task: LinearTask
    sigma: float
    seed: int

    def __post_init__(self) -> None:
        denoiser = self.task.denoiser
        unit = denoiser.fold * denoiser.multiple
        tile = max(self.task.tile // unit, 1) * unit
        overlap = min(self.task.overlap, tile // 8) // denoiser.fold * denoiser.fold
        self.task = replace(self.task, tile=2**31)  # parts are tiled here
        begun = self.begun(np.zeros((self.scene.channels, unit, unit), np.float32))
        self.grid, self.finish, self.channels = begun.grid, begun.finish, begun.shape[0]
        self.sweep = Sweep(begun.denoiser, self.scene.size, tile, overlap)
        chunks = _chunks(self.scene)
        self.side = _side(chunks[0], unit), _side(chunks[1], unit)

    @property
    def parts(self) -> int:
        """How many are written in a step."""
        return math.prod(-(-n // m) for n, m in zip(self.scene.size, self.side, strict=True))

    @property
    def tiles(self) -> int:
        """How many the network is asked for, in all steps."""
        return len(self.sweep.starts(0)) * len(self.sweep.starts(1)) * (len(self.grid.times) - 1)

    def begun(self, pixels: np.ndarray) -> Any:
        """The run of a part by itself, of which no network call is made."""
        y = torch.from_numpy(pixels)[None].to(self.task.denoiser.device)
        return self.task.prepare(Measurement(Denoising(), y, self.sigma), y.shape)

    def into(self, target: Any, out: Path, count: Callable[[], None]) -> None:
        """All steps, the last of which is written to the target; states in between to files in a
        folder beside ``out`` that is removed.
        """
        pairs = list(self.grid.pairs())
        with room_beside(out) as room:
            state: np.ndarray | None = None
            for k, (t, s) in enumerate(pairs):
                last = k == len(pairs) - 1
                following = None if last else self._file(room / f"{k}")
                self._step(k, (t, s), state, target if last else following, count)
                if k > 0:
                    (room / f"{k - 1}").unlink()
                state = following

    def _file(self, path: Path) -> np.ndarray:
        shape = (self.channels, *self.scene.size)
        reserve(path, math.prod(shape) * 4)
        return np.memmap(path, np.float32, "r+", shape=shape)

    def _step(
        self,
        k: int,
        times: tuple[float, float],
        state: np.ndarray | None,
        target: Any,
        count: Callable[[], None],
    ) -> None:
        import dask

        last = k == len(self.grid.times) - 2

        def state_of(rows: slice, columns: slice) -> Tensor:
            if state is None:
                return self.begun(self.scene.read(self.layer, rows, columns)).start
            return torch.from_numpy(np.array(state[:, rows, columns]))[None]

        def ask(place: tuple[int, int]) -> np.ndarray:
            return self.sweep.ask(state_of(*self.sweep.part(place)), times[0])

        def write(rows: slice, columns: slice, places: Any, answers: Any) -> None:
            denoiser = self.sweep.blended(rows, columns, dict(zip(places, answers, strict=True)))
            noise = self._noise(k, rows, columns)
            end = solve(
                self.task.solver, denoiser, state_of(rows, columns), Grid(times), generator=noise
            ).x0
            if last:
                part = self.finish(end)[0].cpu().numpy()
                self.scene.write(target, self.layer, rows, columns, part)
            else:
                target[:, rows, columns] = end[0].cpu().numpy()
            count()

        tasks, answers = [], {}
        for rows, columns in parts(self.scene.size, self.side):
            places = self.sweep.around(rows, columns)
            for place in places:
                if place not in answers:
                    answers[place] = dask.delayed(ask, pure=False)(place)
            known = [answers[place] for place in places]
            tasks.append(dask.delayed(write, pure=False)(rows, columns, places, known))
        dask.compute(*tasks, scheduler="synchronous", optimize_graph=False)

    def _noise(self, k: int, rows: slice, columns: slice) -> RNG:
        """Of the k-th step, for a stochastic solver."""
        key = (self.seed, k, *self.layer)
        return lambda shape: torch.from_numpy(noise_at(key, rows, columns, int(shape[1])))[None]


def _chunks(scene: Scene) -> tuple[int, int]:
    """Rows and columns that the file stores together, or 1. Shards count where they are no larger
    than :data:`SHARD`: a part of one is written by writing all of it again.
    """
    y, x = (scene.axes.index(axis) for axis in "yx")
    shards, chunks = (getattr(scene.array, name, None) for name in ("shards", "chunks"))
    if shards and max(shards[y], shards[x]) <= SHARD:
        chunks = shards
    return (int(chunks[y]), int(chunks[x])) if chunks else (1, 1)


def _side(chunk: int, unit: int) -> int:
    """Of the parts: about :data:`PART`, of whole chunks and of what the network takes."""
    least = math.lcm(chunk, unit)
    return least * max(1, round(PART / least))
