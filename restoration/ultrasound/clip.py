"""Clips, frame by frame as they come: warm starts, or several frames in one network call (stream
batching).
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from restoration.ultrasound.joint import JointDenoiser, stacked
from restoration.ultrasound.shown import ShownFrameTask
from restoration.ultrasound.task import Dehazed, UltrasoundTask, check_frame
from solvers.denoiser import Denoiser
from solvers.grid import Grid
from solvers.interop.diffusers_solver import as_solver
from solvers.prediction import Prediction
from solvers.processes.process import Process
from solvers.solver import Problem, Query, keeps_history


@torch.no_grad()
def restore_clip(
    task: UltrasoundTask | ShownFrameTask,
    frames: Iterable[Tensor],
    *,
    seed: int = 0,
    warm_start: float | None = None,
    stream: bool = False,
) -> Iterator[Dehazed]:
    """Dehaze frames ``(H, W)`` in [0, 1] in their order, one sample each, holding no more of the
    clip than is being worked on.

    Every frame uses the same noise, so that what was not seen does not flicker. A frame that equals
    the one before gets its result without a network call, but for warm starts and ``stream``.

    Args:
        warm_start: noise level ``b/a`` to enter at from the previous frame's result: steps above it
            are left out. None: every frame from noise. A frame that does not resemble the last one
            (a cut) starts from noise.
        stream: frame k+1 enters while frame k is on its way; all frames under way share each
            network call (Kodaira et al. 2023). The results equal those of one frame at a time; they
            come later by the number of steps less one.

    Raises:
        ValueError: both of them (a warm start waits for the previous frame), a level outside the
            task's, frames of several sizes, or ``stream`` with priors whose networks can't be
            shared.
        TypeError: ``stream`` with a correction that differentiates the network.
    """
    if isinstance(task, ShownFrameTask):
        if warm_start is not None or stream:
            raise ValueError(
                "warm starts and stream batching are for two priors; a network that is shown the"
                " frame takes one call: leave them out"
            )
        return _alone(task, _same_size(frames), seed)
    if warm_start is not None and stream:
        raise ValueError(
            "a warm start waits for the previous frame's result, which stream batching does not:"
            " choose one"
        )
    if warm_start is not None and not task.cleanest <= warm_start <= task.noisiest:
        raise ValueError(
            f"warm_start must lie between the task's cleanest and noisiest level, {task.cleanest}"
            f" and {task.noisiest}; got {warm_start}"
        )
    checked = _same_size(frames)
    return (
        _streamed(task, checked, seed) if stream else _one_by_one(task, checked, seed, warm_start)
    )


def _same_size(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    size = None
    for k, frame in enumerate(frames):
        frame = check_frame(frame)
        size = frame.shape if size is None else size
        if frame.shape != size:
            raise ValueError(
                f"frame {k} is {tuple(frame.shape)} pixels (H, W) but the clip began with"
                f" {tuple(size)}"
            )
        yield frame


def _alone(task: ShownFrameTask, frames: Iterator[Tensor], seed: int) -> Iterator[Dehazed]:
    """Each frame by itself; one that equals the last one isn't asked for."""
    before: Tensor | None = None
    last: Dehazed | None = None
    for frame in frames:
        equal = last is not None and before is not None and torch.equal(before, frame)
        last = replace(last, nfe=0, seconds=0.0) if last and equal else task(frame, seed=seed)
        before = frame
        yield last


def _one_by_one(
    task: UltrasoundTask, frames: Iterator[Tensor], seed: int, warm_start: float | None
) -> Iterator[Dehazed]:
    before: Tensor | None = None
    last: Dehazed | None = None
    for frame in frames:
        if warm_start is None and last and before is not None and torch.equal(before, frame):
            yield replace(last, nfe=0, seconds=0.0)  # the same noise: the same result
            continue
        began = time.perf_counter()
        grid, start = task.nodes(), None
        if warm_start is not None and last and before is not None and similar(before, frame):
            grid, start = enter(grid, task, warm_start), last.state
        solution = task.sample(frame, grid, torch.Generator().manual_seed(seed), start)
        last, before = (
            task.finish(solution.x0, frame, solution.nfe, time.perf_counter() - began),
            frame,
        )
        yield last


def enter(grid: Grid, task: UltrasoundTask, level: float) -> Grid:
    """The part of a grid at or below the noise level ``b/a``; at least its last node."""
    times = grid.times[:-1]
    below = [t for t in times if task.tissue.process.kappa(t) <= level * (1 + 1e-6)]
    return Grid((*(below or times[-1:]), grid.times[-1]))


def similar(a: Tensor, b: Tensor, least: float = 0.7) -> bool:
    """Whether two frames show the same view: correlation of their grey values (their mean taken
    off: dark pictures always resemble).
    """
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return bool(scale > 0 and (a * b).sum() >= least * scale)


# -- stream batching -------------------------------------------------------------------------------


class _Run:
    """One frame on its way: the solver's coroutine with its history, and the correction for its
    measurement.
    """

    def __init__(self, task: UltrasoundTask, frame: Tensor, joint: JointDenoiser, seed: int):
        self.began, self.task, self.frame = time.perf_counter(), task, frame
        generator, grid = torch.Generator().manual_seed(seed), task.nodes()
        state = task.first_state(frame, grid, generator)
        problem = Problem(joint.process, None, generator)
        self.correction = task.corrected(frame).bind(grid.times, problem.noise)
        self.run = as_solver(task.solver).run(problem, grid, state)
        self.query: Query = next(self.run)
        self.nfe = 0
        self.result: Dehazed | None = None

    def answer(self, prediction: Prediction) -> None:
        correction = copy.copy(self.correction)
        correction.denoiser = _Answered(prediction, self.correction.denoiser.process)
        self.nfe += 1
        try:
            self.query = self.run.send(correction(self.query.x, self.query.t))
        except StopIteration as end:
            self.result = self.task.finish(
                end.value, self.frame, self.nfe, time.perf_counter() - self.began
            )


class _Answered:
    """A denoiser whose answer is known already."""

    def __init__(self, prediction: Prediction, process: Process):
        self.prediction, self.process = prediction, process

    def __call__(self, x: Tensor, t: float) -> Prediction:
        return self.prediction


def _streamed(task: UltrasoundTask, frames: Iterator[Tensor], seed: int) -> Iterator[Dehazed]:
    running: deque[_Run] = deque()
    joint: JointDenoiser | None = None
    parts: list[Denoiser] = []
    more = True
    while more or running:
        frame = next(frames, None)
        more = frame is not None
        if frame is not None:
            if joint is None:
                joint = task.joint(frame.shape)
                parts = _check_stream(task, frame, joint)
            running.append(_Run(task, frame, joint, seed))
        if not running:
            return
        queries = [run.query for run in running]
        halves = [
            ask_together(part, [q.x.chunk(2, dim=1)[k] for q in queries], [q.t for q in queries])
            for k, part in enumerate(parts)
        ]
        for run, *answers in zip(list(running), *halves, strict=True):
            run.answer(stacked(answers))
        while running and (result := running[0].result) is not None:
            running.popleft()
            yield result


def _check_stream(task: UltrasoundTask, frame: Tensor, joint: JointDenoiser) -> list[Denoiser]:
    """The two networks that all frames' runs ask together."""
    if task.corrected(frame).needs_gradient:
        raise TypeError(
            f"stream batching shares network calls, which {task.correction} differentiates: use"
            " diffpir, ddnm+ or ddrm"
        )
    if keeps_history(task.solver) and task.corrected(frame).draws_noise:
        raise ValueError(
            f"{task.correction} draws noise, which {type(task.solver).__name__} would combine over"
            " steps: use DDIM"
        )
    parts = [d for d in (joint.tissue, joint.haze) if isinstance(d, Denoiser)]
    if len(parts) < 2 or joint.haze.process != joint.tissue.process:
        raise ValueError("stream batching needs two network denoisers of one process")
    return parts


def ask_together(denoiser: Denoiser, states: list[Tensor], times: list[float]) -> list[Prediction]:
    """What ``denoiser(x, t)`` says of each state ``(1, C, H, W)`` at its own time, in one call of
    an unconditional network.
    """
    levels = [denoiser.unit_levels(denoiser.process.a(t), denoiser.process.b(t)) for t in times]
    z = [x / scale for x, (scale, _, _) in zip(states, levels, strict=True)]
    output = denoiser.output(torch.cat(z), torch.tensor(times, device=z[0].device))
    answers = []
    for k, (one, (_, a, b)) in enumerate(zip(z, levels, strict=True)):
        p = Prediction.from_output(output[k : k + 1], one, a, b, denoiser.prediction_type)
        answers.append(Prediction(denoiser.data_std * p.x0, p.eps))
    return answers
