"""The two halves of diffusers' ``AutoencoderKL`` as networks like the others: pictures whose ``f x
f`` blocks are folded into channels on one side, latents of the same height and width on the other.
Rombach et al. 2022 (arXiv 2112.10752).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn


def _shape_of(vae: Any) -> dict[str, Any]:
    c = vae.config
    return {
        "block_out_channels": c.block_out_channels,
        "layers_per_block": c.layers_per_block,
        "norm_num_groups": c.norm_num_groups,
        "act_fn": c.act_fn,
        "mid_block_add_attention": c.mid_block_add_attention,
    }


def _config(ins: int, outs: int) -> Any:
    return SimpleNamespace(in_channels=ins, out_channels=outs, get=lambda *_: None)


class LatentEncoder(Encoder):
    """``network(x, t) -> (B, C, h, w)``: folded pictures ``(B, 3 f^2, h, w)`` in [-1, 1] to the
    means of their latents, in the units that the diffusion network knows; it is told no time.

    Args:
        vae: the ``AutoencoderKL``, whose weights it shares.
    """

    def __init__(self, vae: Any):
        c = vae.config
        super().__init__(
            in_channels=c.in_channels,
            out_channels=c.latent_channels,
            down_block_types=c.down_block_types,
            **_shape_of(vae),
        )
        self.load_state_dict(vae.encoder.state_dict(), assign=True)
        self.quant_conv = vae.quant_conv or nn.Identity()
        self.fold, self.channels = 2 ** (len(c.block_out_channels) - 1), c.latent_channels
        self.scaling, self.shift = float(c.scaling_factor), float(c.shift_factor or 0.0)
        self.config = _config(c.in_channels * self.fold**2, c.latent_channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        moments = self.quant_conv(super().forward(F.pixel_shuffle(x, self.fold)))
        return (moments[:, : self.channels] - self.shift) * self.scaling


class LatentDecoder(Decoder):
    """``network(z, t) -> (B, 3 f^2, h, w)``: latents ``(B, C, h, w)`` to folded pictures in about
    [-1, 1]; it is told no time.

    Args:
        vae: the ``AutoencoderKL``, whose weights it shares.
    """

    multiple = 1

    def __init__(self, vae: Any):
        c = vae.config
        super().__init__(
            in_channels=c.latent_channels,
            out_channels=c.out_channels,
            up_block_types=c.up_block_types,
            **_shape_of(vae),
        )
        self.load_state_dict(vae.decoder.state_dict(), assign=True)
        self.noise_level = nn.Identity()  # no layer of time
        self.post_quant_conv = vae.post_quant_conv or nn.Identity()
        self.fold = 2 ** (len(c.block_out_channels) - 1)
        self.scaling, self.shift = float(c.scaling_factor), float(c.shift_factor or 0.0)
        self.config = _config(c.latent_channels, c.out_channels * self.fold**2)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        latents = self.post_quant_conv(z / self.scaling + self.shift)
        return F.pixel_unshuffle(super().forward(latents), self.fold)
