"""Pipelines' folders as they lie on hubs, in small: loaded right, or refused by what they are."""

import json
import shutil

import diffusers
import pytest
import torch
from helpers.latent import STABLE_DIFFUSION, autoencoder, conditional_unet, write_latent
from safetensors.torch import save_file

from solvers import DDIM, Denoiser, explicit, solve
from solvers.inputs.errors import ModelError
from solvers.interop.text import STORED

TIMES = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
DEEPFLOYD = {"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}
PICTURES = {"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"}
PROJECTED = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 32}
# the entries of the U-Net's description, and what the refusal says
TOLD_MORE = {
    "sdxl": ({"addition_embed_type": "text_time", **TIMES}, r"told image sizes .*Diffusion XL"),
    "upscaler": ({"in_channels": 7, "num_class_embeds": 50}, "noise of a small picture"),
    "deepfloyd": (DEEPFLOYD, r"another encoder's text \(DeepFloyd"),
    "deepfloyd-upscaler": ({"in_channels": 6, "class_embed_type": "timestep"}, "upscalers"),
    "kandinsky": ({"addition_embed_type": "image", **PICTURES}, r"pictures \(Kandinsky"),
    "unclip": (PROJECTED, r"pictures \(unCLIP"),
    "latent-consistency": ({"time_cond_proj_dim": 8}, "told its guidance"),
    "instruct-pix2pix": ({"in_channels": 8}, r"latents of a picture .*8 input channels"),
    "upscaler-without-noise": ({"in_channels": 7}, "shown a small picture beside"),
    "depth": ({"in_channels": 5}, "shown a map beside its latents"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of Stable Diffusion, with a stored prompt."""
    place = write_latent(tmp_path_factory.mktemp("pipelines") / "sd", text=False)
    states = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    save_file({"encoder_hidden_states": states}, place / STORED)
    return place


def beside(folder, place, **parts):
    """A copy of the folder with other parts."""
    shutil.copytree(folder, place)
    for name, part in parts.items():
        shutil.rmtree(place / name, ignore_errors=True)
        part.save_pretrained(place / name)
    return place


@pytest.mark.parametrize("name", TOLD_MORE)
def test_networks_that_go_by_more_are_refused_by_what_it_is(folder, tmp_path, name):
    options, says = TOLD_MORE[name]
    place = beside(folder, tmp_path / name, unet=conditional_unet(**options))
    with pytest.raises(ModelError, match=says) as refused:
        Denoiser.from_pretrained(place)
    assert str(refused.value).startswith(str(place))
    assert "damaged" not in str(refused.value)
    assert "solvers.Denoiser(network, process)" in str(refused.value)


def test_parts_that_are_no_network_of_their_own_are_refused(tmp_path):
    unet = conditional_unet()
    diffusers.ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "control")
    names = ("unet.mid_block.attentions.0.to_k.lora_A.weight", "lora_unet_mid.lora_down.weight")
    for k, name in enumerate(names):
        save_file({name: torch.zeros(4, 16)}, tmp_path / f"{k}.safetensors")
    (tmp_path / "lora").mkdir()
    (tmp_path / "0.safetensors").rename(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    (tmp_path / "wuerstchen").mkdir()
    index = json.dumps({"_class_name": "WuerstchenDecoderPipeline"})
    (tmp_path / "wuerstchen" / "model_index.json").write_text(index)
    said = {
        "control": "'ControlNetModel'",
        "1.safetensors": "holds a LoRA: .*fuse_lora",
        "lora": "is a LoRA: .*fuse_lora",
        "wuerstchen": r"a WuerstchenDecoderPipeline without a network in unet/",
    }
    for name, says in said.items():
        with pytest.raises(ModelError, match=says):
            Denoiser.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("channels", [1, 6])
def test_autoencoders_of_other_pictures_are_refused(folder, tmp_path, channels):
    """LDM3D's, whose pictures have depth; grey ones."""
    vae = diffusers.AutoencoderKL(
        channels, channels, block_out_channels=(8,), norm_num_groups=4, latent_channels=4
    )
    place = beside(folder, tmp_path / "m", vae=vae)
    with pytest.raises(ModelError, match=f"takes {channels} channels and gives {channels}"):
        Denoiser.from_pretrained(place)


def test_what_steers_a_network_and_is_not_read_is_told(folder, tmp_path, capsys):
    control = diffusers.ControlNetModel.from_unet(conditional_unet())
    place = beside(folder, tmp_path / "m", controlnet=control)
    save_file({"a.lora_A.weight": torch.zeros(1)}, place / "pytorch_lora_weights.safetensors")
    Denoiser.from_pretrained(place)
    assert "left out controlnet/, pytorch_lora_weights.safetensors" in capsys.readouterr().err
    Denoiser.from_pretrained(folder)
    assert "left out" not in capsys.readouterr().err


def test_consistency_models_are_refused_by_their_scheduler(folder, tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler()
    with pytest.raises(ModelError, match="is a CMStochasticIterativeScheduler"):
        Denoiser.from_pretrained(beside(folder, tmp_path / "m", scheduler=scheduler))


@pytest.mark.parametrize(
    "options",
    [{}, {"rescale_betas_zero_snr": True}, {"timestep_spacing": "trailing"}],
    ids=lambda v: next(iter(v), "plain"),
)
def test_zero_snr_and_spacings_run_as_the_scheduler_does(folder, tmp_path, options):
    """On the scheduler's own times, from pure noise where its last level has no signal left."""
    config = STABLE_DIFFUSION | {"set_alpha_to_one": True} | options  # our runs end clean
    scheduler = diffusers.DDIMScheduler(**config)
    d = Denoiser.from_pretrained(beside(folder, tmp_path / "m", scheduler=scheduler))
    assert (d.process.a(d.process.end) == 0) == ("rescale_betas_zero_snr" in options)
    scheduler.set_timesteps(5)
    assert (scheduler.timesteps[0] == d.process.end) == ("timestep_spacing" in options)
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    unet, states, z = conditional_unet(), d.network.encoder_hidden_states, start
    with torch.no_grad():
        for t in scheduler.timesteps:
            answer = unet(z, t, encoder_hidden_states=states).sample
            z = scheduler.step(answer, t, z).prev_sample
    found = solve(DDIM(), d, start, explicit(scheduler.timesteps.tolist())).x0
    torch.testing.assert_close(found, z, atol=1e-4, rtol=1e-4)


def test_the_autoencoder_is_the_folders(folder):
    d, vae = Denoiser.from_pretrained(folder), autoencoder()
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(d.autoencoder.encode(x), z)
        torch.testing.assert_close(
            d.autoencoder.decode(z), vae.decode(z / vae.config.scaling_factor).sample
        )
