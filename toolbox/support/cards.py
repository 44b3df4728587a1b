"""A model's card (``model.json`` in its folder): what runs it advises, and how far their spread can
be trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from restoration.metrics import interval_std
from restoration.task import Restored
from solvers.files import replace_file
from solvers.inputs.errors import InputError, ModelError, reading
from solvers.inputs.strict_json import read_object
from toolbox.api import local

ADVISED = {"solver": str, "steps": int, "symmetries": int}  # what a card tells of a task's runs


def advice(model: str | Path, task: str, samples: int = 1) -> dict[str, Any]:
    """What the card of a model (``runs`` in its ``model.json``) advises for a run of a task:
    ``solver``, ``steps``, ``symmetries``, as far as it tells.

    Args:
        samples: how many are drawn: the mean of one run and samples of the posterior take other
            settings.
    """
    card, content = _card(model)
    with reading(card, "a model's card", ModelError):
        told = dict(content.get("runs", {}).get(task, {}))
        of_samples = dict(told.pop("samples", {}))
    told |= of_samples if samples > 1 else {}
    if any(type(value) is not ADVISED.get(name) for name, value in told.items()):
        kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in ADVISED.items())
        raise ModelError(f"{card}: runs.{task} may tell {kinds}; got {told}")
    return told


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Spread:
    """How the spread of samples relates to their errors, as ``restobox bench coverage`` measured.

    Attributes:
        samples: that the spread is of.
        level: the probability that intervals are to hold.
        factor: ``mean +- factor shrunk(std)`` holds the truth of that share of what is guessed.
        coverage: the share that it held in other pictures.
        pictures: that the factor was fitted on.
        up_to: the difficulty of measurements (of the task's) that this was fitted on, from that of
            the next smaller entry on; None: any.
    """

    samples: int = Field(ge=2)
    level: float = Field(gt=0, lt=1)
    factor: float = Field(gt=0, lt=1e6)
    coverage: float = Field(ge=0, le=1)
    pictures: int = Field(ge=1)
    up_to: float | None = Field(default=None, gt=0)

    def std(self, spread: Tensor) -> Tensor:
        """As large as the errors of such runs are, from the spread of one picture's samples."""
        return interval_std(spread, self.factor, self.level)

    def applied(self, found: Restored) -> Restored:
        """With such a standard deviation."""
        return replace(found, std=self.std(found.std), level=self.level)


def spread_of(
    model: str | Path,
    task: str,
    run: Mapping[str, Any],
    samples: int,
    difficulty: float | None = None,
) -> Spread | None:
    """What the card of a model (``intervals`` in its ``model.json``) knows of a run's spread: with
    as many samples, or the nearest smaller number; None: nothing was measured.

    Args:
        run: ``solver``, ``steps`` and ``correction`` (None: the task's own).
        difficulty: of the measurement, where the task tells it.

    Raises:
        ModelError: a card that says something else.
    """
    place, card = _card(model)
    try:
        for entry in card.get("intervals", {}).get(task, []):
            if {key: entry.get(key) for key in run} != dict(run):
                continue
            known = [s for one in entry["spread"] if (s := Spread(**one)).samples <= samples]
            most = max(s.samples for s in known)
            ends = {math.inf if s.up_to is None else s.up_to: s for s in known if s.samples == most}
            fit = [end for end in ends if end == math.inf or (difficulty or math.inf) <= end]
            return ends[min(fit)] if fit else None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(
            f"{place}: intervals.{task} doesn't hold spreads as `restobox bench coverage --write`"
            " writes them"
        ) from None
    return None


def keep_spread(
    model: str | Path, task: str, run: Mapping[str, Any], spreads: list[Spread]
) -> None:
    """Write what was measured of a run into the model's card, in place of what it says of that run.

    Raises:
        ValueError, OSError: the model has no folder, or it can't be written.
    """
    place, card = _card(model)
    if not place.parent.is_dir():
        raise InputError(
            f"{model} is no folder that a card could be written into: convert it first"
        )
    intervals = dict(card.get("intervals", {}))
    others = [e for e in intervals.get(task, []) if {key: e.get(key) for key in run} != dict(run)]
    entry = _told(run) | {"spread": [_told(asdict(one)) for one in spreads]}
    card = dict(card) | {"intervals": intervals | {task: [*others, entry]}}
    text = json.dumps(card, indent=2) + "\n"
    replace_file(place, lambda path: path.write_text(text, encoding="utf-8"))


def _told(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _card(model: str | Path) -> tuple[Path, dict[str, Any]]:
    """Where a model's card lies, and what it says; nothing where there is none."""
    place = local(model) / "model.json"
    if not place.is_file():
        return place, {}
    with reading(place, "a model's card", ModelError):
        return place, dict(read_object(place, ModelError))
