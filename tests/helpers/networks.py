"""Networks too small to be good at anything."""

import torch


def tiny_unet(in_channels=3, out_channels=3, **options):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **options,
    )


def shallow_unet(in_channels, out_channels, width=8):
    """One level, no middle: three residual blocks, for graphs that ask it several times."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(width,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    return network.eval().requires_grad_(False)
