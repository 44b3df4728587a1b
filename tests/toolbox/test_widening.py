"""A denoiser of colours that begins as two copies of one of single planes."""

import pytest
import torch

from toolbox.training.losses import cut_off, plain_loss
from toolbox.training.model_folder import load_weights
from toolbox.training.network import build
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import Loss
from toolbox.training.widening import PLANES, doubled, is_doubled


def recipe(task, widths, groups, **others):
    return TrainingRecipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "steps": 1,
            "batch_size": 1,
            "patch_size": 16,
            "network": {"block_out_channels": widths, "norm_num_groups": groups, "fold": 2},
            **others,
        }
    )


@pytest.fixture(scope="module")
def pair():
    """Blocks of one width join aligned groups of norms, so the copies are exact."""
    torch.manual_seed(0)
    narrow = build(recipe("denoise", [16, 16], 4))
    return build(recipe("denoise-colour", [32, 32], 8)), narrow


def test_copies_answer_as_the_one_they_are_of(pair):
    wide, narrow = pair
    assert is_doubled(wide.network, narrow.network)
    assert not is_doubled(wide.network, wide.network)
    wide.network.load_state_dict(doubled(wide.network, narrow.network))
    torch.testing.assert_close(PLANES @ PLANES.T, torch.eye(3))
    g = torch.Generator().manual_seed(1)
    planes = torch.randn((2, 2, 16, 24), generator=g)
    with torch.no_grad():
        colours = torch.einsum("bkhw,kc->bchw", planes, PLANES[:2])
        answer = torch.einsum("bchw,kc->bkhw", wide.output(colours, 300.0), PLANES)
        for k in range(2):
            alone = narrow.output(planes[:, k : k + 1], 300.0)
            torch.testing.assert_close(answer[:, k : k + 1], alone, atol=1e-4, rtol=1e-3)
        assert float(answer[:, 2].abs().max()) < 1e-5


def test_training_starts_from_a_shipped_denoiser_of_planes():
    wide = build(recipe("denoise-colour", [64, 96, 96], 16))
    load_weights(wide.network, "grey")
    with pytest.raises(ValueError, match="can't be trained further"):
        load_weights(build(recipe("denoise-colour", [32, 32], 8)).network, "grey")


def test_noise_is_cut_off_at_black_and_white():
    g = torch.Generator().manual_seed(0)
    image, noise = torch.rand((4, 3, 9, 9), generator=g) * 2 - 1, torch.randn(4, 3, 9, 9)
    kappa = torch.tensor([0.01, 0.1, 0.5, 1.0])
    level = kappa.view(-1, 1, 1, 1)
    cut = image + level * cut_off(image, noise, kappa)
    torch.testing.assert_close(cut, (image + level * noise).clamp(-1, 1), atol=1e-6, rtol=0)


def test_the_logarithm_counts_relative_errors(pair):
    """Twice the error is log 4 more, whatever the noise, until the floor."""
    wide, _ = pair
    image, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    t = torch.tensor([wide.process.time_at(2.0), wide.process.time_at(-1.0)])
    u = wide.from_unit(image) / wide.data_std
    levels = [f(t)[:, None, None, None].to(u) for f in (wide.process.a, wide.process.b)]
    _, a, b = wide.unit_levels(*levels)
    target = (a * noise - b * u).float()

    def loss(error):
        answering = wide.around(lambda z, _: torch.nn.functional.pixel_unshuffle(target + error, 2))
        return float(plain_loss(answering, image, t, noise, Loss(norm="log", data_std=0.45)))

    error = 30 * torch.randn(2, 3, 16, 16)
    assert loss(2 * error) - loss(error) == pytest.approx(1.386, abs=1e-3)
    assert loss(0 * error) < loss(1e-3 * error) < loss(error)
    assert loss(1e-3 * error) - loss(0 * error) < 0.1
