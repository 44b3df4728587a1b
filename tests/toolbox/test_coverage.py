"""`restobox bench coverage`, and what `--std` says by it."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture
from helpers.profiles import wide_profile
from helpers.scans import disc
from PIL import Image

import restobox
from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import interval_std
from solvers.inputs.errors import ModelError
from toolbox.support.cards import Spread, keep_spread, spread_of

RUN = {"solver": "ddim", "steps": 2, "correction": None}


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy whose card can be written to."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def photo(tmp_path):
    place = tmp_path / "photo.png"
    write_image(place, Photo(smooth_picture(40, 48)))
    return place


def cli(capsys, *arguments):
    from toolbox.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["restobox", *map(str, arguments)])
        code = main()
    said = capsys.readouterr()
    return (code, json.loads(said.out)) if code == 0 else (code, said.err)


def test_factors_are_fitted_written_and_used(capsys, tmp_path, model, photo, pictures):
    """What the bench prints is what the card holds; the command and Python scale by it, runs of
    that solver, so many steps and masks as wide as those that it was fitted on alone.
    """
    bench = ("bench", "coverage", "inpaint", pictures, pictures, "--model", model, "--steps", 2)
    few = ("--calibration-limit", 24, "--limit", 2, "--side", 32, "--level", 0.8)
    code, rows = cli(capsys, *bench, *few, "-n", 3, "--write", "--json")
    assert code == 0
    assert [row["samples"] for row in rows if row["case"] == "all"] == [2, 3]
    factors = {row["case"]: row["factor"] for row in rows if row["samples"] == 3}
    thin, wider = (spread_of(model, "inpaint", RUN, 3, gap) for gap in (1.02, 1.2))
    for known in (thin, wider):
        assert 0 <= known.coverage <= 1
        assert known.factor == pytest.approx(factors[f"difficulty up to {known.up_to:g}"], abs=1e-3)
        assert (known.pictures >= 4, known.level) == (True, 0.8)
    assert thin.factor != wider.factor
    assert factors["all"] == pytest.approx((thin.factor + wider.factor) / 2, abs=1e-3)
    assert spread_of(model, "inpaint", RUN, 9, 1.02) == thin  # the nearest smaller number
    assert spread_of(model, "inpaint", RUN | {"steps": 3}, 3, 1.02) is None
    assert spread_of(model, "inpaint", RUN, 3, 4.0) is None  # no test told of such holes
    assert spread_of(model, "inpaint", RUN, 3) is None

    ask = ("restore", "inpaint", photo, "--model", model, "--json", "--std", "-n", 3)
    said = []
    for mask, steps in (("random:0.5", 2), ("random:0.8", 2), ("box:0.2", 2), ("random:0.5", 3)):
        run = ("--mask", mask, "--steps", steps, "-o", tmp_path / f"{len(said)}.png")
        said.append(cli(capsys, *ask, *run)[1]["std_means"])
    assert said[0].startswith(f"of what is guessed {thin.coverage:.0%} lay within 1.28")
    assert said[1].startswith(f"of what is guessed {wider.coverage:.0%} lay within 1.28")
    assert all("nobody compared" in words for words in said[2:])
    known = thin
    missing = np.random.default_rng(0).random((40, 48)) < 0.5
    drawn = restobox.inpaint(model, steps=2)(str(photo), missing, num_samples=3)
    wanted = interval_std(drawn.samples.std(0), known.factor, 0.8)
    assert drawn.level == 0.8
    torch.testing.assert_close(drawn.std, wanted)
    assert not drawn.std[:, ~missing].any()  # what is known stays known
    plain = restobox.inpaint(model, steps=3)(str(photo), missing, num_samples=3)
    assert plain.level is None
    torch.testing.assert_close(plain.std, plain.samples.std(0))


def test_scans_count_where_there_is_tissue(capsys, tmp_path):
    heads = np.stack([disc((48, 40), r).numpy() for r in (0.5, 0.55, 0.6, 0.65)])
    np.savez(tmp_path / "known.npz", image=heads[:3])
    np.savez(tmp_path / "new.npz", image=heads[3:])
    bench = ("bench", "coverage", "mri", tmp_path / "new.npz", tmp_path / "known.npz")
    few = ("--calibration-limit", 2, "--limit", 1, "--level", 0.5, "-n", 3, "--steps", 2, "--json")
    code, rows = cli(capsys, *bench, "--model", "mri-int8", *few)
    assert code == 0
    run = {"solver": "ddim", "steps": 4, "correction": None}
    easy, hard = (spread_of("mri-int8", "mri", run, 4, left_open) for left_open in (0.03, 0.25))
    assert hard.factor > 2 * easy.factor  # columns at 8 and Poisson discs
    assert spread_of("mri-int8", "mri", run, 4, 0.9) is None
    (tmp_path / "scan.npz").write_bytes((tmp_path / "new.npz").read_bytes())
    ask = (
        "restore",
        "mri",
        tmp_path / "scan.npz",
        "-m",
        "poisson",
        "--model",
        "mri-int8",
        "--json",
    )
    out = (tmp_path / "a.h5", tmp_path / "b.h5")
    _, usual = cli(capsys, *ask, "-o", out[0], "-n", 2, "--std")
    _, other = cli(capsys, *ask, "-o", out[1], "-n", 2, "--std", "--steps", 3)
    assert "lay within" in usual["std_means"]
    assert "nobody compared" in other["std_means"]
    assert {row["samples"] for row in rows} == {2, 3}
    assert all(row["width"] > 0 and row["pictures"] == 1 for row in rows)


def test_what_cannot_be_measured_is_refused(capsys, model, pictures):
    bench = ("bench", "coverage", "inpaint", pictures, pictures, "--model", model)
    code, error = cli(capsys, *bench, "--calibration-limit", 8)
    assert (code, error.count("\n")) == (2, 1)
    assert "need at least 9 pictures" in error
    code, error = cli(capsys, *bench, "-n", 1)
    assert (code, error.count("\n")) == (2, 1)
    assert "at least 2 samples" in error
    for task, own in (("generate", "photo"), ("hsi", "grey"), ("ultrasound", "ultrasound-tissue")):
        bench = ("bench", "coverage", task, pictures, pictures, "--model", own)
        code, error = cli(capsys, *bench)
        assert (code, error.count("\n")) == (2, 1)
        assert "no truth" in error


def test_cards_keep_the_rest_and_one_entry_a_run(model):
    (model / "model.json").write_text('{"runs": {"inpaint": {"steps": 2}}}')
    for factor in (2.0, 3.0):
        keep_spread(model, "inpaint", RUN, [Spread(2, 0.9, factor, 0.9, 40)])
    keep_spread(model, "denoise", RUN, [Spread(2, 0.9, 5.0, 0.9, 40)])
    card = json.loads((model / "model.json").read_text())
    assert card["runs"] == {"inpaint": {"steps": 2}}
    assert len(card["intervals"]["inpaint"]) == 1
    assert spread_of(model, "inpaint", RUN, 2).factor == 3
    known = ((n, f, end) for n in (2, 4) for f, end in ((3.0, 2.0), (5.0, 6.0)))
    ranges = [Spread(n, 0.9, factor, 0.9, 40, end) for n, factor, end in known]
    keep_spread(model, "denoise", RUN, ranges)
    for difficulty, factor in ((0.5, 3), (2.0, 3), (2.01, 5), (6.0, 5)):
        for samples in (2, 3, 4, 9):
            known = spread_of(model, "denoise", RUN, samples, difficulty)
            assert (known.factor, known.samples) == (factor, min(samples, 4) // 2 * 2)
    assert spread_of(model, "denoise", RUN, 2, 6.01) is None
    whole = {"samples": 2, "level": 0.9, "factor": 2.0, "coverage": 0.9, "pictures": 40}
    for wrong in ({"up_to": "1"}, {"up_to": 0}, {"end": 1}, {"factor": "2"}, {"pictures": 0}):
        runs = [{"solver": "ddim", "steps": 2, "spread": [whole | wrong]}]
        (model / "model.json").write_text(json.dumps({"intervals": {"inpaint": runs}}))
        with pytest.raises(ModelError, match="bench coverage --write"):
            spread_of(model, "inpaint", RUN, 2, 0.5)
    entry = '[{"solver": "ddim", "steps": 2%s}]'
    for wrong in ("1", "[1]", entry % "", entry % ', "spread": 1'):
        (model / "model.json").write_text(f'{{"intervals": {{"inpaint": {wrong}}}}}')
        with pytest.raises(ModelError, match="bench coverage --write"):
            spread_of(model, "inpaint", RUN, 2)


def test_wide_gamuts_and_objects(tmp_path, model, monkeypatch):
    """A picture that comes back in its own profile has the calibrated spread too; a denoiser that
    was made in Python has no card, whatever lies in the working folder.
    """
    keep_spread(model, "inpaint", RUN, [Spread(2, 0.9, 16.4485, 0.9, 40)])
    pixels = (smooth_picture(40, 48).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    wide = Image.fromarray(pixels)
    wide.info["icc_profile"] = wide_profile("Display P3")
    missing = np.random.default_rng(0).random((40, 48)) < 0.5
    drawn = restobox.inpaint(model, steps=2)(wide, missing, num_samples=2)
    plain = drawn.samples.std(0)
    assert drawn.level == 0.9
    assert (drawn.std >= 9.99 * plain).all()  # shrunk spreads are no smaller
    assert drawn.std.max() > 0
    (tmp_path / "model.json").write_text("[")
    monkeypatch.chdir(tmp_path)
    made = restobox.inpaint(restobox.load(model), steps=2)
    assert made(wide, missing, num_samples=2).level is None


def test_samples_that_are_all_the_same_are_no_uncertainty(capsys, tmp_path, photo):
    """Denoising and deblurring begin at the data: a solver that draws nothing is refused, and what
    several samples take by default draws.
    """
    for task, own in (("denoise", ("--sigma", 0.1)), ("deblur", ("--blur", 1.2))):
        ask = ("restore", task, photo, *own, "--model", "grey", "--std", "--json", "-n", 2)
        out = tmp_path / f"{task}.png"
        if task == "denoise":
            code, error = cli(capsys, *ask, "-o", out, "--solver", "ddim", "--steps", 2)
            assert (code, error.count("\n")) == (2, 1)
            assert "the same for every seed" in error
            assert not out.exists()
        code, found = cli(capsys, *ask, "-o", out)
        assert code == 0
        assert found["solver"] == "ddpm"
        assert found["std_mean"] > 1e-4
        assert read_image(out.with_name(f"{task}-std.png")).pixels.max() > 0.5
    with pytest.raises(ValueError, match="the same for every seed"):
        restobox.denoise("grey", solver="ddim", steps=2)(str(photo), sigma=0.1, num_samples=2)
