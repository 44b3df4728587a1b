"""Noise in pictures that a network is shown as if they had none: a denoiser takes it off."""

import json
import warnings

import numpy as np
import pytest
import torch
from helpers.commands import restobox as command

import restobox
from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import psnr
from solvers.methods.red_diff import REDDiff
from toolbox.api import ZOO, load_for
from toolbox.deploy.export import make_job
from toolbox.deploy.options import Whole
from toolbox.tasks import task_by_name
from toolbox.tasks.options import Deblurring, Enlarging, Inpainting
from toolbox.tasks.settings import Settings

CROP = (slice(None), slice(40, 136), slice(100, 196))
SIGMA = 0.05


@pytest.fixture(scope="module")
def clean():
    return torch.from_numpy(read_image(ZOO / "demo" / "chelsea.png").pixels[CROP].copy())


def noise(shape):
    return SIGMA * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def holes(clean):
    """The noisy picture with 40 % missing, as `restore inpaint` reads it."""
    mask = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(0)) > 0.4
    image = (clean + noise(clean.shape)).clamp(0, 1)
    return {"image": image, "mask": mask.float()}


def small(clean, factor=2):
    y = torch.nn.functional.avg_pool2d(clean, factor)
    return {"image": y + noise(y.shape)}


CASES = {
    "inpaint": (holes, Inpainting("", SIGMA)),
    "superresolve": (small, Enlarging(2, "block", str(SIGMA))),
}


@pytest.mark.parametrize("model", ["photo", "photo-int8"])
@pytest.mark.parametrize("name", CASES)
def test_noise_is_taken_off(clean, name, model):
    measure, options = CASES[name]
    task, inputs = task_by_name(name), measure(clean)
    denoiser = load_for(name, model)
    default = task.restorer(denoiser, options, Settings(steps=1))(inputs)
    with pytest.warns(RuntimeWarning, match="takes the noise of what it is shown for detail"):
        held = task.restorer(denoiser, options, Settings(steps=1, correction="diffpir"))(inputs)
    gain = psnr(default.mean.numpy(), clean.numpy()) - psnr(held.mean.numpy(), clean.numpy())
    assert gain > 2
    assert default.warning is None
    assert "leave it out" in held.warning
    # what is left of the data is their noise: nothing of the picture, nothing more
    known = inputs.get("mask", torch.ones(1)).mean().sqrt()
    assert 0.7 * SIGMA * known < default.misfit < 1.1 * SIGMA * known
    assert default.nfe == held.nfe + 1


@pytest.mark.parametrize("name", CASES)
def test_several_samples_are_denoised_each(clean, name):
    measure, options = CASES[name]
    task = task_by_name(name)
    restore = task.restorer(load_for(name, "photo-int8"), options, Settings(steps=2))
    found = restore(measure(clean), num_samples=2, seed=3)
    one = restore(measure(clean), num_samples=1, seed=4)
    assert torch.equal(found.samples[1], one.mean)
    assert torch.equal(found.mean, found.samples.double().mean(0).float())
    assert found.std.max() > 0
    assert task.is_usual(options) is False  # nobody measured such spreads


def test_grey_pictures_are_denoised_in_grey(clean):
    grey = clean.mean(0, keepdim=True)
    mask = holes(clean)["mask"]
    inputs = {"image": (grey + noise(grey.shape)).clamp(0, 1), "mask": mask}
    task, denoiser = task_by_name("inpaint"), load_for("inpaint", "photo")
    default = task.restorer(denoiser, Inpainting("", SIGMA), Settings(steps=1))(inputs)
    blind = task.restorer(denoiser, Inpainting("", 0), Settings(steps=1))(inputs)
    assert default.mean.shape == grey.shape
    assert psnr(default.mean.numpy(), grey.numpy()) > psnr(blind.mean.numpy(), grey.numpy()) + 2


def test_less_noise_than_a_step_of_8_bits_is_left(clean):
    inputs, task = holes(clean), task_by_name("inpaint")
    denoiser = load_for("inpaint", "photo-int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = task.restorer(denoiser, Inpainting("", 0.001), Settings(steps=1))(inputs)
    assert found.nfe == 1
    assert found.warning is None


def test_command_and_python_give_the_same(clean, tmp_path):
    given = tmp_path / "noisy.png"
    write_image(given, Photo(holes(clean)["image"].numpy()))
    white = (holes(clean)["mask"][0] == 0).numpy()
    mask = np.broadcast_to(white, (3, 96, 96)).astype(np.float32)
    write_image(tmp_path / "mask.png", Photo(mask))
    place = ["--mask", tmp_path / "mask.png", "-o", tmp_path / "out.png", "--grow", "0"]
    done = command("restore", "inpaint", given, *place, "--sigma", SIGMA, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["nfe"] == 2
    assert "warning" not in told
    result = restobox.inpaint()(given, white, sigma=SIGMA, progress=False)
    assert result.nfe == 2
    written = (255 * read_image(tmp_path / "out.png").pixels).round()
    assert np.abs(written - 255 * result.mean.numpy()).max() <= 0.5001
    held = command("restore", "inpaint", given, *place, "--sigma", SIGMA, "--correction", "diffpir")
    assert held.returncode == 0
    assert "warning: this network takes" in held.stderr


def test_whole_restorations_do_not_hold_the_denoiser():
    photo = load_for("inpaint", "photo")
    for task in CASES:
        whole = Whole(task=task, sigma=SIGMA, size="64x64")
        with pytest.raises(ValueError, match="taken off by a second network"):
            make_job(photo, whole).check()
        make_job(photo, whole, Settings(steps=1, correction="diffpir")).check()


def test_red_diff_says_how_many_steps_it_needs():
    grey, y = load_for("deblur", "grey"), {"image": torch.rand(1, 32, 32)}
    task = task_by_name("deblur")
    options = Deblurring(1.6, "0.01", 0.0)
    assert isinstance(task.task(grey, options, Settings("red-diff", 10)).solver, REDDiff)
    with pytest.raises(ValueError, match="needs at least 50"):
        task.restorer(grey, options, Settings("red-diff", 10))(y)
