"""Networks that answer otherwise than their files do: for one class, with the other sign, without a
variance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from solvers.inputs.errors import ModelError
from solvers.interop.checkpoints.container import HOW_TO_WRAP

Network = Any


@torch.no_grad()
def negate(network: Network, root: Path) -> None:
    """Turn the sign of the output."""
    if any("Skip" in block for block in network.config.get("up_block_types", ())):
        raise ModelError(
            f"{root}: a network with skip blocks gives a sum, whose sign can't be turned;"
            f" {HOW_TO_WRAP}"
        )
    network.conv_out.weight.neg_()
    network.conv_out.bias.neg_()


@torch.no_grad()
def without_variance(network: Network, root: Path) -> None:
    """Leave out the second half of the output, where there is one."""
    outs = network.config.out_channels // 2
    if 2 * outs != network.config.out_channels or outs != network.config.in_channels:
        return
    old = network.conv_out
    old.weight = torch.nn.Parameter(old.weight[:outs].clone())
    old.bias = torch.nn.Parameter(old.bias[:outs].clone())
    old.out_channels = outs
    network.register_to_config(out_channels=outs)


@torch.no_grad()
def choose_class(network: Network, label: int | None, root: Path) -> Network:
    """A class-conditional network asked for one class: what the class adds to the embedding of time
    becomes a part of it, and the network one without classes. Others stay as they are.

    Raises:
        ModelError: no class for a network that needs one, one that it doesn't have, or one for a
            network without classes.
    """
    config: Any = getattr(network, "config", {})
    if config.get("class_embed_type") is not None:
        raise ModelError(f"{root}: class_embed_type {config['class_embed_type']!r} is not read")
    classes = config.get("num_class_embeds")
    if not classes:
        if label is not None:
            raise ModelError(f"{root} is a network without classes; leave out --class")
        return network
    if label is None or not 0 <= label < classes:
        got = "" if label is None else f"; got {label}"
        raise ModelError(
            f"{root} is a class-conditional network: say which class it shall make, --class (in"
            f" Python class_label=) 0 to {classes - 1}{got}"
        )
    network.time_embedding.linear_2.bias += network.class_embedding.weight[label]
    network.class_embedding = None
    network.register_to_config(num_class_embeds=None)
    return network
