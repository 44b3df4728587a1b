"""The inpainting task on a tiny network: what must hold whatever the weights are."""

import pytest
import torch
from helpers.data import smooth_picture

from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import make_mask
from restoration.posterior import CORRECTIONS
from solvers import SOLVERS, solver_by_name
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from toolbox import load


@pytest.fixture(scope="module")
def denoiser(tiny_model):
    return Denoiser.from_pretrained(tiny_model)


def case(height=37, width=45, channels=3, missing=0.5, seed=0):
    return torch.from_numpy(smooth_picture(height, width, channels)), torch.from_numpy(
        make_mask("random", height, width, missing, seed)
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(37, 45), (1, 9), (64, 16), (5, 3)])
def test_known_pixels_come_back_to_the_bit(denoiser, channels, size):
    image, mask = case(*size, channels)
    mask[0, 0] = 1
    result = InpaintingTask(denoiser, num_inference_steps=2)(image, mask, num_samples=3)
    assert result.samples.shape == (3, channels, *size)
    assert result.nfe == 6
    torch.testing.assert_close(
        result.mean[mask.expand_as(image) > 0], image[mask.expand_as(image) > 0], rtol=0, atol=0
    )
    known = mask.expand_as(image) > 0
    for sample in result.samples:
        torch.testing.assert_close(sample[known], image[known], rtol=0, atol=0)
    assert (result.std[known] == 0).all()
    assert result.samples.min() >= 0
    assert result.samples.max() <= 1
    torch.testing.assert_close(result.mean, result.samples.mean(0))


def test_content_of_missing_pixels_does_not_matter(denoiser):
    image, mask = case()
    spoiled = torch.where(mask > 0, image, torch.full_like(image, float("nan")))
    task = InpaintingTask(denoiser, num_inference_steps=2)
    torch.testing.assert_close(task(image, mask).mean, task(spoiled, mask).mean, rtol=0, atol=0)


def test_samples_do_not_depend_on_their_number(denoiser):
    image, mask = case()
    task = InpaintingTask(denoiser, num_inference_steps=3)
    three = task(image, mask, num_samples=3, seed=5).samples
    one = task(image, mask, seed=7).samples
    torch.testing.assert_close(three[2], one[0], rtol=0, atol=0)
    assert not torch.equal(three[0], three[1])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("correction", "sigma"), [("ddnm", 0.0), ("diffpir", 0.0), ("diffpir", 0.05)]
)
def test_every_solver_with_every_correction(denoiser, name, correction, sigma):
    image, mask = case(24, 24)
    task = InpaintingTask(denoiser, solver_by_name(name), 4, correction=correction)
    result = task(image, mask, sigma=sigma)
    assert torch.isfinite(result.mean).all()
    if sigma == 0:
        known = mask.expand_as(image) > 0
        torch.testing.assert_close(result.mean[known], image[known], rtol=0, atol=0)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_correction_with_the_real_network(denoiser, name):
    """Also in tiles and with its frozen weights: gradients reach the state."""
    image, mask = case(24, 40)
    steps = 50 if name == "dps" else 4
    for tile in (512, 24):
        task = InpaintingTask(
            denoiser, num_inference_steps=steps, correction=name, tile=tile, overlap=8
        )
        result = task(image, mask, sigma=0.0 if name in ("ddnm", "repaint") else 0.05)
        assert torch.isfinite(result.mean).all()
        assert result.nfe == steps


def test_unconditional_denoiser_is_steered_by_the_correction():
    """With a network that always says 'grey', known pixels must still be the data and the rest
    grey.
    """
    grey = Denoiser(lambda z, t: torch.zeros_like(z), VP.linear(), "sample")
    image, mask = case()
    result = InpaintingTask(grey, num_inference_steps=5)(image, mask)
    known = mask.expand_as(image) > 0
    torch.testing.assert_close(result.mean[known], image[known], rtol=0, atol=0)
    torch.testing.assert_close(result.mean[~known], torch.full_like(result.mean[~known], 0.5))


def test_large_images_are_tiled_without_seams(denoiser):
    image, mask = case(120, 150)
    small = InpaintingTask(denoiser, num_inference_steps=2, tile=64, overlap=16)(image, mask).mean
    whole = InpaintingTask(denoiser, num_inference_steps=2)(image, mask).mean
    assert (small - whole).abs().mean() < 0.05


@pytest.mark.parametrize("tile", [16, 64, 67, 511])
def test_any_tile_is_rounded_to_what_the_network_takes(denoiser, tile):
    image, mask = case(70, 530)
    assert torch.isfinite(
        InpaintingTask(denoiser, num_inference_steps=1, tile=tile)(image, mask).mean
    ).all()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda i, m: (i[0], m), "image must be"),
        (lambda i, m: (i, m[:-1]), "mask is"),
        (lambda i, m: (i, m * 0), "every pixel"),
        (lambda i, m: (i, m * 0.5), "only 0"),
        (lambda i, m: (i * float("nan"), m), "NaN"),
        (lambda i, m: (i * 255, m), r"\[0, 1\]"),
    ],
)
def test_bad_input(denoiser, spoil, says):
    with pytest.raises(ValueError, match=says):
        InpaintingTask(denoiser)(*spoil(*case()))


@pytest.mark.parametrize("steps", [0, -1, 10**6, 2.5])
def test_impossible_step_counts(denoiser, steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        InpaintingTask(denoiser, num_inference_steps=steps)(*case())


def test_unknown_names(denoiser):
    with pytest.raises(ValueError, match="known: trailing"):
        InpaintingTask(denoiser, grid="spiral")
    with pytest.raises(ValueError, match="known: ddnm"):
        InpaintingTask(denoiser, correction="magic")
    with pytest.raises(ValueError, match="at least 16"):
        InpaintingTask(denoiser, tile=3)
    with pytest.raises(ValueError, match="num_samples"):
        InpaintingTask(denoiser)(*case(), num_samples=0)
    with pytest.raises(ValueError, match="condition"):
        InpaintingTask(Denoiser(lambda z, t: z, VP.linear(), condition_channels=2))(*case())


def test_networks_of_single_planes_restore_them_one_by_one():
    """A colour picture's planes each as a grey picture of their own; a grey picture as it is."""
    image, mask = torch.from_numpy(smooth_picture(24, 20)), torch.ones(24, 20)
    mask[8:14, 5:12] = 0
    task = InpaintingTask(load("grey"), num_inference_steps=3)
    colour = task(image, mask, seed=2).mean
    for k in range(3):
        plane = task(image[k : k + 1], mask, seed=2).mean
        assert plane.shape == (1, 24, 20)
        torch.testing.assert_close(plane[0][mask > 0], image[k][mask > 0], rtol=0, atol=0)
        assert (plane[0] - image[k]).abs().max() < 0.5
    assert (colour - image)[:, mask == 0].abs().mean() < (image - 0.5)[:, mask == 0].abs().mean()
