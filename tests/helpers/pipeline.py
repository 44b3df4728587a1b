"""A text-to-image pipeline in small, with random weights."""

import zlib
from types import SimpleNamespace

import torch

TOKENS, FEATURES = 12, 8


class Tokenizer:
    """Words are tokens; 1 and 2 are the start and end marks."""

    def __call__(self, prompt):
        return SimpleNamespace(
            input_ids=[1, *(3 + zlib.crc32(word.encode()) % 90 for word in prompt.split()), 2]
        )


class Pipeline:
    def __init__(self):
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=FEATURES,
            attention_head_dim=4,
        )
        self.unet = self.unet.eval().double()
        self.vae = AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        self.vae = self.vae.eval().double()
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012
        )
        self.tokenizer = Tokenizer()
        self.table = torch.randn(
            100, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )

    def embed(self, prompt):
        ids = self.tokenizer(prompt).input_ids
        return self.table[torch.tensor(ids + [2] * (TOKENS - len(ids)))][None]

    def encode_prompt(self, prompt, device, images, guided):
        return self.embed(prompt), self.embed("")
