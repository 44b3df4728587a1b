"""Diffusion transformers, wrapped by the documented line: their linear layers are quantized, and
what depends on time alone, or reads the state itself, stays in float.
"""

import diffusers
import pytest
import torch
from helpers.networks import tiny_unet
from torch import nn

from export.exporter import export_bundle
from export.parity import verify
from quant.calibration.trajectory import record
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.temporal.table import has_table
from solvers import DDIM, VP, Denoiser, Flow, karras, solve, trailing

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
}
TEXT = {"cross_attention_dim": 16, "caption_channels": 16, "use_additional_conditions": False}
JOINT = {
    "joint_attention_dim": 16,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
}
OLDER = {"num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
KINDS = {
    "DiTTransformer2DModel": SIZES | {"num_embeds_ada_norm": 10},
    "Transformer2DModel": SIZES | OLDER,
    "PixArtTransformer2DModel": SIZES | TEXT,
    "SD3Transformer2DModel": SIZES | JOINT,
}


class Wrapped(nn.Module):
    """``network(x, t)`` with fixed text and class."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.net = getattr(diffusers, name)(**KINDS[name])
        self.config = self.net.config

    def forward(self, x, t):
        text = {"encoder_hidden_states": torch.ones(len(x), 5, 16)}
        named = {
            "PixArtTransformer2DModel": text
            | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
            "SD3Transformer2DModel": text | {"pooled_projections": torch.ones(len(x), 16)},
        }.get(type(self.net).__name__, {"class_labels": torch.zeros(len(x), dtype=torch.long)})
        return self.net(x, timestep=t.long(), **named).sample


@pytest.mark.parametrize("name", KINDS)
def test_linear_layers_are_quantized(name):
    network = Wrapped(name).eval().requires_grad_(False)
    flow = name.startswith("SD3")
    d = Denoiser(network, Flow(), "velocity") if flow else Denoiser(network, VP.linear())
    grid = (karras if flow else trailing)(d.process, 2)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with record(d) as recorder:
        solve(DDIM(), d, d.process.b(grid.times[0]) * x, grid)
    found = recorder.result()
    quantized = quantize(network, found, QuantRecipe())
    inside = {n.partition("transformer_blocks.")[2].partition(".")[2] for n in quantized.names}
    assert {"ff.net.2", "ff.net.0.proj"} <= inside
    assert not [n for n in quantized.names if "pos_embed" in n or "norm1" in n or "time" in n]
    for x, t in found.batches():
        exact = network(x, t)
        assert 0 < (quantized(x, t) - exact).norm() < 0.03 * exact.norm()
    with pytest.raises(ValueError, match="no up_blocks"):  # before any work
        quantize(network, found, QuantRecipe(split_shortcut=True))
    assert not has_table(network)


class Plain(nn.Module):
    """No network of diffusers: how it embeds the time is its own affair."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        self.conv_in, self.conv_mid, self.conv_out = (
            nn.Conv2d(*sides, 3, padding=1) for sides in ((3, 8), (8, 8), (8, 3))
        )

    def forward(self, x, t):
        level = (t / 1000).view(-1, 1, 1, 1)
        return self.conv_out(self.conv_mid((self.conv_in(x) + level).sigmoid()).sigmoid())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["scores", "plain"])
def test_quantized_networks_of_every_clock_are_verified_at_their_times(kind, tmp_path):
    """ScoreSdeVe's scores are scaled by the rows of the table; a network whose time can't be
    tabulated keeps it in the graph.
    """
    torch.manual_seed(0)
    if kind == "scores":
        tiny_unet().save_pretrained(tmp_path / "m" / "unet")
        diffusers.ScoreSdeVeScheduler().save_pretrained(tmp_path / "m" / "scheduler")
        d = Denoiser.from_pretrained(tmp_path / "m")
    else:
        d = Denoiser(Plain().eval(), VP.linear(), "epsilon")
    assert has_table(d.network) == (kind == "scores")
    grid = karras(d.process, 2)
    with record(d) as recorder:
        solve(DDIM(), d, d.process.b(grid.times[0]) * torch.randn(2, 3, 16, 16), grid)
    found = recorder.result()
    quantized = quantize(d.network, found, QuantRecipe())
    bundle = export_bundle(d, tmp_path / "b", target="cpu", quantized=quantized)
    if kind == "scores":
        assert (bundle.graph, len(bundle.timesteps)) == ("step", 2)
    else:
        assert (bundle.graph, bundle.timesteps) == ("timestep", [])
    assert not verify(d, tmp_path / "b", quantized, found).failures
