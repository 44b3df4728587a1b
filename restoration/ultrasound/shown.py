"""Dehazing of B-mode frames by one network that is shown the hazy frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from restoration.task import Restored, Run, Watch, sample
from restoration.ultrasound.task import Dehazed, check_frame
from restoration.wrappers.tiling import in_tiles, set_tile
from solvers.denoiser import Denoiser
from solvers.grid import check_steps, lay
from solvers.methods.ddim import DDIM
from solvers.solver import Solver


@dataclass(frozen=True)
class ShownFrameTask:
    """Tissue x of a frame ``y`` by a network of ``p(x | y)``, trained on pairs of clean and hazy
    frames.

    One call from noise is the mean of what the tissue may be: where haze hides what is there, it
    is neither filled with a mass nor cut away, but soft. More steps draw samples of it.

    Args:
        denoiser: of one channel, shown one more, the frame.
        strength: share of the haze that is taken away, > 0: above 1 more, below 1 less.
        solver: any solver of this toolbox.
        num_inference_steps: solver steps, >= 1.
        tile, overlap: pixels; larger frames are asked in tiles. 0: what suits the network.

    Raises:
        ValueError: a number out of its range, or a network that is shown something else.
    """

    denoiser: Denoiser
    strength: float = 1.0
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 1
    tile: int = 0
    overlap: int = 64

    def __post_init__(self) -> None:
        set_tile(self)
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be a positive number; got {self.strength}")
        check_steps(self.num_inference_steps)
        if self.denoiser.condition_channels != 1 or self.denoiser.image_channels not in (None, 1):
            raise ValueError(
                "the network must work on one channel and be shown one more, the frame; this one"
                f" works on {self.denoiser.image_channels} and is shown"
                f" {self.denoiser.condition_channels}"
            )

    def __call__(
        self, frame: Tensor, *, num_samples: int = 1, seed: int = 0, callback: Watch | None = None
    ) -> Dehazed:
        """Dehaze one frame ``(H, W)`` or ``(1, H, W)`` in [0, 1]; sample k uses ``seed + k`` alone.

        Raises:
            ValueError: a frame of another shape or range, or fewer than one sample.
        """
        frame = check_frame(frame)
        run = self.prepare(frame.to(self.denoiser.device)[None, None])
        found = sample(run, num_samples=num_samples, seed=seed, callback=callback)
        return _with_haze(found, frame.cpu(), self.strength)

    def prepare(self, frame: Tensor) -> Run:
        """The run on frames ``(B, 1, H, W)`` in [0, 1]. Tensor operations only: it can be
        traced.
        """
        d = self.denoiser.conditioned(self.denoiser.from_unit(frame))
        d = in_tiles(d, frame.shape, self.tile, self.overlap)

        def finish(x0: Tensor) -> Tensor:
            tissue = d.to_unit(x0).clamp(0, 1)
            return (frame + self.strength * (tissue - frame)).clamp(0, 1)

        grid = lay("trailing", d.process, self.num_inference_steps)
        shape = (1, int(frame.shape[-2]), int(frame.shape[-1]))
        return Run(d, self.solver, grid, shape, finish)


def _with_haze(found: Restored, frame: Tensor, strength: float) -> Dehazed:
    haze = (frame - found.mean[0]) / strength
    kept: dict[str, Any] = {name: getattr(found, name) for name in ("nfe", "seconds")}
    state = torch.stack([found.samples[-1, 0], haze])[None]
    return Dehazed(found.samples, found.mean, found.std, **kept, haze=haze, state=state)
