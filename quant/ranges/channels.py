"""Input grids whose steps differ by channel, at no cost to the products.

A quantizer's steps may differ by channel where the weights take the difference up (as in
:mod:`quant.structure.equalize`): channel c is divided by f_c, its weights are multiplied by it.

    f_c = (top_c / max top)^alpha

with the largest magnitude top_c. Nothing that calibration showed is clipped, and each channel's
grid reaches beyond it by a quarter of a standard deviation of the single inputs' ends. A large
alpha gives fine steps to quiet channels and a wide spread to the weights, and leaves other pictures
less room; a layer takes the one whose output is expected to err least:

    s^2/12 sum_c f_c^2 |W_c|^2  +  sum_c E[x_c^2] |dW_c|^2

with the step s of the inputs and the rounding errors dW of the weights. Both are sums over a
layer's weights: nothing is run for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.layer import LEVELS, weight_scales
from quant.ranges.measure import Ranges
from quant.structure.equalize import groups
from solvers.denoiser import Network

ALPHAS = (0.0, 0.25, 0.5, 0.75)
REACH = 0.25  # standard deviations of the inputs' own ends
LEAST = 1e-3  # of the loudest channel: what is quieter has its step


@dataclass(frozen=True)
class ChannelGrid:
    """``factors (C,)`` in (0, 1] that inputs are divided by, and the two ``ends`` of what comes of
    it, 0 between them.
    """

    factors: Tensor
    ends: tuple[float, float]


@torch.no_grad()
def channel_grids(
    network: Network, names: list[str], inputs: Ranges, bits: int
) -> dict[str, ChannelGrid]:
    """The grids of every place of :func:`quant.structure.equalize.groups`.

    Args:
        names: quantized layers of ``network``.
        inputs: what calibration showed them.
        bits: of the weights.
    """
    grids = {}
    for place, readers in groups(network, names).items():
        k = inputs.layers.index(readers[0])  # all read the same
        ends = torch.from_numpy(inputs.channels[k].reaching(REACH)).float()
        power = torch.from_numpy(inputs.powers[k]).float()
        weights = [network.get_submodule(name).weight.detach() for name in readers]
        made = [_grid(ends, alpha) for alpha in ALPHAS]
        grids[place] = min(
            made, key=lambda grid: sum(_error(grid, weight, power, bits) for weight in weights)
        )
    return grids


def _grid(ends: Tensor, alpha: float) -> ChannelGrid:
    """By the ends ``(C, 2)`` of the channels."""
    top = ends.abs().amax(1)
    factors = (top / top.max().clamp(min=1e-12)).clamp(min=LEAST) ** alpha
    low, high = (ends / factors[:, None]).unbind(1)
    return ChannelGrid(factors, (float(low.min()), float(high.max())))


def _error(grid: ChannelGrid, weight: Tensor, power: Tensor, bits: int) -> float:
    """Expected squared error of a layer's output, at each of its places."""
    step = (grid.ends[1] - grid.ends[0]) / LEVELS
    factors = grid.factors.reshape(1, -1, *[1] * (weight.ndim - 2))
    scaled = weight * factors
    steps = weight_scales(scaled, bits).reshape(-1, *[1] * (weight.ndim - 1))
    lost = ((scaled / steps).round() * steps - scaled) / factors
    rounded = step**2 / 12 * (grid.factors.square() * _squares(weight)).sum()
    return float(rounded + (power * _squares(lost)).sum())


def _squares(weight: Tensor) -> Tensor:
    """Sums over all but the input channels."""
    return weight.square().transpose(0, 1).flatten(1).sum(1)
