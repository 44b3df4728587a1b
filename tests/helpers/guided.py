"""guided-diffusion's and improved-diffusion's networks by the names of their tensors: random
weights of any shape, and what such a network answers, computed from the papers' equations alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A U-Net: widths are ``width mult[level]``; ``attended`` are the levels with attention.

    ``resample``: ``residual``, ``convolution`` or ``none``; ``head_channels`` are in place of
    ``heads``.
    """

    width: int = 32
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attended: tuple[int, ...] = (1,)
    resample: str = "residual"
    scale_shift: bool = True
    new_order: bool = False
    heads: int = 4
    head_channels: int | None = None
    outputs: int = 6
    inputs: int = 3
    classes: int | None = None

    def ends(self) -> dict[int, int]:
        """Input blocks that halve, and their levels."""
        return {1 + k * (self.blocks + 1) + self.blocks: k for k in range(len(self.mult) - 1)}


def state_of(kind: Kind, scale: float = 0.1) -> dict[str, Tensor]:
    """The state dict of such a network."""
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        norm = len(shape) == 1
        state[f"{name}.weight"] = scale * torch.randn(shape) + norm
        state[f"{name}.bias"] = scale * torch.randn(shape[0])

    def residual(name: str, ins: int, outs: int) -> None:
        layer(f"{name}.in_layers.0", ins)
        layer(f"{name}.in_layers.2", outs, ins, 3, 3)
        layer(f"{name}.emb_layers.1", (1 + kind.scale_shift) * outs, 4 * kind.width)
        layer(f"{name}.out_layers.0", outs)
        layer(f"{name}.out_layers.3", outs, outs, 3, 3)
        if ins != outs:
            layer(f"{name}.skip_connection", outs, ins, 1, 1)

    def attention(name: str, channels: int) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    def resampling(name: str, leaf: str, channels: int) -> None:
        if kind.resample == "residual":
            residual(name, channels, channels)
        elif kind.resample == "convolution":
            layer(f"{name}.{leaf}", channels, channels, 3, 3)

    levels = [kind.width * m for m in kind.mult]
    layer("time_embed.0", 4 * kind.width, kind.width)
    layer("time_embed.2", 4 * kind.width, 4 * kind.width)
    if kind.classes:
        state["label_emb.weight"] = scale * torch.randn(kind.classes, 4 * kind.width)
    layer("input_blocks.0.0", levels[0], kind.inputs, 3, 3)
    channels, skips = levels[0], [levels[0]]
    for level, width in enumerate(levels):
        for _ in range(kind.blocks):
            residual(f"input_blocks.{len(skips)}.0", channels, width)
            channels = width
            if level in kind.attended:
                attention(f"input_blocks.{len(skips)}.1", channels)
            skips.append(channels)
        if level < len(levels) - 1:
            resampling(f"input_blocks.{len(skips)}.0", "op", channels)
            skips.append(channels)
    residual("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    residual("middle_block.2", channels, channels)
    at = 0
    for level, width in reversed(list(enumerate(levels))):
        for k in range(kind.blocks + 1):
            residual(f"output_blocks.{at}.0", channels + skips.pop(), width)
            channels, part = width, 1
            if level in kind.attended:
                attention(f"output_blocks.{at}.1", channels)
                part = 2
            if level and k == kind.blocks:
                resampling(f"output_blocks.{at}.{part}", "conv", channels)
            at += 1
    layer("out.0", channels)
    layer("out.2", kind.outputs, channels, 3, 3)
    return state


def answer_of(
    kind: Kind, state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor | None = None
) -> Tensor:
    """What the network says to ``x (B, C, H, W)`` at the times ``t (B,)``, of the classes ``y``."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, *weights(name), **how)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, *weights(name), eps=1e-5)

    def doubled(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def residual(name: str, x: Tensor, way: int) -> Tensor:
        h = F.silu(norm(f"{name}.in_layers.0", x))
        if way:
            h, x = (F.avg_pool2d(v, 2) if way < 0 else doubled(v) for v in (h, x))
        h = conv(f"{name}.in_layers.2", h, padding=1)
        emb = F.linear(F.silu(time), *weights(f"{name}.emb_layers.1"))[:, :, None, None]
        if kind.scale_shift:
            a, b = emb.chunk(2, dim=1)
            h = norm(f"{name}.out_layers.0", h) * (1 + a) + b
        else:
            h = norm(f"{name}.out_layers.0", h + emb)
        h = conv(f"{name}.out_layers.3", F.silu(h), padding=1)
        skip = f"{name}.skip_connection"
        return h + (conv(skip, x) if f"{skip}.weight" in state else x)

    def attention(name: str, x: Tensor) -> Tensor:
        channels, flat = x.shape[1], x.flatten(2)
        heads = channels // kind.head_channels if kind.head_channels else kind.heads
        qkv = F.conv1d(F.group_norm(flat, 32, *weights(f"{name}.norm")), *weights(f"{name}.qkv"))
        if kind.new_order:
            q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)
        share = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])
        found = torch.einsum("bhts,bhcs->bhct", share.softmax(-1), v).flatten(1, 2)
        return x + F.conv1d(found, *weights(f"{name}.proj_out")).unflatten(2, x.shape[2:])

    def block(name: str, x: Tensor, way: int = 0) -> Tensor:
        """All parts of a block, of which the last halves (-1) or doubles (1)."""
        parts = [p for p in range(3) if any(n.startswith(f"{name}.{p}.") for n in state)]
        for p in parts:
            part = f"{name}.{p}"
            if f"{part}.qkv.weight" in state:
                x = attention(part, x)
            elif f"{part}.in_layers.0.weight" in state:
                x = residual(part, x, way if p == parts[-1] and (way < 0 or p > 0) else 0)
            elif f"{part}.op.weight" in state:
                return conv(f"{part}.op", x, stride=2, padding=1)
            elif f"{part}.conv.weight" in state:
                return conv(f"{part}.conv", doubled(x), padding=1)
        if way and kind.resample == "none":
            return F.avg_pool2d(x, 2) if way < 0 else doubled(x)
        return x

    steps = torch.exp(-math.log(10000) * torch.arange(kind.width // 2) / (kind.width // 2))
    angles = t[:, None].float() * steps
    time = F.linear(torch.cat([angles.cos(), angles.sin()], 1), *weights("time_embed.0"))
    time = F.linear(F.silu(time), *weights("time_embed.2"))
    if y is not None:
        time = time + state["label_emb.weight"][y]
    h, ends = conv("input_blocks.0.0", x, padding=1), kind.ends()
    skips = [h]
    for k in range(1, len(kind.mult) * (kind.blocks + 1)):
        h = block(f"input_blocks.{k}", h, -1 if k in ends else 0)
        skips.append(h)
    for k in range(3):
        h = attention("middle_block.1", h) if k == 1 else residual(f"middle_block.{k}", h, 0)
    last = len(kind.mult) * (kind.blocks + 1) - 1
    for k in range(last + 1):
        grows = k % (kind.blocks + 1) == kind.blocks and k < last
        h = block(f"output_blocks.{k}", torch.cat([h, skips.pop()], 1), int(grows))
    return conv("out.2", F.silu(norm("out.0", h)), padding=1)
