"""The cache of deep features: the U-Net in two parts, and which steps of a run use which."""

from itertools import combinations

import pytest
import torch
from diffusers import UNet2DModel
from helpers.quantized import measurement, one_thread, tiny_denoiser  # noqa: F401

from quant.temporal.change import feature_changes, least_change, measured_steps
from quant.temporal.features import CachedNetwork, SplitUNet, cached
from restoration.wrappers.symmetry import Symmetric
from restoration.wrappers.tiling import tiled
from solvers import SOLVERS, solver_by_name
from solvers.denoiser import Denoiser
from solvers.grid import trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.processes.process import VP

pytestmark = pytest.mark.usefixtures("one_thread")


class Parts:
    """A network in two parts that notes what it is asked; features are means of the input."""

    out_channels = 3

    def __init__(self):
        self.passes, self.reused = [], []

    def split(self):
        return self

    def full(self, x, t):
        self.passes.append("F")
        return 0.1 * x, x.mean()

    def shallow(self, x, t, features):
        self.passes.append("s")
        self.reused.append(float(features))
        return 0.1 * x


def run(parts, cache, solver="ddim", steps=6, wrap=lambda d: d, side=4):
    denoiser = Denoiser(parts, VP.linear())
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    asked = wrap(cached(denoiser, cache))
    generator = [torch.Generator().manual_seed(0)]
    return solve(
        solver_by_name(solver), asked, x, trailing(denoiser.process, steps), generator=generator
    )


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 28, 12, 16, generator=generator), torch.tensor([80.0, 80.0])


@torch.no_grad()
@pytest.mark.parametrize("attention", [False, True])
def test_both_passes_compute_the_network(attention):
    network = tiny_denoiser(attention=attention).network
    split, (x, t), (other, _) = SplitUNet(network), pair(), pair(1)
    whole, features = split.full(x, t)
    assert torch.equal(whole, network(x, t).sample)
    assert features.shape == (2, 16, 12, 16)
    assert torch.equal(split.shallow(x, t, features), whole)
    borrowed = split.shallow(x, t, split.full(other, t)[1])
    assert not torch.allclose(borrowed, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("cache", "passes"), [(2, "FsFsFs"), (3, "FssFss"), ((0, 1, 4), "FFssFs"), (9, "Fsssss")]
)
def test_steps_that_are_computed_in_full(cache, passes):
    parts = Parts()
    run(parts, cache)
    assert "".join(parts.passes) == passes
    run(parts, cache)  # begins anew
    assert "".join(parts.passes) == 2 * passes
    half = len(parts.reused) // 2
    assert parts.reused[:half] == parts.reused[half:]


def test_a_run_without_reuse_is_the_run():
    plain = solve(
        DDIM(),
        (denoiser := Denoiser(lambda x, t: 0.1 * x, VP.linear())),
        torch.ones(1, 3, 4, 4),
        trailing(denoiser.process, 3),
    )
    parts = Parts()
    same = solve(
        DDIM(),
        cached(Denoiser(parts, VP.linear()), (0, 1, 2)),
        torch.ones(1, 3, 4, 4),
        trailing(denoiser.process, 3),
    )
    assert parts.passes == ["F"] * 3
    assert torch.equal(plain.x0, same.x0)


def test_tiles_and_turned_pictures_keep_their_own_features():
    def once(wrap, side):
        parts = Parts()
        run(parts, 2, steps=2, wrap=wrap, side=side)
        return parts

    tiles = once(lambda d: tiled(d, 8, 2), 14)
    turns = once(lambda d: Symmetric(d, 4), 8)
    assert tiles.passes == turns.passes == ["F"] * 4 + ["s"] * 4
    assert len(set(tiles.reused)) == 4  # of four different tiles
    # the mean of a picture is that of the picture turned
    assert max(turns.reused) - min(turns.reused) < 1e-6


SEVERAL = {"s-pndm", "f-pndm", "plms", "fon", "diffusers-plms"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_with_one_call_a_step(solver):
    parts = Parts()
    if solver in SEVERAL:
        with pytest.raises(ValueError, match=r"solvers with one network call a step.*ddim"):
            run(parts, 2, solver)
    else:
        run(parts, 2, solver)
        assert "".join(parts.passes) == "FsFsFs"


@pytest.mark.parametrize(
    ("cache", "steps", "says"),
    [
        (1, 6, r"whole number from 2.*got 1"),
        ((1, 3), 6, r"ascending from 0; got \(1, 3\)"),
        ((0, 3, 3), 6, r"ascending from 0"),
        ((0, 6), 6, r"names step 6 but the run has 6"),
        (2, 1, r"a run of one step has no features"),
    ],
)
def test_schedules_that_cannot_be(cache, steps, says):
    with pytest.raises(ValueError, match=says):
        run(Parts(), cache, steps=steps)


def small(**options):
    levels = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**levels | blocks | options)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: lambda x, t: x, "function is not one"),
        (lambda: small(num_class_embeds=3), "asked for a class"),
        (
            lambda: small(up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D")),
            "ends in a ResnetUpsampleBlock2D",
        ),
        (lambda: small(time_embedding_type="fourier"), "scaled around its blocks"),
    ],
)
def test_networks_that_cannot_be_split(network, says):
    with pytest.raises(ValueError, match=says):
        cached(Denoiser(network(), VP.linear()), 2)


def test_what_does_not_tell_the_steps_is_refused():
    shown = cached(tiny_denoiser(), 2).conditioned(measurement(0))
    with pytest.raises(ValueError, match="needs a solver's run"):
        shown(torch.zeros(1, 3, 24, 24), 50.0)
    network = CachedNetwork(Parts(), 2).begin((9.0, 5.0, 1.0))
    with pytest.raises(ValueError, match="differentiates the network"):
        network(torch.zeros(1, 3, 4, 4, requires_grad=True), torch.tensor([9.0]))


def test_steps_are_chosen_where_features_change():
    # features move along a line, much at first and a little at the end
    places = torch.tensor([0.0, 5.0, 8.0, 8.1, 8.2, 8.25, 9.0, 9.0])
    changes = torch.cdist(places[:, None], places[:, None]).square()
    assert least_change(changes, 1) == (0,)
    assert least_change(changes, 3) == (0, 1, 2)
    assert least_change(changes, 4) == (0, 1, 2, 6)
    assert least_change(changes, 8) == tuple(range(8))
    for count in (2, 3, 5):
        lost = {
            full: sum(float(changes[max(f for f in full if f <= j), j]) for j in range(8))
            for rest in combinations(range(1, 8), count - 1)
            for full in [(0, *rest)]
        }
        assert lost[least_change(changes, count)] == pytest.approx(min(lost.values()))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: tiled(d, 8, 2)])
def test_changes_are_those_of_the_features_that_runs_have(wrap):
    class Moving(Parts):
        def full(self, x, t):
            features = torch.stack([t[0], torch.tensor(300.0)])  # by time alone
            return 0.1 * x, features

    denoiser = Denoiser(Moving(), VP.linear())
    grid = trailing(denoiser.process, 3)

    def restore(asked):
        for k in range(2):
            x = torch.randn(1, 3, 14, 14, generator=torch.Generator().manual_seed(k))
            solve(DDIM(), wrap(asked), x, grid)

    found = feature_changes(denoiser, restore)
    times = torch.tensor(grid.times[:3])
    expected = (times[:, None] - times).square() / (times.square() + 300.0**2)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-6)
    assert measured_steps(denoiser, restore, 2) == least_change(expected, 2)
    with pytest.raises(ValueError, match="count must be from 1 to the 3 steps; got 4"):
        measured_steps(denoiser, restore, 4)
    with pytest.raises(ValueError, match="no run was made"):
        feature_changes(denoiser, lambda asked: None)
