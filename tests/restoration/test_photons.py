"""Noise that grows with brightness: the transform against exact sums, the law that is found, the
pictures that come of it.
"""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from skimage import data

from restoration.io.images import Photo, write_image
from restoration.metrics import psnr
from restoration.operators.counting import Counting
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from restoration.photo.photons import noise_law
from toolbox.api import load
from toolbox.cli import main


def photons(side=96, peak=30.0, sigma=0.0, seed=0):
    """A grey picture and what a camera sees of it that counts ``peak`` photons in white."""
    x = torch.from_numpy(data.camera()[80 : 80 + side, 170 : 170 + side]).float()[None] / 255
    g = torch.Generator().manual_seed(seed)
    y = torch.poisson(peak * x, generator=g) / peak + sigma * torch.randn(x.shape, generator=g)
    return x, ((255 * y.clamp(0, 1)).round() / 255)


def moments(operator, mean, sigma):
    """Of the transformed noise, summed over all counts and, by Gauss and Hermite, over all noise;
    what is below the transform's least argument is cut there, as by the transform.
    """
    count = np.arange(0, 2000)
    weight = stats.poisson.pmf(count, mean / operator.gain)
    nodes, share = np.polynomial.hermite_e.hermegauss(31)
    y = torch.from_numpy(count[:, None] * operator.gain + sigma * nodes)
    z = operator.stabilized(y, sigma)[0].numpy()
    both = weight[:, None] * share / share.sum()
    first = (both * z).sum()
    return first, ((both * z**2).sum() - first**2) ** 0.5


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("peak", [20.0, 200.0])
def test_the_mean_of_the_transformed_is_brought_back_to_the_mean(sigma, peak):
    """To three hundredths of a photon; inverting the transform itself is off by a quarter."""
    operator = Counting(1 / peak)
    for mean in (0.02, 0.05, 0.2, 0.6, 0.9):
        first, _ = moments(operator, mean, sigma)
        back = float(operator.restored(torch.tensor([first]), sigma))
        assert abs(back - mean) < 0.03 / peak + 0.002 * mean, (mean, back)


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_the_transformed_noise_is_as_large_everywhere(sigma):
    operator = Counting(1 / 50)
    level = operator.stabilized(torch.zeros(1), sigma)[1]
    for mean in (0.1, 0.3, 0.8):
        assert moments(operator, mean, sigma)[1] == pytest.approx(level, rel=0.05)


def test_black_and_white_stay():
    operator = Counting(0.05)
    ends = operator.stabilized(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.02)[0]
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert operator.restored(torch.tensor([0.0, 1.0]), 0.02).tolist() == pytest.approx(
        [0, 1], abs=0.02
    )


@pytest.mark.parametrize("gain", [0.0, -1.0, 2.0, float("nan")])
def test_impossible_gains_are_refused(gain):
    with pytest.raises(ValueError, match="brightness of one photon"):
        Counting(gain)


@pytest.mark.parametrize(("peak", "sigma"), [(30, 0.0), (100, 0.02)])
def test_the_law_is_found(peak, sigma):
    _, y = photons(128, peak, sigma)
    gain, read = noise_law(load("grey"), y, 0.1)
    assert gain == pytest.approx(1 / peak, rel=0.2)
    assert read < 0.04


@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_white_noise_is_left_white(sigma):
    x, _ = photons(128)
    y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert noise_law(load("grey"), (255 * y.clamp(0, 1)).round() / 255, sigma) == (0.0, sigma)


def test_counted_photons_are_denoised_better_than_as_white_noise():
    x, y = photons(128)
    task = LinearTask(load("grey"), num_inference_steps=1)
    white = task(y, Denoising(), sigma=float((y - x).square().mean().sqrt()))
    counted = task(y, Counting(1 / 30))
    assert psnr(counted.mean, x) > psnr(white.mean, x) + 0.2
    assert counted.misfit == pytest.approx(float((y - x).square().mean().sqrt()), rel=0.2)
    assert counted.warning is None


def test_the_command_finds_it(tmp_path, capsys, monkeypatch):
    x, y = photons(128)
    for name, picture in (("x", x), ("y", y)):
        write_image(tmp_path / f"{name}.png", Photo(picture.numpy()))

    def run(out, *more):
        files = (tmp_path / "y.png", "-o", tmp_path / out, "--reference", tmp_path / "x.png")
        call = ("restobox", "restore", "denoise", *files, "--json", *more)
        monkeypatch.setattr("sys.argv", [str(part) for part in call])
        assert main() == 0
        return json.loads(capsys.readouterr().out)

    found = run("o.png")
    assert found["gain"] == pytest.approx(1 / 30, rel=0.2)
    white = run("w.png", "--sigma", float((y - x).square().mean().sqrt()))
    assert "gain" not in white
    assert found["psnr"] > white["psnr"] + 0.2


def test_flat_white_tells_nothing(monkeypatch):
    """As behind things that are sold: what a network takes off there is nothing, or a rounding."""
    g = torch.Generator().manual_seed(0)
    clean = torch.linspace(0.1, 0.9, 8000, dtype=torch.float64)
    noisy = clean + 0.01 * torch.randn(8000, generator=g, dtype=torch.float64)
    white = torch.ones(8000, dtype=torch.float64)
    found = torch.stack(
        [torch.cat([noisy, white]), torch.cat([clean, white - 1e-9]), torch.zeros(16000)]
    )
    found[0, 8000:] = found[1, 8000:]
    monkeypatch.setattr("restoration.photo.photons.probed", lambda *_: found)
    assert noise_law(load("grey"), torch.ones(1, 96, 96), 0.01) == (0.0, 0.01)


def test_a_law_of_next_to_no_noise_is_left(monkeypatch):
    """Of a picture half black what was fitted may hold none at all."""
    _, y = photons()
    monkeypatch.setattr("restoration.photo.photons._fitted", lambda *_: (1e-10, 0.0))
    assert noise_law(load("grey"), y, 0.08) == (0.0, 0.08)
