"""Accelerated MRI as one graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from export.jobs.base import Job, Shape
from restoration.mri.estimate import CONDITION_CHANNELS
from restoration.mri.real_sense import RealSense, RealSlice, coil_pairs
from restoration.mri.task import MRITask
from restoration.task import Run


@dataclass(frozen=True)
class MRIJob(Job):
    """``kspace (B, 2 coils, H, W)``, real parts first; ``mask (B, 1, H, W)``; ``maps`` like k-space
    for more than one coil, of norm 1 over the coils (:func:`restoration.mri.normalise_maps`); the
    result is the complex image ``(B, 2, H, W)`` in the units of the data.

    Args:
        task: of a conditional network, with its default correction or none.
        exact: the data are without noise (one coil only); otherwise the standard deviation of their
            real part is an input, ``sigma (B, 1, 1, 1)``.
        iterations: of conjugate gradients per data consistency
            (:class:`restoration.mri.real_sense.RealSense`).
    """

    task: MRITask
    coils: int
    size: tuple[int, int] = (320, 320)
    exact: bool = False
    iterations: int = 40
    name = "mri"

    @property
    def correction(self) -> str:
        return self.task.plan()[1]

    @property
    def steps(self) -> int:
        return self.task.plan()[0]

    @property
    def inputs(self) -> dict[str, Shape]:
        data = (2 * self.coils, *self.size)
        found = {"kspace": data, "mask": (1, *self.size)}
        found |= {"maps": data} if self.coils > 1 else {}
        return found if self.exact else found | {"sigma": (1, 1, 1)}

    @property
    def state(self) -> Shape:
        return (2, *self.size)

    def check(self) -> None:
        known = ("consistency", "alternation", "none")
        if self.denoiser.condition_channels != CONDITION_CHANNELS or self.correction not in known:
            raise ValueError(
                f"MRI graphs hold networks that are shown {CONDITION_CHANNELS} condition channels,"
                f" with the correction {', '.join(known)}; got {self.denoiser.condition_channels}"
                f" channels and {self.correction!r}"
            )
        if self.exact and self.coils > 1:
            raise ValueError(
                "exact data of several coils make a singular system, whose conjugate gradients a"
                " graph can't run to convergence: give exact=False and the noise as an input,"
                " however small"
            )

    def example(self) -> dict[str, Tensor]:
        return super().example() | {"mask": torch.ones(1, 1, *self.size)}

    def prepare(
        self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None, sigma: Tensor | None = None
    ) -> Run:
        operator, y = RealSense(mask, maps, self.iterations), coil_pairs(kspace * mask)
        return self.task.prepare(RealSlice(operator, y, None if self.exact else sigma))
