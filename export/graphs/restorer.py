"""A whole restoration as one graph: measurement and noise in, result out.

Everything between is inside: lift, the solver's coefficients, the temporal table's rows, every
network call (weights stored once), data consistency, range conversion and clamping. A device needs
ONNX Runtime and nothing else. :mod:`export.jobs` has the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from export.graphs.calls import CalledNetwork, Part, insert_parts
from export.graphs.network import most_batch, trace
from export.jobs.base import Job
from quant.temporal.features import FullSteps, cached
from quant.temporal.table import TemporalTable, row_of, step_network, temporal_table
from solvers.denoiser import Denoiser, Network, begun
from solvers.solver import Callback, Noise

# from a network and its timesteps to the temporal table
Tabulate = Callable[[Any, Sequence[float]], TemporalTable]

MOST_PIXELS = 2**24


class RestorerNetwork(nn.Module):
    """``(measurement ..., noise (draws, B, C, H, W)) -> result``, or also each step's estimate; no
    ``noise`` where a run takes none.

    Args:
        job: what to run.
        estimates: also return the image estimate of every answer, ``(answers, B, C, H, W)``, not
            clamped.
        tabulate: from the network and its timesteps to the temporal table.
        cache: steps that compute deep features (:func:`quant.temporal.features.cached`), which the
            others reuse; None: all.

    Attributes:
        timesteps: times that the network is asked at, in order.
        calls: number of network calls.
        draws: how many noise images a run takes; the first is the start, unless the run starts from
            the measurement.
        network: what is asked, in these ``parts``.

    Raises:
        ValueError: a correction that differentiates the network, or a network without a temporal
            table.
    """

    def __init__(
        self,
        job: Job,
        estimates: bool = False,
        tabulate: Tabulate = temporal_table,
        cache: FullSteps | None = None,
    ):
        super().__init__()
        job.check()
        if estimates and job.denoiser.autoencoder is not None:
            raise ValueError(
                "the estimates of a network of latents are no pictures: leave them out"
            )
        self.estimates = estimates
        asked, self.draws, self.parts = _dry_run(job, cache)
        self.calls, self.timesteps = len(asked), tuple(dict.fromkeys(asked))
        traced = _Traced(job.denoiser, self.timesteps, tabulate)
        self.network = traced.network
        if (autoencoder := job.denoiser.autoencoder) is not None:  # its weights are the graph's
            self.encoder, self.decoder = autoencoder.encoder, autoencoder.decoder
        self.job = job.around(traced if cache is None else cached(traced, cache))
        self.names = (*job.inputs, *(("noise",) if self.draws else ()))

    def forward(self, *tensors: Tensor):
        inputs = dict(zip(self.names, tensors, strict=True))
        draws = iter(inputs.pop("noise").unbind(0) if self.draws else ())
        seen = []
        out = run_job(
            self.job,
            inputs,
            lambda shape: next(draws),
            lambda step: seen.append(step.prediction.x0),
        )
        return (
            (out, torch.stack([self.job.denoiser.to_unit(x0) for x0 in seen]))
            if self.estimates
            else out
        )


@torch.no_grad()
def run_job(
    job: Job,
    inputs: dict[str, Tensor],
    draw: Callable[..., Tensor],
    callback: Callback | None = None,
) -> Tensor:
    """One run: the inputs' batch ``(B, ...)``, noise by ``draw(shape)``, and the result ``(B,
    ...)``.
    """
    run = job.prepare(**inputs)
    count = next(iter(inputs.values())).shape[0]
    return run.finish(run.solve(run.first_state(draw, count), draw, callback).x0)


class _Traced(Denoiser):
    """A denoiser that asks its network for table rows: the number of a row is a constant of the
    graph, a time would need its layers.
    """

    def __init__(self, denoiser: Denoiser, timesteps: tuple[float, ...], tabulate: Tabulate):
        self.__dict__ |= denoiser.__dict__
        self.timesteps = timesteps
        table = tabulate(denoiser.network, timesteps)
        self.network = CalledNetwork(step_network(denoiser.network, table))

    def bind(self, times: Sequence[float], noise: Noise) -> Self:
        """Rows are the network's times."""
        network = begun(self.network, [row_of(self.timesteps, t) for t in times[:-1]] + [-1])
        return self if network is self.network else self.around(network)

    def call_network(self, z: Tensor, t) -> Tensor:
        # one row for the whole batch: it broadcasts
        answer: Tensor = self.network(z, torch.tensor([row_of(self.timesteps, t)]))
        return answer


def export_restorer(
    job: Job,
    *,
    estimates: bool = False,
    timesteps: Sequence[float] | None = None,
    tabulate: Tabulate = temporal_table,
    cache: FullSteps | None = None,
):
    """The float ONNX graph of a whole run.

    Inputs are the job's and ``noise``; outputs ``restored`` and, if asked, ``estimates``; batch up
    to 63 (21 where a network of single planes restores colours, 31 under guidance). Sizes are
    fixed, as engines want them and lifts need them; larger pictures go through in tiles.

    Args:
        job: task, solver, steps, grid, correction and size to bake in.
        estimates: also return every answer's image estimate.
        timesteps: the times that scales were calibrated at; a run that asks at another is refused.
        tabulate, cache: see :class:`RestorerNetwork`.

    Returns:
        ``(onnx_ir.Model, RestorerNetwork)``: the graph, and the module it was traced from.

    Raises:
        ValueError: a size that doesn't fit, or a run that can't be traced.
    """
    autoencoder = job.denoiser.autoencoder
    size, unit = job.state[1:], job.denoiser.fold * job.denoiser.multiple
    if autoencoder is not None:
        size, unit = job.size, unit * autoencoder.fold
    if min(size) < unit or size[0] % unit or size[1] % unit or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"size must be multiples of {unit} pixels, at most {MOST_PIXELS} pixels in all; got"
            f" {size[0]} x {size[1]}"
        )
    module = RestorerNetwork(job, estimates, tabulate, cache).eval()
    if timesteps is not None:
        for t in module.timesteps:
            row_of(timesteps, t)
    tensors = [value.expand(2, *value.shape[1:]).clone() for value in job.example().values()]
    # a network of single planes sees those of all pictures as one batch
    planes = job.state[0] // (job.denoiser.image_channels or job.state[0])
    batch = torch.export.Dim("batch", min=2, max=most_batch(job.denoiser.network) // planes)
    shapes = [{0: batch} for _ in tensors]
    if module.draws:
        tensors.append(torch.zeros(module.draws, 2, *job.state))
        shapes.append({1: batch})
    what = f"{job.name} with {type(job.denoiser.network).__name__}"
    graphs = module.network.trace(module.parts, what)
    model = trace(module, tuple(tensors), (tuple(shapes),), what)
    insert_parts(model, graphs)
    for value, name in zip(model.graph.inputs, module.names, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, ("restored", "estimates"), strict=False):
        value.name = name
    return model, module


class _Silence:
    """A network that says zero, in two parts too, and notes what it is asked for."""

    def __init__(self, network: Network):
        self.config = network.config
        self.parts: list[Part] = []

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        return self._answer("whole", z)

    def split(self) -> Self:
        return self

    def full(self, z: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return self._answer("full", z), None

    def shallow(self, z: Tensor, t: Tensor, features: None) -> Tensor:
        return self._answer("shallow", z)

    def _answer(self, name: str, z: Tensor) -> Tensor:
        self.parts.append(Part(name, tuple(z.shape[1:])))
        return z.new_zeros(z.shape[0], self.config.out_channels, *z.shape[2:])


@torch.no_grad()
def _dry_run(job: Job, cache: FullSteps | None) -> tuple[list[float], int, list[Part]]:
    """The times of a run's network calls, the number of its noise draws and the parts of the
    network that it asks for, from a run with a network that says zero.

    Raises:
        ValueError: the run takes no cache of features.
    """
    times: list[float] = []
    draws, silence = 0, _Silence(job.denoiser.network)

    class Silent(Denoiser):
        def __init__(self) -> None:
            self.__dict__ |= job.denoiser.__dict__
            self.network = silence if cache is None else cached(self.around(silence), cache).network

        def call_network(self, z: Tensor, t) -> Tensor:
            times.append(float(t))
            return super().call_network(z, t)

    def count(shape) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros(tuple(shape))

    run_job(job.around(Silent()), job.example(), count)
    return times, draws, list(dict.fromkeys(silence.parts))
