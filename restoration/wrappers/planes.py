"""Pictures of several channels by a network of fewer: each plane, or group of planes, by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from solvers.denoiser import Denoiser, Network, begun, output_of, timesteps_of


class PlanewiseNetwork(nn.Module):
    """``network(input (B, C n, h, w), t)``, where the network takes n channels: each group of n by
    itself.
    """

    def __init__(self, network: Network, channels: int):
        super().__init__()
        self.network, self.channels = network, channels

    def begin(self, times: Sequence[float]) -> PlanewiseNetwork:
        """For a run over ``times``."""
        return PlanewiseNetwork(begun(self.network, times), self.channels)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        groups = z.shape[1] // self.channels
        planes = z.reshape(-1, self.channels, *z.shape[2:])
        # one time for the whole batch needs no repeating, in a graph either
        times = t if t.shape[0] == 1 else t.repeat_interleave(groups)
        out = output_of(self.network(planes, times))
        if (heads := out.shape[1] // self.channels) > 1:  # a learned variance: after all planes
            parts = out.reshape(-1, groups, heads, self.channels, *out.shape[2:])
            out = parts.transpose(1, 2)
        return out.reshape(z.shape[0], -1, *out.shape[-2:])

    @property
    def timesteps(self) -> tuple[float, ...]:
        return timesteps_of(self.network)


def planewise(denoiser: Denoiser) -> Denoiser:
    """A copy of a denoiser of single planes that takes pictures of any number of channels, one by
    one.
    """
    return denoiser.around(PlanewiseNetwork(denoiser.network, denoiser.fold**2))
