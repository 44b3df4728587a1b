"""Split shortcuts (Q-Diffusion, Li et al. 2023, section 4.2): the two halves of a skip
concatenation on grids of their own.

An up-block's residual block reads ``cat(h, skip)``, whose halves differ in range. ``W x = W_1 h +
W_2 skip`` is computed as two convolutions, each with its own input scale and weight scales, and a
sum, which every runtime can execute on integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from solvers.denoiser import Network


class SplitConv2d(nn.Module):
    """``first(x[:, :C1]) + second(x[:, C1:])``: in float the convolution it was made from. The bias
    belongs to ``first``.
    """

    def __init__(self, conv: nn.Conv2d, channels: int):
        super().__init__()
        if conv.groups != 1 or not 0 < channels < conv.in_channels:
            raise ValueError(
                f"a convolution of {conv.in_channels} channels, {conv.groups} groups can't be split"
                f" at {channels}"
            )
        self.channels = channels
        parts = []
        for start, stop, bias in ((0, channels, conv.bias), (channels, conv.in_channels, None)):
            options: dict[str, Any] = {
                name: getattr(conv, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            part = nn.Conv2d(
                stop - start,
                conv.out_channels,
                bias=bias is not None,
                device=conv.weight.device,
                **options,
            )
            part.weight = nn.Parameter(
                conv.weight.detach()[:, start:stop].clone(), requires_grad=False
            )
            if bias is not None:
                part.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
            parts.append(part)
        self.first, self.second = parts

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x[:, : self.channels]) + self.second(x[:, self.channels :])


def skip_layers(network: nn.Module) -> dict[str, int]:
    """The convolutions that read a skip concatenation, with the number of channels before the skip.

    diffusers' up-blocks concatenate ``[hidden, skip]`` in front of every residual block; ``hidden``
    comes from the block before.
    """
    found: dict[str, int] = {}
    hidden = _width(getattr(network, "mid_block", None)) or _width(
        next(iter(reversed(getattr(network, "down_blocks", []))), None)
    )
    for k, block in enumerate(getattr(network, "up_blocks", [])):
        for j, resnet in enumerate(getattr(block, "resnets", [])):
            for part in ("conv1", "conv_shortcut"):
                conv = getattr(resnet, part, None)
                if isinstance(conv, nn.Conv2d) and conv.in_channels > hidden > 0:
                    found[f"up_blocks.{k}.resnets.{j}.{part}"] = hidden
            hidden = resnet.out_channels
    return found


@torch.no_grad()
def split_shortcuts(network: Network, skip: Iterable[str] = ()) -> list[str]:
    """Replace those convolutions of ``network`` (changed in place) that ``skip`` doesn't keep in
    float; returns their names.

    Raises:
        ValueError: the network has no skip concatenation.
    """
    layers = skip_layers(network)
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no up_blocks with skip concatenations; use"
            " split_shortcut=False"
        )
    chosen = [name for name in layers if not any(fnmatchcase(name, pattern) for pattern in skip)]
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(
            network.get_submodule(parent),
            leaf,
            SplitConv2d(network.get_submodule(name), layers[name]),
        )
    return chosen


def _width(block: nn.Module | None) -> int:
    resnets = getattr(block, "resnets", None)
    return resnets[-1].out_channels if resnets else 0
