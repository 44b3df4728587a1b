"""Stable Diffusion's folders in small, with random weights."""

import json
from pathlib import Path

import torch

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "prediction_type": "v_prediction",  # an untrained v keeps latents of moderate size
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def text_parts(folder: Path):
    """CLIP's text model and a tokenizer with a vocabulary of letters."""
    import transformers

    letters = [chr(ord("a") + k) for k in range(26)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "re",
        "red</w>",
        "ca",
        "cat</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    return {"text_encoder": transformers.CLIPTextModel(text).eval(), "tokenizer": tokenizer}


def autoencoder():
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def conditional_unet(in_channels: int = 4, **options):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    shape = {
        "in_channels": in_channels,
        "out_channels": 4,
        "sample_size": 16,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**shape | options).eval()


def write_latent(folder: Path, in_channels: int = 4, *, text: bool = True, **options) -> Path:
    """A pipeline's folder: U-Net, autoencoder, scheduler and, with ``text``, text encoder."""
    from diffusers import DDIMScheduler

    folder.mkdir(parents=True, exist_ok=True)
    conditional_unet(in_channels, **options).save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae")
    DDIMScheduler(**STABLE_DIFFUSION).save_pretrained(folder / "scheduler")
    if text:
        (folder / "words").mkdir()
        for name, part in text_parts(folder / "words").items():
            part.save_pretrained(folder / name)
    return folder
