"""Learned rounding, GPTQ, split shortcuts, equalisation, presets, float layers under a budget: on a
tiny network.
"""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.covering import Lazily, covering
from helpers.quantized import one_thread, recording, tiny_denoiser  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from export.bundle import NETWORK
from export.exporter import export_bundle
from export.runtime.session import OnnxNetwork
from quant.calibration.trajectory import network_hash
from quant.files import load_quantized, save_quantized
from quant.layer import grid_between
from quant.network import quantizable_layers, structured
from quant.packing import network_bytes, pack_nibbles, unpack_nibbles
from quant.quantize import quantize
from quant.ranges.measure import measure_ranges
from quant.recipe import PRESETS, QuantRecipe, Reconstruction
from quant.rounding.learned import squared_error
from quant.rounding.reconstruction import LearnedLayer, fake_quantize
from quant.rounding.units import UnitInputs, find_units, spread_samples
from quant.sensitivity import (
    LayerCost,
    choose_float_layers,
    image_sensitivity,
    layer_costs,
    layer_sqnr,
    sensitivity,
    trajectory_errors,
)
from quant.structure.equalize import groups
from quant.structure.split import SplitConv2d, skip_layers

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = Reconstruction(iterations=15, batch_size=4, samples=8, crop=None, lr_weight=1e-1)
LEARNED = {"gptq": {}, "adaround": {}, "fbr": {}, "fbr-steps": {"lr_step": 1e-3}}
QUICKEST = ("gptq", "fbr")  # of those without and with gradients


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(attention=True)


@pytest.fixture(scope="module")
def held_out(denoiser):
    return recording(denoiser, seed=5, count=2)[0]


def recipe(rounding: str, bits: int = 4, **changes) -> QuantRecipe:
    options = {
        f: getattr(QUICK, f) for f in ("iterations", "batch_size", "samples", "crop", "lr_weight")
    } | LEARNED[rounding]
    return QuantRecipe(
        bits,
        rounding=rounding.partition("-")[0],
        reconstruction=Reconstruction(**options | changes),
    )


@pytest.fixture(scope="module")
def nearest(denoiser, calibration):
    return quantize(denoiser.network, calibration, QuantRecipe(4))


@pytest.fixture(scope="module")
def learned(denoiser, calibration):
    return Lazily(lambda name: quantize(denoiser.network, calibration, recipe(name)))


def mean_error(quantized, denoiser, calibration) -> float:
    errors = trajectory_errors(quantized, denoiser.network, calibration)
    return sum(errors.values()) / len(errors)


def same_layers(a, b) -> bool:
    pairs = [(a.layers()[n], b.layers()[n]) for n in a.names]
    fields = ("codes", "weight_scale", "output_scale", "output_zero")
    numbers = ("input_scale", "input_zero", "symmetric_scale")
    return a.names == b.names and all(
        all(getattr(x, f) == getattr(y, f) for f in numbers)
        and all(getattr(x, f).tobytes() == getattr(y, f).tobytes() for f in fields)
        for x, y in pairs
    )


# -- rounding --------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNED)
def test_learned_rounding_beats_nearest_on_other_data(
    name, learned, nearest, denoiser, calibration, held_out
):
    assert mean_error(learned[name], denoiser, held_out) < 0.9 * mean_error(
        nearest, denoiser, held_out
    )
    for layer in learned[name].layers().values():
        assert np.abs(layer.codes.astype(int)).max() <= 7


@pytest.mark.long
@pytest.mark.parametrize("name", ["gptq", "fbr-steps"])
def test_same_seed_same_bytes(name, learned, denoiser):
    again = quantize(denoiser.network, recording(denoiser)[0], recipe(name))
    assert same_layers(again, learned[name])


@pytest.mark.long
def test_another_seed_is_another_run(learned, denoiser, calibration):
    assert not same_layers(
        quantize(denoiser.network, calibration, recipe("fbr", seed=1)), learned["fbr"]
    )


@pytest.mark.parametrize("name", covering(["adaround", "fbr", "fbr-steps"], QUICKEST))
def test_no_unit_ends_worse_than_it_began_and_codes_stay_neighbours(name, learned, nearest):
    assert all(after <= before for before, after in learned[name].losses.values())
    assert (
        sum(after < before for before, after in learned[name].losses.values())
        > len(learned[name].losses) // 2
    )
    for layer, before in zip(
        learned[name].layers().values(), nearest.layers().values(), strict=True
    ):
        assert (
            np.abs(layer.codes.astype(int) - before.codes).max() <= 1
        )  # up or down, never further
        assert (layer.input_scale == before.input_scale) == (name != "fbr-steps")


def test_float_network_is_left_alone(denoiser, calibration):
    before = network_hash(denoiser.network)
    quantize(denoiser.network, calibration, QuantRecipe(4, split_shortcut=True, equalize=0.5))
    assert network_hash(denoiser.network) == before


@pytest.mark.long
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, learned, denoiser, calibration):
    class Interrupt(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Interrupt

    state = tmp_path / "state"
    with pytest.raises(Interrupt):
        quantize(denoiser.network, calibration, recipe("fbr"), state=state, progress=stop)
    assert len(list(state.iterdir())) == 3
    seen = {p.name: p.stat().st_mtime_ns for p in state.iterdir()}
    resumed = quantize(denoiser.network, calibration, recipe("fbr"), state=state)
    assert same_layers(resumed, learned["fbr"])
    assert resumed.losses == learned["fbr"].losses
    assert {
        name: (state / name).stat().st_mtime_ns for name in seen
    } == seen  # what was finished was not done again
    assert not list(state.glob("*.part"))


@pytest.mark.long
def test_foreign_or_damaged_state_is_refused(tmp_path, denoiser, calibration):
    quantize(denoiser.network, calibration, recipe("fbr", iterations=1), state=tmp_path)
    with pytest.raises(ValueError, match="another model, calibration set or recipe"):
        quantize(denoiser.network, calibration, recipe("fbr", iterations=2), state=tmp_path)
    next(iter(sorted(tmp_path.iterdir()))).write_bytes(b"junk")
    with pytest.raises(ValueError, match="can't be resumed"):
        quantize(denoiser.network, calibration, recipe("fbr", iterations=1), state=tmp_path)


def test_units_follow_the_call_not_the_registration(denoiser, calibration):
    names = quantizable_layers(denoiser.network)
    x, t = next(calibration.batches(1))
    units = dict(find_units(denoiser.network, names, x, t))
    order = list(units)
    assert sorted(n for members in units.values() for n in members) == sorted(names)
    assert order.index("mid_block.resnets.0") < order.index(
        "up_blocks.0.resnets.0"
    )  # registered the other way round
    assert units["down_blocks.1.attentions.0"] == [
        f"down_blocks.1.attentions.0.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    assert units["down_blocks.0.downsamplers.0.conv"] == ["down_blocks.0.downsamplers.0.conv"]
    assert all(
        len(members) == 1 for _, members in find_units(denoiser.network, names, x, t, blocks=False)
    )


def test_lsq_gradients():
    """Closed form: inside, round(x/s) - x/s; clipped, the end of the grid; scaled by 1/sqrt(n
    127).
    """
    x, step = torch.tensor([0.26, -0.34, 20.0, -30.0]), torch.tensor(0.1, requires_grad=True)
    zero = 28  # codes of 0 to 255 stand for -2.8 to 22.7
    y = fake_quantize(x * torch.tensor([1, 1, 2, 1]), step, zero)
    torch.testing.assert_close(y.detach(), torch.tensor([0.3, -0.3, 22.7, -2.8]))
    y.sum().backward()
    expected = (3 - 2.6) + (-3 + 3.4) + 227 - 28
    assert float(step.grad) == pytest.approx(expected / (4 * 127) ** 0.5, abs=1e-5)


def test_a_learned_layer_starts_as_nearest_rounding():
    layer = nn.Conv2d(3, 4, 3, padding=1, stride=2).requires_grad_(False)
    step = layer.weight.flatten(1).abs().amax(1) / 7
    learned = LearnedLayer(layer, step, (0.01, 128), 4)
    expected = (layer.weight / step.reshape(-1, 1, 1, 1)).round()
    torch.testing.assert_close(learned.codes().float(), expected)
    learned.hard = False
    x = 0.01 * torch.randint(-128, 128, (2, 3, 8, 8)).float()
    # soft weights begin at the float ones
    torch.testing.assert_close(learned(x), layer(x), atol=1e-4, rtol=0)


def test_cached_unit_inputs_stay_within_their_memory(monkeypatch, denoiser, calibration):
    network, samples = denoiser.network, spread_samples(calibration, 6, 8, 0)
    name = (  # reads (16, 4, 4) of an input cut to 8 x 8, and an embedding of 64
        "down_blocks.1.resnets.0"
    )
    each = 4 * (2 * 16 * 4 * 4 + 64)
    for limit, kept in ((100 * each, 6), (3 * each, 3), (3 * each - 1, 2), (1, 1)):
        monkeypatch.setattr("quant.rounding.units.MEMORY", limit)
        cache = UnitInputs(network, network, name, samples)
        assert len(cache.float) == len(cache.quantized) == len(cache.others) == kept
        assert cache.bytes == kept * each
        assert (
            sum(v.numel() * 4 for v in cache.float + cache.quantized) == kept * 4 * 2 * 16 * 4 * 4
        )


def test_blocks_are_rounded_against_quantized_time(denoiser, calibration):
    """TFMQ's order: the first block's loss begins with the error that rounded features of time
    make besides the weights'.
    """
    unit, others = "down_blocks.0.resnets.0", ("conv_*", "down_blocks.1.*", "mid*", "up_blocks.*")
    nearest = QuantRecipe(4, temporal="fsc", skip=others)
    plan = recipe("fbr", iterations=1, drop=0.0).reconstruction
    begun = quantize(denoiser.network, calibration, nearest)
    plan = replace(nearest, rounding="fbr", reconstruction=plan)
    made = quantize(denoiser.network, calibration, plan)
    outputs = []
    for network, name in ((denoiser.network, unit), (begun, f"network.{unit}")):
        outputs.append([])
        handle = network.get_submodule(name).register_forward_hook(
            lambda _, told, out: outputs[-1].append(out)
        )
        with torch.no_grad():
            for x, t in spread_samples(calibration, QUICK.samples, None, 0):
                network(x, t)
        handle.remove()
    want = np.mean([float(squared_error(b, a)) for a, b in zip(*outputs, strict=True)])
    assert made.losses[unit][0] == pytest.approx(want, rel=1e-4)
    made(x, t)  # asked by times as before


def test_samples_are_spread_over_the_timesteps(calibration):
    chosen = spread_samples(calibration, 6, 8, 0)
    assert sorted({float(t) for _, t in chosen}, reverse=True) == list(calibration.grid)
    assert all(x.shape[-2:] == (8, 8) for x, _ in chosen)
    again = spread_samples(calibration, 6, 8, 0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(chosen, again, strict=True))
    assert len({float(t) for _, t in spread_samples(calibration, 2, None, 0)}) == 2


# -- structure -------------------------------------------------------------------------------------

STRUCTURES = {
    "split": {"split_shortcut": True, "skip": ("conv_in", "conv_out")},
    "equalize": {"equalize": 0.5, "skip": ("conv_in", "conv_out")},
    "both": {"split_shortcut": True, "equalize": 0.5, "skip": ("conv_in", "conv_out")},
}


@pytest.fixture(scope="module")
def restructured(denoiser, calibration):
    return Lazily(
        lambda name: quantize(denoiser.network, calibration, QuantRecipe(**STRUCTURES[name]))
    )


@pytest.mark.parametrize("name", covering(STRUCTURES, ["both"]))
def test_the_structure_is_the_same_function(name, restructured, denoiser, calibration):
    x, t = next(calibration.batches())
    expected = denoiser.network(x, t).sample
    torch.testing.assert_close(
        restructured[name].structure(x, t).sample, expected, atol=2e-5, rtol=0
    )
    assert 0 < mean_error(restructured[name], denoiser, calibration) < 0.1


def test_split_points_are_where_the_skip_begins(denoiser, restructured):
    network = denoiser.network
    seen = {}
    handles = [
        resnet.register_forward_pre_hook(
            lambda _, args, n=f"up_blocks.{k}.resnets.{j}": seen.__setitem__(n, args[0].shape[1])
        )
        for k, block in enumerate(network.up_blocks)
        for j, resnet in enumerate(block.resnets)
    ]
    network(torch.zeros(1, 28, 12, 12), torch.zeros(1))
    for handle in handles:
        handle.remove()
    layers = skip_layers(network)
    assert {name.rpartition(".")[0] for name in layers} == set(seen)
    structure = restructured["split"].structure
    # outputs of conv_in, block 0, its downsampler, block 1: popped from the end
    skips = [16, 16, 16, 32]
    for name, channels in layers.items():
        if name.endswith("conv1"):
            assert seen[name.removesuffix(".conv1")] - channels == skips.pop()
        assert isinstance(structure.get_submodule(name), SplitConv2d)
    assert any(n.endswith("conv1.first") for n in restructured["split"].names)
    assert any(n.endswith("conv_shortcut.second") for n in restructured["split"].names)
    kept = structured(network, QuantRecipe(split_shortcut=True))
    assert all(
        isinstance(kept.get_submodule(n), SplitConv2d) != n.endswith("conv_shortcut")
        for n in layers
    )  # skip is respected


def test_halves_have_scales_of_their_own(restructured):
    layers = restructured["split"].layers()
    first, second = (
        layers[f"up_blocks.0.resnets.0.conv_shortcut.{h}"] for h in ("first", "second")
    )
    assert first.input_scale != second.input_scale
    assert second.bias is None


def test_equalisation_evens_the_channels_out(restructured, denoiser, calibration):
    quantized = restructured["equalize"]
    plain = quantize(
        denoiser.network, calibration, QuantRecipe(skip=STRUCTURES["equalize"]["skip"])
    )
    assert any(name.endswith("group_norm") for name in quantized.factors)
    assert any(name.endswith("conv.0") for name in quantized.factors)
    readers = groups(quantized.structure, quantized.names)
    for place, f in quantized.factors.items():
        assert float(f.log().mean()) == pytest.approx(0, abs=1e-4)
        for name in readers[place]:
            seen = quantized.ranges.channels[quantized.names.index(name)].tops
            before = plain.ranges.channels[plain.names.index(name.removesuffix(".1"))].tops
            assert np.std(np.log(seen)) < np.std(
                np.log(before)
            )  # alpha 0.5: geometric middle of x and W


def test_structures_need_something_to_work_on(calibration):
    plain = nn.Sequential(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="skip concatenations"):
        structured(plain, QuantRecipe(split_shortcut=True))
    with pytest.raises(ValueError, match="can't be split"):
        SplitConv2d(nn.Conv2d(4, 4, 1), 4)


@pytest.mark.parametrize("name", covering([*STRUCTURES, *LEARNED], ("fbr",)))
def test_file_round_trip(tmp_path, name, restructured, learned, denoiser, calibration):
    quantized = (restructured if name in STRUCTURES else learned)[name]
    save_quantized(quantized, tmp_path / "q")
    loaded = load_quantized(tmp_path / "q", denoiser.network)
    assert same_layers(loaded, quantized)
    assert loaded.recipe == quantized.recipe
    x, t = next(calibration.batches())
    torch.testing.assert_close(loaded(x, t), quantized(x, t))


@pytest.mark.long
@pytest.mark.parametrize("name", ["both", "gptq"])
def test_export_runs_the_codes_on_integers(
    tmp_path, name, restructured, learned, denoiser, calibration
):
    quantized = (restructured if name in STRUCTURES else learned)[name]
    bundle = export_bundle(denoiser, tmp_path / "bundle", target="cpu", quantized=quantized)
    model = onnx.load(tmp_path / "bundle" / NETWORK)
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    for name, layer in quantized.layers().items():
        codes = tensors[f"{name}.weight_codes"]
        np.testing.assert_array_equal(codes if codes.ndim == 4 else codes.T, layer.codes)
        assert codes.dtype == np.int8
    network = OnnxNetwork(tmp_path / "bundle" / NETWORK, bundle, ["CPUExecutionProvider"], 1)
    simulated = mean_error(quantized.simulating("cpu"), denoiser, calibration)
    assert mean_error(network, denoiser, calibration) == pytest.approx(simulated, rel=0.1)
    integer = sum(p.count for p in network.placement(12, 12) if p.op == "QLinearConv")
    assert (
        integer
        == bundle.planned
        == sum(layer.codes.ndim == 4 for layer in quantized.layers().values())
    )


# -- ranges and recipes ----------------------------------------------------------------------------


def test_reductions_of_the_range_table(denoiser, calibration):
    names = quantizable_layers(denoiser.network)
    inputs, _ = measure_ranges(denoiser.network, names, calibration.batches())
    for k, name in enumerate(names):
        amax = inputs.amax[k]
        assert inputs.threshold(name, "max") == amax.max()
        assert inputs.threshold(name, "mean") == pytest.approx(amax.mean())
        assert inputs.threshold(name, "min") == amax.min()
        assert inputs.threshold(name, "mse") <= amax.max()
        # a higher power weighs clipping more than resolution
        assert inputs.threshold(name, "p2.4") >= inputs.threshold(name, "mse")
        ends = inputs.ends[k]
        assert inputs.interval(name, "max") == (ends[:, 0].min(), ends[:, 1].max())
        assert inputs.interval(name, "mean") == pytest.approx(ends.mean(0))
        assert inputs.interval(name, "min") == (ends[:, 0].max(), ends[:, 1].min())
        low, high = inputs.interval(name, "mse")
        assert ends[:, 0].min() <= low <= 0 <= high <= ends[:, 1].max()
    for of in (inputs.threshold, inputs.interval):
        with pytest.raises(ValueError, match="unknown; known"):
            of(names[0], "entropy")


class Called(nn.Module):
    """A layer, ``body``, that is told times and has no use for them."""

    def __init__(self, layer):
        super().__init__()
        self.body = layer

    def forward(self, x, t):
        return self.body(x)


def rounding_loss(low, high, v):
    """Mean squared error of the values on the grid between two ends."""
    step, zero = grid_between(low, high)
    codes = (v / float(step)).round() + int(zero)
    return float((((codes.clamp(0, 255) - int(zero)) * float(step)) - v).square().mean())


def test_ranges_lose_least_of_what_was_seen():
    """Against a search over the values themselves, on values with one far off."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.silu(3 * torch.randn(1, 6, 512, 512, generator=g))
    x[0, 0, 0, 0] = 30
    network = Called(nn.Conv2d(6, 2, 1))
    inputs, outputs = measure_ranges(network, ["body"], [(x, torch.tensor([5.0]))])
    shares = [k / 10 for k in range(1, 11)]
    low, high = float(x.min()), float(x.max())
    best = min(rounding_loss(a * low, b * high, x) for a in shares for b in shares)
    assert best < 0.5 * rounding_loss(low, high, x)
    assert rounding_loss(*inputs.interval("body", "mse"), x) < 1.1 * best
    y = network(x, None).detach()[0].flatten(1)
    ends = torch.stack([y.amin(1).clamp(max=0), y.amax(1).clamp(min=0)], 1)
    np.testing.assert_array_equal(outputs["body"].ends, ends.numpy())
    np.testing.assert_array_equal(outputs["body"].reaching(2.5), 1.5 * ends.numpy())


def test_loud_timesteps_leave_quiet_ones_a_step():
    """Where one timestep's values are 100 times another's, the range loses least of both, each
    relative to its own power: a step fit for the loud one alone rounds the quiet one away.
    """
    g = torch.Generator().manual_seed(0)
    quiet = torch.randn(1, 3, 128, 128, generator=g)
    loud = 100 * torch.randn(1, 3, 128, 128, generator=g)
    batches = [(loud, torch.tensor([9.0])), (quiet, torch.tensor([5.0]))]
    inputs, _ = measure_ranges(Called(nn.Conv2d(3, 2, 1)), ["body"], batches)

    def loss(low, high):
        return sum(rounding_loss(low, high, v) / float(v.square().mean()) for v in (quiet, loud))

    low, high = float(loud.min()), float(loud.max())
    best = min(loss(k / 100 * low, k / 100 * high) for k in range(1, 101))
    assert best < 0.8 * loss(low, high)
    assert loss(*inputs.interval("body", "mse")) < 1.1 * best
    threshold = inputs.threshold("body", "mse")
    assert loss(-threshold, threshold) < 1.1 * best


@pytest.mark.long
def test_layers_left_in_float_are_not_equalized(denoiser, calibration):
    recipe = QuantRecipe(equalize=0.5, float_macs=0.3)
    made = quantize(denoiser.network, calibration, recipe)
    plain = set(quantizable_layers(denoiser.network))
    left = plain - {name.removesuffix(".1") for name in made.names}
    assert left == set(made.recipe.skip) - set(QuantRecipe().skip) != set()


def test_presets_round_trip_and_run(denoiser, calibration):
    assert set(PRESETS) == {
        "ptq4dm-w8a8",
        "eda-dm-w8a8",
        "eda-dm-w4a8",
        "tfmq-w8a8",
        "best-w8a8",
        "best-w4a8",
    }
    for name in PRESETS:
        settings = QuantRecipe.preset(name)
        assert QuantRecipe.from_json(settings.to_json()) == settings
        assert f"w{settings.weight_bits}a{settings.act_bits}" in name
        assert quantizable_layers(structured(denoiser.network, settings), settings.skip)
    with pytest.raises(ValueError, match="best-w8a8"):
        QuantRecipe.preset("best")


def test_recipes_of_older_versions_load():
    old = {
        "weight_bits": 8,
        "act_bits": 8,
        "range": "percentile",
        "percentile": 99.99,
        "skip": ["conv_in"],
        "temporal": "table",
    }
    assert QuantRecipe.from_dict(old) == QuantRecipe(range="percentile", skip=("conv_in",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounding": "floor"},
        {"weight_bits": 2},
        {"weight_bits": True},
        {"act_bits": 4},
        {"equalize": 1.5},
        {"equalize": True},
        {"split_shortcut": 1},
        {"selection": "best"},
        {"reconstruction": 3},
        {"reconstruction": {"epochs": 3}},
        {"reconstruction": {"iterations": 0}},
        {"reconstruction": {"iterations": 2.5}},
        {"reconstruction": {"lr_weight": "x"}},
        {"reconstruction": {"drop": 1.1}},
    ],
    ids=str,
)
def test_wrong_recipes_are_refused(wrong):
    key = next(iter(wrong))
    with pytest.raises(ValueError, match=key):
        QuantRecipe.from_json(json.dumps(wrong))


# -- sensitivity and sizes -------------------------------------------------------------------------


@pytest.mark.long
def test_sensitivities_name_a_spoiled_layer(denoiser, calibration):
    quantized = quantize(denoiser.network, calibration, QuantRecipe())
    bad = quantized.names[2]
    quantized.network.get_submodule(
        bad
    ).input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value.mul_(60)
    assert next(iter(layer_sqnr(quantized, calibration))) == bad
    x, t = next(calibration.batches(1))

    def restore(network):
        out = network(x, t)
        return out if isinstance(out, torch.Tensor) else out.sample

    errors = image_sensitivity(quantized, restore)
    assert next(iter(errors)) == bad
    assert set(errors) == set(quantized.names)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="fixed seed"):
        image_sensitivity(
            quantized, lambda network: restore(network) + torch.rand(1, generator=generator)
        )


def test_costs_are_multiplications_and_bytes(nearest, calibration):
    x, t = next(calibration.batches(2))
    costs = layer_costs(nearest, x, t)
    name = "down_blocks.0.resnets.0.conv1"
    assert costs[name] == LayerCost(3 * 16 * 16 * 9, 16 * 16 * 9 * x.shape[-1] * x.shape[-2])
    assert layer_costs(nearest, x, t, packed=True)[name].bytes == 28 * 16 * 16 * 9 // 8


@pytest.mark.long
def test_float_layers_stay_within_the_budget_and_lower_the_error(nearest, denoiser, calibration):
    errors, costs = (
        sensitivity(nearest, calibration),
        layer_costs(nearest, *next(calibration.batches(1))),
    )
    chosen = choose_float_layers(errors, costs, float_macs=0.2)
    assert chosen
    assert sum(costs[n].macs for n in chosen) <= 0.2 * sum(c.macs for c in costs.values())
    better = quantize(denoiser.network, calibration, QuantRecipe(4, float_macs=0.2))
    assert better.recipe == QuantRecipe(
        4, skip=(*nearest.recipe.skip, *chosen)
    )  # what was chosen is what is kept
    assert mean_error(better, denoiser, calibration) < mean_error(nearest, denoiser, calibration)
    assert choose_float_layers(errors, costs, extra_bytes=0) == []
    assert set(choose_float_layers(errors, costs, float_macs=1.0)) == set(errors)


def test_greedy_choice_by_gain_per_cost():
    errors = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
    costs = {
        "a": LayerCost(90, 1),
        "b": LayerCost(10, 1),
        "c": LayerCost(10, 1),
        "d": LayerCost(1, 1),
    }
    assert choose_float_layers(errors, costs, extra_bytes=25) == ["b", "c"]
    assert choose_float_layers(errors, costs, extra_bytes=100) == ["b", "a"]
    for wrong in (
        {},
        {"extra_bytes": 1, "float_macs": 0.5},
        {"extra_bytes": -1},
        {"float_macs": 2.0},
    ):
        with pytest.raises(ValueError, match="budget"):
            choose_float_layers(errors, costs, **wrong)
    with pytest.raises(ValueError, match="no cost"):
        choose_float_layers(errors, {}, extra_bytes=1)


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=4, max_side=5), elements=st.integers(-8, 7)))
def test_nibbles_round_trip(codes):
    packed = pack_nibbles(codes)
    assert packed.nbytes == (codes.size + 1) // 2
    np.testing.assert_array_equal(unpack_nibbles(packed, codes.shape), codes)


def test_nibbles_refuse_what_they_cannot_hold(nearest):
    for wrong in (np.array([8], np.int8), np.array([-9], np.int8), np.array([1])):
        with pytest.raises(ValueError, match=r"four bits|int8"):
            pack_nibbles(wrong)
    with pytest.raises(ValueError, match="bytes of uint8"):
        unpack_nibbles(np.zeros(3, np.uint8), (4,))
    sizes, whole = network_bytes(nearest), network_bytes(nearest, packed=False)
    assert (
        whole["codes"]
        == 2 * sizes["codes"]
        == sum(layer.codes.size for layer in nearest.layers().values())
    )
    assert sizes["total"] == sizes["codes"] + sizes["scales"] + sizes["float"]
    total = sum(4 * p.numel() for p in nearest.structure.parameters())
    assert whole["float"] + 4 * whole["codes"] == total
