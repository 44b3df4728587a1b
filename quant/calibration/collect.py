"""Record calibration data into a file while measurements are restored: bounded memory, resumable,
the same bytes for the same seed.

Restoration ``k`` is a function of ``k`` alone, and so is everything drawn for it. Each network
input gets a random number and the ``per_timestep`` smallest of each timestep are kept: an equally
likely subset, as a reservoir would give (Vitter 1985), that doesn't depend on the order or on
interruptions. The number belongs to the restoration, not to the call: all timesteps keep the inputs
of the same restorations, at the same crop, so that features of different timesteps can be compared
sample by sample.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.calibration.trajectory import CalibrationSet, Provenance, check_recordable, network_hash
from restoration.io.pictures.folders import random_window
from solvers.files import alone_in, replace_file

SPILL = 32 << 20  # bytes of kept inputs that are held before they go to disk


def collect(
    denoiser,
    restore: Callable[[int], object],
    count: int,
    out: str | Path,
    provenance: Provenance | None = None,
    *,
    per_timestep: int = 8,
    crop: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> CalibrationSet:
    """Call ``restore(0) ... restore(count - 1)`` and keep what ``denoiser.network`` is shown, by
    timestep value, in the file ``out``.

    Work in progress lies in the folder ``.NAME.parts`` beside ``out``; repeating an interrupted
    call goes on where it stopped and writes the same bytes as an uninterrupted one. ``out`` appears
    complete or not at all.

    Args:
        denoiser: a :class:`solvers.denoiser.Denoiser` around an ``nn.Module``.
        restore: restores measurement k with the deployed solver, grid and correction; must do the
            same whenever it is called with k.
        count: number of restorations.
        provenance: of what is recorded; its seed is that of the choice and the crops. An
            interrupted run only goes on if all of it agrees. None: of this network, seed 0.
        per_timestep: most inputs kept per timestep.
        crop: keep a random square of this side of each input (a multiple of the network's
            ``multiple``); None keeps all of it.
        progress: called with the number of restorations done.

    Returns:
        The set, its samples mapped from ``out`` (read when they are used).

    Raises:
        ValueError: a network, count or crop that can't be, an input with NaN or infinity, or an
            interrupted run with other settings.
    """
    check_recordable(denoiser, per_timestep, crop)
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    network, out = denoiser.network, Path(out)
    provenance = provenance or Provenance(network_hash(network), 0, "", 0)
    job = provenance.to_dict() | {
        "data": list(provenance.data),
        "count": count,
        "per_timestep": per_timestep,
        "crop": crop,
    }
    store = _Store(out.parent / f".{out.name}.parts", job, per_timestep)
    with alone_in(store.folder):
        try:
            for k in range(store.open(), count):
                progress(k)
                draws = _Draws(provenance.seed, k, crop)
                handle = network.register_forward_pre_hook(
                    lambda _, inputs, draws=draws: store.offer(draws, inputs[0], inputs[1])
                )
                try:
                    restore(k)
                finally:
                    handle.remove()
                store.close_item(k)
        except BaseException:
            store.abandon()
            raise
        progress(count)
        if not store.kept:
            store.remove()
            raise ValueError("the calibration set is empty: no restoration called the network")
        names = sorted(store.kept, key=lambda name: (-name.t, name.item, name.occurrence))
        CalibrationSet(
            (store.read(name) for name in names), [name.t for name in names], provenance
        ).save(out)
        store.remove()
    return CalibrationSet.load(out)


@dataclass
class _Draws:
    """The random numbers of restoration ``item``: input ``occurrence`` at any timestep has one
    priority and one crop.
    """

    seed: int
    item: int
    crop: int | None
    calls: dict[float, int] = field(default_factory=dict)

    def next(self, t: float, height: int, width: int) -> tuple[int, float, slice, slice]:
        occurrence = self.calls[t] = self.calls.get(t, -1) + 1
        rng = np.random.default_rng([self.seed, self.item, occurrence])
        priority = rng.random()
        if self.crop is None:
            return occurrence, priority, slice(None), slice(None)
        return occurrence, priority, *random_window((height, width), self.crop, rng)


@dataclass(frozen=True)
class _Name:
    """Which input: restoration ``item``'s call number ``occurrence`` at timestep ``t``."""

    t: float
    item: int
    occurrence: int


class _Store:
    """Kept inputs: the newest in memory, the others in safetensors shards, each written whole and
    renamed.
    """

    def __init__(self, folder: Path, job: dict, per_timestep: int):
        self.folder, self.job, self.per_timestep = folder, job, per_timestep
        self.best: dict[float, list[tuple]] = {}  # heaps, largest priority on top
        self.kept: dict[_Name, tuple[Path, str]] = {}  # in which shard, under which key
        self.fresh: dict[_Name, tuple[float, Tensor]] = {}  # priority and input, not written yet
        self.shards = 0  # of the restoration that runs

    def open(self) -> int:
        """Make the folder, or read an interrupted run from it; returns the number of restorations
        that are done.
        """
        file = self.folder / "job.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            replace_file(file, lambda part: part.write_text(json.dumps(self.job), encoding="utf-8"))
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            other = sorted(
                key for key in {*found, *self.job} if found.get(key) != self.job.get(key)
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete the folder {self.folder} to begin anew"
            ) from error
        if other:
            raise ValueError(
                f"{self.folder} holds an interrupted run with another {', '.join(other)}: "
                "repeat that command to finish it, or delete the folder to begin anew"
            )
        for left in self.folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        items: dict[int, list[tuple[Path, dict]]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    header = json.loads(shard.metadata()["shard"])
                items.setdefault(int(header["item"]), []).append((path, header))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); delete the folder {self.folder} to begin anew"
                ) from error
        done = 0
        while done in items and items[done][-1][1]["last"]:
            for path, header in items.pop(done):
                for key, (t, occurrence, priority) in header["entries"].items():
                    name = _Name(t, done, occurrence)
                    self.kept[name] = (path, key)
                    self._rank(name, priority)
            done += 1
        for path, _ in (
            entry for entries in items.values() for entry in entries
        ):  # of the restoration that was cut
            path.unlink()
        return done

    def offer(self, draws: _Draws, x: Tensor, t: Tensor) -> None:
        """``x (B, C, h, w)`` at ``t``, one value or ``(B,)``."""
        times = (
            torch.as_tensor(t, dtype=torch.float64).detach().cpu().reshape(-1).expand(x.shape[0])
        )
        for sample, value in zip(x.detach(), times.tolist(), strict=True):
            occurrence, priority, rows, columns = draws.next(value, *sample.shape[-2:])
            if not torch.isfinite(sample).all():
                raise ValueError(
                    f"the network's input at timestep {value:g} holds NaN or infinite values;"
                    " nothing to calibrate on"
                )
            heap = self.best.get(value, [])
            if len(heap) < self.per_timestep or priority < -heap[0][0]:
                name = _Name(value, draws.item, occurrence)
                self.fresh[name] = (
                    priority,
                    sample[:, rows, columns]
                    .float()
                    .cpu()
                    .clone(memory_format=torch.contiguous_format),
                )
                self._rank(name, priority)
        if sum(v.numel() * 4 for _, v in self.fresh.values()) > SPILL:
            self._write(draws.item, last=False)

    def close_item(self, item: int) -> None:
        self._write(item, last=True)
        self.shards = 0

    def abandon(self) -> None:
        """Remove the folder if nothing in it is worth going on with."""
        if not any(self.folder.glob("*.safetensors")):
            self.remove()

    def remove(self) -> None:
        """Delete the files of the run, and the folder if nothing else is in it."""
        for path in (
            *self.folder.glob("*.safetensors"),
            *self.folder.glob(".*.part"),
            self.folder / "job.json",
        ):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def read(self, name: _Name) -> Tensor:
        path, key = self.kept[name]
        with safe_open(path, framework="pt") as shard:
            return shard.get_tensor(key)  # mapped, not read

    def _rank(self, name: _Name, priority: float) -> None:
        heap = self.best.setdefault(name.t, [])
        heapq.heappush(heap, (-priority, name.item, name.occurrence))
        if len(heap) > self.per_timestep:
            _, item, occurrence = heapq.heappop(heap)
            gone = _Name(name.t, item, occurrence)
            self.kept.pop(gone, None)
            self.fresh.pop(gone, None)

    def _write(self, item: int, last: bool) -> None:
        path = self.folder / f"{item:08d}-{self.shards:04d}.safetensors"
        self.shards += 1
        entries = {
            str(k): (name.t, name.occurrence, priority)
            for k, (name, (priority, _)) in enumerate(self.fresh.items())
        }
        tensors = {str(k): value for k, (_, value) in enumerate(self.fresh.values())}
        header = {"shard": json.dumps({"item": item, "last": last, "entries": entries})}
        replace_file(path, lambda part: save_file(tensors, part, header))
        self.kept |= {name: (path, str(k)) for k, name in enumerate(self.fresh)}
        self.fresh.clear()
