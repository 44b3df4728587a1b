"""DRUNet as DPIR and deepinv release it: Zhang et al. 2021 (arXiv 2008.13751)."""

from __future__ import annotations

import re

from torch import Tensor

from solvers.inputs.errors import ModelError
from solvers.interop.checkpoints.build import Checkpoint, build
from solvers.interop.checkpoints.container import HOW_TO_WRAP, Weights
from solvers.interop.checkpoints.options import Said
from solvers.processes.continuous import VE

MARKER = "m_head.weight"
# noise up to 10 times white: runs begin from noise alone. It was trained up to 50/255, beyond which
# it goes on well since it has no biases
NOISE = VE(0.002, 10.0)


def recognises(weights: Weights) -> bool:
    """Whether these are a network of the family, and not FBCNN, which predicts a JPEG's quality."""
    return weights.prefix(MARKER) is not None and weights.prefix("qf_embed.0.weight") is None


def read(weights: Weights, said: Said) -> Checkpoint:
    """The network as a denoiser of pictures in [0, 1].

    Raises:
        ModelError: another network with such a head.
    """
    path, prefix = weights.path, weights.prefix(MARKER) or ""
    if "student_grad" in prefix:
        raise ModelError(
            f"{path} is a gradient-step denoiser (GSDRUNet), which goes by the gradient of what"
            f" this network says: {HOW_TO_WRAP}"
        )
    if "deblocking" in path.name.lower():
        raise ModelError(
            f"{path} is by its name a DRUNet that is told a JPEG's quality in place of the noise:"
            f" {HOW_TO_WRAP}"
        )
    tensors = weights.under(prefix)
    head, tail = tensors["m_head.weight"], tensors.get("m_tail.weight")
    levels = [n for n in range(1, 64) if any(k.startswith(f"m_down{n}.") for k in tensors)]
    blocks = {int(k.split(".")[1]) for k in tensors if k.startswith("m_body.")}
    if tail is None or not levels or not blocks or head.shape[1] != tail.shape[0] + 1:
        raise ModelError(
            f"{path} looks like a DRUNet, but takes {head.shape[1]} channels: a DRUNet takes those"
            " of a picture and one of the noise's level"
        )
    channels, depth = int(tail.shape[0]), 1 + max(blocks)
    widths = [int(head.shape[0])]
    for level in levels:
        down = tensors.get(f"m_down{level}.{depth}.weight")
        if down is None:
            raise ModelError(f"{path}: level {level} is not that of a DRUNet with {depth} blocks")
        widths.append(int(down.shape[0]))
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": depth,
    }
    weights.tensors.clear()
    network = build(path, "DRUNet", config, _renamed(tensors, depth))
    details = f"widths {', '.join(map(str, widths))}, {depth} blocks a level, {channels} channels"
    settings = {"value_range": (0.0, 1.0), "scaled": False}
    return Checkpoint("DRUNet", network, NOISE, "sample", settings, details)


def _renamed(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        new = name.replace("m_head.", "conv_in.").replace("m_tail.", "conv_out.")
        new = new.replace("m_body.", "body.").replace(".res.0.", ".conv1.")
        new = new.replace(".res.2.", ".conv2.")
        if level := re.match(r"m_(down|up)(\d+)\.", new):
            new = f"{level[1]}.{int(level[2]) - 1}.{new[level.end() :]}"
        found[new] = value
    return found
