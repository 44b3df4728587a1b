"""The files of a diffusers network's folder, and whether they can be one."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.memory import check_bytes

CONFIG = "config.json"
# what diffusers calls weights, the usual ones first; "fp16" is a variant to it
WEIGHTS = tuple(
    f"diffusion_pytorch_model{variant}.{kind}"
    for variant in ("", ".fp16")
    for kind in ("safetensors", "bin")
)
MOST_CHANNELS, MOST_LAYERS = 65_536, 64
DEPTHS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a network's folder."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def said_of(weights: Path) -> dict[str, Any]:
    """What diffusers' ``from_pretrained`` must be told to read this file."""
    return {
        "use_safetensors": weights.suffix == ".safetensors",
        "variant": "fp16" if ".fp16." in weights.name else None,
    }


def check_network(
    kind: str, make: Callable[[dict[str, Any]], Any], config: dict[str, Any], weights: Path
) -> None:
    """Refuse a description that has no end, or that the weights can't fill, before the network is
    made.

    Args:
        make: of the ``config`` beside the ``weights`` a network of this ``kind``.

    Raises:
        ModelError, ResourceError: says so.
    """
    path = weights.with_name(CONFIG)
    numbers = [config]
    while numbers:
        value = numbers.pop()
        if isinstance(value, (dict, list)):
            numbers += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and abs(value) > MOST_CHANNELS:
            raise ModelError(
                f"{path} holds the number {str(value)[:40]}; at most {MOST_CHANNELS} are accepted"
            )
    depths = [config.get(name) for name in DEPTHS]
    for depth in [v for d in depths for v in (d if isinstance(d, list) else [d])]:
        if depth is not None and not (isinstance(depth, int) and 1 <= depth <= MOST_LAYERS):
            raise ModelError(f"{path}: blocks have 1 to {MOST_LAYERS} layers; got {depth!r}")
    with reading(path, f"the description of a {kind}", ModelError), torch.device("meta"):
        network = make(config)
    count, most = sum(p.numel() for p in network.parameters()), weights.stat().st_size
    check_bytes(f"{path} describes a network that", 8 * count)
    if count > most:
        raise ModelError(
            f"{path} describes a network of {count} numbers, but {weights.name} has {most} bytes;"
            " it belongs to another network or was cut short"
        )


def left_out_of(made: type, config: dict[str, Any]) -> str:
    """The entries of a description that the class doesn't know, in words; empty: none."""
    known = signature(made.__init__).parameters  # type: ignore[misc]
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    return ", ".join(f"{name!r}"[:60] for name in unknown)


def multiple_of(network: Any) -> int:
    """What height and width of the network's input must be multiples of: it halves them between
    two levels.
    """
    if (own := getattr(network, "multiple", None)) is not None:
        return int(own)
    return 2 ** (len(network.config.block_out_channels) - 1)
