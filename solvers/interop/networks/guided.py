"""The U-Net of improved-diffusion and guided-diffusion where diffusers' own does not compute it:
the same number of attention heads at every width, resampling without convolutions, an embedding of
time that is wider than the first level.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn


class _Pool(nn.Module):
    """Means of 2 x 2 pixels."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.avg_pool2d(hidden_states, 2)


class _Repeat(nn.Module):
    """Each pixel four times."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")


class GuidedUNet(UNet2DModel):
    """``UNet2DModel`` with three options more; everything else is as there.

    Reference: Dhariwal & Nichol 2021 (arXiv 2105.05233); Nichol & Dhariwal 2021 (arXiv 2102.09672);
    their released code, openai/guided-diffusion and openai/improved-diffusion.

    Args:
        num_heads: of every attention, whatever its width; None: by ``attention_head_dim``.
        resample_without_convolution: halve by means and double by repetition.
        time_channels: of the sinusoids of time; None: the first level's width.
        kwargs: of ``UNet2DModel``.
    """

    modules: Any
    time_embedding: Any
    down_blocks: Any
    up_blocks: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_heads: int | None = None,
        resample_without_convolution: bool = False,
        time_channels: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if time_channels is not None:
            self.time_proj = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            first = self.time_embedding.linear_1
            self.time_embedding.linear_1 = nn.Linear(time_channels, first.out_features)
        if num_heads is not None:
            for module in self.modules():
                if type(module).__name__ == "Attention":
                    module.heads = num_heads
                    module.scale = (module.inner_dim // num_heads) ** -0.5
        if resample_without_convolution:
            for block in self.down_blocks:
                if block.downsamplers is not None:
                    block.downsamplers = nn.ModuleList([_Pool()])
            for block in self.up_blocks:
                if block.upsamplers is not None:
                    block.upsamplers = nn.ModuleList([_Repeat()])

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        """The names that a configuration may hold: diffusers looks at one signature alone."""
        own = set(inspect.signature(input_class.__init__).parameters)
        return own | set(inspect.signature(UNet2DModel.__init__).parameters)
