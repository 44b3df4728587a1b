"""A denoiser of colours that begins as two copies of one of single planes.

The two sit side by side in a network of twice the width: one on the grey plane, one on the
difference of red and blue. All that joins them begins at zero and is learned, the third plane too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# orthonormal: grey, red against blue, green against both
PLANES = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
PLANES = PLANES / PLANES.norm(dim=1, keepdim=True)
COPIES, FAINT = 2, 0.3  # how strongly the third plane is seen at first


def is_doubled(wide: Any, narrow: Any) -> bool:
    """Whether a U-Net of three channels is one of single planes twice as wide."""
    one, other = wide.config, narrow.config
    widths = [COPIES * n for n in other.block_out_channels]
    return bool(
        one.in_channels == 3 * other.in_channels
        and list(one.block_out_channels) == widths
        and one.layers_per_block == other.layers_per_block
        and one.norm_num_groups == COPIES * other.norm_num_groups
        and one.time_embedding_dim is None
        and other.time_embedding_dim is None
    )


def doubled(wide: Any, narrow: Any) -> dict[str, Tensor]:
    """The weights of ``wide`` that make it two copies of ``narrow``: both ``UNet2DModel``."""
    new, joins = wide.state_dict(), _joins(narrow.config)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for key, weight in narrow.state_dict().items():
        made = torch.zeros_like(new[key])
        if key == "conv_in.weight":
            seen = PLANES[:COPIES, None, :].repeat(1, len(weight), 1).flatten(0, 1)
            twice = weight.repeat(COPIES, 1, 1, 1)
            faint = FAINT * weight.std() * torch.randn(twice.shape, generator=generator)
            made = torch.einsum("oshw,oc->ocshw", twice, seen).flatten(1, 2)
            made = made + torch.einsum("oshw,c->ocshw", faint, PLANES[2]).flatten(1, 2)
        elif key == "conv_out.weight":
            shown = PLANES[:COPIES].repeat_interleave(weight.shape[1], 0)
            twice = weight.repeat(1, COPIES, 1, 1)
            made = torch.einsum("sihw,ic->csihw", twice, shown).flatten(0, 1)
        elif key == "conv_out.bias":
            made = torch.einsum("s,c->cs", weight, PLANES[:COPIES].sum(0)).flatten()
        elif key == "time_embedding.linear_1.weight":
            half = weight.shape[1] // 2  # frequencies: of the wide one every second is the narrow's
            columns = 2 * torch.arange(2 * half)
            for k in range(COPIES):
                made[_places(len(weight), k)[:, None], columns] = weight
        else:
            join = next((n for name, n in joins.items() if key.startswith(name)), None)
            for k in range(COPIES):
                if weight.ndim == 1:
                    made[_places(len(weight), k, join if ".norm1." in key else None)] = weight
                    continue
                joined = join if ".conv1." in key or ".conv_shortcut." in key else None
                rows, columns = _places(len(weight), k), _places(weight.shape[1], k, joined)
                made[rows[:, None], columns] = weight
        found[key] = made
    return found


def _places(count: int, k: int, join: int | None = None) -> Tensor:
    """Where the k-th copy of ``count`` channels lies; of two joined groups, the first of ``join``
    channels, each copy's lies in its group.
    """
    c = torch.arange(count)
    if join is None:
        return k * count + c
    later = COPIES * join + k * (count - join) + c - join
    return torch.where(c < join, k * join + c, later)


def _joins(config: Any) -> dict[str, int]:
    """Channels of the first of the two groups that blocks on the way up take, by their name."""
    widths, found = list(config.block_out_channels)[::-1], {}
    for i, width in enumerate(widths):
        for j in range(config.layers_per_block + 1):
            found[f"up_blocks.{i}.resnets.{j}."] = widths[max(i - 1, 0)] if j == 0 else width
    return found
