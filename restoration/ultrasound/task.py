"""Dehazing of B-mode frames: tissue and haze are sampled jointly from what was seen."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from restoration.operators.measurement import Measurement
from restoration.posterior import CORRECTIONS, Correction
from restoration.posterior.by_name import check_correction
from restoration.task import Restored, Watch, check_samples
from restoration.ultrasound.joint import JointDenoiser, Superposition
from restoration.ultrasound.power_split import power_split
from restoration.wrappers.tiling import tiled
from solvers.denoiser import Denoiser
from solvers.grid import Grid, check_steps, explicit
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.solver import RNG, Callback, Solution, Solver, randn

MINIMUM_SIDE = 32


@dataclass(frozen=True)
class Dehazed(Restored):
    """A frame without haze; ``nfe`` counts calls of the joint denoiser, each of which asks both
    networks once.

    Attributes:
        haze: ``(H, W)``, mean of what haze adds at strength 1; negative where it extinguishes. Both
            as :meth:`UltrasoundTask.finish` says.
        state: ``(1, 2, H, W)``, the last sample in the networks' range: the warm start of the next
            frame.
    """

    haze: Tensor = field(kw_only=True)
    state: Tensor = field(kw_only=True)

    @property
    def image(self) -> Tensor:
        """The mean as a frame ``(H, W)``."""
        return self.mean[0]


@dataclass(frozen=True)
class UltrasoundTask:
    """Split a frame ``y = x + strength h + n`` into tissue x and haze h, each with a prior of its
    own.

    A run starts from :func:`restoration.ultrasound.power_split.power_split`, noised to ``noisiest``
    (Chung et al. 2022, "come closer, diffuse faster"): started from pure noise, small priors don't
    tell haze from faint even tissue, and share the frame out between them. ``start="noise"`` does
    that nevertheless.

    Works on grey values after log compression: h is what haze adds to them. In the B-mode picture
    this is near zero where tissue is bright and large where it is dark, which is how the haze prior
    was trained.

    Args:
        tissue, haze: unconditional denoisers of one channel; PyTorch, or 8-bit ONNX with
            corrections that need no gradient.
        strength: share of the haze that is attributed, > 0: above 1 more is taken away, below 1
            less.
        start: ``split`` or ``noise``.
        sigma: standard deviation of what neither explains, in units of [0, 1].
        solver: any solver of this toolbox.
        num_inference_steps: solver steps, >= 1.
        correction: a name in ``restoration.posterior.CORRECTIONS``;
            :class:`restoration.ultrasound.joint.JointDenoiser` says which guidance of the papers
            each is.
        noisiest, cleanest: noise levels ``b/a`` of the first and last node, in the tissue network's
            range; steps are spaced evenly in the logarithm. From noise, start at 8 or above.
        tile, overlap: pixels; larger frames are asked in tiles.

    Raises:
        ValueError: a number out of its range, or an unknown correction.
    """

    tissue: Denoiser
    haze: Denoiser
    strength: float = 1.0
    sigma: float = 0.02
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 4
    correction: str = "diffpir"
    start: str = "split"
    noisiest: float = 0.8
    cleanest: float = 0.03
    tile: int = 1024
    overlap: int = 64

    def __post_init__(self) -> None:
        for name in ("strength", "noisiest", "cleanest"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number; got {getattr(self, name)}")
        if not self.cleanest < self.noisiest:
            raise ValueError(
                f"cleanest must be below noisiest; got {self.cleanest} and {self.noisiest}"
            )
        check_steps(self.num_inference_steps)
        if self.start not in ("split", "noise"):
            raise ValueError(f"start must be split or noise; got {self.start!r}")
        check_correction(self.correction)
        if self.tile < 2 * self.overlap + 1 or self.overlap < 0:
            raise ValueError(
                f"the overlap must be less than half a tile; got {self.overlap} of {self.tile}"
            )

    def __call__(
        self, frame: Tensor, *, num_samples: int = 1, seed: int = 0, callback: Watch | None = None
    ) -> Dehazed:
        """Dehaze one frame ``(H, W)`` or ``(1, H, W)`` in [0, 1]; sample k uses ``seed + k`` alone.

        Raises:
            ValueError: a frame of another shape or range, or fewer than one sample.
        """
        check_samples(num_samples)
        began, states, nfe = time.perf_counter(), [], 0
        frame = check_frame(frame)
        for k in range(num_samples):
            watch = None if callback is None else lambda step, k=k: callback(k, step)
            solution = self.sample(
                frame, self.nodes(), torch.Generator().manual_seed(seed + k), callback=watch
            )
            states.append(solution.x0)
            nfe += solution.nfe
        return self.finish(torch.cat(states), frame, nfe, time.perf_counter() - began)

    def nodes(self) -> Grid:
        """The times of a run: evenly in log b/a from ``noisiest`` to ``cleanest``, then clean;
        whole, for the tables of 8-bit networks.
        """
        process, ends = self.tissue.process, (math.log(self.noisiest), math.log(self.cleanest))
        times = [
            round(process.time_at(-2 * float(level)))
            for level in np.linspace(*ends, self.num_inference_steps)
        ]
        return explicit(list(dict.fromkeys(float(t) for t in times if t >= process.first)))

    def sample(
        self,
        frame: Tensor,
        grid: Grid,
        generator: RNG,
        start: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Solution:
        """One run over ``grid``; ``start`` is the estimate ``(1, 2, H, W)`` that the first state is
        built on.

        The solution is in the networks' range.
        """
        denoiser = self.corrected(frame)
        return solve(
            self.solver,
            denoiser,
            self.first_state(frame, grid, generator, start),
            grid,
            generator=generator,
            callback=callback,
        )

    def first_state(
        self, frame: Tensor, grid: Grid, generator: RNG, start: Tensor | None = None
    ) -> Tensor:
        """``a start + b noise`` at the grid's first node; ``start`` by default as the task says."""
        process, t = self.tissue.process, grid.times[0]
        start = self.first_estimate(frame) if start is None else start
        noise = randn(start.shape, generator, device=start.device)
        return process.a(t) * start + process.b(t) * noise

    def first_estimate(self, frame: Tensor) -> Tensor:
        """``[x, h]``, ``(1, 2, H, W)`` in the networks' range: the power split, or for a start from
        noise the least-squares split.
        """
        measurement = self.measurement(frame)
        if self.start == "noise":
            return measurement.operator.A_dagger(measurement.y)
        tissue = torch.from_numpy(power_split(frame.cpu().numpy(), self.strength)).to(measurement.y)
        haze = (frame.to(tissue) - tissue) / self.strength
        return torch.stack([self.tissue.from_unit(tissue), self.haze.from_unit(haze)])[None]

    def measurement(self, frame: Tensor) -> Measurement:
        """The frame ``(H, W)`` as a measurement of ``[x, h]`` in the networks' ranges."""
        (low_x, high_x), (low_h, high_h) = self.tissue.value_range, self.haze.value_range
        weight_x, weight_h = 1 / (high_x - low_x), self.strength / (high_h - low_h)
        y = frame.to(self.tissue.device)[None, None] + low_x * weight_x + low_h * weight_h
        # in units of the tissue's range, so that sigma means the same for every range
        return Measurement(
            Superposition(1.0, weight_h / weight_x), y / weight_x, self.sigma / weight_x
        )

    def corrected(self, frame: Tensor) -> Correction:
        """The denoiser that a run asks."""
        return CORRECTIONS[self.correction](self.joint(frame.shape), self.measurement(frame))

    def joint(self, shape: Sequence[int]) -> JointDenoiser:
        """Both priors as one, in tiles where a frame of ``shape (H, W)`` is larger than a tile."""
        parts = []
        for d in (self.tissue, self.haze):
            unit = d.fold * d.multiple
            large = max(shape) > self.tile
            parts.append(
                tiled(d, max(unit, self.tile // unit * unit), self.overlap // d.fold * d.fold)
                if large
                else d
            )
        return JointDenoiser(*parts)

    def finish(self, states: Tensor, frame: Tensor, nfe: int, seconds: float) -> Dehazed:
        """The result from the ends of runs ``(n, 2, H, W)`` for a frame ``(H, W)``.

        Echoes of haze add to those of tissue. Where the two cancel, single grains of speckle are
        darkened, never all of a neighbourhood: neither is anywhere brighter than the brightest of
        the 3 x 3 pixels of the frame around it. So samples keep no grain where a frame is black.
        """
        ceiling = max_pool2d(frame[None], 3, stride=1, padding=1).cpu()
        samples = self.tissue.to_unit(states[:, :1]).clamp(0, 1).cpu().minimum(ceiling)
        haze = self.haze.to_unit(states[:, 1]).cpu().minimum(ceiling / self.strength).mean(0)
        std = samples.std(0) if len(samples) > 1 else torch.zeros_like(samples[0])
        mean = samples.mean(0)
        return Dehazed(samples, mean, std, nfe, seconds, haze=haze, state=states[-1:])


def check_frame(frame: Tensor) -> Tensor:
    """``(H, W)`` float32.

    Raises:
        ValueError: not one grey frame of at least 32 x 32 finite pixels in [0, 1].
    """
    frame = torch.as_tensor(frame).float()
    if frame.ndim == 3 and frame.shape[0] == 3:
        raise ValueError(
            f"the frame has 3 colours, shape {tuple(frame.shape)}; ultrasound frames are grey: (H,"
            " W) or (1, H, W)"
        )
    frame = frame[0] if frame.ndim == 3 and frame.shape[0] == 1 else frame
    if frame.ndim != 2:
        raise ValueError(
            f"a frame must be (H, W) or (1, H, W); got {tuple(frame.shape)} (clips go through"
            " restore_clip, frame by frame)"
        )
    if min(frame.shape) < MINIMUM_SIDE:
        raise ValueError(
            f"a frame must have at least {MINIMUM_SIDE} x {MINIMUM_SIDE} pixels; got"
            f" {tuple(frame.shape)} (H, W)"
        )
    if not torch.isfinite(frame).all():
        raise ValueError("the frame holds NaN or infinite values")
    if frame.min() < 0 or frame.max() > 1:
        raise ValueError(
            f"grey values must lie in [0, 1]; got {float(frame.min()):.3g} to"
            f" {float(frame.max()):.3g}"
        )
    return frame
