"""Which samples a calibration set holds: uniform, PTQ4DM's NDTC, EDA-DM's TDAC."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers.data import golden
from helpers.quantized import one_thread, recording, tiny_denoiser  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quant.calibration.eda_dm import (
    EDADM,
    Distances,
    features,
    measure_distances,
    middle,
    share,
    shuffled,
)
from quant.calibration.ptq4dm import PTQ4DM, pair
from quant.calibration.selection import Uniform, take
from quant.calibration.trajectory import CalibrationSet, Provenance, network_hash

pytestmark = pytest.mark.usefixtures("one_thread")


def cases(arrays, prefix):
    return sorted({key.split("/")[1] for key in arrays if key.startswith(f"{prefix}/")})


def pool_of(counts):
    """A set with ``counts[k]`` samples of the k-th timestep, noisiest first, each marked by its
    position.
    """
    times = [t for k, n in enumerate(counts) for t in [float(len(counts) - k)] * n]
    return CalibrationSet(
        [torch.full((1, 2, 2), float(k)) for k in range(len(times))],
        times,
        Provenance("m", solver="ddim"),
    )


# -- PTQ4DM ----------------------------------------------------------------------------------------


def test_ndtc_steps_of_given_draws():
    arrays = golden("quant")
    for i in cases(arrays, "ndtc"):
        mean, std, steps, _, _ = arrays[f"ndtc/{i}/params"]
        found = PTQ4DM(mean, std).steps(
            torch.from_numpy(arrays[f"ndtc/{i}/unit_draws"]), int(steps)
        )
        np.testing.assert_array_equal(found.numpy(), arrays[f"ndtc/{i}/t"])


def test_ndtc_moments():
    arrays = golden("quant")
    for i in cases(arrays, "ndtc"):
        mean, std, steps, count, _ = arrays[f"ndtc/{i}/params"]
        found = (
            PTQ4DM(mean, std).draw(200_000, int(steps), torch.Generator().manual_seed(0)).double()
        )
        center, spread, first, last = arrays[f"ndtc/{i}/moments"]
        tolerance = 5 * spread / math.sqrt(count)  # of the stored draw's own mean
        assert abs(float(found.mean()) - center) < tolerance
        assert abs(float(found.std()) - spread) < tolerance
        normal = NormalDist(mean, std)  # truncation puts (-1, 1) onto 0
        for share_found, share_stored, exact in (
            (float((found == 0).double().mean()), first, normal.cdf(1 / steps)),
            (float((found == steps - 1).double().mean()), last, 1 - normal.cdf(1 - 1 / steps)),
        ):
            assert abs(share_found - exact) < 5 * math.sqrt(exact * (1 - exact) / 200_000)
            assert abs(share_stored - exact) < 5 * math.sqrt(exact * (1 - exact) / count)


def test_released_pairing_reverses_noise_and_label():
    arrays = golden("quant")
    chain, drawn = (torch.from_numpy(arrays[f"ndtc_pair/{key}"]) for key in ("chain", "t"))
    steps = list(range(len(chain) - 1, -1, -1))
    x, t = pair(chain, steps, drawn, compat="released")
    assert torch.equal(x, torch.from_numpy(arrays["ndtc_pair/x"]))
    assert torch.equal(t, drawn)
    # mended: the state that is the network's input at the step of that label
    x, t = pair(chain, steps, drawn)
    assert torch.equal(t, drawn)
    for j, k in enumerate(drawn.tolist()):
        assert torch.equal(x[j], chain[steps.index(k), j])


def test_ptq4dm_leans_towards_the_clean_end_and_keeps_labels_with_inputs():
    pool = pool_of([200] * 10)
    chosen = PTQ4DM().select(pool, 400, seed=3)
    assert len(chosen) == 400
    assert len({float(s[0, 0, 0]) for s in chosen.samples}) == 400
    assert all(
        pool.timesteps[int(s[0, 0, 0])] == t
        for s, t in zip(chosen.samples, chosen.timesteps, strict=True)
    )
    shares = PTQ4DM().budgets(pool, 400, seed=3)
    assert shares[1.0] > shares[10.0]  # the lower tail lies on the cleanest
    assert np.mean(chosen.timesteps) < 5.5
    assert chosen.provenance.selection == "ptq4dm(mean=0.4, std=0.4, n=400, seed=3)"
    assert (
        PTQ4DM().select(pool, 400, seed=3).hash
        == chosen.hash
        != PTQ4DM().select(pool, 400, seed=4).hash
    )


# -- uniform ---------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 200))
def test_uniform_shares_differ_by_one_at_most(steps, count):
    budgets = Uniform().budgets(pool_of([1] * steps), count)
    assert sum(budgets.values()) == count
    assert max(budgets.values()) - min(budgets.values()) <= 1
    if count % steps:
        assert budgets[1.0] == max(budgets.values())


def test_selection_takes_none_twice_and_says_what_is_short():
    pool = pool_of([4, 2, 4])
    assert len(Uniform().select(pool, 6)) == 6
    with pytest.raises(ValueError, match="needs 3 samples of timestep 2 but 2 were recorded"):
        Uniform().select(pool, 9)
    with pytest.raises(ValueError, match="at least one"):
        Uniform().select(pool, 0)
    with pytest.raises(ValueError, match="timestep 9 but 0"):
        take(pool, {9.0: 1}, 0, "x")


# -- EDA-DM ----------------------------------------------------------------------------------------


def assert_close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-6)


def test_tdac_golden():
    arrays = golden("quant")
    for i in cases(arrays, "tdac"):
        g = {
            key.split("/")[2]: value
            for key, value in arrays.items()
            if key.startswith(f"tdac/{i}/")
        }
        steps, weight, count, rows, _, radius = g["params"]
        steps, count, rows = int(steps), int(count), int(rows)
        method = EDADM(weight=weight, radius=radius)
        distances = measure_distances(torch.from_numpy(g["features"]).unbind(1))
        np.testing.assert_array_equal(method.density(distances), g["dense_num"])
        assert_close(distances.cosine.sum(1), g["Cos_dis"])
        spread = distances.cosine.sum(1)
        assert_close((spread - spread.min()) / (spread.max() - spread.min()), g["Cos_dis_normal"])
        assert_close(method.weights(distances), g["w"])
        assert_close(method.weights(distances) / method.weights(distances).sum(), g["prob"])
        budgets = method.step_budgets(distances, count)
        rounded = np.rint(g["prob"].astype(np.float64) * count)
        for value in np.unique(rounded):  # a surplus may go to any of equally large steps
            assert sorted(budgets.numpy()[rounded == value]) == sorted(g["t_num"][rounded == value])
        # samples: j takes row j mod n of its step; the label is the training step of that step
        order = torch.from_numpy(g["order"])
        found = (
            torch.from_numpy(g["chain"])[order, torch.arange(count) % rows].double().sum((1, 2, 3))
        )
        np.testing.assert_allclose(found, g["calib_x_sum"], rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(g["seq"][steps - 1 - g["order"]], g["calib_t"])
        np.testing.assert_array_equal(
            torch.bincount(shuffled(budgets, torch.Generator().manual_seed(0)), minlength=steps),
            budgets,
        )


def test_gram_matrices_equal_pairwise_loops():
    f = torch.randn(5, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    found = measure_distances(f.unbind(1))
    for j in range(5):
        for k in range(5):
            assert_close(found.mse[j, k], (f[j] - f[k]).square().mean())
            assert_close(
                found.cosine[j, k], (1 - torch.cosine_similarity(f[j], f[k], dim=1, eps=1e-6)).sum()
            )


def test_radius_is_a_quantile_of_the_distances_and_scale_free():
    f = torch.randn(9, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1)).cumsum(0)
    small, large = (measure_distances((f * s).unbind(1)) for s in (1.0, 1000.0))
    assert torch.equal(EDADM().density(small), EDADM().density(large))
    assert not torch.equal(EDADM(radius=3.0).density(small), EDADM(radius=3.0).density(large))
    pairs = 9 * 8
    assert abs(int(EDADM().density(small).sum()) - pairs / 2) <= 2
    assert int(EDADM(quantile=0.9).density(small).sum()) > int(
        EDADM(quantile=0.2).density(small).sum()
    )


def test_equal_or_single_steps_get_equal_shares():
    same = Distances(torch.zeros(4, 4), torch.zeros(4, 4))
    assert EDADM().step_budgets(same, 8).tolist() == [2, 2, 2, 2]
    one = measure_distances([torch.randn(1, 4, 2, 2)])
    assert EDADM().step_budgets(one, 7).tolist() == [7]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3),
    st.integers(1, 500),
)
def test_shares_are_whole_and_complete(weights, count):
    weights = torch.tensor(weights, dtype=torch.float64)
    found = share(weights, count)
    assert int(found.sum()) == count
    assert bool((found >= 0).all())
    # off by rounding, and by the rounding of all the others at most
    assert float((found - weights / weights.sum() * count).abs().max()) <= 0.5 + len(weights) / 2


@pytest.mark.long
def test_eda_dm_selects_from_a_recording():
    denoiser = tiny_denoiser(attention=True)
    pool, _ = recording(denoiser, steps=6, count=8)
    method = EDADM(batch=2)
    chosen = method.select(pool, denoiser.network, 20, seed=1)
    assert len(chosen) == 20
    budgets = method.budgets(pool, denoiser.network, 20)
    assert {t: len(p) for t, p in chosen.positions().items()} == {
        t: n for t, n in budgets.items() if n
    }
    keys = [s.numpy().tobytes() for s in chosen.samples]
    assert len(set(keys)) == 20
    assert (
        method.select(pool, denoiser.network, 20, seed=1).hash
        == chosen.hash
        != method.select(pool, denoiser.network, 20, seed=2).hash
    )
    # the stored features are the middle attention's input
    row = next(features(denoiser.network, pool, 1))
    seen = []
    handle = denoiser.network.mid_block.attentions[0].register_forward_hook(
        lambda _, inputs, out: seen.append(inputs[0])
    )
    denoiser.network(pool.samples[0][None], torch.tensor([pool.timesteps[0]]))
    handle.remove()
    assert torch.equal(row[0], seen[0][0])
    with pytest.raises(ValueError, match="another model"):
        method.select(pool, tiny_denoiser(seed=3, attention=True).network, 20)
    with pytest.raises(ValueError, match="needs 9 samples of each timestep"):
        EDADM(batch=9).select(pool, denoiser.network, 20)
    with pytest.raises(ValueError, match="were recorded"):
        method.select(pool, denoiser.network, 200)


def test_middle_without_attention_and_in_conditional_networks():
    plain = tiny_denoiser().network
    assert middle(plain) is plain.mid_block.resnets[1]
    torch.manual_seed(0)
    conditional = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    assert middle(conditional) is conditional.mid_block.attentions[0]
    with pytest.raises(ValueError, match="no mid_block"):
        middle(nn.Conv2d(1, 1, 1))


def test_samples_of_different_sizes_are_refused():
    denoiser = tiny_denoiser()
    samples = [torch.zeros(28, 8, 8), torch.zeros(28, 16, 8)]
    pool = CalibrationSet(samples, [5.0, 3.0], Provenance(network_hash(denoiser.network)))
    with pytest.raises(ValueError, match="different sizes"):
        EDADM(batch=1).select(pool, denoiser.network, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PTQ4DM(std=0.0),
        lambda: PTQ4DM(mean=math.nan),
        lambda: EDADM(weight=-1),
        lambda: EDADM(quantile=1.0),
        lambda: EDADM(radius=0.0),
        lambda: EDADM(batch=0),
        lambda: measure_distances([]),
        lambda: measure_distances([torch.full((2, 1, 1, 1), torch.inf)]),
        lambda: pair(torch.zeros(3, 2, 1, 1, 1), [2, 1], torch.zeros(2)),
        lambda: pair(torch.zeros(3, 2, 1, 1, 1), [2, 1, 0], torch.zeros(2), compat="old"),
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=r"."):
        wrong()
