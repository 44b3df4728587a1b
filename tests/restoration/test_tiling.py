"""Tiles cover, weights sum, and a local network sees no seam."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from restoration.photo.inpainting import InpaintingTask
from restoration.wrappers.tiling import TiledNetwork, tile_for, tile_starts, tile_weight, tiled
from solvers.denoiser import Denoiser
from solvers.processes.process import VP


@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_tiles_cover_with_overlap(length, half, data):
    tile = 2 * half
    overlap = data.draw(st.integers(0, half - 1))
    starts = tile_starts(length, tile, overlap)
    size = min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(b - a <= tile - overlap and b > a for a, b in zip(starts, starts[1:], strict=False))
    total = torch.zeros(length)
    for s in starts:
        w = tile_weight(s, size, length, overlap)
        assert (w > 0).all()
        total[s : s + size] += w
    assert (total > 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 50), st.integers(5, 50), st.integers(0, 5))
def test_pointwise_network_is_untouched_by_tiling(height, width, overlap):
    z = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    network = lambda v, t: torch.sin(3 * v) + t.view(-1, 1, 1, 1)  # noqa: E731
    t = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(
        TiledNetwork(network, 16, overlap)(z, t), network(z, t), rtol=1e-5, atol=1e-5
    )


def test_convolutions_differ_only_near_tile_borders_and_blend_smoothly():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 5, padding=2)
    z = torch.randn(1, 1, 96, 96)
    with torch.no_grad():
        whole = conv(z)
        parts = TiledNetwork(lambda v, t: conv(v), 48, 16)(z, torch.zeros(1))
    error = (whole - parts).abs()[0, 0]
    starts = tile_starts(96, 48, 16)
    far = torch.ones(96, dtype=torch.bool)
    for s in starts:
        for edge in (s, s + 48):
            far[max(0, edge - 2) : edge + 2] = False
    assert error[far][:, far].max() < 1e-5
    # at a border the tile's wrong value has weight at most 2.5/16 of the total
    assert error.max() < 0.25 * whole.abs().max()


def test_tiles_that_disagree_are_joined_by_a_ramp():
    """Each tile returns its own mean of a slope: neighbours differ by a step, which blending must
    spread over the overlap.
    """
    z = torch.linspace(0, 1, 96).expand(1, 1, 96, 96)
    step = TiledNetwork(lambda v, t: v.mean((-2, -1), keepdim=True).expand_as(v), 48, 16)(
        z, torch.zeros(1)
    )[0, 0, 48]
    starts = tile_starts(96, 48, 16)
    apart = (starts[1] - starts[0]) / 95
    assert step[-1] - step[0] > 1.5 * apart  # the tiles do disagree
    assert step.diff().abs().max() < 2.5 / 16 * apart


def test_bad_tiles():
    denoiser = Denoiser(lambda z, t: z, VP.linear(), fold=2, multiple=4)
    for tile, overlap in ((60, 16), (64, 32), (64, 15), (0, 0), (64, -2)):
        with pytest.raises(ValueError, match="tile"):
            tiled(denoiser, tile, overlap)


@pytest.mark.parametrize(
    ("config", "fold", "tile"),
    [
        ({}, 1, 512),
        ({"down_block_types": ("DownBlock2D",) * 2, "block_out_channels": (32, 64)}, 1, 512),
        ({"add_attention": False, "sample_size": 32}, 1, 512),
        # what it was trained on, 64 pixels at least
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "sample_size": 32}, 1, 64),
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "sample_size": 64}, 2, 128),
        ({"down_block_types": ("AttnDownBlock2D",) * 2, "sample_size": (96, 128)}, 1, 128),
        ({"down_block_types": ("AttnDownBlock2D",) * 2, "sample_size": 1024}, 1, 512),
        # by cost: 9 C positions, 2 x 48 on a side at the second level, 2 x 48 pixels of half size
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}, 1, 96),
        ({"add_attention": True}, 2, 192),
        ({"add_attention": True, "mid_block_type": None}, 2, 512),
    ],
)
def test_tiles_suit_the_network(config, fold, tile):
    def network(x, t):
        return x

    network.config = {"block_out_channels": (64, 256)} | config
    denoiser = Denoiser(network, VP.linear(), fold=fold, multiple=2)
    assert tile_for(denoiser) == tile
    network.config = SimpleNamespace(out_channels=3)  # not diffusers'
    assert tile_for(denoiser) == 512


def test_tasks_take_the_tiles_that_suit_their_network():
    sizes = []

    def network(x, t):
        sizes.append(tuple(x.shape[-2:]))
        return x

    attention = {"down_block_types": ("AttnDownBlock2D",), "block_out_channels": (8,)}
    network.config = FrozenDict(attention | {"sample_size": 32, "in_channels": 3})
    task = InpaintingTask(Denoiser(network, VP.linear()), num_inference_steps=1)
    task(torch.rand(3, 64, 120), torch.ones(64, 120))
    assert sizes == [(64, 64)] * 2
    assert task.tile == 64
    assert replace(task, tile=128).tile == 128
    with pytest.raises(ValueError, match="tile must be at least 16"):
        replace(task, tile=8)
