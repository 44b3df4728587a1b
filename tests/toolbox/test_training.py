"""Training from a recipe: it learns, it resumes as if uncut, it says what is wrong."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers.data import TINY_RECIPE

from restoration.operators.separable import BlockMean
from restoration.photo.lift import enlarge, thin_plate
from solvers.denoiser import Denoiser
from toolbox.training.examples.enlarged import EnlargedExamples
from toolbox.training.examples.grey import GreyExamples
from toolbox.training.examples.photo import BLOCKS, PhotoExamples, draw_known
from toolbox.training.log import Log
from toolbox.training.loop import batches, train
from toolbox.training.losses import denoising_loss, immiscible_noise
from toolbox.training.network import build
from toolbox.training.recipe import TrainingRecipe


def test_model_folder_loads(tiny_model):
    d = Denoiser.from_pretrained(tiny_model)
    assert (d.fold, d.condition_channels, d.residual, d.prediction_type) == (
        2,
        4,
        True,
        "v_prediction",
    )
    assert d.process.a(999) == 0  # zero terminal SNR
    x = torch.randn(1, 3, 21, 18, generator=torch.Generator().manual_seed(0))
    assert d(x, 999.0).x0.shape == x.shape


def test_training_lowers_the_loss(tiny_recipe, pictures, tmp_path):
    recipe = TrainingRecipe.read(tiny_recipe).model_copy(update={"steps": 60, "batch_size": 4})
    losses = []
    train(recipe, pictures, tmp_path / "m", progress=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])


def test_resumed_run_equals_an_uncut_one(tiny_recipe, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("toolbox.training.loop.CHECKPOINT_EVERY", 2)
    recipe = TrainingRecipe.read(tiny_recipe)
    whole = train(recipe, pictures, tmp_path / "whole")

    class Cut(Exception):
        pass

    def cut(step, loss):
        if step == 3:
            raise Cut

    with pytest.raises(Cut):
        train(recipe, pictures, tmp_path / "cut", progress=cut)
    resumed = train(recipe, pictures, tmp_path / "cut", resume=True)
    a, b = (Denoiser.from_pretrained(p).network.state_dict() for p in (whole, resumed))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-5, atol=1e-6)
    for change, name in (({"seed": 5}, "seed"), ({"batch_size": 3}, "batch_size")):
        with pytest.raises(ValueError, match=f"a run with another {name}"):
            train(recipe.model_copy(update=change), pictures, tmp_path / "cut", resume=True)


def test_loss_is_the_error_relative_to_the_best_linear_estimate(tiny_recipe):
    """The loss written in v equals its definition in x0; one sample at a time, since each is
    divided by its own scale.
    """
    recipe = TrainingRecipe.read(tiny_recipe)
    d = build(recipe)
    g = torch.Generator().manual_seed(0)
    for t, known in ((999, 0.5), (400, 0.2), (30, 0.9), (700, 0.0)):
        image, noise = torch.rand(1, 3, 16, 16, generator=g), torch.randn(1, 3, 16, 16, generator=g)
        mask = (torch.rand(1, 1, 16, 16, generator=g) < known).float()
        with torch.no_grad():
            shown = PhotoExamples.show(d, image, mask)
            got = denoising_loss(d, *shown, torch.tensor([t]), noise, recipe.loss)
            x0 = d.from_unit(image)
            lift = thin_plate(x0 * mask, mask)
            a, b = d.process.a(float(t)), d.process.b(float(t))
            estimate = d.conditioned(torch.cat([lift, mask], 1))(a * x0 + b * noise, float(t)).x0
        power = ((1 - mask) * (x0 - lift) ** 2).sum() / (3 * (1 - mask).sum())
        # error of the best linear estimate of the residual from the state
        linear = power * b**2 / (a**2 * power + b**2)
        focus = 1 - 0.9 * mask
        want = float((focus / focus.mean() * (estimate - x0) ** 2).mean() / linear)
        assert float(got) == pytest.approx(want, rel=1e-3)


def test_batches_depend_on_seed_and_step_alone(tiny_recipe, pictures):
    recipe = TrainingRecipe.read(tiny_recipe)
    examples = PhotoExamples(recipe, pictures)
    first = batches(recipe, examples, 0, 0, "cpu")
    next(first)
    later = batches(recipe, examples, 1, 0, "cpu")
    for a, b in zip(next(first), next(later), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = batches(recipe, examples, 1, 1, "cpu")
    assert not torch.equal(next(other)[0], next(batches(recipe, examples, 1, 0, "cpu"))[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("steps = 4", "steps = 0"), "steps"),
        (("steps = 4", "stepz = 4"), "stepz"),
        (('kinds = ["random", "strokes"]', 'kinds = ["dots"]'), "kinds"),
        (("fold = 2", "fold = 2\n[[["), "TOML"),
    ],
)
def test_bad_recipes(tmp_path, change, says):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace(*change))
    with pytest.raises(ValueError, match=says):
        TrainingRecipe.read(path)


def test_factors_of_blocks_are_the_recipes(tiny_recipe, tmp_path):
    path = tmp_path / "blocks.toml"
    path.write_text(
        TINY_RECIPE.replace('["random", "strokes"]', '["blocks"]\nfactors = [2, 4, 4]').replace(
            "patch_size = 32", "patch_size = 24"
        )
    )
    recipe = TrainingRecipe.read(path)
    c = recipe.condition
    known = draw_known(300, 24, c.kinds, 0.0, np.random.default_rng(0), c.factors)[:, 0, 0, 0]
    count = {float(v): int((known == v).sum()) for v in known.unique()}
    assert set(count) == {1 / 4, 1 / 16}
    assert 160 < count[1 / 16] < 240  # two of three, five standard deviations to either side
    assert TrainingRecipe.read(tiny_recipe).condition.factors == list(BLOCKS)
    path.write_text(path.read_text().replace("[2, 4, 4]", "[5]"))
    with pytest.raises(ValueError, match="factors"):
        TrainingRecipe.read(path)


def test_blocks_are_shown_as_their_enlarged_means(tiny_recipe):
    d = build(TrainingRecipe.read(tiny_recipe))
    known = draw_known(40, 24, ["blocks", "random"], 0.1, np.random.default_rng(0))
    image = torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    x0, shown, missing = PhotoExamples.show(d, image, known)
    torch.testing.assert_close(missing, 1 - known)
    torch.testing.assert_close(shown[:, 3:], known)
    counted = 0
    for k in range(40):
        share = known[k].unique()
        mask = (known[k : k + 1] == 1).float()
        want = thin_plate(x0[k : k + 1] * mask, mask)
        if len(share) == 1 and 0 < float(share) < 1:
            factor = round(float(share) ** -0.5)
            assert factor in BLOCKS
            want = enlarge(BlockMean((24, 24), factor).A(x0[k : k + 1]), factor, (24, 24))
            counted += 1
        torch.testing.assert_close(shown[k : k + 1, :3], want, rtol=0, atol=1e-5)
    assert 10 < counted < 30


def test_training_goes_on_from_a_model(tiny_recipe, tiny_model, pictures, tmp_path):
    recipe = TrainingRecipe.read(tiny_recipe)
    first = []
    train(
        recipe,
        pictures,
        tmp_path / "m",
        start_from=tiny_model,
        progress=lambda step, loss: first.append(loss),
    )
    d = Denoiser.from_pretrained(tiny_model)
    *drawn, t, noise = next(batches(recipe, PhotoExamples(recipe, pictures), 0, 0, "cpu"))
    with torch.no_grad():
        want = denoising_loss(d, *PhotoExamples.show(d, *drawn), t, noise, recipe.loss)
    assert first[0] == pytest.approx(float(want), rel=1e-5)
    wider = recipe.model_copy(
        update={"network": recipe.network.model_copy(update={"block_out_channels": [8, 24]})}
    )
    with pytest.raises(ValueError, match="other weights"):
        train(wider, pictures, tmp_path / "n", start_from=tiny_model)
    assert not (tmp_path / "n").exists()


def test_bad_data(tiny_recipe, pictures, tmp_path):
    recipe = TrainingRecipe.read(tiny_recipe)
    with pytest.raises(FileNotFoundError):
        train(recipe, tmp_path / "none", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        train(recipe, tmp_path / "empty", tmp_path / "m")
    with pytest.raises(ValueError, match="nothing to resume"):
        train(recipe, pictures, tmp_path / "m", resume=True)
    assert not (tmp_path / "m").exists()
    (tmp_path / "m" / "checkpoint").mkdir(parents=True)
    (tmp_path / "m" / "checkpoint" / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="as a checkpoint"):
        train(recipe, pictures, tmp_path / "m", resume=True)


def test_config_is_plain_json(tiny_model):
    for path in tiny_model.rglob("*.json"):
        assert json.loads(path.read_text())
    assert not list(tiny_model.rglob(".*"))


GREY_RECIPE = TINY_RECIPE.replace("inpaint", "denoise").replace(
    '[condition]\nkinds = ["random", "strokes"]\n', ""
)


@pytest.mark.long
def test_denoisers_of_single_planes_are_trained_at_the_levels_asked_for(tmp_path, pictures):
    path = tmp_path / "grey.toml"
    path.write_text(GREY_RECIPE + "[noise]\nlowest = 0.05\nhighest = 1.0\n")
    recipe = TrainingRecipe.read(path).model_copy(update={"steps": 40, "batch_size": 6})
    source = batches(recipe, GreyExamples(recipe, pictures), 0, 0, "cpu")
    process = build(recipe).process
    levels = [process.kappa(float(t)) for _ in range(20) for t in next(source)[1]]
    assert 0.049 < min(levels) < 0.1
    assert 0.7 < max(levels) < 1.01
    image, _, noise = next(source)
    assert image.shape == noise.shape == (6, 1, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    losses = []
    folder = train(
        recipe, pictures, tmp_path / "m", progress=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    d = Denoiser.from_pretrained(folder)
    assert (d.condition_channels, d.residual, d.network.config.out_channels) == (0, False, 4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[condition]", "[noise]\n[condition]", None),
        ('task = "inpaint"', 'task = "denoise"', "condition"),
        ("kinds", "#", "kinds"),
    ],
)
def test_recipes_hold_the_sections_of_their_task(tmp_path, old, new, words):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace(old, new))
    if words is None:
        assert TrainingRecipe.read(path).noise.highest == 3
    else:
        with pytest.raises(ValueError, match=words):
            TrainingRecipe.read(path)


X4_RECIPE = TINY_RECIPE.replace("inpaint", "superresolve").replace(
    '[condition]\nkinds = ["random", "strokes"]\n', "[reduction]\n"
)


def small_pictures(tmp_path, pictures, how, count=8):
    path = tmp_path / "x4.toml"
    path.write_text(X4_RECIPE.replace("[reduction]", "[reduction]\n" + how))
    examples = EnlargedExamples(TrainingRecipe.read(path), pictures)
    return examples, *examples.draw(count, np.random.default_rng(0))


def test_small_pictures_are_means_of_blocks(tmp_path, pictures):
    _, images, small = small_pictures(tmp_path, pictures, 'kernels = ["block"]')
    assert small.shape == (8, 3, 8, 8)
    error = (torch.nn.functional.avg_pool2d(images, 4) - small).abs().max()
    assert error <= 1.01 / 255  # both are rounded to 8 bits


@pytest.mark.parametrize(
    "how", ["softened = 1.0", "noisy = 1.0\nsigma = 20.0", "jpeg = 1.0\nquality = 10"]
)
def test_small_pictures_are_spoilt_as_the_recipe_says(tmp_path, pictures, how):
    kernels = 'kernels = ["bicubic", "lanczos"]\n'
    _, images, clean = small_pictures(tmp_path, pictures, kernels)
    _, same, spoilt = small_pictures(tmp_path, pictures, kernels + how)
    assert torch.equal(images, same)
    assert (clean - spoilt).abs().mean() > 1e-4
    assert (clean - spoilt).abs().mean() < 0.1


def test_small_pictures_are_shown_enlarged(tmp_path, pictures):
    examples, images, small = small_pictures(tmp_path, pictures, 'kernels = ["block"]', 2)
    denoiser = build(examples.recipe)
    image, condition, missing = examples.show(denoiser, images, small)
    torch.testing.assert_close(image, 2 * images - 1)
    lift, share = condition[:, :3], condition[:, 3:]
    pooled = torch.nn.functional.avg_pool2d(lift, 4)
    assert (pooled - (2 * small - 1)).abs().mean() < 0.02
    assert torch.equal(share, torch.full_like(share, 1 / 16))
    assert torch.equal(missing, torch.ones_like(share))


# -- options ---------------------------------------------------------------------------------------


def test_immiscible_noise_is_the_nearest_order_of_the_same_noise():
    """Against every order there is, for squared distances; neither units nor offset of the images
    matter.
    """
    rng = np.random.default_rng(0)
    for count, shape in ((5, (1, 3, 2)), (4, (2, 4, 4)), (1, (1, 2, 2))):
        images, noise = (
            rng.uniform(size=(count, *shape)).astype(np.float32),
            rng.standard_normal((count, *shape)).astype(np.float32),
        )
        got = immiscible_noise(images, noise)
        assert sorted(map(bytes, got)) == sorted(map(bytes, noise))
        best = min(
            np.sum((images - noise[list(order)]) ** 2)
            for order in itertools.permutations(range(count))
        )
        assert np.sum((images - got) ** 2) == pytest.approx(best)
        np.testing.assert_array_equal(immiscible_noise(7 * images - 3, noise), got)
    with pytest.raises(ValueError, match="one shape"):
        immiscible_noise(images, noise[:, :, :1])


def test_batches_take_immiscible_noise(tmp_path, pictures):
    path = tmp_path / "grey.toml"
    path.write_text(GREY_RECIPE.replace("[optimizer]", "[loss]\nimmiscible = true\n[optimizer]"))
    recipe = TrainingRecipe.read(path).model_copy(update={"batch_size": 6})
    plain = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"immiscible": False})})
    examples = GreyExamples(recipe, pictures)
    image, t, noise = next(batches(recipe, examples, 3, 0, "cpu"))
    same, same_t, drawn = next(batches(plain, examples, 3, 0, "cpu"))
    torch.testing.assert_close((image, t), (same, same_t), rtol=0, atol=0)
    assert not torch.equal(noise, drawn)
    assert {bytes(n.numpy()) for n in noise} == {bytes(n.numpy()) for n in drawn}
    assert (image - noise).square().sum() < (image - drawn).square().sum()
    path.write_text(TINY_RECIPE + "[loss]\nimmiscible = true\n")
    with pytest.raises(ValueError, match="immiscible is for tasks denoise and ultrasound"):
        TrainingRecipe.read(path)


def test_log_goes_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path / "train.csv", 0)
    for step in range(1, 151):
        log.add(step, step / 10, 2.0, 1e-3, lambda: math.nan)
    log.close()
    # from a checkpoint at step 100: what came after is told anew
    resumed = Log(tmp_path / "train.csv", 100)
    for step in range(101, 151):
        resumed.add(step, 0.5, 1.0, 5e-4, lambda: 3.0)
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss",
        "gradient_norm",
        "learning_rate",
        "gain_db",
        "seconds",
    }
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    assert losses == [
        (50, pytest.approx(2.55)),
        (100, pytest.approx(7.55)),
        (150, pytest.approx(0.5)),
    ]
    assert [(e.step, e.value) for e in events.Scalars("gain_db")] == [(150, 3.0)]
    rows = list(csv.reader((tmp_path / "train.csv").read_text().splitlines()))
    assert rows[0] == ["step", "loss", "gradient_norm", "learning_rate", "gain_db", "seconds"]
    assert rows[1][:5] == ["50", "2.55000", "2.0000", "1.00e-03", "nan"]
    assert [r[0] for r in rows[1:]] == ["50", "100", "150", "150"]
