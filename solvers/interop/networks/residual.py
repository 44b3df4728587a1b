"""The U-Nets of RDDM and Resfusion: weight-standardized residual blocks, linear attention at every
level. Liu et al. 2024 (arXiv 2308.13712), Shi et al. 2024 (arXiv 2311.14900).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

FORMS = ("single", "two", "shared")
HEADS, HEAD_WIDTH = 4, 32


class ResidualBlock(nn.Module):
    """Two convolutions with norms; time scales and shifts the first."""

    def __init__(self, ins: int, outs: int, time: int, groups: int):
        super().__init__()
        self.time_emb_proj = nn.Linear(time, 2 * outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outs)
        self.conv_shortcut = nn.Conv2d(ins, outs, 1) if ins != outs else None
        self.nonlinearity = nn.SiLU()
        self.skip_time_act = False

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        time = self.time_emb_proj(time if self.skip_time_act else self.nonlinearity(time))
        scale, shift = time[:, :, None, None].chunk(2, dim=1)
        h = self.nonlinearity(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        h = self.nonlinearity(self.norm2(self.conv2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class ChannelNorm(nn.Module):
    """Over the channels of each pixel, with a gain ``(1, C, 1, 1)``."""

    def __init__(self, channels: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5 if x.dtype == torch.float32 else 1e-3
        variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
        return (x - x.mean(1, keepdim=True)) * (variance + eps).rsqrt() * self.g


class LinearAttention(nn.Module):
    """Softmax over the features of queries and the places of keys (Shen et al. 2021), added to
    what it reads.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)
        self.norm_out = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = _heads(self.to_qkv(self.norm(x)))
        q = q.softmax(dim=-2) * HEAD_WIDTH**-0.5
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v / (height * width))
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return x + self.norm_out(self.to_out(out.reshape(x.shape[0], -1, height, width)))


class FullAttention(nn.Module):
    """Between all places, added to what it reads."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = _heads(self.to_qkv(self.norm(x)))
        weights = torch.einsum("bhdi,bhdj->bhij", q * HEAD_WIDTH**-0.5, k).softmax(dim=-1)
        out = torch.einsum("bhij,bhdj->bhdi", weights, v)
        return x + self.to_out(out.reshape(x.shape[0], -1, height, width))


def _heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, heads, width, places)``."""
    q, k, v = torch.unflatten(qkv.flatten(2), 1, (3, HEADS, HEAD_WIDTH)).unbind(1)
    return q, k, v


class _Level(nn.Module):
    """Two blocks and an attention at one size, and the way to the next."""

    resnets: Any
    attention: Any
    sample: Any

    def __init__(self, ins: tuple[int, int], width: int, sample: nn.Module, time: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(n, width, time, groups) for n in ins])
        self.attention = LinearAttention(width)
        self.sample = sample


class _Up(nn.Module):
    def __init__(self, ins: int, outs: int):
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Decoder(nn.Module):
    """From the middle to the output; ``skips``: whether it reads what the encoder kept."""

    up_blocks: Any

    def __init__(self, widths: Sequence[int], outs: int, time: int, groups: int, skips: bool):
        super().__init__()
        self.skips = skips
        self.up_blocks = nn.ModuleList()
        for k, (low, width) in enumerate(reversed(list(itertools.pairwise(widths)))):
            last = k == len(widths) - 2
            sample = nn.Conv2d(width, low, 3, padding=1) if last else _Up(width, low)
            ins = width + low if skips else width
            self.up_blocks.append(_Level((ins, ins), width, sample, time, groups))
        first = widths[0]
        self.block_out = ResidualBlock(2 * first if skips else first, first, time, groups)
        self.conv_out = nn.Conv2d(first, outs, 1)

    def forward(self, x: Tensor, kept: list[Tensor], time: Tensor) -> Tensor:
        kept = list(kept)
        for level in self.up_blocks:
            for block in level.resnets:
                x = block(torch.cat([x, kept.pop()], dim=1) if self.skips else x, time)
            x = level.sample(level.attention(x))
        x = torch.cat([x, kept.pop()], dim=1) if self.skips else x
        return self.conv_out(self.block_out(x, time))


class _UNet(nn.Module):
    down_blocks: Any
    mid_resnets: Any

    def __init__(
        self, ins: int, outs: int, widths: Sequence[int], time: int, groups: int, decoders: int
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(ins, widths[0], 7, padding=3)
        self.down_blocks = nn.ModuleList()
        for k, (width, deeper) in enumerate(itertools.pairwise(widths)):
            last = k == len(widths) - 2
            kernel, stride = (3, 1) if last else (4, 2)
            sample = nn.Conv2d(width, deeper, kernel, stride=stride, padding=1)
            self.down_blocks.append(_Level((width, width), width, sample, time, groups))
        deepest = widths[-1]
        self.mid_resnets = nn.ModuleList(
            [ResidualBlock(deepest, deepest, time, groups) for _ in range(2)]
        )
        self.mid_attention = FullAttention(deepest)
        # of two, the first estimates the residual, from the middle alone
        self.decoders = nn.ModuleList(
            [_Decoder(widths, outs, time, groups, skips=k == decoders - 1) for k in range(decoders)]
        )

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        x = self.conv_in(x)
        kept = [x]
        for level in self.down_blocks:
            first, second = level.resnets
            x = first(x, time)
            kept.append(x)
            x = level.attention(second(x, time))
            kept.append(x)
            x = level.sample(x)
        before, after = self.mid_resnets
        x = after(self.mid_attention(before(x, time)), time)
        return [decoder(x, kept, time) for decoder in self.decoders]


class ResidualUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``network(x, t) -> (B, out_channels, H, W)``: the residual's channels first, then the
    noise's, where it estimates both.

    The two networks of the form ``two`` share one time embedding here, whose layers hold theirs
    side by side.

    Args:
        in_channels: of the state and what is shown beside it.
        out_channels: of all that it estimates.
        block_out_channels: width of the first convolution, then of each level's end.
        norm_num_groups: of the blocks' norms.
        form: ``single``; ``two`` networks; ``shared``: two decoders behind one encoder.

    Raises:
        ValueError: an unknown form.
    """

    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (64, 64, 128, 256, 512),
        norm_num_groups: int = 8,
        form: str = "single",
        sample_size: int | None = None,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form {form!r} is unknown; known: {', '.join(FORMS)}")
        width, unets = block_out_channels[0], 2 if form == "two" else 1
        self.time_proj = Timesteps(width, flip_sin_to_cos=False, downscale_freq_shift=1)
        time = 4 * width * unets
        self.time_embedding = TimestepEmbedding(width, time, act_fn="gelu")
        outs = out_channels if form == "single" else out_channels // 2
        self.unets = nn.ModuleList(
            [
                _UNet(
                    in_channels,
                    outs,
                    block_out_channels,
                    time,
                    norm_num_groups,
                    2 if form == "shared" else 1,
                )
                for _ in range(unets)
            ]
        )

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return int(2 ** (len(self.config.block_out_channels) - 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rows = self.time_proj(t)
        time = self.time_embedding(rows.to(x.dtype))
        return torch.cat([part for unet in self.unets for part in unet(x, time)], dim=1)
