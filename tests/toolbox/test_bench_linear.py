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
from toolbox.bench.options import Extent, Methods
from toolbox.bench.pictures import BLUR_NOISE, linear_cases, measure


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


def trial_of(folder, name, k=0):
    (case,) = linear_cases(folder, [name], False, Extent(seed=0))
    return case, list(case.trials())[k]


def test_cases_measure_what_they_say(pictures, tmp_path):
    image = read_image(pictures / "0.png").pixels
    case, trial = trial_of(pictures, "denoise:25")
    assert isinstance(case.task.operator((66, 61), case.options), Denoising)
    np.testing.assert_array_equal(trial.truth, image)
    noise = trial.inputs["image"] - torch.from_numpy(image)
    assert float(noise.std()) == pytest.approx(25 / 255, rel=0.02)
    _, trial = trial_of(pictures, "superresolve:4")
    assert trial.truth.shape == (3, 64, 60)  # whole blocks
    blocks = trial.truth.reshape(3, 16, 4, 15, 4).mean((2, 4))
    np.testing.assert_allclose(trial.inputs["image"], blocks, atol=1e-6)
    (tmp_path / "flat").mkdir()
    write_image(tmp_path / "flat" / "a.png", Photo(np.full((3, 40, 40), 0.25, np.float32)))
    for name, sigma in (("superresolve-bicubic:2", 0.0), ("deblur:1.5", BLUR_NOISE)):
        y = trial_of(tmp_path / "flat", name)[1].inputs["image"]
        assert float(y.mean()) == pytest.approx(0.25, abs=2e-3)
        assert float(y.std()) == pytest.approx(sigma, abs=1e-3)


def test_rows_are_the_means_of_the_pictures(pictures):
    extent, methods = Extent(), Methods(["plain", "grey"], steps=1)
    cases = linear_cases(pictures, ["denoise:25", "deblur:1.5"], False, extent)
    rows = measure(cases, methods, extent, progress=lambda done, total: None)
    assert [(r["case"], r["model"], r["calls"], r["pictures"]) for r in rows] == [
        ("denoise:25", "plain", 0, 2),
        ("denoise:25", "grey", 1, 2),
        ("deblur:1.5", "plain", 0, 2),
        ("deblur:1.5", "grey", 1, 2),
    ]
    # noise of 25 of 255 that is hardly ever clipped
    assert rows[0]["psnr"] == pytest.approx(20 * math.log10(255 / 25), abs=0.1)
    assert rows[1]["psnr"] > rows[0]["psnr"] + 5
    task, found = LinearTask(load("grey"), num_inference_steps=1), []
    for k in range(2):
        trial = trial_of(pictures, "denoise:25", k)[1]
        mean = task(trial.inputs["image"], Denoising(), sigma=25 / 255).mean
        found.append(psnr(mean.numpy(), trial.truth.numpy()))
    assert rows[1]["psnr"] == pytest.approx(np.mean(found), abs=1e-3)


@pytest.mark.long
def test_workers_measure_the_same(pictures, threads_as_workers):
    """Each takes its turn; figures and their order stay, but for the seconds."""
    import cloudpickle

    methods, rows = Methods(["plain", "grey"], steps=1), []
    for workers in (None, 3):
        extent, seen = Extent(workers=workers), []
        cases = linear_cases(pictures, ["denoise:25", "deblur:1.5"], False, extent)
        cases = cloudpickle.loads(cloudpickle.dumps(cases))
        measured = measure(cases, methods, extent, progress=lambda *at, to=seen: to.append(at))
        rows.append([{k: v for k, v in row.items() if k != "seconds"} for row in measured])
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert rows[0] == rows[1]


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
