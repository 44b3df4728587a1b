"""SmoothQuant-style equalisation (Xiao et al. 2023, arXiv 2211.10438, eq. 4): spread between input
channels moves into the weights.

    W x = (W diag(f)) (x / f),   f_j = amax_j(x)^alpha / amax_j(W)^(1 - alpha)

Where a normalisation feeds only linear layers (attention's q, k, v; a transformer's feed-forward),
``1/f`` is folded into its affine part and costs nothing. Convolutions have nothing linear in front
of them (a SiLU, or the residual stream): there ``1/f`` becomes one channel-wise product before the
convolution, which runtimes fuse with the SiLU or run as one pass over its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from solvers.denoiser import Network


class ChannelScale(nn.Module):
    """``x (B, C, h, w)`` times a factor per channel."""

    factor: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("factor", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def behind_scale(name: str) -> str:
    """What a layer is called behind a :class:`ChannelScale`."""
    return f"{name}.1"


def insert_scales(network: nn.Module, names: Iterable[str]) -> None:
    """Put a :class:`ChannelScale` (of ones) in front of every convolution of ``names``.

    The layer ``X`` becomes ``X.1`` of a pair ``Sequential(scale, layer)``. ``network`` is changed
    in place.
    """
    for name in names:
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            parent, _, leaf = name.rpartition(".")
            setattr(
                network.get_submodule(parent),
                leaf,
                nn.Sequential(ChannelScale(layer.in_channels), layer),
            )


def groups(network: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name of what can be scaled (a normalisation, or a :class:`ChannelScale`) -> the quantized
    layers that read it.

    A normalisation counts only where all of its readers are quantized linear layers.
    """
    names, found = set(names), {}
    for name, module in network.named_modules():
        dot = f"{name}." if name else ""
        readers: dict[str, tuple[str, ...]] = {}
        if (
            isinstance(module, nn.Sequential)
            and len(module) == 2
            and isinstance(module[0], ChannelScale)
        ):
            readers["0"] = ("1",)
        elif (
            type(module).__name__ == "Attention" and getattr(module, "group_norm", None) is not None
        ):
            readers["group_norm"] = ("to_q", "to_k", "to_v")
        elif type(module).__name__ == "BasicTransformerBlock":
            cross = getattr(module.attn1, "is_cross_attention", False)
            readers["norm1"] = (
                ("attn1.to_q",) if cross else ("attn1.to_q", "attn1.to_k", "attn1.to_v")
            )
            readers["norm2"] = ("attn2.to_q",) if getattr(module, "attn2", None) is not None else ()
            readers["norm3"] = ("ff.net.0.proj",)
        for source, targets in readers.items():
            scalable = _sub(module, source)
            affine = (
                isinstance(scalable, ChannelScale) or getattr(scalable, "weight", None) is not None
            )
            full = tuple(dot + target for target in targets)
            if full and affine and set(full) <= names:
                found[dot + source] = full
    return found


@torch.no_grad()
def smooth_factors(
    network: Network, names: list[str], channels: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``f (C,)`` of every group; ``channels``: largest |input| of each channel, by layer name.

    Factors are normalised to geometric mean 1: only the spread matters, the common scale is the
    quantizer's. A channel that never showed a value, or that no weight reads, keeps 1.
    """
    factors = {}
    for source, readers in groups(network, names).items():
        seen = torch.stack([channels[name] for name in readers]).amax(0)
        weight = torch.stack(
            [
                network.get_submodule(name).weight.abs().transpose(0, 1).flatten(1).amax(1)
                for name in readers
            ]
        ).amax(0)
        alive = (seen > 0) & (weight > 0)
        f = torch.where(
            alive,
            seen.clamp(min=1e-12) ** alpha / weight.clamp(min=1e-12) ** (1 - alpha),
            torch.ones_like(seen),
        )
        f = torch.where(
            alive, f / f[alive].log().mean().exp() if alive.any() else f, torch.ones_like(f)
        )
        factors[source] = f.clamp(1e-3, 1e3).float()
    return factors


@torch.no_grad()
def apply_factors(network: Network, factors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Divide the inputs and multiply the weights of ``network`` in place; in float its function
    stays what it was.
    """
    readers = groups(network, names)
    for source, f in factors.items():
        module = network.get_submodule(source)
        if isinstance(module, ChannelScale):
            module.factor.div_(f.reshape(1, -1, 1, 1))
        else:
            module.weight.div_(f)
            if getattr(module, "bias", None) is not None:
                module.bias.div_(f)
        for name in readers[source]:
            weight = network.get_submodule(name).weight
            weight.mul_(f.reshape(1, -1, *[1] * (weight.ndim - 2)))


def _sub(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
