"""Processes as plain JSON data, for model folders: ``describe(process)`` and
``from_description(data)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from solvers.methods.rddm import RDDM
from solvers.methods.resfusion import Resfusion
from solvers.processes.continuous import VE, ContinuousVP, Flow
from solvers.processes.process import MOST_LEVELS, VP, Process, StepIndexed


@dataclass(frozen=True)
class Form:
    """One way of writing a process down: what makes it from which fields."""

    make: Callable[..., Process]
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def fits(self, given: set[str]) -> bool:
        return set(self.fields) <= given <= {*self.fields, *self.optional}

    def __str__(self) -> str:
        return ", ".join((*self.fields, *(f"[{name}]" for name in self.optional)))


# The first form of each kind is what describe() writes, exact to the bit; the others are for
# people.
KINDS: dict[str, tuple[type[Process], tuple[Form, ...]]] = {
    "vp": (VP, (Form(VP, ("alphas_cumprod",)),)),
    "step-indexed": (StepIndexed, (Form(StepIndexed, ("alphas_cumprod",)),)),
    "resfusion": (
        Resfusion,
        (
            Form(Resfusion, ("alphas_cumprod",), ("noise_scale",)),
            Form(Resfusion.scheduled, ("schedule", "steps"), ("noise_scale",)),
        ),
    ),
    "rddm": (
        RDDM,
        (
            Form(RDDM, ("residual_sums", "noise_sums")),
            Form(RDDM.scheduled, ("steps",), ("sum_scale", "residual", "noise", "release")),
        ),
    ),
    "ve": (VE, (Form(VE, ("sigma_min", "sigma_max")),)),
    "continuous-vp": (ContinuousVP, (Form(ContinuousVP, ("beta_min", "beta_max", "first")),)),
    "tables": (Process, (Form(Process, ("a_table", "b_table", "c_table")),)),
    "rectified-flow": (Flow, (Form(Flow, ("first",)),)),
}
# fields whose values a process holds under another name
HELD_AS = {
    "residual_sums": "c_table",
    "noise_sums": "b_table",
    "sigma_min": "first",
    "sigma_max": "end",
}


def describe(process: Process) -> dict[str, Any]:
    """The process as JSON data that :func:`from_description` turns into an equal one.

    Raises:
        ValueError: a process of a class of your own.
    """
    kind = next((kind for kind, (cls, _) in KINDS.items() if cls is type(process)), None)
    if kind is None:
        raise ValueError(
            f"a {type(process).__name__} process can't be written down; known:"
            f" {', '.join(c.__name__ for c, _ in KINDS.values())}"
        )
    form = KINDS[kind][1][0]
    values = {
        name: getattr(process, HELD_AS.get(name, name)) for name in (*form.fields, *form.optional)
    }
    return {"kind": kind} | {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in values.items()
    }


def from_description(data: object) -> Process:
    """The process of ``{"kind": ..., ...}``: tables, or the words of its named schedule.

    ``{"kind": "resfusion", "schedule": "linear", "steps": 12}``, ``{"kind": "rddm", "steps": 1000,
    "sum_scale": 0.01}`` and ``{"kind": "ve", "sigma_min": 0.002, "sigma_max": 80}`` are examples.

    Raises:
        ValueError: no such kind, other fields than the kind has, values that make no process.
    """
    if not isinstance(data, dict) or data.get("kind") not in KINDS:
        raise ValueError(
            f"a process is an object with a kind, one of {', '.join(KINDS)}; got {str(data)[:80]}"
        )
    fields = {name: value for name, value in data.items() if name != "kind"}
    forms = KINDS[data["kind"]][1]
    form = next((form for form in forms if form.fits(set(fields))), None)
    if form is None:
        raise ValueError(
            f"a {data['kind']} process has the fields {' or '.join(map(str, forms))}; got"
            f" {', '.join(fields) or 'none'}"
        )
    steps = fields.get("steps", 2)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= MOST_LEVELS:
        raise ValueError(f"steps must be a whole number from 2 to {MOST_LEVELS}; got {steps!r}")
    try:
        return form.make(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the fields of this {data['kind']} process don't make one: {error}"
        ) from error
