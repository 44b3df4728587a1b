"""Chains of convolutions. DnCNN: Zhang et al. 2017 (arXiv 1608.03981); FFDNet: Zhang et al. 2018
(arXiv 1710.04026).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from solvers.interop.networks.drunet import noise_plane


class _Chain(nn.Module):
    def __init__(self, ins: int, width: int, outs: int, layers: int):
        super().__init__()
        self.conv_in = nn.Conv2d(ins, width, 3, padding=1)
        self.convs = nn.ModuleList(
            [nn.Conv2d(width, width, 3, padding=1) for _ in range(layers - 2)]
        )
        self.conv_out = nn.Conv2d(width, outs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_in(x))
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_out(x)


class DnCNN(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``network(x, t) -> (B, C, H, W)``: the picture less the noise that the chain finds; it is not
    told the noise's level.

    Args:
        in_channels, out_channels: of the pictures.
        width: channels inside.
        layers: convolutions.
    """

    multiple = 1

    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 64,
        layers: int = 17,
        sample_size: int | None = None,
    ):
        super().__init__()
        self.noise_level = nn.Identity()
        self.chain = _Chain(in_channels, width, out_channels, layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x - self.chain(x)


class FFDNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``network(x, sigma) -> (B, C, H, W)``: noisy pictures in [0, 1] and their noise's standard
    deviation ``(B,)`` to denoised ones, in four half-sized parts.

    Args:
        in_channels, out_channels: of the pictures.
        width: channels inside.
        layers: convolutions.
    """

    multiple = 2

    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 64,
        layers: int = 15,
        sample_size: int | None = None,
    ):
        super().__init__()
        self.noise_level = nn.Identity()
        self.chain = _Chain(4 * in_channels + 1, width, 4 * out_channels, layers)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        h = F.pixel_unshuffle(x, 2)
        h = torch.cat([h, noise_plane(h, self.noise_level(sigma))], dim=1)
        return F.pixel_shuffle(self.chain(h), 2)
