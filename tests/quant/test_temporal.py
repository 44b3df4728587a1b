"""The temporal information block: found in diffusers U-Nets, tabulated, quantized,
reconstructed.
"""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers.data import golden
from helpers.quantized import one_thread, tiny_denoiser  # noqa: F401
from torch import nn

from quant.temporal.table import (
    TemporalBlock,
    sinusoids,
    step_network,
    temporal_block,
    temporal_table,
)
from quant.temporal.tfmq import (
    fit_grid,
    float_features,
    quantize_block,
    quantize_cache,
    select_features,
    table_of,
    tiar_loss,
)
from quant.temporal.tiar import TIAR, temperature
from solvers.denoiser import output_of
from solvers.interop.networks.clock import adapt

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}


def unconditional(**options):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**SMALL | blocks | options).eval().requires_grad_(False)


def conditional(**options):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return (
        UNet2DConditionModel(**SMALL | {"cross_attention_dim": 8} | blocks | options)
        .eval()
        .requires_grad_(False)
    )


def golden_block(arrays):
    def linear(k):
        layer = nn.Linear(*reversed(arrays[f"tib/w{k}"].shape))
        layer.weight.data, layer.bias.data = (
            torch.from_numpy(arrays[f"tib/{name}{k}"]) for name in "wb"
        )
        return layer.requires_grad_(False)

    count = sum(key.startswith("tib/feat_fp_") for key in arrays)
    return TemporalBlock(
        lambda t: t,
        (linear(0), linear(1)),
        nn.SiLU(),
        nn.SiLU(),
        {str(i): linear(2 + i) for i in range(count)},
    )


def close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-6)


# -- golden ----------------------------------------------------------------------------------------


def test_features_and_weight_only_golden():
    arrays = golden("quant")
    block, s = golden_block(arrays), torch.from_numpy(arrays["tib/sinusoid"])
    for i, e in enumerate(block.features(s)):
        close(e, arrays[f"tib/feat_fp_{i}"])
    bits = sorted({int(key.split("_")[1][1:]) for key in arrays if key.startswith("tib/feat_w")})
    assert bits
    for b in bits:
        for i, e in enumerate(quantize_block(block, s, b, None).features):
            close(e, arrays[f"tib/feat_w{b}_a32_{i}"])


def test_shared_and_finite_set_golden():
    arrays = golden("quant")
    block, s = golden_block(arrays), torch.from_numpy(arrays["tib/sinusoid"])
    reference = block.features(s)
    kinds = sorted(
        {
            key.split("/")[1].split("_")[0]
            for key in arrays
            if key.startswith("tib/") and key.endswith("_tiar_rec")
        }
    )
    assert kinds
    for kind in kinds:
        weight_bits, act_bits = int(kind[1]), int(kind[3])
        shared, finite = (
            quantize_block(block, s, weight_bits, act_bits, finite_set=on) for on in (False, True)
        )
        for k, grid in enumerate(shared.weights):
            close(grid.delta.flatten(), arrays[f"tib/{kind}_wdelta{k}"])
            np.testing.assert_array_equal(grid.zero_point.flatten(), arrays[f"tib/{kind}_wzp{k}"])
            close(shared.activations[k].delta, arrays[f"tib/{kind}_shared_adelta{k}"])
            np.testing.assert_array_equal(
                shared.activations[k].zero_point, arrays[f"tib/{kind}_shared_azp{k}"]
            )
            close(finite.activations[k].delta.flatten(), arrays[f"tib/{kind}_fsc_adelta"][:, k])
            np.testing.assert_array_equal(
                finite.activations[k].zero_point.flatten(), arrays[f"tib/{kind}_fsc_azp"][:, k]
            )
        for row, (name, made) in enumerate((("shared", shared), ("fsc", finite))):
            for i, e in enumerate(made.features):
                close(e, arrays[f"tib/{kind}_{name}_feat_{i}"])
                close((e - reference[i]).square().mean(), arrays[f"tib/{kind}_mse"][row, i])
        close(tiar_loss(shared.features, reference), arrays[f"tib/{kind}_tiar_rec"])


def test_cache_golden():
    arrays = golden("quant")
    count = sum(key.startswith("tib/feat_fp_") for key in arrays)
    features = [torch.from_numpy(arrays[f"tib/feat_fp_{i}"]) for i in range(count)]
    kinds = sorted(
        {
            key.split("/")[1].removesuffix("_delta")
            for key in arrays
            if key.startswith("tcache/") and key.endswith("_delta")
        }
    )
    assert kinds
    for kind in kinds:
        cache = quantize_cache(features, int(kind[-1]), kind[:-1])
        for i in range(count):
            np.testing.assert_array_equal(cache.codes[i], arrays[f"tcache/{kind}_codes_{i}"])
            close(cache.features[i], arrays[f"tcache/{kind}_deq_{i}"])
            close(cache.grids[i].delta.flatten(), arrays[f"tcache/{kind}_delta"][:, i])
            np.testing.assert_array_equal(
                cache.grids[i].zero_point.flatten(), arrays[f"tcache/{kind}_zp"][:, i]
            )


# -- in diffusers networks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        unconditional,
        lambda: unconditional(resnet_time_scale_shift="scale_shift"),
        conditional,
        lambda: conditional(
            time_embedding_act_fn="gelu",
            resnet_skip_time_act=True,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
    ],
    ids=["plain", "scale_shift", "conditional", "shared activation"],
)
def test_the_table_replaces_the_block_exactly(make):
    network, timesteps = make(), (901.0, 500.0, 3.0)
    g = torch.Generator().manual_seed(1)
    if isinstance(network, UNet2DModel):
        channels, extra = 3, {}
    else:
        channels, extra = 4, {"encoder_hidden_states": torch.randn(1, 5, 8, generator=g)}
    table = temporal_table(network, timesteps)
    step = step_network(network, table)
    x = torch.randn(1, channels, 16, 16, generator=g)
    for k, t in enumerate(timesteps):
        expected = network(x, torch.tensor([t]), **extra).sample
        torch.testing.assert_close(
            step(x, torch.tensor([k]), **extra).sample, expected, atol=1e-6, rtol=0
        )
    block = temporal_block(network)
    assert len(block.projections) == sum(
        n.endswith("time_emb_proj") for n, _ in network.named_modules()
    )
    again = table_of(block, timesteps, float_features(block, timesteps))
    torch.testing.assert_close(again.features, table.features)
    assert again.slices == table.slices


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: unconditional(num_class_embeds=3), "class-conditional"),
        (lambda: unconditional(class_embed_type="timestep"), "class-conditional"),
        (lambda: conditional(num_class_embeds=3), "class-conditional"),
        (
            lambda: conditional(
                class_embed_type="projection", projection_class_embeddings_input_dim=8
            ),
            "class-conditional",
        ),
        (lambda: conditional(addition_embed_type="text", encoder_hid_dim=8), "pooled text"),
        (
            lambda: conditional(
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=32,
            ),
            "image sizes",
        ),
        (lambda: conditional(time_cond_proj_dim=4), "guidance scale"),
        (lambda: conditional(timestep_post_act="silu"), "two linear layers"),
        (
            lambda: conditional(
                down_block_types=("KDownBlock2D",) * 2,
                up_block_types=("KUpBlock2D",) * 2,
                mid_block_type=None,
            ),
            "to a norm",
        ),
        (
            lambda: conditional(resnet_skip_time_act=True, time_embedding_act_fn="silu"),
            "different activations",
        ),
        (lambda: nn.Conv2d(1, 1, 1), "no time_proj"),
    ],
)
def test_networks_whose_embedding_depends_on_more_are_refused(make, why):
    with pytest.raises(ValueError, match=why):
        temporal_table(make(), (1.0,))


# -- the methods -----------------------------------------------------------------------------------


NCSNPP = {
    "block_out_channels": (32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
}


@pytest.mark.parametrize("score", [False, True])
@pytest.mark.parametrize("options", [{}, {"time_embedding_type": "fourier"}, NCSNPP])
def test_outputs_are_scaled_by_the_rows_time(options, score):
    """A score becomes the noise, and Fourier's networks divide by the time: rows tell neither."""
    unet = unconditional(**options)
    adapt(unet, score=score)
    times = (300.0, 2.0, 0.5)
    step = step_network(unet, temporal_table(unet, times))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for row, t in enumerate(times):
        wanted = output_of(unet(x, torch.full((2,), t)))
        found = output_of(step(x, torch.tensor([row, row])))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def block():
    return temporal_block(tiny_denoiser().network)


TIMES = tuple(float(t) for t in range(95, 0, -5))


def test_finite_set_scales_lose_less(block):
    s, reference = sinusoids(block, TIMES), float_features(block, TIMES)
    losses = [
        float(tiar_loss(quantize_block(block, s, 8, 4, finite_set=on).features, reference))
        for on in (False, True)
    ]
    assert losses[1] < losses[0]


def test_reconstruction_beats_nearest_rounding_and_repeats(block):
    s, reference = sinusoids(block, TIMES), float_features(block, TIMES)
    nearest = float(tiar_loss(quantize_block(block, s, 4, 8).features, reference))
    made, weights = TIAR(100).reconstruct(block, s, 4, 8)
    loss = float(tiar_loss(made.features, reference))
    assert loss < 0.5 * nearest
    for layer, grid, weight in zip(block.layers, made.weights, weights, strict=True):
        assert torch.equal(grid(weight), weight)  # on the grid
        inside = (layer.weight >= grid.values(torch.tensor(0.0))) & (
            layer.weight <= grid.values(torch.tensor(15.0))
        )
        assert (
            float(((weight - layer.weight).abs() / grid.delta)[inside].max()) < 1 + 1e-4
        )  # a neighbour


def test_reconstruction_repeats_from_its_seed(block):
    s = sinusoids(block, TIMES)
    one, again, other = (
        TIAR(10, lr=0.1, batch=4).reconstruct(block, s, 4, seed=seed)[1] for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_reconstruction_never_loses_to_nearest_rounding(block):
    s, reference = sinusoids(block, TIMES), float_features(block, TIMES)
    made, _ = TIAR(1, lr=100.0, lambda_round=0.0).reconstruct(block, s, 4)
    assert float(tiar_loss(made.features, reference)) <= float(
        tiar_loss(quantize_block(block, s, 4, None).features, reference)
    )


def test_temperature():
    assert [temperature(step, 1000) for step in (1, 200, 600, 1000)] == [20, 20, 11, 2]


@pytest.mark.parametrize("bits", [4, 8])
def test_cache_errors_stay_below_half_a_step_and_selection_takes_the_smaller(block, bits):
    s, reference = sinusoids(block, TIMES), float_features(block, TIMES)
    cache = quantize_cache(reference, bits)
    for e, found, grid in zip(reference, cache.features, cache.grids, strict=True):
        assert bool(((found - e).abs() <= 0.5 * grid.delta * (1 + 1e-4)).all())
    made, _ = TIAR(10).reconstruct(block, s, 8, 8)
    chosen = select_features(reference, made.features, cache.features)
    for i, e in enumerate(reference):
        errors = torch.stack([(v[i] - e).norm(dim=1) for v in (made.features, cache.features)])
        torch.testing.assert_close((chosen.features[i] - e).norm(dim=1), errors.amin(0))
        assert torch.equal(chosen.from_cache[:, i], errors[1] <= errors[0])
    if bits == 4:  # coarser than the 8-bit block
        assert not chosen.from_cache.all()
    exact = select_features(reference, made.features, reference)
    assert exact.from_cache.all()
    table = table_of(block, TIMES, chosen.features)
    assert table.features.shape == (len(TIMES), sum(e.shape[1] for e in reference))


def test_cache_size_counts_codes_and_grids(block):
    features = float_features(block, TIMES)
    cache = quantize_cache(features, 4)
    assert cache.bits == sum(4 * e.numel() for e in features) + 36 * len(TIMES) * len(features)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b: fit_grid(torch.zeros(0), 8),
        lambda b: fit_grid(torch.tensor([1.0, torch.nan]), 8),
        lambda b: fit_grid(torch.zeros(3), 9),
        lambda b: fit_grid(torch.zeros(3), 8, "best"),
        lambda b: TIAR(iterations=0),
        lambda b: TIAR(lr=0.0),
        lambda b: TIAR(lambda_round=-1.0),
        lambda b: table_of(b, (1.0,), float_features(b, (1.0, 2.0))),
    ],
)
def test_impossible_settings(block, wrong):
    with pytest.raises(ValueError, match=r"."):
        wrong(block)
