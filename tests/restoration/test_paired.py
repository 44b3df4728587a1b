"""Paired restoration: the task on networks whose answer is known, its training under every process,
the commands.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import TINY_RECIPE, smooth_picture
from helpers.deploy import calibrate as run_calibrate

import toolbox
from quant.calibration.trajectory import CalibrationSet
from restoration.io.images import Photo, read_image, write_image
from restoration.io.pictures.folders import find_pairs
from restoration.metrics import psnr
from restoration.paired.haze import Scattering, procedural_depth, srgb_decode, srgb_encode
from restoration.paired.lifts import MEAN, brightened, relit
from restoration.paired.simulation import Haze, make_hazy
from restoration.paired.task import (
    FINER,
    FLOOR,
    LEAST,
    LITTLE,
    MOST,
    SOFT,
    PairedTask,
    carry,
    default_process,
    haze_condition,
    prior_share,
    reduced,
)
from solvers import (
    DDIM,
    PNDM,
    RDDM,
    VP,
    Denoiser,
    EVODiff,
    RDDMSampler,
    Resfusion,
    ResfusionSampler,
)
from toolbox.cli import main
from toolbox.training.examples.paired import HazeExamples, MadeExamples, PairExamples
from toolbox.training.loop import batches, train
from toolbox.training.losses import denoising_loss, plain_loss, residual_loss
from toolbox.training.network import build
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import Loss

SOLVERS = [
    DDIM(),
    PNDM(),
    EVODiff(),
    RDDMSampler(),
    RDDMSampler("res"),
    ResfusionSampler(),
    ResfusionSampler(0.0),
]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the task --------------------------------------------------------------------------------------


class Posterior:
    """The exact answer for pixels that are independent given the degraded one: ``x0 ~ N(y/2,
    spread^2)``.
    """

    def __init__(self, process, spread):
        self.process, self.spread = process, spread

    def __call__(self, z, t):
        state, y = z[:, :3], z[:, 3:6]
        a, b, c = (f(float(t[0])) for f in (self.process.a, self.process.b, self.process.c))
        mean = 0.5 * y
        return mean + a * self.spread**2 / (a**2 * self.spread**2 + b**2) * (
            state - c * y - a * mean
        )


def posterior(process, spread=0.2):
    return Denoiser(Posterior(process, spread), process, "sample", condition_channels=3)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}")
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_network_that_knows_the_answer_gives_it(solver, steps):
    image = torch.from_numpy(smooth_picture(13, 18))
    result = PairedTask(posterior(VP.cosine(zero_terminal_snr=True), 0.0), solver, steps)(image)
    want = (0.5 * (2 * image - 1) + 1) / 2
    torch.testing.assert_close(result.mean, want, atol=1e-5, rtol=0)
    assert result.nfe >= steps
    assert result.samples.shape == (1, 3, 13, 18)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}")
@pytest.mark.parametrize(
    "process", [RDDM.scheduled(), Resfusion.scheduled()], ids=lambda p: type(p).__name__
)
def test_a_matched_network_answers_like_a_native_one(solver, process):
    """A network of a variance-preserving process and one trained under the run's own, both exact,
    restore alike.
    """
    image = torch.from_numpy(smooth_picture(9, 11))
    matched = PairedTask(posterior(VP.cosine(zero_terminal_snr=True)), solver, process=process)(
        image
    )
    native = PairedTask(posterior(process), solver)(image)
    torch.testing.assert_close(matched.mean, native.mean, atol=2e-4, rtol=0)
    assert (matched.mean - image).abs().max() > 0.05


def test_restoration_starts_at_the_degraded_picture():
    image = torch.from_numpy(smooth_picture(8, 8))
    for solver, process in (
        (RDDMSampler(), RDDM.scheduled(sum_scale=LITTLE**2)),
        (ResfusionSampler(), Resfusion.scheduled(noise_scale=LITTLE)),
    ):
        seen = []
        task = PairedTask(posterior(VP.cosine(zero_terminal_snr=True)), solver)
        task(image, seed=7, callback=lambda k, step, seen=seen: seen.append(step))
        g = torch.Generator().manual_seed(7)
        start = process.start(2 * image[None] - 1, torch.randn(1, 3, 8, 8, generator=g))
        torch.testing.assert_close(seen[0].query.x, start)
        assert [s.index for s in seen] == [0, 1, 2, 3, 4]
    assert [round(s.query.t) for s in seen] == [4, 3, 2, 1, 0]  # all five released levels


def test_default_processes():
    vp = posterior(VP.cosine(zero_terminal_snr=True))
    assert default_process(vp, DDIM(), 5) == RDDM.scheduled(sum_scale=LITTLE**2)
    assert default_process(vp, ResfusionSampler(), 5) == Resfusion.scheduled("linear", 12, LITTLE)
    assert len(default_process(vp, ResfusionSampler(), 8)) >= 8
    native = posterior(Resfusion.scheduled())
    assert default_process(native, DDIM(), 5) == native.process


def test_samples_spread_as_the_posterior_does():
    """Pixels are independent for this network, so one run holds many samples: their mean and spread
    are the posterior's.
    """
    image = torch.full((3, 40, 40), 0.6)
    process = RDDM.scheduled()
    result = PairedTask(posterior(process), DDIM(), 100, grid="log-snr")(image)
    assert float(result.mean.mean()) == pytest.approx(0.55, abs=0.005)  # ((2 x 0.6 - 1)/2 + 1)/2
    assert float(result.mean.std()) == pytest.approx(0.1, rel=0.05)  # 0.2 in [-1, 1]


def test_haze_networks_are_shown_the_prior_the_picture_and_its_transmission():
    image = torch.from_numpy(smooth_picture(30, 40))
    seen = []

    class Spy:
        def __call__(self, z, t):
            seen.append(z)
            return torch.zeros_like(z[:, :3])

    d = Denoiser(
        Spy(),
        VP.cosine(zero_terminal_snr=True),
        "v_prediction",
        condition_channels=7,
        residual=True,
        data_std=0.2,
    )
    result = PairedTask(d, num_inference_steps=1)(image)
    prior = SOFT(image[None])
    shown = torch.cat([prior.image, image[None], prior.transmission], 1)
    torch.testing.assert_close(haze_condition(image[None]), shown)
    torch.testing.assert_close(seen[0][:, 3:], 2 * shown - 1)
    # a network that adds nothing leaves the lift, blended with all that the prior takes away
    found = FLOOR(image[None])
    blend = prior.image.lerp(found.image, prior_share(found, prior.image))[0]
    torch.testing.assert_close(result.mean, blend, atol=1e-5, rtol=0)


def test_the_dark_channel_is_taken_finer_than_the_network_sees():
    """Dark pixels apart from one another tell that there is no haze; means of 2 x 2 pixels hide
    them.
    """
    image = torch.full((3, 64, 96), 0.8)
    image[:, ::2, ::2] = 0.0
    seen = []

    class Spy:
        def __call__(self, z, t):
            seen.append(z)
            return torch.zeros_like(z[:, :3])

    d = Denoiser(Spy(), VP.cosine(zero_terminal_snr=True), "v_prediction", condition_channels=7)
    assert FINER == 2
    PairedTask(d, num_inference_steps=1, view=32)(image)
    shown = (seen[0][0, 3:] + 1) / 2
    assert shown.shape[1:] == (32, 48)
    torch.testing.assert_close(shown[3:6], reduced(image[None], 32)[0])
    assert shown[6].min() > 0.99
    assert haze_condition(reduced(image[None], 32))[0, 6].max() < 0.9


def test_networks_are_believed_in_thin_haze_and_the_prior_in_dense():
    clear = torch.from_numpy(smooth_picture(80, 120)) * (0.6 + 0.4 * noise(3, 80, 120).sign())
    clear, depth = clear.clamp(0, 1), torch.ones(80, 120)

    def share(beta, answer):
        """Of the prior in the result."""
        return float(prior_share(FLOOR(Scattering(beta, 0.9)(clear, depth)[None]), answer[None]))

    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 80, 120)
    shares = [share(beta, red) for beta in (0.2, 1, 2, 4)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(LEAST, abs=1e-3)
    assert shares[-1] == pytest.approx(MOST, abs=1e-3)
    # a prior that is much more coloured than the answer has multiplied a tint
    grey = clear.mean(0, keepdim=True).expand(3, -1, -1)
    assert share(4, grey) == 0


def whitening(condition, **options):
    """A network that makes everything white."""
    return Denoiser(
        lambda z, t: torch.ones_like(z[:, :3]),
        VP.cosine(zero_terminal_snr=True),
        "sample",
        condition_channels=condition,
        **options,
    )


def test_clear_and_dark_pictures_are_left_alone():
    """Whatever a network makes of them: where the prior finds no haze, or no light for it."""
    dotted = torch.from_numpy(smooth_picture(80, 120)) * (noise(3, 80, 120) > 0)
    task = PairedTask(whitening(7), num_inference_steps=1)
    torch.testing.assert_close(task(dotted).mean, dotted, atol=0.01, rtol=0)
    dark = 0.02 + 0.05 * torch.from_numpy(smooth_picture(80, 120))
    torch.testing.assert_close(task(dark).mean, dark, atol=1e-6, rtol=0)
    hazy = Scattering(1.5, 0.9)(dotted, torch.ones(80, 120))
    assert (task(hazy).mean - hazy).abs().mean() > 0.1


def test_well_exposed_pictures_are_not_brightened():
    task = PairedTask(whitening(3, shown="brightened"), num_inference_steps=1)
    light = torch.from_numpy(smooth_picture(48, 64))
    light = light / light.mean()  # sRGB's light
    for times, moved in ((1.05, 0), (0.5, 1), (0.1, 1)):
        picture = srgb_encode((light * MEAN * times).clamp(0, 1))
        found = task(picture).mean
        torch.testing.assert_close(found, torch.ones_like(found) if moved else picture)


def test_large_pictures_are_judged_by_a_view():
    """Haze of one transmission: what a perfect network does to the view is carried to every
    pixel.
    """
    clear = torch.from_numpy(smooth_picture(80, 120)) + 0.05 * noise(3, 80, 120)
    clear = clear.clamp(0, 1)
    hazy = Scattering(0.7, 0.9)(clear, torch.ones(80, 120))
    sizes, t = [], np.exp(-0.7)

    class Perfect:
        def __call__(self, z, t_):
            sizes.append(z.shape[-2:])
            return (z[:, 3:6] - 0.8 * (1 - t)) / t  # of y in [-1, 1], where the airlight is 0.8

    d = Denoiser(Perfect(), VP.cosine(zero_terminal_snr=True), "sample", condition_channels=3)
    result = PairedTask(d, view=20)(hazy)
    assert set(sizes) == {(20, 30)}
    assert psnr(result.mean, clear) > psnr(hazy, clear) + 15
    same = PairedTask(d, view=80)(hazy)
    torch.testing.assert_close(same.mean, clear, atol=1e-4, rtol=0)


def test_carry_is_exact_for_linear_changes():
    image = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    small = reduced(image, 20)
    assert small.shape == (1, 3, 20, 30)
    out = carry(image, small, 1.7 * small - 0.3, eps=1e-9)
    torch.testing.assert_close(out, 1.7 * image - 0.3, atol=1e-4, rtol=0)
    assert reduced(image, 50) is image


def test_grey_pictures_and_tiles():
    grey = torch.from_numpy(smooth_picture(20, 30, 1))
    d = posterior(VP.cosine(zero_terminal_snr=True), 0.1)
    one = PairedTask(d)(grey)
    assert one.mean.shape == (1, 20, 30)
    tiles = PairedTask(d, tile=16, overlap=2)(grey)
    # pixels are independent for this network
    torch.testing.assert_close(one.mean, tiles.mean, atol=1e-5, rtol=0)


def test_masks_reach_the_network():
    seen = []

    class Spy:
        def __call__(self, z, t):
            seen.append(z)
            return torch.zeros_like(z[:, :3])

    d = Denoiser(Spy(), VP.cosine(zero_terminal_snr=True), "sample", condition_channels=4)
    mask = torch.zeros(6, 6)
    mask[:3] = 1
    PairedTask(d, num_inference_steps=1)(
        torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0)), mask
    )
    torch.testing.assert_close(seen[0][0, 6], 2 * mask - 1)


@pytest.mark.parametrize(
    ("image", "mask", "channels", "says"),
    [
        (torch.zeros(2, 8, 8), None, 3, "image must be"),
        (torch.full((3, 8, 8), float("nan")), None, 3, "NaN"),
        (torch.full((3, 8, 8), 2.0), None, 3, "lie in"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8), 3, "not shown any mask"),
        (torch.zeros(3, 8, 8), None, 4, "give one"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 9), 4, "mask is"),
        (torch.zeros(3, 8, 8), torch.full((8, 8), 0.5), 4, "only 0"),
    ],
)
def test_bad_input(image, mask, channels, says):
    d = Denoiser(
        lambda z, t: z[:, :3],
        VP.cosine(zero_terminal_snr=True),
        "sample",
        condition_channels=channels,
    )
    with pytest.raises(ValueError, match=says):
        PairedTask(d)(image, mask)


def test_bad_tasks():
    d = Denoiser(lambda z, t: z[:, :3], VP.cosine(), "sample")
    with pytest.raises(ValueError, match="condition has 0"):
        PairedTask(d)
    with pytest.raises(ValueError, match="grid"):
        PairedTask(posterior(VP.cosine()), grid="none")
    with pytest.raises(ValueError, match="tile"):
        PairedTask(posterior(VP.cosine()), tile=4)
    with pytest.raises(ValueError, match="num_inference_steps"):
        PairedTask(posterior(VP.cosine()), num_inference_steps=0)(torch.zeros(3, 8, 8))


# -- training --------------------------------------------------------------------------------------

PAIRS = TINY_RECIPE.replace("inpaint", "paired").replace(
    '[condition]\nkinds = ["random", "strokes"]', "[pairs]"
)
HAZE = TINY_RECIPE.replace("inpaint", "dehaze").replace(
    '[condition]\nkinds = ["random", "strokes"]', "[haze]"
)
SAMPLE = '[process]\nprediction_type = "sample"\n[loss]\nmin_snr = 3.0\n'
PROCESSES = [
    *(("resfusion", target) for target in ("resnoise", "sample", "residual")),
    *(
        ("rddm", target)
        for target in ("residual_noise", "sample_noise", "residual", "epsilon", "sample")
    ),
]


def recipe_of(tmp_path, text, **changes) -> TrainingRecipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return TrainingRecipe.read(path).model_copy(update=changes)


def under(kind, target, text=PAIRS):
    extra = 'beta_schedule = "linear"\nnum_train_timesteps = 12\n' if kind == "resfusion" else ""
    return text + f'[process]\nkind = "{kind}"\nprediction_type = "{target}"\n{extra}'


@pytest.fixture
def pairs(tmp_path):
    """Two scenes, the first degraded twice, with masks; names as in RESIDE."""
    root = tmp_path / "pairs"
    for k, names in enumerate((("a_1", "a_2"), ("b",))):
        clean = smooth_picture(40, 44 + 8 * k)
        for folder in ("degraded", "clean", "mask"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_image(root / "clean" / f"{names[0].split('_')[0]}.png", Photo(clean))
        for j, name in enumerate(names):
            write_image(root / "degraded" / f"{name}.png", Photo(clean * (0.6 - 0.2 * j)))
            write_image(root / "mask" / f"{name}.png", Photo((clean[:1] > 0.5).astype(np.float32)))
    return root


@pytest.mark.parametrize(("kind", "target"), PROCESSES)
def test_networks_are_trained_under_residual_processes(tmp_path, pairs, kind, target):
    recipe = recipe_of(tmp_path, under(kind, target))
    folder = train(recipe, pairs, tmp_path / "m")
    d = Denoiser.from_pretrained(folder)
    assert d.process == recipe.process.process()
    assert (d.prediction_type, d.condition_channels, d.residual) == (target, 3, False)
    assert not (folder / "scheduler").exists()
    solver = ResfusionSampler() if kind == "resfusion" else RDDMSampler()
    image = torch.from_numpy(smooth_picture(21, 18))
    result = PairedTask(d, solver)(image)
    assert result.nfe == 5
    assert torch.isfinite(result.mean).all()


@pytest.mark.parametrize(("kind", "target"), PROCESSES)
def test_residual_losses_are_the_papers(tmp_path, kind, target):
    """A network of zeros: the loss is the size of the target, which other tests compare with the
    authors'.
    """
    recipe = recipe_of(tmp_path, under(kind, target))
    d = build(recipe)
    heads = 2 if target in ("residual_noise", "sample_noise") else 1
    d.network = lambda z, t: z.new_zeros(z.shape[0], 3 * heads * 4, *z.shape[-2:])
    x0, y, eps = noise(4, 3, 8, 8), noise(4, 3, 8, 8, seed=1), noise(4, 3, 8, 8, seed=2)
    t = torch.tensor([0, 1, 3, 4])
    want = d.process.training_pair(x0, y, eps, t, target)[1]
    for norm, size in (("l2", want**2), ("l1", want.abs())):
        got = residual_loss(d, x0, y, t, eps, recipe.loss.model_copy(update={"norm": norm}))
        assert float(got) == pytest.approx(heads * float(size.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        under("resfusion", "residual"),
        pytest.param(under("rddm", "sample"), marks=pytest.mark.long),
        pytest.param(PAIRS + SAMPLE, marks=pytest.mark.long),
    ],
)
def test_training_lowers_the_loss(tmp_path, pairs, text):
    """On one fixed batch, before and after."""
    recipe = recipe_of(tmp_path, text, steps=50, batch_size=4)
    examples = PairExamples(recipe, pairs)
    *drawn, t, eps = next(
        batches(recipe.model_copy(update={"batch_size": 32}), examples, 1000, 0, "cpu")
    )

    @torch.no_grad()
    def loss(d):
        x0, condition, missing = examples.show(d, *drawn)
        if d.process.holds_image:
            return float(residual_loss(d, x0, condition, t, eps, recipe.loss))
        return float(denoising_loss(d, x0, condition, missing, t, eps, recipe.loss))

    before = loss(build(recipe))
    after = loss(Denoiser.from_pretrained(train(recipe, pairs, tmp_path / "m")))
    assert after < 0.8 * before


def test_sample_loss_is_the_error_relative_to_the_best_linear_estimate(tmp_path):
    """Up to the limit ``min(p SNR, min_snr)``; one sample at a time, since each is divided by its
    own scale.
    """
    recipe = recipe_of(tmp_path, PAIRS + SAMPLE)
    d, limit = build(recipe), recipe.loss.min_snr
    image, degraded, eps = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), noise(1, 3, 16, 16)
    for t in (999, 600, 100):
        shown = PairExamples.show(d, image, degraded, torch.ones(1, 1, 1, 1))
        with torch.no_grad():
            got = denoising_loss(d, *shown, torch.tensor([t]), eps, recipe.loss)
            x0, lift = 2 * image - 1, 2 * degraded - 1
            a, b = d.process.a(float(t)), d.process.b(float(t))
            error = (d.conditioned(lift)(a * x0 + b * eps, float(t)).x0 - x0).square().mean()
        power = (x0 - lift).square().mean()
        want = float(error * (1 + min(power * a**2 / b**2, limit)) / power)
        assert float(got) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("text", [under("rddm", "residual_noise"), HAZE], ids=["rddm", "haze"])
def test_resumed_run_equals_an_uncut_one(tmp_path, pairs, pictures, monkeypatch, text):
    monkeypatch.setattr("toolbox.training.loop.CHECKPOINT_EVERY", 2)
    recipe, data = recipe_of(tmp_path, text), pictures if "dehaze" in text else pairs
    whole = train(recipe, data, tmp_path / "whole")

    def cut(step, loss):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(recipe, data, tmp_path / "cut", progress=cut)
    resumed = train(recipe, data, tmp_path / "cut", resume=True)
    a, b = (Denoiser.from_pretrained(p).network.state_dict() for p in (whole, resumed))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-5, atol=1e-6)


def test_pairs_are_cut_alike_and_dropped_as_asked(tmp_path, pairs):
    text = PAIRS + 'shown = "mask"\ndrop = 0.5\nscales = [1.0, 0.8]\n'
    recipe = recipe_of(
        tmp_path, text.replace("[pairs]", "").replace("[optimizer]\nwarmup = 2\n", "[pairs]\n")
    )
    examples = PairExamples(recipe, pairs)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(10):
        clean, shown, keep = examples.draw(8, rng)
        assert clean.shape == (8, 3, 32, 32)
        assert shown.shape == (8, 4, 32, 32)
        ratio = (shown[:, :3].mean((1, 2, 3)) / clean.mean((1, 2, 3))).numpy()
        assert np.minimum(np.abs(ratio - 0.6), np.abs(ratio - 0.4)).max() < 0.02
        agree = ((clean[:, 0] > 0.5) == (shown[:, 3] > 0.5)).float().mean()
        assert agree > 0.97  # the rest is where resizing blurs the mask's edge
        kept += keep.flatten().tolist()
    assert 0.3 < np.mean(kept) < 0.7
    d = build(recipe)
    assert d.condition_channels == 4
    _, condition, _ = examples.show(d, clean, shown, keep)
    for one, flag, degraded in zip(condition, keep.flatten(), shown, strict=True):
        torch.testing.assert_close(one, flag * (2 * degraded - 1))


@pytest.mark.parametrize(("made", "shown"), [("rain", "degraded"), ("shadow", "mask")])
def test_made_pairs(tmp_path, pictures, made, shown):
    """Pairs of clean pictures alone: their patches, what is made of them in 8 bits, and its mask
    where the network is shown one.
    """
    settings = f'[pairs]\nmade = "{made}"\nshown = "{shown}"'
    recipe = recipe_of(tmp_path, PAIRS.replace("[pairs]", settings), patch_size=16)
    examples = MadeExamples(recipe, pictures)
    clean, degraded, keep = examples.draw(6, np.random.default_rng(0))
    assert clean.shape == (6, 3, 16, 16)
    assert degraded.shape == (6, 3 + (shown == "mask"), 16, 16)
    assert (keep == 1).all()
    torch.testing.assert_close(255 * degraded, (255 * degraded).round())
    assert (clean - degraded[:, :3]).abs().max() > 0.05
    assert torch.equal(degraded, examples.draw(6, np.random.default_rng(0))[1])
    train(recipe.model_copy(update={"steps": 1}), pictures, tmp_path / "out")
    hold = build(recipe)
    assert hold.condition_channels == degraded.shape[1]


@pytest.mark.parametrize(
    ("shown", "lift"), [("brightened", brightened), ("relit", relit), ("haze", None)]
)
def test_what_is_shown_of_pairs_is_made_of_whole_pictures(tmp_path, pairs, shown, lift):
    """Lifts of the picture that a patch is cut from; of haze, patches of twice the size."""
    settings = f'[pairs]\nshown = "{shown}"'
    recipe = recipe_of(tmp_path, PAIRS.replace("[pairs]", settings), patch_size=16)
    examples = PairExamples(recipe, pairs)
    clean, given, keep = examples.draw(4, np.random.default_rng(0))
    assert clean.shape == (4, 3, 16, 16)
    side = 32 if lift is None else 16
    assert given.shape == (4, 4 if shown == "relit" else 3, side, side)
    x0, condition, _ = examples.show(build(recipe), clean, given, keep)
    assert condition.shape[2:] == x0.shape[2:] == (16, 16)
    if lift is None:
        assert condition.shape[1] == 7
        return
    folder = Path(pairs)
    wholes = []
    for files in find_pairs(folder, mask="mask"):
        degraded, mask = (torch.from_numpy(read_image(f).pixels)[None] for f in files[::2])
        wholes.append(lift(degraded, (mask.mean(1, keepdim=True) >= 0.5).float())[0])
    for patch in given[:, :3]:
        assert min(_farthest(patch, whole) for whole in wholes) < 2 / 255


def _farthest(patch, whole):
    """Of a patch, turned and mirrored at random, from the part of a picture that it is."""
    turned = [torch.rot90(v, k, (1, 2)) for v in (patch, patch.flip(2)) for k in range(4)]
    parts = whole.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return min(float((parts - one).abs().amax((1, 2, 3)).min()) for one in turned)


def test_made_pairs_are_lifted_by_more_than_a_patch(tmp_path, pictures):
    """The mean light of a patch varies as in whole pictures: no patch is lifted by itself."""
    settings = '[pairs]\nmade = "low-light"\nshown = "brightened"'
    recipe = recipe_of(tmp_path, PAIRS.replace("[pairs]", settings), patch_size=16)
    clean, lifted, _ = MadeExamples(recipe, pictures).draw(6, np.random.default_rng(0))
    assert clean.shape == lifted.shape == (6, 3, 16, 16)
    light = srgb_decode(lifted).mean((1, 2, 3))
    assert (light - MEAN).abs().max() > 0.01


@pytest.mark.parametrize("name", ["low-light", "shadow", "rain"])
def test_recipes_of_made_pairs(name):
    recipe = TrainingRecipe.read(Path(toolbox.__file__).parent / "recipes" / f"{name}.toml")
    assert recipe.pairs.made == name == recipe.name


def test_haze_examples_hold_the_model(tmp_path, pictures):
    recipe = recipe_of(tmp_path, HAZE, patch_size=16)
    examples = HazeExamples(recipe, pictures)
    clear, hazy, keep = examples.draw(6, np.random.default_rng(0))
    assert clear.shape == (6, 3, 16, 16)
    assert hazy.shape == (6, 3, 32, 32)
    assert (keep == 1).all()
    assert 0 <= min(clear.min(), hazy.min()) <= max(clear.max(), hazy.max()) <= 1
    again = examples.draw(6, np.random.default_rng(0))
    assert torch.equal(hazy, again[1])
    # I - A = (J - A) t: haze only ever pulls towards one colour, by less than all of it
    clear, hazy = make_hazy(
        clear[0],
        clear,
        Haze(beta=(1, 1), airlight=(1, 1), tint=0, paste=0),
        np.random.default_rng(1),
    )
    ratio = ((1 - hazy) / (1 - clear))[:, (clear < 0.9).all(0)]
    torch.testing.assert_close(ratio[0], ratio[1], atol=1e-4, rtol=0)
    assert np.exp(-1) - 1e-4 <= ratio.min() <= ratio.max() <= 1
    source = batches(recipe, examples, 0, 0, "cpu")
    assert len(next(source)) == 5


def test_haze_of_other_kinds():
    """Denser haze, uneven haze and JPEG change the hazy picture alone; all are seeded."""
    clear = torch.from_numpy(smooth_picture(48, 48)) * 0.8
    own = {"beta": (1.0, 1.0), "airlight": (1.0, 1.0), "tint": 0, "paste": 0, "rooms": 0}
    own |= {"levels": 0, "jitter": 0}

    def depth_of(**kind):
        """Optical depth where it can be told."""
        same, hazy = make_hazy(clear, clear[None], Haze(**own, **kind), np.random.default_rng(2))
        torch.testing.assert_close(same, clear)
        again = make_hazy(clear, clear[None], Haze(**own, **kind), np.random.default_rng(2))
        assert torch.equal(hazy, again[1])
        return -torch.log(((1 - hazy) / (1 - clear)).clamp(min=1e-3))

    plain = depth_of()
    ratio = depth_of(dense=1.0) / plain
    assert 1 < ratio.min() <= ratio.max() <= 3.01
    assert ratio.max() - ratio.min() < 1e-2
    ratio = depth_of(uneven=1.0) / plain
    assert ratio.max() / ratio.min() > 1.1
    assert (ratio[0] - ratio[2]).abs().max() < 1e-2  # the same in all colours
    assert depth_of(distant=1.0).min() > plain.min() + 0.05
    ratio = depth_of(exponent=2.0) / plain
    assert ratio[0].max() < ratio[1].min() < ratio[2].min()
    change = (depth_of(jpeg=1.0) - plain).abs()
    assert 1e-3 < change.mean() < 0.1
    assert (depth_of(cues=1.0) - plain).abs().mean() > 0.05


def test_haze_networks_see_upright_pictures(tmp_path):
    """A picture that is bright above and blue all over stays so."""
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[..., 2] = np.linspace(250, 60, 60)[:, None]
    write_image(tmp_path / "sky.png", Photo(picture.transpose(2, 0, 1) / np.float32(255)))
    settings = "[haze]\njitter = 0.0\nlevels = 0.0\npaste = 0.0\nrooms = 0.0"
    recipe = recipe_of(tmp_path, HAZE.replace("[haze]", settings), patch_size=32)
    clear, _, _ = HazeExamples(recipe, tmp_path).draw(16, np.random.default_rng(0))
    assert (clear[:, 2, 0] > clear[:, 2, -1]).all()
    assert (clear[:, :2] == 0).all()


def test_min_snr_weighs_the_image_error(tmp_path):
    """The loss in v, weighted, equals ``min(SNR, gamma)`` times the error of the image."""
    text = TINY_RECIPE.replace("inpaint", "denoise").replace(
        '[condition]\nkinds = ["random", "strokes"]\n', ""
    )
    d = build(recipe_of(tmp_path, text))
    image, eps = (
        torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
        noise(1, 1, 16, 16),
    )
    for t in (50, 400, 900):
        x0 = d.from_unit(image)
        a, b = d.process.a(float(t)), d.process.b(float(t))
        with torch.no_grad():
            error = (d(a * x0 + b * eps, float(t)).x0 - x0).square().mean() / d.data_std**2
            got = plain_loss(d, image, torch.tensor([t]), eps, Loss(min_snr=5.0))
        snr = (d.data_std * a / b) ** 2
        assert float(got) == pytest.approx(float(min(snr, 5.0) * error), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (under("resfusion", "v_prediction"), "no target of process 'resfusion'"),
        (under("rddm", "resnoise"), "no target of process 'rddm'"),
        (PAIRS + '[process]\nprediction_type = "residual"\n', "no target of process 'vp'"),
        (under("rddm", "residual", TINY_RECIPE), "starts from a degraded picture"),
        (PAIRS.replace("[pairs]", "[haze]"), "belongs to task"),
        (HAZE.replace("[haze]", "[haze]\nbeta = [2.0, 1.0]"), "beta"),
        (HAZE.replace("[haze]", "[haze]\nairlight = [0.5, 1.5]"), "airlight"),
        (PAIRS + "[loss]\nmin_snr = 5.0\n", "min_snr is for"),
        (PAIRS + SAMPLE.replace("min_snr = 3.0", ""), "needs loss.min_snr"),
    ],
)
def test_bad_recipes(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        recipe_of(tmp_path, text)


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "toolbox" / "recipes").glob("*.toml")),
    ids=lambda p: p.stem,
)
def test_shipped_recipes_are_accepted_and_survive_json(path):
    recipe = TrainingRecipe.read(path)
    assert recipe.name == path.stem
    assert TrainingRecipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_bad_pairs(tmp_path, pairs):
    recipe = recipe_of(tmp_path, PAIRS)
    with pytest.raises(ValueError, match="at least 32"):
        PairExamples(
            recipe.model_copy(
                update={
                    "patch_size": 32,
                    "pairs": recipe.pairs.model_copy(update={"scales": [0.1]}),
                }
            ),
            pairs,
        )
    with pytest.raises(FileNotFoundError, match="'hazy'"):
        find_pairs(pairs, "hazy", "clean")
    write_image(pairs / "degraded" / "c.png", Photo(smooth_picture(40, 40)))
    with pytest.raises(ValueError, match=r"c\.png has no partner"):
        find_pairs(pairs)
    write_image(pairs / "clean" / "c.png", Photo(smooth_picture(40, 41)))
    with pytest.raises(ValueError, match=r"differ in size \(40 x 40 and 41 x 40\)"):
        PairExamples(recipe, pairs)
    write_image(pairs / "clean" / "c.png", Photo(smooth_picture(40, 40, 1)))
    with pytest.raises(ValueError, match="colour and grey"):
        PairExamples(recipe, pairs)
    for path in (pairs / "degraded").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no picture"):
        find_pairs(pairs)


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_haze(tmp_path_factory, pictures):
    """A haze model after four steps."""
    folder = tmp_path_factory.mktemp("haze")
    return train(recipe_of(folder, HAZE), pictures, folder / "m")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["restobox", *map(str, arguments)])
    code = main()
    return code, capsys.readouterr()


@pytest.fixture
def hazy(tmp_path):
    """``hazy/`` and ``clear/`` with one pair."""
    clear = smooth_picture(40, 52)
    depth, _ = procedural_depth(40, 52, np.random.default_rng(0))
    write_image(tmp_path / "clear.png", Photo(clear))
    write_image(
        tmp_path / "hazy.png", Photo(Scattering(1.2, 0.95)(torch.from_numpy(clear), depth).numpy())
    )
    for name in ("hazy", "clear"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.png").rename(tmp_path / name / "one.png")
    return tmp_path


def test_dehaze_restores_a_file(hazy, tiny_haze, monkeypatch, capsys):
    source, out = hazy / "hazy" / "one.png", hazy / "out.png"
    options = ("--model", tiny_haze, "--reference", hazy / "clear" / "one.png")
    code, text = run(
        monkeypatch, capsys, "restore", "dehaze", source, "-o", out, *options, "--json"
    )
    assert code == 0, text.err
    figures = json.loads(text.out)
    assert (figures["nfe"], figures["size"]) == (5, [52, 40])
    truth = read_image(hazy / "clear" / "one.png").pixels
    assert figures["psnr"] == pytest.approx(psnr(read_image(out).pixels, truth), abs=0.05)
    assert figures["psnr_input"] == pytest.approx(psnr(read_image(source).pixels, truth), abs=1e-3)
    code, text = run(
        monkeypatch,
        capsys,
        "restore",
        "dehaze",
        source,
        "-o",
        out,
        *options,
        "--solver",
        "evodiff",
        "--steps",
        "3",
    )
    assert code == 0
    assert "3 network calls" in text.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("missing.png",), "does not exist"),
        (
            ("hazy/one.png", "--reference", "grey.png"),
            "is grey, 52 x 40 pixels; the result is colour",
        ),
        (("hazy/one.png", "--reference", "small.png"), "52 x 30 pixels; the result is"),
        (("hazy/one.png", "--solver", "none"), "unknown"),
        (("hazy/one.png", "--steps", "0"), "num_inference_steps"),
        (("hazy/one.png", "--model", "photo"), "models that fit: haze"),
        (("hazy/one.png", "--model", "grey"), "models that fit: haze"),
        (("broken.png",), "can't be read"),
    ],
)
def test_dehaze_says_what_is_wrong(hazy, tiny_haze, monkeypatch, capsys, changes, says):
    write_image(hazy / "grey.png", Photo(smooth_picture(40, 52, 1)))
    write_image(hazy / "small.png", Photo(smooth_picture(30, 52)))
    (hazy / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(hazy)
    model = () if "--model" in changes else ("--model", tiny_haze)
    code, text = run(monkeypatch, capsys, "restore", "dehaze", *changes, "-o", "out.png", *model)
    assert code == 2
    assert says in text.err
    assert not (hazy / "out.png").exists()


def test_paired_command_takes_a_mask(tmp_path, pairs, monkeypatch, capsys):
    text = under("rddm", "residual").replace("[pairs]", '[pairs]\nshown = "mask"')
    model = train(recipe_of(tmp_path, text), pairs, tmp_path / "m")
    source, out = pairs / "degraded" / "b.png", tmp_path / "out.png"
    code, said = run(
        monkeypatch,
        capsys,
        "restore",
        "paired",
        source,
        "-o",
        out,
        "--model",
        model,
        "--mask",
        pairs / "mask" / "b.png",
    )
    assert code == 0, said.err
    assert read_image(out).pixels.shape == read_image(source).pixels.shape
    code, said = run(monkeypatch, capsys, "restore", "paired", source, "-o", out, "--model", model)
    assert (code, "give one" in said.err) == (2, True)
    code, said = run(
        monkeypatch,
        capsys,
        "restore",
        "paired",
        source,
        "-o",
        out,
        "--model",
        model,
        "--mask",
        pairs / "mask" / "a_1.png",
    )
    assert (code, "mask" in said.err and "pixels" in said.err) == (2, True)


def test_bench_measures_methods(hazy, tiny_haze, monkeypatch, capsys):
    arguments = (
        "bench",
        "dehaze",
        hazy,
        "--model",
        "input",
        "--model",
        "dark-channel",
        "--model",
        tiny_haze,
        "--solver",
        "ddim",
        "--json",
    )
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 0, text.err
    rows = json.loads(text.out)
    assert [(r["model"], r["calls"], r["pictures"]) for r in rows] == [
        ("input", 0, 1),
        ("dark-channel", 0, 1),
        (str(tiny_haze), 5, 1),
    ]
    image, truth = (read_image(hazy / name / "one.png").pixels for name in ("hazy", "clear"))
    assert rows[0]["psnr"] == pytest.approx(psnr(image, truth), abs=1e-3)
    code, text = run(monkeypatch, capsys, *arguments[:-1])
    assert (code, "dark-channel" in text.out) == (0, True)
    for folder, says in (
        (hazy / "hazy", "holds no folder 'hazy'"),
        (hazy / "none", "holds no folder"),
    ):
        code, text = run(monkeypatch, capsys, "bench", "dehaze", folder, "--model", "input")
        assert (code, says in text.err) == (2, True), text.err


def test_calibration_records_the_levels_of_all_solvers(tmp_path, tiny_haze, pictures):
    options = {
        "task": "dehaze",
        "solver": "rddm,resfusion",
        "count": 2,
        "side": 32,
        "per_timestep": 2,
    }
    figures = run_calibrate(str(tiny_haze), pictures, tmp_path / "c.safetensors", **options)
    d = Denoiser.from_pretrained(tiny_haze)
    wanted = {d.process.end}
    for process, times in (
        (RDDM.scheduled(sum_scale=LITTLE**2), (799, 599, 399, 199)),
        (Resfusion.scheduled(noise_scale=LITTLE), (3, 2, 1, 0)),
    ):
        wanted |= {d.process.time_at(process.log_snr(float(t))) for t in times}
    np.testing.assert_allclose(sorted(figures["timesteps"]), sorted(wanted), atol=1e-3)
    with pytest.raises(ValueError, match="is shown a hazy picture"):
        run_calibrate(str(tiny_haze), pictures, tmp_path / "d.safetensors", task="inpaint")


def test_calibration_of_pairs(tmp_path, pairs):
    model = train(recipe_of(tmp_path, under("rddm", "residual_noise")), pairs, tmp_path / "m")
    figures = run_calibrate(
        str(model),
        pairs / "degraded",
        tmp_path / "c.safetensors",
        task="paired",
        solver="rddm",
        count=1,
        side=32,
    )
    assert sorted(figures["timesteps"]) == [199, 399, 599, 799, 999]
    assert CalibrationSet.load(tmp_path / "c.safetensors").provenance.task.startswith("paired")
