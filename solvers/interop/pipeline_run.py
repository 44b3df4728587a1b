"""One run of a solver whose questions a diffusers pipeline answers, call by call."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.prediction import Prediction
from solvers.solver import Problem, Queries, Query, Solver

KEPT = 2**28  # bytes of answers and noise that a run keeps, so that it can be copied


class PipelineRun:
    """One generator under way and its pending query. What the pipeline gets are copies: it may
    write on them.
    """

    def __init__(
        self, problem: Problem, sample: Tensor, solver: Solver, grid: Grid, times: list[float]
    ):
        self.problem, self.solver, self.grid, self.times = problem, solver, grid, times
        self.dtype = sample.dtype
        self.start = sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True)
        self.tape = _Tape()
        self.run = solver.run(_Recorded.of(problem, self.tape, []), grid, self.start)
        self.query: Query = next(self.run)
        self.shown, self.done, self.calls = sample, False, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineRun:
        """The same run at the same call: a generator can't be copied, but it can be led there.

        Raises:
            ValueError: the run is too long and large to have been kept.
        """
        if self.tape.bytes > KEPT:
            raise ValueError(
                f"a run can be copied as long as its answers take at most {KEPT >> 20} MiB; copy"
                " the scheduler before the run, or smaller samples"
            )
        other = copy.copy(self)
        other.tape = _Tape(list(self.tape.answers), list(self.tape.draws), self.tape.bytes)
        source = copy.deepcopy(self.problem.generator, memo)
        other.problem = replace(self.problem, generator=source)
        problem = _Recorded.of(other.problem, other.tape, list(self.tape.draws))
        other.run = self.solver.run(problem, self.grid, self.start)
        other.query = next(other.run)
        for answer in self.tape.answers:
            other.query = other.run.send(answer)
        return other

    def expects(self, t: float) -> bool:
        return t == np.float32(self.query.t)

    def edited(self, sample: Tensor) -> bool:
        """Whether the sample is not the state that was shown."""
        return not torch.equal(sample, self.query.x.to(sample.dtype))

    def answer(self, output: Tensor, sample: Tensor, prediction_type: str) -> Prediction:
        x, t = self.query.x, self.query.t
        if self.edited(sample):
            x = sample.to(x.dtype)
        process = self.problem.process
        prediction = Prediction.from_output(
            output.to(x.dtype), x, process.a(t), process.b(t), prediction_type
        )
        self.calls += 1
        self.tape.keep(self.tape.answers, prediction, prediction.x0, prediction.eps)
        try:
            self.query = self.run.send(prediction)
            self.shown = self.query.x.to(self.dtype, copy=True)
        except StopIteration as end:
            self.shown, self.done = end.value.to(self.dtype), True
        return prediction


@dataclass
class _Tape:
    """Answers and noise of a run so far; given up where they take more than KEPT bytes."""

    answers: list[Prediction] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)
    bytes: int = 0

    def keep(self, kept: list[Any], value: Any, *tensors: Tensor) -> None:
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        if self.bytes <= KEPT:
            kept.append(value)
        else:
            self.answers.clear()
            self.draws.clear()


@dataclass(frozen=True)
class _Recorded(Problem):
    """A problem that keeps its noise on a tape and gives that of ``before`` first."""

    tape: _Tape = field(default_factory=_Tape)
    before: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, tape: _Tape, before: list[Tensor]) -> _Recorded:
        return cls(problem.process, problem.y, problem.generator, tape, before)

    def noise(self, like: Tensor) -> Tensor:
        if self.before:
            return self.before.pop(0)
        drawn = super().noise(like)
        self.tape.keep(self.tape.draws, drawn, drawn)
        return drawn


class Repeated:
    """A solver of one call per step whose calls are made as often as ``times`` lists them: the last
    answer of a level counts.
    """

    def __init__(self, solver: Solver, times: list[float]):
        self.solver, self.times = solver, times

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        run = self.solver.run(problem, grid, x)
        query = next(run)
        for t, after in zip(self.times, [*self.times[1:], None], strict=True):
            answer = yield query
            if after == t:
                continue
            try:
                query = run.send(answer)
            except StopIteration as end:
                return end.value
        raise AssertionError("the solver calls more often than once a level")
