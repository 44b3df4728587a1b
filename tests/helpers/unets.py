"""DRUNet's and RDDM's networks by the names of their tensors: random weights of any widths, and
what such networks answer, from the papers' equations alone.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def _weight(*shape: int) -> Tensor:
    return torch.randn(shape) / math.prod(shape[1:]) ** 0.5


def drunet_state(widths: list[int], blocks: int, channels: int) -> State:
    """Zhang et al. 2021: no biases."""
    state = {"m_head.weight": _weight(widths[0], channels + 1, 3, 3)}

    def residual(name: str, width: int) -> None:
        for k in (0, 2):
            state[f"{name}.res.{k}.weight"] = _weight(width, width, 3, 3)

    for level, (width, deeper) in enumerate(itertools.pairwise(widths), 1):
        for k in range(blocks):
            residual(f"m_down{level}.{k}", width)
            residual(f"m_up{level}.{k + 1}", width)
        state[f"m_down{level}.{blocks}.weight"] = _weight(deeper, width, 2, 2)
        state[f"m_up{level}.0.weight"] = _weight(deeper, width, 2, 2)
    for k in range(blocks):
        residual(f"m_body.{k}", widths[-1])
    return state | {"m_tail.weight": _weight(channels, widths[0], 3, 3)}


def drunet_answer(state: State, levels: int, blocks: int, x: Tensor) -> Tensor:
    """Of a picture with the plane of its noise's level, ``(B, C + 1, H, W)``."""

    def residuals(name: str, first: int, x: Tensor) -> Tensor:
        for k in range(first, first + blocks):
            a, b = (state[f"{name}.{k}.res.{j}.weight"] for j in (0, 2))
            x = x + F.conv2d(F.relu(F.conv2d(x, a, padding=1)), b, padding=1)
        return x

    kept = [F.conv2d(x, state["m_head.weight"], padding=1)]
    for level in range(1, levels):
        h = residuals(f"m_down{level}", 0, kept[-1])
        kept.append(F.conv2d(h, state[f"m_down{level}.{blocks}.weight"], stride=2))
    h = residuals("m_body", 0, kept[-1])
    for level in reversed(range(1, levels)):
        h = F.conv_transpose2d(h + kept[level], state[f"m_up{level}.0.weight"], stride=2)
        h = residuals(f"m_up{level}", 1, h)
    return F.conv2d(h + kept[0], state["m_tail.weight"], padding=1)


def rddm_state(widths: list[int], ins: int, outs: int) -> State:
    """Liu et al. 2024: one of its U-Nets."""
    state: State = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = _weight(*shape)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0]) / 10

    def block(name: str, ins: int, outs: int) -> None:
        layer(f"{name}.mlp.1", 2 * outs, 4 * widths[0])
        for k, width in ((1, ins), (2, outs)):
            layer(f"{name}.block{k}.proj", outs, width, 3, 3)
            state[f"{name}.block{k}.norm.weight"] = 1 + torch.randn(outs) / 10
            state[f"{name}.block{k}.norm.bias"] = torch.randn(outs) / 10
        if ins != outs:
            layer(f"{name}.res_conv", outs, ins, 1, 1)

    def attention(name: str, width: int, *, linear: bool) -> None:
        layer(f"{name}.fn.fn.to_qkv", 3 * 128, width, 1, 1, bias=False)
        layer(f"{name}.fn.fn.to_out" + ".0" * linear, width, 128, 1, 1)
        for gain in [f"{name}.fn.norm.g", *[f"{name}.fn.fn.to_out.1.g"] * linear]:
            state[gain] = 1 + torch.randn(1, width, 1, 1) / 10

    layer("init_conv", widths[0], ins, 7, 7)
    layer("time_mlp.1", 4 * widths[0], widths[0])
    layer("time_mlp.3", 4 * widths[0], 4 * widths[0])
    pairs = list(itertools.pairwise(widths))
    for k, (width, deeper) in enumerate(pairs):
        last = k == len(pairs) - 1
        for j in (0, 1):
            block(f"downs.{k}.{j}", width, width)
            block(f"ups.{len(pairs) - 1 - k}.{j}", width + deeper, deeper)
        attention(f"downs.{k}.2", width, linear=True)
        attention(f"ups.{len(pairs) - 1 - k}.2", deeper, linear=True)
        layer(f"downs.{k}.3", deeper, width, *(2 * (3,) if last else 2 * (4,)))
        layer(f"ups.{len(pairs) - 1 - k}.3" + ".1" * (k > 0), width, deeper, 3, 3)
    block("mid_block1", widths[-1], widths[-1])
    attention("mid_attn", widths[-1], linear=False)
    block("mid_block2", widths[-1], widths[-1])
    block("final_res_block", 2 * widths[0], widths[0])
    layer("final_conv", outs, widths[0], 1, 1)
    return state


def rddm_answer(state: State, widths: list[int], groups: int, x: Tensor, t: Tensor) -> Tensor:
    """Of the state and the degraded picture, ``(B, 2C, H, W)``, at the times ``t (B,)``."""

    def weights(name: str) -> tuple[Tensor, Tensor | None]:
        return state[f"{name}.weight"], state.get(f"{name}.bias")

    def standardized(name: str, x: Tensor) -> Tensor:
        w, bias = weights(name)
        mean = w.mean((1, 2, 3), keepdim=True)
        w = (w - mean) / (w.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w, bias, padding=1)

    def block(name: str, x: Tensor) -> Tensor:
        a, b = F.linear(F.silu(time), *weights(f"{name}.mlp.1"))[:, :, None, None].chunk(2, 1)
        h = x
        for k in (1, 2):
            h = standardized(f"{name}.block{k}.proj", h)
            h = F.group_norm(h, groups, *weights(f"{name}.block{k}.norm"))
            h = F.silu(h * (a + 1) + b if k == 1 else h)
        skip = f"{name}.res_conv"
        return h + (F.conv2d(x, *weights(skip)) if f"{skip}.weight" in state else x)

    def norm(gain: str, x: Tensor) -> Tensor:
        scale = (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(1, keepdim=True)) / scale * state[gain]

    def attention(name: str, x: Tensor) -> Tensor:
        read = F.conv2d(norm(f"{name}.fn.norm.g", x), *weights(f"{name}.fn.fn.to_qkv"))
        q, k, v = read.flatten(2).unflatten(1, (3, 4, 32)).unbind(1)
        if f"{name}.fn.fn.to_out.weight" in state:  # over all places
            share = torch.einsum("bhdi,bhdj->bhij", q / 32**0.5, k).softmax(-1)
            found = torch.einsum("bhij,bhdj->bhdi", share, v).reshape(len(x), 128, *x.shape[2:])
            return x + F.conv2d(found, *weights(f"{name}.fn.fn.to_out"))
        places = x.shape[2] * x.shape[3]
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v / places)
        found = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) / 32**0.5)
        found = F.conv2d(
            found.reshape(len(x), 128, *x.shape[2:]), *weights(f"{name}.fn.fn.to_out.0")
        )
        return x + norm(f"{name}.fn.fn.to_out.1.g", found)

    half = widths[0] // 2
    angles = t[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    time = F.linear(torch.cat([angles.sin(), angles.cos()], 1), *weights("time_mlp.1"))
    time = F.linear(F.gelu(time), *weights("time_mlp.3"))
    x = F.conv2d(x, *weights("init_conv"), padding=3)
    first, kept, levels = x, [], len(widths) - 1
    for k in range(levels):
        x = block(f"downs.{k}.0", x)
        kept.append(x)
        x = attention(f"downs.{k}.2", block(f"downs.{k}.1", x))
        kept.append(x)
        x = F.conv2d(x, *weights(f"downs.{k}.3"), padding=1, stride=1 if k == levels - 1 else 2)
    x = block("mid_block2", attention("mid_attn", block("mid_block1", x)))
    for k in range(levels):
        for j in (0, 1):
            x = block(f"ups.{k}.{j}", torch.cat([x, kept.pop()], 1))
        x = attention(f"ups.{k}.2", x)
        if k < levels - 1:
            x = F.conv2d(F.interpolate(x, scale_factor=2), *weights(f"ups.{k}.3.1"), padding=1)
        else:
            x = F.conv2d(x, *weights(f"ups.{k}.3"), padding=1)
    x = block("final_res_block", torch.cat([x, first], 1))
    return F.conv2d(x, *weights("final_conv"))
