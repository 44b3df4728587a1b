"""DnCNN and FFDNet as KAIR and deepinv release them: Zhang et al. 2017 (arXiv 1608.03981), 2018
(arXiv 1710.04026).
"""

from __future__ import annotations

import re

from torch import Tensor

from solvers.inputs.errors import ModelError
from solvers.interop.checkpoints.build import Checkpoint, build
from solvers.interop.checkpoints.container import HOW_TO_WRAP, Weights
from solvers.interop.checkpoints.drunet import NOISE
from solvers.interop.checkpoints.options import Said

IRCNN_LAYERS = 7  # whose convolutions are dilated, which their shapes don't tell
KAIR = re.compile(r"model\.(\d+)\.(weight|bias)")
DEEPINV = re.compile(r"(in_conv|conv_list\.\d+|out_conv)\.(weight|bias)")


def recognises(weights: Weights) -> bool:
    """Whether these are a chain of 3 x 3 convolutions by these names, and nothing else."""
    names = [name.removeprefix("module.") for name in weights.tensors]
    for pattern in (KAIR, DEEPINV):
        if all(pattern.fullmatch(name) for name in names):
            shapes = [v.shape for v in weights.tensors.values() if v.ndim > 1]
            return len(shapes) > 2 and all(s[2:] == (3, 3) for s in shapes)
    return False


def read(weights: Weights, said: Said) -> Checkpoint:
    """The network as a denoiser of pictures in [0, 1].

    Raises:
        ModelError: another chain of convolutions.
    """
    path = weights.path
    tensors = {n.removeprefix("module."): v for n, v in weights.tensors.items()}
    weights.tensors.clear()
    deepinv = "in_conv.weight" in tensors
    if deepinv:  # adds what its chain finds, KAIR's take it away
        for name in ("out_conv.weight", "out_conv.bias"):
            tensors[name] = -tensors[name]
    order = sorted({n.rpartition(".")[0] for n in tensors}, key=_place)
    layers = len(order)
    ins = int(tensors[f"{order[0]}.weight"].shape[1])
    outs = int(tensors[f"{order[-1]}.weight"].shape[0])
    if ins == outs and layers == IRCNN_LAYERS and not deepinv:
        raise ModelError(
            f"{path} looks like IRCNN, whose convolutions are dilated as its weights don't tell:"
            f" {HOW_TO_WRAP}"
        )
    if ins == outs:
        name, channels = "DnCNN", outs
    elif ins == outs + 1 and outs % 4 == 0:
        name, channels = "FFDNet", outs // 4
    else:
        raise ModelError(
            f"{path} is a chain of convolutions from {ins} to {outs} channels: neither DnCNN nor"
            f" FFDNet; {HOW_TO_WRAP}"
        )
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "width": int(tensors[f"{order[0]}.weight"].shape[0]),
        "layers": layers,
    }
    network = build(path, name, config, _renamed(tensors, order))
    details = f"{layers} convolutions, {channels} channels"
    if name == "DnCNN":
        details += ", not told the noise: right at the noise that it was trained for"
    settings = {"value_range": (0.0, 1.0), "scaled": False}
    return Checkpoint(name, network, NOISE, "sample", settings, details)


def _place(name: str) -> int:
    """Where a convolution stands in the chain."""
    if name in ("in_conv", "out_conv"):
        return -1 if name == "in_conv" else 10**6
    return int(name.rpartition(".")[2])


def _renamed(tensors: dict[str, Tensor], order: list[str]) -> dict[str, Tensor]:
    inner = {name: f"convs.{k}" for k, name in enumerate(order[1:-1])}
    places = {order[0]: "conv_in", order[-1]: "conv_out"} | inner
    found = {}
    for name, value in tensors.items():
        stem, _, leaf = name.rpartition(".")
        found[f"chain.{places[stem]}.{leaf}"] = value
    return found
