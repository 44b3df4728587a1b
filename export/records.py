"""What a bundle's manifest says of runs: the one that a graph holds, those that a device can make
of a network's answers (:mod:`export.tables`), and its calls that remove noise.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# protobuf's limit: a larger graph needs external data, which bundles don't have
MOST_BYTES = 2**31 - 1


class Part(BaseModel):
    """Of a manifest: unknown fields and numbers that are none are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunRecord(Part):
    """What a restorer graph does: measurement and ``noise (draws, B, *state)`` in, ``restored`` and
    perhaps ``estimates`` out.

    Attributes:
        inputs: shapes of the measurement's inputs, without the batch, in the graph's order.
        state: ``(C, H, W)`` of the noise.
        operator: name and numbers of a fixed measurement operator.
        cache: the steps that compute deep features, as for :func:`quant.temporal.features.cached`.
    """

    task: Literal["inpaint", "denoise", "superresolve", "deblur", "mri", "hsi", "paired", "dehaze"]
    solver: str
    steps: int = Field(ge=1, le=10_000)
    grid: str
    correction: str
    sigma: float = Field(ge=0)
    height: int = Field(ge=1, le=2**16)
    width: int = Field(ge=1, le=2**16)
    draws: int = Field(ge=0, le=10_000)
    calls: int = Field(ge=1, le=100_000)
    estimates: bool
    inputs: dict[str, list[int]] = Field(default_factory=dict, max_length=16)
    state: tuple[int, int, int] | None = None
    operator: dict[str, str | float] = Field(default_factory=dict, max_length=16)
    cache: int | list[int] | None = None

    @field_validator("inputs")
    @classmethod
    def _shapes(cls, inputs: dict[str, list[int]]) -> dict[str, list[int]]:
        for name, shape in inputs.items():
            if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > MOST_BYTES:
                raise ValueError(f"input {name} has the impossible shape {shape}")
        return inputs


class RunTable(Part):
    """One run of a network's bundle.

    Ingredients, in order: the measured picture (lifted, where the network is shown that), the
    answers ``0 ..`` of all calls (each head for itself), the noise images in the order they are
    drawn.

    Attributes:
        draws: how many noise images are drawn.
        times: where the network is asked, call by call.
        asked: weights of what it is shown, ``(2, calls, ingredients)``: for unknown pixels, then
            for known ones; pairs have one kind of pixels, ``(1, ...)``.
        end: weights of the result, ``(2 or 1, ingredients)``.
    """

    task: Literal["inpaint", "paired"]
    solver: str = Field(max_length=100)
    steps: int = Field(ge=1, le=100)
    grid: str = Field(max_length=40)
    correction: str = Field(max_length=40)
    draws: int = Field(ge=0, le=200)
    times: list[float] = Field(min_length=1, max_length=200)
    asked: list[list[list[float]]] = Field(min_length=1, max_length=2)
    end: list[list[float]] = Field(min_length=1, max_length=2)

    @model_validator(mode="after")
    def _shaped(self):
        width = len(self.end[0])
        rows = [*self.end, *(row for kind in self.asked for row in kind)]
        heads = (width - 1 - self.draws) / len(self.times)
        if (
            len(self.asked) != len(self.end)
            or {len(row) for row in rows} != {width}
            or {len(kind) for kind in self.asked} != {len(self.times)}
            or heads not in (1, 2)
        ):
            raise ValueError("the rows of a run's table don't fit one another")
        return self


class Level(Part):
    """One call that removes noise: a picture ``y`` in the network's range, with white noise of
    ``kappa / contrast``, is shown as ``x = a (middle + contrast (y - middle))`` times ``shown``;
    the result is ``state x + answer out``, with its contrast taken back.
    """

    t: float
    kappa: float = Field(gt=0)
    a: float = Field(gt=0)
    shown: float
    state: float
    answer: float
