"""What is done with every measurement of a run, and the request that it makes of one."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from solvers.inputs.errors import InputError
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Task
from toolbox.tasks.scale.digests import digest_of_model, digest_of_settings
from toolbox.tasks.scale.items import Item
from toolbox.tasks.settings import Draws, Output, Prior, Request, Settings


@dataclass(frozen=True)
class Job:
    """A call of ``restobox restore`` without its measurement.

    Attributes:
        task: its name.
        output: of one measurement a file; of several the folder.
        options: the task's own.
        prior: ``model`` empty: the task's own for the measurement.
        settings, draws: of the run.
        asked: names of settings that the caller chose, which no model's card replaces.
        checkpoint: what is said of a file of weights (:func:`toolbox.api.reading_with`).
    """

    task: str
    output: Output
    options: Any
    prior: Prior
    settings: Settings
    draws: Draws = Draws()
    asked: frozenset[str] = frozenset()
    checkpoint: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def one(self) -> Task:
        """The task's object."""
        return task_by_name(self.task)

    def request(self, path: Path) -> Request:
        """For one measurement, with a model and what its card advises where nothing else was asked
        for.

        Raises:
            ValueError, OSError: the model depends on what can't be read.
        """
        model = self.prior.model or self.one.model_for(path, self.options)
        told = self.one.advised(model, self.draws.samples)
        own = {name: value for name, value in told.items() if name not in self.asked}
        settings, prior = replace(self.settings, **own), replace(self.prior, model=model)
        return Request(path, self.output, self.options, prior, settings, self.draws)

    # -- several -----------------------------------------------------------------------------------

    def of(self, item: Item) -> Job:
        """The job of one item: its result, its own options, its files of folders, its seed.

        Raises:
            InputError: an option that neither the item nor the run gives, or a folder without a
                file of the item's name.
        """
        assert item.out is not None
        own = dict(item.own)
        seed = own.pop("seed", None)
        seed = seed_of(self.draws.seed, item.name) if seed is None else seed
        reference = own.pop("reference", self.output.reference)
        options = replace(self.options, **own)
        for f in fields(options):
            value = getattr(options, f.name)
            if value is None and "None" not in str(f.type):
                flag = f"--{f.name.replace('_', '-')}"
                raise InputError(f"{item.line or item.name} gives no {f.name}, and {flag} neither")
            if f.name in self.one.files and value and Path(value).is_dir():
                options = replace(options, **{f.name: type(value)(_of_name(Path(value), item))})
        if reference is not None and self.one.is_picture and reference.is_dir():
            reference = _of_name(reference, item)
        further = {
            name: _beside(getattr(options, name), item, ending)
            for name, ending in self.one.further.items()
        }
        options = replace(options, **further)
        output = replace(self.output, out=item.out, reference=reference)
        return replace(self, output=output, options=options, draws=replace(self.draws, seed=seed))

    def outputs(self) -> list[Path]:
        """The files and folders that the job of an item writes."""
        return self.one.outputs(self.output, self.options, self.draws.samples)

    def digest(self) -> str:
        """Of everything that the result depends on but the measurement and the model."""
        kept = asdict(self)
        kept["output"] = {n: kept["output"][n] for n in ("std", "reference", "quality")}
        kept["output"]["ending"] = self.output.out.suffix
        kept["output"]["samples"] = self.output.write_samples
        for name in self.one.further:
            kept["options"][name] = kept["options"][name] is not None
        kept["prior"]["model"] = self.prior.model and digest_of_model(self.prior.model)
        for role in self.one.roles:
            kept["options"][role] = kept["options"][role] and digest_of_model(kept["options"][role])
        kept["asked"] = sorted(self.asked)
        return digest_of_settings(kept)


def seed_of(seed: int, name: str) -> int:
    """An item's seed: of the run's and the item's name alone, so that neither order nor number of
    workers matters. Below 2^48: there is room for samples and for a torch generator.
    """
    return int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:12], 16)


def _beside(folder: Path | None, item: Item, ending: str | None = None) -> Path | None:
    """An item's further output, in a folder of its own, which mirrors the results."""
    if folder is None or item.out is None:
        return None
    inside = Path(item.name)
    name = item.out.name if ending is None else f"{inside.stem}{ending}"
    return Path(os.path.abspath(folder)) / inside.with_name(name)


def _of_name(folder: Path, item: Item) -> Path:
    """The file of a folder that has an item's name, up to the ending.

    Raises:
        InputError: none, or several.
    """
    exact = folder / item.name
    if exact.exists():
        return exact
    stem, parent = exact.stem, exact.parent
    found = sorted(parent.glob(f"{glob.escape(stem)}.*")) if parent.is_dir() else []
    if len(found) != 1:
        said = "none" if not found else ", ".join(p.name for p in found[:3])
        wanted = Path(item.name).with_suffix(".*")
        raise InputError(f"{folder} must hold one file {wanted} for {item.name}; found {said}")
    return found[0]
