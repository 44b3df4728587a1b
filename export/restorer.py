"""A whole restoration as one graph: measurement and noise in, image out.

Everything between is inside: lift, the solver's coefficients, the temporal table's rows, every network call (weights stored once),
data consistency, range conversion and clamping. A device needs ONNX Runtime and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from export.graph import trace
from quant.temporal import row_of, step_network, temporal_table
from restoration.inpainting import InpaintingTask
from restoration.posterior import CORRECTIONS
from solvers.denoiser import Denoiser
from solvers.solver import solve

MOST_PIXELS = 2**24


class RestorerNetwork(nn.Module):
    """``(image (B, 3, H, W), mask (B, 1, H, W), noise (draws, B, 3, H, W)) -> image``, or also each step's estimate.

    Args:
        task: what to run; its denoiser holds a PyTorch network whose temporal path can be tabulated.
        sigma: standard deviation of the noise on the known pixels, in units of [0, 1].
        estimates: also return the image estimate of every network call, ``(calls, B, 3, H, W)``, not clamped.

    Attributes:
        timesteps: times that the network is asked at, in order.
        calls: number of network calls.
        draws: how many noise images a run takes; the first is the start.

    Raises:
        ValueError: a correction that differentiates the network, or a network without a temporal table.
    """

    def __init__(self, task: InpaintingTask, sigma: float = 0.0, estimates: bool = False):
        super().__init__()
        self.correction = task.correction_for(sigma)
        if CORRECTIONS[self.correction].needs_gradient:
            raise ValueError(f"{self.correction} differentiates the network, which a graph can't; use ddnm, diffpir, ddrm or repaint")
        self.sigma, self.estimates = sigma, estimates
        self.grid = task.nodes()
        asked, self.draws = _dry_run(task, sigma)
        self.calls, self.timesteps = len(asked), tuple(dict.fromkeys(asked))
        traced = _Traced(task.denoiser, self.timesteps)
        self.network = traced.network
        self.task = replace(task, denoiser=traced, tile=2**31)

    def forward(self, image: Tensor, mask: Tensor, noise: Tensor):
        denoiser, finish = self.task.prepare(image, mask, self.sigma)
        draws = iter(noise.unbind(0))
        x = denoiser.process.b(self.grid.times[0]) * next(draws)
        seen = []
        run = solve(
            self.task.solver,
            denoiser,
            x,
            self.grid,
            generator=lambda shape: next(draws),
            callback=lambda step: seen.append(self.task.denoiser.to_unit(step.prediction.x0)),
        )
        out = finish(run.x0)
        return (out, torch.stack(seen)) if self.estimates else out


class _Traced(Denoiser):
    """A denoiser that asks its network for table rows: the number of a row is a constant of the graph, a time would need its layers."""

    def __init__(self, denoiser: Denoiser, timesteps: tuple[float, ...]):
        self.__dict__ |= denoiser.__dict__
        self.timesteps = timesteps
        self.network = step_network(denoiser.network, temporal_table(denoiser.network, timesteps))

    def call_network(self, z: Tensor, t) -> Tensor:
        # one row for the whole batch: it broadcasts, and folds into the graph's constants
        out = self.network(z, torch.tensor([row_of(self.timesteps, t)]))
        return out if isinstance(out, Tensor) else out.sample


def export_restorer(
    task: InpaintingTask,
    *,
    sigma: float = 0.0,
    size: tuple[int, int] = (256, 256),
    estimates: bool = False,
    timesteps: Sequence[float] | None = None,
):
    """The float ONNX graph of a whole inpainting run.

    Inputs ``image``, ``mask`` (1 = known), ``noise``; outputs ``restored`` and, if asked, ``estimates``; batch up to 63.

    Args:
        task: solver, steps, grid and correction to bake in.
        sigma: noise on the known pixels, in units of [0, 1].
        size: ``(H, W)`` of the images, multiples of what the network takes. It is fixed, as engines want it and the lift's pyramid
            needs it; larger images go through in tiles.
        estimates: also return every call's image estimate.
        timesteps: the times that scales were calibrated at; a run that asks at another is refused.

    Returns:
        ``(onnx_ir.Model, RestorerNetwork)``: the graph, and the module it was traced from.

    Raises:
        ValueError: a size that doesn't fit, or a run that can't be traced.
    """
    module = RestorerNetwork(task, sigma, estimates).eval()
    if timesteps is not None:
        for t in module.timesteps:
            row_of(timesteps, t)
    unit = task.denoiser.fold * task.denoiser.multiple
    if min(size) < unit or size[0] % unit or size[1] % unit or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"size must be multiples of {unit} pixels, at most {MOST_PIXELS} pixels in all; got {size[0]} x {size[1]}")
    inputs = (torch.zeros(2, 3, *size), torch.ones(2, 1, *size), torch.zeros(module.draws, 2, 3, *size))
    batch = torch.export.Dim("batch", min=2, max=63)
    shapes = ({0: batch}, {0: batch}, {1: batch})
    model = trace(module, inputs, shapes, f"{type(task.solver).__name__} with {type(task.denoiser.network).__name__}")
    for value, name in zip(model.graph.outputs, ("restored", "estimates"), strict=False):
        value.name = name
    return model, module


@torch.no_grad()
def _dry_run(task: InpaintingTask, sigma: float) -> tuple[list[float], int]:
    """The times of a run's network calls and the number of its noise draws, from a run on a tiny image with a network that says zero."""
    times: list[float] = []
    draws, outputs = 0, task.denoiser.network.config.out_channels

    class Silent(Denoiser):
        def __init__(self):
            self.__dict__ |= task.denoiser.__dict__

        def call_network(self, z: Tensor, t) -> Tensor:
            times.append(float(t))
            return torch.zeros(z.shape[0], outputs, *z.shape[2:])

    def count(shape) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros(shape)

    unit = task.denoiser.fold * task.denoiser.multiple
    image, mask = torch.full((1, 3, unit, unit), 0.5), torch.ones(1, 1, unit, unit)
    denoiser, _ = replace(task, denoiser=Silent()).prepare(image, mask, sigma)
    nodes = task.nodes()
    solve(task.solver, denoiser, denoiser.process.b(nodes.times[0]) * count(image.shape), nodes, generator=count)
    return times, draws
