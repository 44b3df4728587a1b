"""What spandrel knows: networks of some forty architectures, as restorers of one call."""

from __future__ import annotations

import torch

from solvers.inputs.errors import ModelError, reading
from solvers.interop.checkpoints.build import Checkpoint
from solvers.interop.checkpoints.container import HOW_TO_WRAP, Weights
from solvers.methods.rddm import RDDM


def read(weights: Weights) -> Checkpoint | None:
    """The network as one that says the clean picture of a degraded one, in [0, 1], at any level of
    a run; None where spandrel doesn't know it, or isn't there.

    Raises:
        ModelError: one that enlarges, or takes other pictures than it gives.
    """
    from solvers.interop.networks.restorer import SpandrelRestorer

    path, tensors = weights.path, weights.tensors
    try:
        with reading(path, "a network of spandrel's", ModelError):
            network = SpandrelRestorer({k: v.to(torch.float32) for k, v in tensors.items()})
    except ImportError:
        return None
    except ModelError as error:
        if isinstance(error.__cause__, KeyError):
            return None
        raise
    config = network.config
    channels = config.out_channels
    if network.scale != 1 or config.in_channels != 2 * channels:
        raise ModelError(
            f"{path} is a {network.architecture} network that enlarges {network.scale} times, from"
            f" {config.in_channels // 2} to {channels} channels: restorers of pictures as large as"
            f" they were are read; {HOW_TO_WRAP}"
        )
    settings = {"value_range": (0.0, 1.0), "condition_channels": channels, "shown": "degraded"}
    settings |= {"padding": network.padding, "least": network.least}
    weights.tensors.clear()
    details = "one call restores a degraded picture: paired, --steps 1"
    process = RDDM.scheduled(sum_scale=0.01)
    network = network.eval().requires_grad_(False)
    return Checkpoint(network.architecture, network, process, "sample", settings, details)
