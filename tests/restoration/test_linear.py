"""Denoising, super-resolution and deblurring: exact where a Gaussian prior has a closed form,
consistent with the data everywhere.
"""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture
from skimage import data

from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import noise_level, psnr
from restoration.operators.linear import Denoising, Inpainting
from restoration.operators.separable import (
    Bicubic,
    BlockMean,
    Blur,
    SceneBlur,
    UnknownReduction,
    gaussian_kernel,
)
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.lift import enlarge, push_pull, thin_plate
from restoration.photo.linear import LinearTask
from restoration.wrappers.planes import planewise
from restoration.wrappers.symmetry import Symmetric, turn, turn_back
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from solvers.solver import Query
from toolbox.api import load
from toolbox.cli import main
from toolbox.tasks import task_by_name
from toolbox.tasks.options import Enlarging

PROCESS = VP.from_diffusers(
    {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "rescale_betas_zero_snr": True,
    }
)
MEAN, STD = 0.1, 0.4  # of the Gaussian prior's pixels, in [-1, 1]


class Gaussian(torch.nn.Module):
    """The exact image estimate for pixels from N(MEAN, std^2); remembers the shapes that it was
    asked about.
    """

    def __init__(self, std):
        super().__init__()
        self.asked, self.std = [], std

    def forward(self, x, t):
        self.asked.append(tuple(x.shape))
        a, b = PROCESS.a(t[0].item()), PROCESS.b(t[0].item())
        return MEAN + a * self.std**2 * (x - a * MEAN) / (a**2 * self.std**2 + b**2)


def gaussian(std: float = STD) -> Denoiser:
    return Denoiser(Gaussian(std), PROCESS, "sample")


def picture(height=24, width=20, channels=3):
    return torch.from_numpy(smooth_picture(height, width, channels))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.4])
def test_one_step_of_denoising_is_the_posterior_mean(sigma):
    y = picture() + sigma * torch.randn(3, 24, 20, generator=torch.Generator().manual_seed(0))
    result = LinearTask(gaussian(), num_inference_steps=1)(y, Denoising(), sigma=sigma)
    share = STD**2 / (STD**2 + (2 * sigma) ** 2)  # sigma counts in [0, 1], the prior in [-1, 1]
    want = ((MEAN + share * (2 * y - 1 - MEAN)) + 1) / 2
    assert result.nfe == 1
    torch.testing.assert_close(result.mean, want.clamp(0, 1), rtol=0, atol=2e-5)


def test_many_steps_of_denoising_keep_the_prior_s_spread():
    """The deterministic path from the noisy picture shrinks it to the prior's variance, not to the
    (smaller) variance of the mean.
    """
    g = torch.Generator().manual_seed(0)
    sigma, x = 0.2, (MEAN + STD * torch.randn(1, 96, 96, generator=g) + 1) / 2
    y = x + sigma * torch.randn(x.shape, generator=g)
    task = LinearTask(gaussian(), num_inference_steps=60)
    assert 2 * float(
        task(y.expand(3, -1, -1), Denoising(), sigma=sigma).mean.std()
    ) == pytest.approx(STD, rel=0.04)
    one = LinearTask(gaussian(), num_inference_steps=1)(
        y.expand(3, -1, -1), Denoising(), sigma=sigma
    )
    assert 2 * float(one.mean.std()) == pytest.approx(
        STD**2 / (STD**2 + 4 * sigma**2) ** 0.5, rel=0.04
    )


@pytest.mark.parametrize(
    "operator",
    [
        BlockMean((24, 20), 4),
        Bicubic((24, 20), 2),
        BlockMean((24, 20), 3),
        Inpainting(torch.eye(24, 20)),
        Inpainting(torch.ones(24, 20)),  # nothing missing
        BlockMean((24, 20), 1),
    ],
)
def test_noiseless_data_are_met(operator):
    y = operator.A(0.35 + 0.3 * picture()[None])[0]
    result = LinearTask(gaussian(0.15), num_inference_steps=3)(y, operator, num_samples=2)
    assert result.samples.min() > 0  # nothing was clamped
    assert result.samples.max() < 1
    for one in result.samples:
        torch.testing.assert_close(operator.A(one[None])[0], y, rtol=0, atol=2e-5)
    whole = y.numel() == 3 * 24 * 20 and bool((y != 0).all())
    moved = (result.samples[0] - result.samples[1]).abs().max()
    assert whole or moved > 0.01  # what was not measured is sampled


def test_without_a_start_level_the_default_is_diffpir():
    """Also from a start level, by name or not."""
    operator = Blur((24, 20), gaussian_kernel(1.0))
    y = operator.A(picture()[None])[0]
    for level in (None, 0.4):
        one, other = (
            LinearTask(gaussian(), num_inference_steps=3, start_level=level, correction=name)(
                y, operator, sigma=0.05
            ).mean
            for name in (None, "diffpir")
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("start_level", [None, 0.4])
def test_deblurring_noisy_data_improves_them_and_stays_finite(start_level):
    """The pseudo-inverse of this blur multiplies noise by a million: none of it may come through.
    Pictures are draws from the prior.
    """
    g = torch.Generator().manual_seed(0)
    x = (MEAN + 0.2 * torch.randn(3, 48, 40, generator=g) + 1) / 2
    operator = Blur((48, 40), gaussian_kernel(1.0))
    y = operator.A(x[None])[0] + 0.01 * torch.randn(x.shape, generator=g)
    result = LinearTask(gaussian(0.2), num_inference_steps=10, start_level=start_level)(
        y, operator, sigma=0.01
    )
    assert 2 * float(result.mean.std()) < 1.2 * 0.2  # a wild inverse would be wider than the prior
    if start_level:
        assert psnr(result.mean, x) > psnr(y, x) + 0.5
    if start_level:
        again = LinearTask(gaussian(0.2), num_inference_steps=10, start_level=start_level)(
            y, operator, sigma=0.01, seed=9
        )
        torch.testing.assert_close(again.mean, result.mean, rtol=0, atol=0)


def test_a_picture_cut_out_of_a_blurred_scene_is_sharp_up_to_its_edges():
    """As cameras see it. Told that the scene is mirrored at the edges, the same run is worse there
    than the blurred picture.
    """
    scene = torch.from_numpy(data.camera()[60:140, 180:252]).float()[None] / 255
    operator = SceneBlur((64, 56), gaussian_kernel(1.6))
    x, y = operator.cut(scene), operator.A(scene[None])[0]
    y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    task = LinearTask(load("grey"), num_inference_steps=8, start_level=0.6)
    edge = torch.ones(64, 56, dtype=torch.bool)
    edge[2:-2, 2:-2] = False

    def error(picture):
        return float((picture - x)[:, edge].square().mean() ** 0.5)

    result = task(y, operator, sigma=0.01)
    mirrored = task(y, Blur((64, 56), gaussian_kernel(1.6)), sigma=0.01)
    assert result.mean.shape == x.shape
    assert result.misfit == pytest.approx(0.01, rel=0.5)
    assert error(result.mean) < error(y) < error(mirrored.mean)


@pytest.mark.filterwarnings("ignore:the result explains the data worse")
@pytest.mark.parametrize("tile", [64, 32])
def test_deblurring_asks_a_network_only_at_the_times_that_it_knows(tile):
    """In tiles too."""
    asked = []

    class Table:
        timesteps = tuple(float(t) for t in range(0, 1000, 2))

        def __call__(self, z, t):
            asked.append(float(t))
            return torch.zeros_like(z)

    operator = Blur((48, 40), gaussian_kernel(1.0))
    denoiser = Denoiser(Table(), VP.linear(), "sample")
    task = LinearTask(denoiser, start_level=0.4, tile=tile, overlap=4)
    task(operator.A(picture(48, 40)[None])[0], operator, sigma=0.01)
    assert len(set(asked)) == 5
    assert set(asked) <= set(Table.timesteps)


def test_grey_pictures_and_grey_networks(tiny_model):
    y = picture(channels=1)
    grey = LinearTask(gaussian(), num_inference_steps=1)(y, Denoising(), sigma=0.1)
    assert grey.mean.shape == y.shape
    colour = LinearTask(gaussian(), num_inference_steps=1)(
        y.expand(3, -1, -1), Denoising(), sigma=0.1
    )
    torch.testing.assert_close(grey.mean[0], colour.mean[1])

    single = gaussian()
    single.network.out_channels = 1  # a network of single planes, as an exported one says it
    y = picture() + 0.1 * torch.randn(3, 24, 20, generator=torch.Generator().manual_seed(0))
    together = LinearTask(single, num_inference_steps=2)(y, Denoising(), sigma=0.1).mean
    assert single.network.asked[0] == (3, 1, 24, 20)
    for channel in range(3):
        alone = LinearTask(single, num_inference_steps=2)(
            y[channel : channel + 1], Denoising(), sigma=0.1
        ).mean
        torch.testing.assert_close(together[channel : channel + 1], alone, rtol=0, atol=1e-6)


def test_planewise_keeps_learned_variances_apart():
    """Those of all planes come after the estimates of all planes."""

    class Learned(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([2 * x, x.sign() / 2], 1)

    d = Denoiser(Learned(), PROCESS)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, each = planewise(d)(x, 500), [d(x[:, k : k + 1], 500) for k in range(3)]
    assert torch.equal(found.x0, torch.cat([p.x0 for p in each], 1))
    assert torch.equal(found.spread, torch.cat([p.spread for p in each], 1))


def test_planewise_keeps_the_order_of_folded_channels():
    class Odd(torch.nn.Module):
        def forward(self, z, t):
            return z * torch.arange(1, 5).view(1, 4, 1, 1)

    d = planewise(Denoiser(Odd(), PROCESS, "epsilon", fold=2))
    z = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(4, 3)
    torch.testing.assert_close(d.output(z, 5.0), z * weight)


def test_tiles_of_a_pointwise_network_change_nothing():
    x = picture(40, 50)
    operator = BlockMean((40, 50), 2)
    y = operator.A(x[None])[0]
    whole, parts = (
        LinearTask(gaussian(), num_inference_steps=2, tile=tile, overlap=4)(y, operator).mean
        for tile in (512, 16)
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_a_network_that_is_shown_an_unknown_reduction_is_left_alone(tiny_model):
    """Held to means of blocks it would copy what the small picture has of another kernel."""
    d, y = Denoiser.from_pretrained(tiny_model), 0.3 + 0.4 * picture(6, 5)  # nothing is clipped
    unknown, known = UnknownReduction((24, 20), 4), BlockMean((24, 20), 4)
    alone = LinearTask(d, num_inference_steps=1)(y, unknown)
    held = LinearTask(d, num_inference_steps=1)(y, known)
    assert alone.misfit is None
    assert held.misfit is not None
    assert (known.A(held.mean[None])[0] - y).abs().max() < 1e-4
    assert (known.A(alone.mean[None])[0] - y).abs().max() > 1e-3
    named = LinearTask(d, num_inference_steps=1, correction="ddnm")(y, unknown).mean
    torch.testing.assert_close(named, held.mean, rtol=0, atol=1e-5)
    # nothing else would steer a network that is shown nothing
    free = LinearTask(gaussian(), num_inference_steps=1)
    torch.testing.assert_close(free(y, unknown).mean, free(y, known).mean, rtol=0, atol=1e-5)


def test_conditional_network_is_shown_the_enlarged_picture(tiny_model):
    d = Denoiser.from_pretrained(tiny_model)
    x, operator = picture(), BlockMean((24, 20), 4)
    shown = []
    d.network.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    y = operator.A(x[None])
    LinearTask(d, num_inference_steps=1)(y[0], operator)
    lift = torch.nn.functional.pixel_unshuffle(enlarge(2 * y - 1, 4, (24, 20)), 2)
    # after the folded state
    torch.testing.assert_close(shown[0][:, 12:24], lift, rtol=0, atol=1e-5)
    assert (shown[0][:, 24:] == 1 / 16).all()
    LinearTask(d, num_inference_steps=1)(x, Blur((24, 20), gaussian_kernel(1.0)), sigma=0.05)
    assert (shown[1][:, 12:] == 0).all()  # no lift for a blur


# -- lifts -----------------------------------------------------------------------------------------


def test_thin_plate_approaches_the_dense_biharmonic_solution():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 9, 8, generator=g, dtype=torch.float64)
    mask = (torch.rand(1, 1, 9, 8, generator=g) > 0.5).double()
    laplacian = torch.zeros(72, 72, dtype=torch.float64)  # five points, edges repeated
    for i in range(9):
        for j in range(8):
            for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                k, m = min(max(i + di, 0), 8), min(max(j + dj, 0), 7)
                laplacian[8 * i + j, 8 * k + m] += 1
                laplacian[8 * i + j, 8 * i + j] -= 1
    energy = laplacian.T @ laplacian
    hole, known = (mask.flatten() == 0).nonzero()[:, 0], (mask.flatten() == 1).nonzero()[:, 0]
    want = image.flatten().clone()
    want[hole] = torch.linalg.solve(energy[hole][:, hole], -energy[hole][:, known] @ want[known])
    got = thin_plate(image, mask, steps=400)
    # steps end where the curvature of the energy is below 1e-7
    torch.testing.assert_close(got.flatten(), want, rtol=0, atol=1e-3)

    def bending(x):
        return float((laplacian @ x.flatten()).square().sum())

    energies = [bending(thin_plate(image, mask, steps=k)) for k in (0, 1, 3, 5, 20)]
    assert energies == sorted(energies, reverse=True)
    assert bending(want) <= energies[-1] * (1 + 1e-9)


def test_thin_plate_keeps_the_known_and_knows_its_edges():
    image = picture()[None]
    mask = (torch.rand(1, 1, 24, 20, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    spoiled = torch.where(mask > 0, image, torch.full_like(image, 77.0))
    filled = thin_plate(spoiled, mask)
    known = mask.expand_as(image) > 0
    torch.testing.assert_close(filled[known], image[known], rtol=0, atol=0)
    assert (filled - image).square().mean() < 0.7 * (
        push_pull(spoiled, mask) - image
    ).square().mean()
    torch.testing.assert_close(thin_plate(image, torch.ones(1, 1, 24, 20)), image, rtol=0, atol=0)
    assert (thin_plate(image, torch.zeros(1, 1, 24, 20)) == 0).all()
    flat = torch.full((1, 3, 9, 7), 0.25)
    torch.testing.assert_close(thin_plate(flat, mask[..., :9, :7]), flat)


def test_enlarge_of_a_ragged_grid_of_blocks():
    x = picture(23, 18)[None]
    y = BlockMean((23, 18), 4).A(x)
    assert enlarge(y, 4, (23, 18)).shape == x.shape
    nearest = y.repeat_interleave(4, -2).repeat_interleave(4, -1)[..., :23, :18]
    assert (enlarge(y, 4, (23, 18)) - x).square().mean() < 0.7 * (nearest - x).square().mean()


# -- self-ensemble ---------------------------------------------------------------------------------


def test_turns_are_the_eight_symmetries_and_turn_back():
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    seen = set()
    for k in range(8):
        torch.testing.assert_close(turn_back(turn(x, k), k), x, rtol=0, atol=0)
        seen.add(tuple(turn(x, k).flatten().tolist()))
    assert len(seen) == 8
    torch.testing.assert_close(turn(x, 2), torch.rot90(x, 1, (-2, -1)))


def test_symmetric_denoiser_commutes_with_turns(tiny_model):
    d = Denoiser.from_pretrained(tiny_model)
    image, mask = (
        picture(24, 16),
        (torch.rand(24, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float(),
    )
    condition = torch.cat([2 * image * mask - 1, mask[None]])[None]
    x = torch.randn(1, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        upright = Symmetric(d.conditioned(condition), 8)(x, 500.0)
        for k in (1, 2, 5):
            turned = Symmetric(d.conditioned(turn(condition, k)), 8)(turn(x, k), 500.0)
            torch.testing.assert_close(turn_back(turned.x0, k), upright.x0, rtol=0, atol=1e-4)
            assert (
                d.conditioned(turn(condition, k))(turn(x, k), 500.0).x0
                - turn(d.conditioned(condition)(x, 500.0).x0, k)
            ).abs().max() > 1e-3
    result = InpaintingTask(d, num_inference_steps=2, symmetries=8)(image, mask)
    assert result.nfe == 16
    assert torch.isfinite(result.mean).all()


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input(tiny_model):
    d = gaussian()
    task = LinearTask(d, num_inference_steps=1)
    with pytest.raises(ValueError, match="sigma > 0"):
        task(picture(), Denoising())
    with pytest.raises(ValueError, match="NaN"):
        task(picture() * float("nan"), Denoising(), sigma=0.1)
    with pytest.raises(ValueError, match="1 or 3"):
        task(picture(channels=2), Denoising(), sigma=0.1)
    with pytest.raises(TypeError, match="lacks"):
        task(picture(), object(), sigma=0.1)
    d.network.out_channels = 5
    with pytest.raises(ValueError, match="5 channels"):
        task(picture(), Denoising(), sigma=0.1)
    for options, says in (
        ({"grid": "no"}, "grid"),
        ({"correction": "no"}, "correction"),
        ({"start_level": 0.0}, "start_level"),
    ):
        with pytest.raises(ValueError, match=says):
            LinearTask(d, **options)
    for task_type in (LinearTask, InpaintingTask):
        with pytest.raises(ValueError, match="symmetries"):
            task_type(d, symmetries=3)
    with pytest.raises(ValueError, match="4 x 4"):
        noise_level(np.zeros((1, 3, 9)))


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_level_of_a_smooth_picture(sigma):
    x = picture(128, 160)
    y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert noise_level(y) == pytest.approx(sigma, rel=0.04)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def restore(monkeypatch, capsys, tmp_path, tiny_model):
    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["restobox", "restore", *map(str, arguments), "--model", str(tiny_model)]
        )
        return main(), capsys.readouterr()

    return run


def test_commands(restore, tmp_path):
    image = smooth_picture(24, 20)
    write_image(tmp_path / "x.png", Photo(image))
    noisy = image + 0.1 * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    write_image(tmp_path / "n.png", Photo(noisy.clip(0, 1)))
    reference = ("--reference", tmp_path / "x.png")
    code, output = restore(
        "denoise", tmp_path / "n.png", "-o", tmp_path / "o.png", *reference, "--json"
    )
    assert code == 0
    assert '"sigma"' in output.out
    assert read_image(tmp_path / "o.png").pixels.shape == image.shape
    code, output = restore(
        *("superresolve", tmp_path / "x.png", "-o", tmp_path / "l.png"),
        *("--factor", 3, "--kernel", "block"),
    )
    assert code == 0
    large = read_image(tmp_path / "l.png").pixels
    assert large.shape == (3, 72, 60)
    np.testing.assert_allclose(
        BlockMean((72, 60), 3).A(torch.from_numpy(large)[None])[0].numpy(), image, atol=0.01
    )
    assert (
        restore(
            "deblur", tmp_path / "n.png", "--blur", 1.2, "-o", tmp_path / "d.png", "--sigma", 0.1
        )[0]
        == 0
    )


def test_no_fringe_around_what_is_transparent():
    """Its hidden colour, black here, has no part in an enlargement; what can be seen stays."""
    shown = np.hypot(*np.mgrid[-12:12, -12:12]) < 8
    colour = np.array([0.98, 0.78, 0.16], np.float32)[:, None, None]
    photo = Photo((colour * shown).astype(np.float32), shown.astype(np.float32))
    reading = task_by_name("superresolve").read(photo, Enlarging(factor=2), 0)
    image = reading.inputs["image"].numpy()
    np.testing.assert_array_equal(image[:, shown], photo.pixels[:, shown])
    np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=1e-4)
    assert reading.photo.alpha.shape == (48, 48)
    hidden = replace(photo, alpha=np.zeros_like(photo.alpha))
    assert not task_by_name("superresolve").read(hidden, Enlarging(), 0).inputs["image"].any()


@pytest.mark.parametrize("task", [("denoise",), ("deblur", "--blur", 1.2)])
def test_what_is_transparent_stays_and_shows_nowhere(restore, tmp_path, task):
    shown = np.hypot(*np.mgrid[-12:12, -12:12]) < 8
    clean = smooth_picture(24, 24)
    results = []
    for hidden in (0.0, 1.0):
        photo = Photo(np.where(shown, clean, hidden).astype(np.float32), shown.astype(np.float32))
        write_image(tmp_path / "x.png", photo)
        given = read_image(tmp_path / "x.png").pixels
        places = (tmp_path / "x.png", "-o", tmp_path / "o.png")
        code, _ = restore(*task, *places, "--sigma", 0.1)
        assert code == 0
        results.append(read_image(tmp_path / "o.png"))
        np.testing.assert_array_equal(results[-1].pixels[:, ~shown], given[:, ~shown])
        np.testing.assert_array_equal(results[-1].alpha, shown)
    np.testing.assert_array_equal(*(found.pixels[:, shown] for found in results))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("denoise", "x.png", "--sigma", "lots"), "--sigma must be a number or auto"),
        (("superresolve", "x.png", "--factor", "1"), "2 to 8"),
        (("superresolve", "x.png", "--kernel", "lanczos"), "kernel"),
        (("superresolve", "x.png", "--reference", "x.png"), "reference"),
        (("deblur", "x.png", "--blur", "0"), "positive"),
        (("denoise", "x.png", "--std"), "two samples"),
        (("denoise", "flat.png"), "no noise"),
        (("superresolve", "x.png", "--correction", "pigdm:scale=much"), "are numbers"),
        (("superresolve", "x.png", "--correction", "ddnm:eta=1"), "has no option 'eta'"),
    ],
)
def test_commands_refuse(restore, tmp_path, monkeypatch, arguments, says):
    write_image(tmp_path / "x.png", Photo(smooth_picture(24, 20)))
    write_image(tmp_path / "flat.png", Photo(np.full((1, 16, 16), 0.5, np.float32)))
    monkeypatch.chdir(tmp_path)
    code, output = restore(*arguments, "-o", "o.png")
    assert code == 2
    assert says in output.err
    assert not (tmp_path / "o.png").exists()


def test_options_of_a_correction_follow_its_name(restore, tmp_path):
    """The weight of the data, at nothing and at much."""
    write_image(tmp_path / "x.png", Photo(smooth_picture(12, 10)))
    found = []
    for name in ("diffpir:lam=1e9", "diffpir:lam=1e-9"):
        arguments = ("superresolve", tmp_path / "x.png", "-o", tmp_path / "o.png")
        sized = ("--factor", 2, "--kernel", "block", "--sigma", 0.05, "--correction", name)
        code, _ = restore(*arguments, *sized)
        assert code == 0
        large = torch.from_numpy(read_image(tmp_path / "o.png").pixels)
        small = BlockMean((24, 20), 2).A(large[None])[0]
        found.append((small - torch.from_numpy(smooth_picture(12, 10))).abs().mean())
    assert found[0] > 1.5 * found[1]


def test_a_result_that_explains_the_data_worse_than_its_start_says_so():
    """A solver that ends on something else; and one that doesn't, which is silent."""

    class Astray:
        def run(self, problem, grid, x):
            p = yield Query(x, grid.times[0])
            return 3 - p.x0

    denoiser = Denoiser(lambda z, t: torch.zeros_like(z), VP.linear(), "sample")
    operator = BlockMean((16, 16), 4)
    y = operator.A(torch.full((1, 3, 16, 16), 0.4))[0]
    with pytest.warns(RuntimeWarning, match="explains the data worse") as told:
        result = LinearTask(denoiser, Astray())(y, operator, sigma=0.01)
    assert told[0].filename == __file__  # the caller's line
    assert result.misfit == pytest.approx(0.6, abs=0.01)
    assert "don't use it" in result.warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = LinearTask(denoiser)(y, operator)
    assert result.misfit < 1e-6
    assert result.warning is None


def test_denoising_refuses_noise_far_from_the_times_it_knows():
    denoiser = Denoiser(lambda z, t: torch.zeros_like(z), VP.linear(), "sample")
    y, known = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), 200.0
    sigma = denoiser.process.kappa(known) / 2
    for contrast, fits in ((1.0, True), (1.4, True), (0.3, True), (1.6, False), (0.2, False)):
        task = LinearTask(denoiser, num_inference_steps=1, timesteps=(known,))
        if fits:
            task(y, Denoising(), sigma=sigma / contrast)
            continue
        with pytest.raises(ValueError, match=f"for noise of sigma {sigma / 1.5:.3g} to"):
            task(y, Denoising(), sigma=sigma / contrast)


@pytest.mark.parametrize("name", ["diffpir", "ddrm", "mmps"])
def test_denoising_takes_no_correction(name):
    denoiser = Denoiser(lambda z, t: torch.zeros_like(z), VP.linear(), "sample")
    with pytest.raises(ValueError, match="leave the correction out"):
        LinearTask(denoiser, correction=name)(torch.rand(3, 16, 16), Denoising(), sigma=0.1)
