"""What a restorer graph can do: for each task, its inputs, its noise, and how a run starts and
ends, in traceable tensor operations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from restoration.posterior import CORRECTIONS
from restoration.task import Run
from solvers.denoiser import Denoiser

Shape = tuple[int, int, int]


class Job(ABC):
    """A task with everything fixed but the measurement. Subclasses are frozen dataclasses with
    these attributes and :meth:`prepare`.

    Attributes:
        name: of the task, as the command line calls it.
        denoiser: around a PyTorch network whose temporal path can be tabulated.
        inputs: names and shapes of the measurement's tensors, without the batch.
        state: ``(C, H, W)`` of the noise.
        correction, sigma, steps, grid_name, solver_name: for the record.
    """

    task: Any
    size: tuple[int, int]
    sigma: float = 0.0

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Shape]: ...

    @property
    @abstractmethod
    def state(self) -> Shape: ...

    @property
    def denoiser(self) -> Denoiser:
        return self.task.denoiser

    @property
    def correction(self) -> str:
        return self.task.correction or "none"

    @property
    def steps(self) -> int | None:
        return getattr(self.task, "num_inference_steps", None)

    @property
    def operator_record(self) -> dict[str, str | float]:
        return {}

    def around(self, denoiser: Denoiser) -> Job:
        """The same job around another denoiser."""
        job: Any = self  # a dataclass, as all of them are
        return replace(job, task=replace(self.task, denoiser=denoiser))

    def check(self) -> None:
        """Refuse what can't be a graph, in words.

        Raises:
            ValueError: a correction that differentiates the network.
        """
        if self.correction in CORRECTIONS and CORRECTIONS[self.correction].needs_gradient:
            raise ValueError(
                f"{self.correction} differentiates the network, which a graph can't; use ddnm,"
                " diffpir, ddrm or repaint"
            )

    def example(self) -> dict[str, Tensor]:
        """Inputs ``(1, ...)`` that mean something, for a dry run."""
        return {name: torch.full((1, *shape), 0.5) for name, shape in self.inputs.items()}

    @abstractmethod
    def prepare(self, *args: Any, **inputs: Any) -> Run:
        """A run on a batch of measurements."""
