"""`restobox bench linear`: degradations are what they say, every method sees the same, and the
figures are those of the pictures.
"""

import json
import math

import numpy as np
import pytest
import torch

from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import psnr
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from toolbox.api import load
from toolbox.bench.linear import LinearCase, run_bench_linear


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:66, 0:61] / 60
    for k in range(2):
        waves = np.stack([np.sin(7 * x + c + k) * np.cos(5 * y - c) for c in range(3)])
        write_image(
            folder / f"{k}.png",
            Photo((0.5 + 0.2 * waves + 0.02 * rng.standard_normal(waves.shape)).astype(np.float32)),
        )
    return folder


def test_cases_measure_what_they_say(pictures):
    image = read_image(pictures / "0.png").pixels
    truth, y, operator = LinearCase("denoise:25").measure(image, 3)
    assert isinstance(operator, Denoising)
    np.testing.assert_array_equal(truth, image)
    assert float((y - torch.from_numpy(image)).std()) == pytest.approx(25 / 255, rel=0.02)
    truth, y, _ = LinearCase("superresolve:4").measure(image, 0)
    assert truth.shape == (3, 64, 60)  # whole blocks
    np.testing.assert_allclose(y, truth.reshape(3, 16, 4, 15, 4).mean((2, 4)), atol=1e-6)
    flat = np.full((1, 40, 40), 0.25, np.float32)
    for name in ("superresolve-bicubic:2", "deblur:1.5"):
        truth, y, _ = LinearCase(name).measure(flat, 0)
        assert float(y.mean()) == pytest.approx(0.25, abs=2e-3)
        assert float(y.std()) == pytest.approx(LinearCase(name).sigma, abs=1e-3)


def test_rows_are_the_means_of_the_pictures(pictures):
    rows = run_bench_linear(
        pictures, cases=["denoise:25", "deblur:1.5"], models=["plain", "grey"], steps=1
    )
    assert [(r["case"], r["model"], r["calls"], r["pictures"]) for r in rows] == [
        ("denoise:25", "plain", 0, 2),
        ("denoise:25", "grey", 1, 2),
        ("deblur:1.5", "plain", 0, 2),
        ("deblur:1.5", "grey", 1, 2),
    ]
    # noise of 25 of 255 that is hardly ever clipped
    assert rows[0]["psnr"] == pytest.approx(20 * math.log10(255 / 25), abs=0.1)
    assert rows[1]["psnr"] > rows[0]["psnr"] + 5
    found = []
    for k in range(2):
        truth, y, operator = LinearCase("denoise:25").measure(
            read_image(pictures / f"{k}.png").pixels, k
        )
        found.append(
            psnr(
                LinearTask(load("grey"), num_inference_steps=1)(
                    y, operator, sigma=25 / 255
                ).mean.numpy(),
                truth,
            )
        )
    assert rows[1]["psnr"] == pytest.approx(np.mean(found), abs=1e-3)


def test_command(capsys, monkeypatch, pictures):
    from toolbox.cli import main

    def run(*words) -> int:
        monkeypatch.setattr("sys.argv", ["restobox", *words])
        return main()

    arguments = ["bench", "linear", str(pictures), "--grey", "--limit", "1", "--json"]
    assert run(*arguments, "-c", "denoise:40", "--model", "plain", "--model", "nlm") == 0
    plain, nlm = json.loads(capsys.readouterr().out)
    assert nlm["psnr"] > plain["psnr"] + 3
    assert run(*arguments, "-c", "superresolve:2", "--model", "plain") == 0
    assert json.loads(capsys.readouterr().out)[0]["pictures"] == 1
    for wrong, says in (
        (["-c", "denoise"], "KIND:AMOUNT"),
        (["-c", "denoise:0"], "KIND:AMOUNT"),
        (["-c", "superresolve:2.5"], "KIND:AMOUNT"),
        (["-c", "sharpen:2"], "kinds: denoise"),
        (["-c", "superresolve:2", "--model", "nlm"], "only removes noise"),
        (["--model", "unknown"], "unknown"),
    ):
        assert run(*arguments, *wrong) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert run("bench", "linear", str(pictures / "none")) == 2
