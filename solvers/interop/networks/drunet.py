"""DRUNet: a residual U-Net without biases that is shown the noise's level beside the picture. Zhang
et al. 2021 (arXiv 2008.13751).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """``x`` plus two convolutions of it, ReLU between."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def noise_plane(x: Tensor, sigma: Tensor) -> Tensor:
    """One more channel that holds the noise's level: ``(B, 1, H, W)``."""
    return sigma.to(x.dtype).reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])


class DRUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``network(x, sigma) -> (B, C, H, W)``: noisy pictures in [0, 1] and their noise's standard
    deviation ``(B,)`` to denoised ones.

    Args:
        in_channels, out_channels: of the pictures.
        block_out_channels: widths of the levels.
        layers_per_block: blocks at each level, on either side.
    """

    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (64, 128, 256, 512),
        layers_per_block: int = 4,
        sample_size: int | None = None,
    ):
        super().__init__()
        widths = list(block_out_channels)
        self.noise_level = nn.Identity()
        self.conv_in = nn.Conv2d(in_channels + 1, widths[0], 3, padding=1, bias=False)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for high, low in zip(widths, widths[1:], strict=False):
            blocks = [PlainBlock(high) for _ in range(layers_per_block)]
            self.down.append(nn.Sequential(*blocks, nn.Conv2d(high, low, 2, stride=2, bias=False)))
            wider = nn.ConvTranspose2d(low, high, 2, stride=2, bias=False)
            self.up.append(
                nn.Sequential(wider, *(PlainBlock(high) for _ in range(layers_per_block)))
            )
        self.body = nn.Sequential(*(PlainBlock(widths[-1]) for _ in range(layers_per_block)))
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1, bias=False)

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        kept = [self.conv_in(torch.cat([x, noise_plane(x, self.noise_level(sigma))], dim=1))]
        for level in self.down:
            kept.append(level(kept[-1]))
        h = self.body(kept[-1])
        for level in reversed(self.up):
            h = level(h + kept.pop())
        return self.conv_out(h + kept.pop())
