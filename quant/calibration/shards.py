"""Network inputs on their way to a calibration set: in a folder beside it, restoration by
restoration, whoever records them.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.calibration.trajectory import Provenance
from restoration.io.pictures.folders import random_window
from solvers.files import replace_file

SPILL = 32 << 20  # bytes of kept inputs that are held before they go to disk


@dataclass(frozen=True)
class Collection:
    """What is recorded, of how many restorations, and where it goes.

    Args:
        out: the file of the set; work in progress lies in the folder ``.NAME.parts`` beside it.
        count: number of restorations.
        provenance: of what is recorded; its seed is that of the choice and the crops.
        per_timestep: most inputs kept per timestep.
        crop: keep a random square of this side of each input; None keeps all of it.

    Raises:
        ValueError: no restoration.
    """

    out: Path
    count: int
    provenance: Provenance
    per_timestep: int = 8
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1; got {self.count}")

    @property
    def folder(self) -> Path:
        """Of work in progress."""
        return self.out.parent / f".{self.out.name}.parts"

    @property
    def job(self) -> dict:
        """What an interrupted run must have had in common, to be gone on with."""
        own = {"count": self.count, "per_timestep": self.per_timestep, "crop": self.crop}
        return self.provenance.to_dict() | {"data": list(self.provenance.data)} | own


def recorded_in(folder: Path) -> int:
    """About how many restorations are recorded in a collection's folder, for a progress bar."""
    return len({path.name.partition("-")[0] for path in folder.glob("*.safetensors")})


@dataclass
class Draws:
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


class Store:
    """Kept inputs: the newest in memory, the others in safetensors shards, each written whole and
    renamed.
    """

    def __init__(self, what: Collection):
        self.folder, self.job, self.count = what.folder, what.job, what.count
        self.per_timestep = what.per_timestep
        self.best: dict[float, list[tuple]] = {}  # heaps, largest priority on top
        self.kept: dict[_Name, tuple[Path, str]] = {}  # in which shard, under which key
        self.fresh: dict[_Name, tuple[float, Tensor]] = {}  # priority and input, not written yet
        self.shards = 0  # of the restoration that runs

    def open(self) -> list[int]:
        """Make the folder, or rank what was recorded in it; the restorations that are missing."""
        file = self.folder / "job.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            replace_file(file, lambda part: part.write_text(json.dumps(self.job), encoding="utf-8"))
        self.check_job()
        for left in self.folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        self.best, self.kept = {}, {}
        items: dict[int, list[tuple[Path, dict]]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            header = self._header(path)
            items.setdefault(int(header["item"]), []).append((path, header))
        for item, shards in items.items():
            whole = shards[-1][1]["last"]
            for path, header in shards:
                if not whole:  # the restoration was cut
                    path.unlink()
                    continue
                for key, (t, occurrence, priority) in header["entries"].items():
                    name = _Name(t, item, occurrence)
                    self.kept[name] = (path, key)
                    self._rank(name, priority)
        return [k for k in range(self.count) if not (k in items and items[k][-1][1]["last"])]

    def check_job(self) -> None:
        """Raise ValueError where the folder is of another job."""
        file = self.folder / "job.json"
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

    def _header(self, path: Path) -> dict:
        try:
            with safe_open(path, framework="pt") as shard:
                header = json.loads(shard.metadata()["shard"])
            return {"item": int(header["item"]), "last": header["last"]} | header
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete the folder {self.folder} to begin anew"
            ) from error

    def has(self, item: int) -> bool:
        """Whether a restoration is recorded; where it was cut, what there is of it is removed."""
        shards = sorted(self.folder.glob(f"{item:08d}-*.safetensors"))
        if shards and self._header(shards[-1])["last"]:
            return True
        for path in shards:
            path.unlink()
        return False

    def offer(self, draws: Draws, x: Tensor, t: Tensor) -> None:
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
