"""Calibration data: what the network is really shown while measurements are restored.

Samples are filed under the timestep *value* the network was called with, never under a call
counter: correction loops, multi-stage solvers and tiles call the network any number of times per
step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from solvers.files import replace_file
from solvers.inputs.errors import ModelError, reading
from solvers.inputs.strict_json import parse_object

FORMAT = 1


def network_hash(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return digest.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where a calibration set comes from.

    ``data`` holds the SHA-256 of the measurements that were restored; ``grid`` and ``correction``
    are names (empty: the default); ``selection`` says how the samples were chosen from a larger set
    (empty: all that were recorded).
    """

    model: str
    seed: int = 0
    solver: str = ""
    steps: int = 0
    task: str = ""
    data: tuple[str, ...] = ()
    grid: str = ""
    correction: str = ""
    selection: str = ""

    def to_dict(self) -> dict:
        """Fields as plain values; those that are younger than the file format only where they are
        set.
        """
        return {
            key: value
            for key, value in asdict(self).items()
            if value or key not in ("grid", "correction", "selection")
        }


class CalibrationSet:
    """Network inputs ``(C, h, w)`` with the timestep of each.

    Args:
        samples: float32 tensors, not necessarily of one size.
        timesteps: one value per sample.
        provenance: where they come from.

    Attributes:
        grid: the distinct timesteps, noisiest first.

    Raises:
        ValueError: no samples, or not one timestep per sample.
    """

    def __init__(
        self, samples: Iterable[Tensor], timesteps: Iterable[float], provenance: Provenance
    ):
        self.samples = [s.detach().float().contiguous() for s in samples]
        self.timesteps = [float(t) for t in timesteps]
        self.provenance = provenance
        if not self.samples:
            raise ValueError(
                "the calibration set is empty: restore at least one measurement inside record(...)"
            )
        if len(self.samples) != len(self.timesteps):
            raise ValueError(f"{len(self.samples)} samples but {len(self.timesteps)} timesteps")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def grid(self) -> tuple[float, ...]:
        return tuple(sorted(set(self.timesteps), reverse=True))

    @property
    def hash(self) -> str:
        """SHA-256 over samples, timesteps and provenance."""
        digest = hashlib.sha256(json.dumps([self.timesteps, self.provenance.to_dict()]).encode())
        for sample in self.samples:
            digest.update(str(tuple(sample.shape)).encode() + sample.cpu().numpy().tobytes())
        return digest.hexdigest()

    def batches(self, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
        """``(x (B, C, h, w), t (B,))`` with one timestep and one image size per batch, noisiest
        first.
        """
        groups: dict[tuple, list[Tensor]] = {}
        for t, sample in zip(self.timesteps, self.samples, strict=True):
            groups.setdefault((-t, *sample.shape), []).append(sample)
        for (minus_t, *_), members in sorted(groups.items(), key=lambda item: item[0]):
            for k in range(0, len(members), size):
                x = torch.stack(members[k : k + size])
                yield x, torch.full((len(x),), -minus_t)

    def subset(self, indices: Iterable[int], selection: str) -> CalibrationSet:
        """The samples at these positions, in this order; ``selection`` goes to the provenance."""
        indices = list(indices)
        chosen = [self.samples[k] for k in indices], [self.timesteps[k] for k in indices]
        return CalibrationSet(*chosen, replace(self.provenance, selection=selection))

    def positions(self) -> dict[float, list[int]]:
        """The positions of each timestep's samples, noisiest timestep first."""
        found: dict[float, list[int]] = {t: [] for t in self.grid}
        for position, t in enumerate(self.timesteps):
            found[t].append(position)
        return found

    def held_back(self, count: int) -> tuple[CalibrationSet, CalibrationSet] | None:
        """About ``count`` inputs, four and more of each of evenly spread timesteps, in two sets:
        most of them, and every fourth of each timestep, on which to compare what was made from the
        first. None where no timestep has four.
        """
        times = list(self.positions().values())
        some = times[:: -(-4 * len(times) // count)]
        taken = [places[: max(4, count // len(some))] for places in some]
        held = {k for places in taken for k in places[3::4]}
        every = [k for places in taken for k in places]
        seen = [k for k in every if k not in held]
        chosen = self.provenance.selection
        return (self.subset(seen, chosen), self.subset(sorted(held), chosen)) if held else None

    def check(self, network: nn.Module, solver: str | None = None) -> None:
        """Raises ValueError where this set was recorded with another network, or (if named) another
        solver.
        """
        if solver is not None and self.provenance.solver != solver:
            raise ValueError(
                "this calibration set was recorded with solver"
                f" {self.provenance.solver or '(unnamed)'}, not {solver}: a solver's trajectory is"
                f" its own; calibrate again with {solver}, or use the recorded one"
            )
        found = network_hash(network)
        if self.provenance.model != found:
            raise ValueError(
                f"this calibration set belongs to another model ({self.provenance.model[:12]}...,"
                f" yours is {found[:12]}...); record one with the model you quantize"
            )

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the provenance in its header; under a temporary name
        first, then renamed.
        """
        path = Path(path)
        header = {
            "format": FORMAT,
            "timesteps": self.timesteps,
            "provenance": self.provenance.to_dict(),
            "hash": self.hash,
        }
        tensors = {f"{k:06d}": s.cpu() for k, s in enumerate(self.samples)}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(
            path,
            lambda part: save_file(tensors, part, metadata={"calibration": json.dumps(header)}),
        )

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None) -> CalibrationSet:
        """Read a set and verify its content hash; with ``network``, also that it was recorded with
        that network.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, of another format version, or another model's.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; make one with `restobox calibrate`")
        with (
            reading(path, "a calibration set", ModelError),
            safe_open(path, framework="pt") as file,
        ):
            header = parse_object((file.metadata() or {})["calibration"], str(path), ModelError)
            if (version := header["format"]) != FORMAT:
                raise ModelError(
                    f"{path} has calibration format {version!r}; this version reads {FORMAT}"
                )
            samples = [file.get_tensor(key) for key in sorted(file.keys())]
            provenance = Provenance(
                **header["provenance"] | {"data": tuple(header["provenance"]["data"])}
            )
            loaded = cls(samples, header["timesteps"], provenance)
            intact = loaded.hash == header["hash"]
        if not intact:
            raise ModelError(
                f"{path} is damaged: its content doesn't match its hash; record it again"
            )
        if network is not None:
            loaded.check(network)
        return loaded


@dataclass
class Recorder:
    """Keeps at most ``per_timestep`` samples of each timestep, each equally likely (reservoir
    sampling, Vitter 1985).
    """

    per_timestep: int
    crop: int | None
    generator: torch.Generator
    provenance: Provenance
    kept: dict[float, list[Tensor]] = field(default_factory=dict)
    seen: dict[float, int] = field(default_factory=dict)

    def add(self, x: Tensor, t: Tensor) -> None:
        """``x (B, C, h, w)``, ``t`` one value or ``(B,)``."""
        times = (
            torch.as_tensor(t, dtype=torch.float64).detach().cpu().reshape(-1).expand(x.shape[0])
        )
        for sample, value in zip(x.detach(), times.tolist(), strict=True):
            sample = self._crop(sample)
            if not torch.isfinite(sample).all():
                raise ValueError(
                    f"the network's input at timestep {value:g} holds NaN or infinite values;"
                    " nothing to calibrate on"
                )
            kept, count = self.kept.setdefault(value, []), self.seen.get(value, 0)
            self.seen[value] = count + 1
            if count < self.per_timestep:
                kept.append(sample.float().cpu().clone())
                continue
            place = self._draw(count + 1)
            if place < self.per_timestep:
                kept[place] = sample.float().cpu().clone()

    def result(self) -> CalibrationSet:
        """The samples recorded so far.

        Raises:
            ValueError: none.
        """
        pairs = [(t, s) for t in sorted(self.kept, reverse=True) for s in self.kept[t]]
        return CalibrationSet([s for _, s in pairs], [t for t, _ in pairs], self.provenance)

    def _crop(self, sample: Tensor) -> Tensor:
        if self.crop is None:
            return sample
        height, width = (min(self.crop, n) for n in sample.shape[-2:])
        top, left = (
            self._draw(sample.shape[-2] - height + 1),
            self._draw(sample.shape[-1] - width + 1),
        )
        return sample[:, top : top + height, left : left + width]

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator)) if count > 1 else 0


@contextlib.contextmanager
def record(
    denoiser,
    *,
    per_timestep: int = 8,
    crop: int | None = None,
    seed: int = 0,
    solver: str = "",
    task: str = "",
    data: Iterable[str] = (),
) -> Iterator[Recorder]:
    """Record what ``denoiser.network`` is called with while restorations run inside the ``with``
    block.

    Corrections, tiling and conditioned copies share the network, so they are all seen::

        with record(denoiser, solver="ddim", task="inpaint") as recorder:
            solve(DDIM(), denoiser.conditioned(condition), x, grid)
        calibration = recorder.result()

    Args:
        denoiser: a :class:`solvers.denoiser.Denoiser` around an ``nn.Module``.
        per_timestep: most samples kept per timestep.
        crop: keep a random square of this side of each input (a multiple of the network's
            ``multiple``); None keeps all of it.
        seed: of the reservoir and the crops.
        solver, task, data: go to the provenance.

    Raises:
        ValueError: the network is no ``nn.Module``, or a count or crop that can't be.
    """
    check_recordable(denoiser, per_timestep, crop)
    network = denoiser.network
    provenance = Provenance(network_hash(network), seed, solver, 0, task, tuple(data))
    recorder = Recorder(per_timestep, crop, torch.Generator().manual_seed(seed), provenance)
    handle = network.register_forward_pre_hook(
        lambda _, inputs: recorder.add(inputs[0], inputs[1]),
        prepend=True,  # as it is called, before hooks of its own
    )
    try:
        yield recorder
    finally:
        handle.remove()
        recorder.provenance = Provenance(
            provenance.model, seed, solver, len(recorder.seen), task, provenance.data
        )


def check_recordable(denoiser, per_timestep: int, crop: int | None) -> None:
    """Raises ValueError where the network is no ``nn.Module``, or a count or crop can't be."""
    if not isinstance(denoiser.network, nn.Module):
        raise ValueError(
            "only an nn.Module can be recorded; the denoiser holds a"
            f" {type(denoiser.network).__name__}"
        )
    if per_timestep < 1:
        raise ValueError(f"per_timestep must be at least 1; got {per_timestep}")
    multiple = getattr(denoiser, "multiple", 1)
    if crop is not None and (crop < multiple or crop % multiple):
        raise ValueError(
            f"crop must be a multiple of {multiple} (of the network's input, after folding); got"
            f" {crop}"
        )
