"""Training from a recipe: it learns, it resumes as if uncut, it says what is wrong."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY_RECIPE

from restoration.lift import push_pull
from solvers.denoiser import Denoiser
from toolbox.examples import GreyExamples, PhotoExamples
from toolbox.recipe import Recipe
from toolbox.training import batches, build, denoising_loss, train


def test_model_folder_loads(tiny_model):
    d = Denoiser.from_pretrained(tiny_model)
    assert (d.fold, d.condition_channels, d.residual, d.prediction_type) == (2, 4, True, "v_prediction")
    assert d.process.a(999) == 0  # zero terminal SNR
    x = torch.randn(1, 3, 21, 18, generator=torch.Generator().manual_seed(0))
    assert d(x, 999.0).x0.shape == x.shape


def test_training_lowers_the_loss(tiny_recipe, pictures, tmp_path):
    recipe = Recipe.read(tiny_recipe).model_copy(update={"steps": 60, "batch_size": 4})
    losses = []
    train(recipe, pictures, tmp_path / "m", progress=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])


def test_resumed_run_equals_an_uncut_one(tiny_recipe, pictures, tmp_path):
    recipe = Recipe.read(tiny_recipe)
    whole = train(recipe, pictures, tmp_path / "whole", checkpoint_every=2)

    class Cut(Exception):
        pass

    def cut(step, loss):
        if step == 3:
            raise Cut

    with pytest.raises(Cut):
        train(recipe, pictures, tmp_path / "cut", checkpoint_every=2, progress=cut)
    resumed = train(recipe, pictures, tmp_path / "cut", resume=True)
    a, b = (Denoiser.from_pretrained(p).network.state_dict() for p in (whole, resumed))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-5, atol=1e-6)


def test_loss_is_the_error_relative_to_the_best_linear_estimate(tiny_recipe):
    """The loss written in v equals its definition in x0; one sample at a time, since each is divided by its own scale."""
    recipe = Recipe.read(tiny_recipe)
    d = build(recipe)
    g = torch.Generator().manual_seed(0)
    for t, known in ((999, 0.5), (400, 0.2), (30, 0.9), (700, 0.0)):
        image, noise = torch.rand(1, 3, 16, 16, generator=g), torch.randn(1, 3, 16, 16, generator=g)
        mask = (torch.rand(1, 1, 16, 16, generator=g) < known).float()
        with torch.no_grad():
            shown = PhotoExamples.show(d, image, mask)
            got = denoising_loss(d, *shown, torch.tensor([t]), noise, recipe.loss)
            x0 = d.from_unit(image)
            lift = push_pull(x0 * mask, mask)
            a, b = d.process.a(float(t)), d.process.b(float(t))
            estimate = d.conditioned(torch.cat([lift, mask], 1))(a * x0 + b * noise, float(t)).x0
        power = ((1 - mask) * (x0 - lift) ** 2).sum() / (3 * (1 - mask).sum())
        linear = power * b**2 / (a**2 * power + b**2)  # error of the best linear estimate of the residual from the state
        focus = 1 - 0.9 * mask
        want = float((focus / focus.mean() * (estimate - x0) ** 2).mean() / linear)
        assert float(got) == pytest.approx(want, rel=1e-3)


def test_batches_depend_on_seed_and_step_alone(tiny_recipe, pictures):
    recipe = Recipe.read(tiny_recipe)
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
        Recipe.read(path)


def test_bad_data(tiny_recipe, pictures, tmp_path):
    recipe = Recipe.read(tiny_recipe)
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
    with pytest.raises(ValueError, match="damaged"):
        train(recipe, pictures, tmp_path / "m", resume=True)


def test_config_is_plain_json(tiny_model):
    for path in tiny_model.rglob("*.json"):
        assert json.loads(path.read_text())
    assert not list(tiny_model.rglob(".*"))


GREY_RECIPE = TINY_RECIPE.replace("inpainting", "denoising").replace('[condition]\nkinds = ["random", "strokes"]\n', "")


def test_denoisers_of_single_planes_are_trained_at_the_levels_asked_for(tmp_path, pictures):
    path = tmp_path / "grey.toml"
    path.write_text(GREY_RECIPE + "[noise]\nlowest = 0.05\nhighest = 1.0\n")
    recipe = Recipe.read(path).model_copy(update={"steps": 40, "batch_size": 6})
    source = batches(recipe, GreyExamples(recipe, pictures), 0, 0, "cpu")
    process = build(recipe).process
    levels = [process.kappa(float(t)) for _ in range(20) for t in next(source)[1]]
    assert 0.049 < min(levels) < 0.1
    assert 0.7 < max(levels) < 1.01
    image, _, noise = next(source)
    assert image.shape == noise.shape == (6, 1, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    losses = []
    folder = train(recipe, pictures, tmp_path / "m", progress=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    d = Denoiser.from_pretrained(folder)
    assert (d.condition_channels, d.residual, d.network.config.out_channels) == (0, False, 4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("[condition]", "[noise]\n[condition]", None), ('task = "inpainting"', 'task = "denoising"', "condition"), ("kinds", "#", "kinds")],
)
def test_recipes_hold_the_sections_of_their_task(tmp_path, old, new, words):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace(old, new))
    if words is None:
        assert Recipe.read(path).noise.highest == 3
    else:
        with pytest.raises(ValueError, match=words):
            Recipe.read(path)
