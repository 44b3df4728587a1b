"""What ships: the models load, restore the embedded photo, and the README is true."""

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.data import ROOT
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from export.runtime.session import Session
from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import psnr
from restoration.operators.separable import BlockMean, Blur, gaussian_kernel
from restoration.paired.degradations import low_light, shadow
from restoration.paired.haze import Scattering, procedural_depth
from restoration.paired.lifts import brightened, relit
from restoration.paired.task import PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.lift import enlarge, push_pull
from restoration.photo.linear import LinearTask
from restoration.photo.masks import make_mask
from solvers import DDIM, EVODiff, RDDMSampler, ResfusionSampler
from solvers.inputs.errors import ModelError
from toolbox import load, models
from toolbox.api import ZOO
from toolbox.bench.mri import run_mri_bench
from toolbox.bench.options import Extent, Methods, Scans
from toolbox.bench.pictures import inpainting_cases, measure
from toolbox.cli import main
from toolbox.support.cards import advice

CROP = (slice(None), slice(40, 168), slice(100, 260))


@pytest.fixture(scope="module")
def case():
    image = torch.from_numpy(
        np.ascontiguousarray(read_image(ZOO / "demo" / "chelsea.png").pixels[CROP])
    )
    return image, torch.from_numpy(make_mask("random", 128, 160, 0.8, 0))


def test_shipped_models_are_complete_and_small():
    found = {m.name: m for m in models()}
    assert {"photo", "photo-int8"} <= set(found)
    for model in found.values():
        assert (model.folder / "README.md").is_file(), f"{model.name} has no model card"
        (weights,) = [p for p in model.folder.rglob("*") if p.suffix in (".safetensors", ".onnx")]
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == model.sha256, (
            f"{model.name}: other weights than its model.json says"
        )
    assert (
        sum(p.stat().st_size for p in ZOO.rglob("*") if p.suffix in (".safetensors", ".onnx"))
        < 75e6
    )
    assert isinstance(load("photo-int8"), Session)


def test_scenes_are_measured_in_patterns_that_no_model_was_trained_on():
    patterns = set(
        re.findall(
            r"from skimage\.data import (\w+)",
            (ROOT / "toolbox" / "bench" / "hyperspectral.py").read_text(),
        )
    )
    trained = {
        line.split(".")[0]
        for file in ZOO.glob("*/CREDITS.tsv")
        for line in file.read_text().splitlines()
    }
    assert patterns
    assert {"coffee", "astronaut"} <= trained
    assert not patterns & trained


def test_the_int8_denoiser_deblurs_as_the_float_one(case):
    """Its run enters at the nearest of the times that the bundle holds."""
    image, _ = case
    operator = Blur(tuple(image.shape[1:]), gaussian_kernel(1.6).tolist())
    y = operator.A(image[None])[0]
    found = [
        psnr(
            LinearTask(load(name), start_level=0.4)(y, operator, sigma=0.01).mean.numpy(),
            image.numpy(),
        )
        for name in ("grey", "grey-int8")
    ]
    assert found[0] > psnr(y.clamp(0, 1).numpy(), image.numpy()) + 1.5
    assert found[1] == pytest.approx(found[0], abs=0.1)


def test_cards_advise_runs_and_are_checked(tmp_path):
    assert advice("photo-int8", "inpaint")["steps"] == 1
    assert advice("photo-int8", "inpaint", samples=4)["steps"] == 5
    assert advice("grey", "hsi")["symmetries"] == 8
    assert advice(tmp_path, "inpaint") == {}
    for runs in ({"inpaint": {"steps": "5"}}, {"inpaint": {"threads": 5}}, {"inpaint": [5]}, 5):
        (tmp_path / "model.json").write_text(json.dumps({"runs": runs}))
        with pytest.raises(ModelError):
            advice(tmp_path, "inpaint")


def test_photo_model_beats_its_lift_and_int8_loses_next_to_nothing(case):
    image, mask = case
    lift = push_pull(image[None], mask[None, None])[0]
    float_result = InpaintingTask(load("photo"), num_inference_steps=5)(image, mask).mean
    int8_result = InpaintingTask(load("photo-int8"), num_inference_steps=5)(image, mask).mean
    assert psnr(float_result, image) > psnr(lift, image)
    assert psnr(int8_result, image) > psnr(float_result, image) - 0.1
    assert psnr(int8_result, float_result) > 35


def test_super_resolution_by_four_beats_bicubic_interpolation_and_the_general_model(case):
    image, _ = case
    operator = BlockMean(tuple(image.shape[1:]), 4)
    y = operator.A(image[None])[0]
    found = {
        name: LinearTask(load(name), num_inference_steps=1)(y, operator).mean
        for name in ("photo", "photo-x4", "photo-x4-int8")
    }
    values = {name: psnr(x, image) for name, x in found.items()}
    assert (
        values["photo-x4"] > psnr(enlarge(y[None], 4, image.shape[1:])[0].clamp(0, 1), image) + 0.3
    )
    assert values["photo-x4"] > values["photo"]
    assert values["photo-x4-int8"] > values["photo-x4"] - 0.1
    samples = LinearTask(load("photo-x4"), num_inference_steps=5)(
        y, operator, num_samples=2
    ).samples
    assert float((samples[0] - samples[1]).abs().max()) > 1e-3
    for x in samples:  # held to what was measured; clipping moves a mean a little
        assert float((operator.A(x[None])[0] - y).abs().mean()) < 0.003


@pytest.mark.parametrize(
    "name", ["photo-int8", "mri-int8", "grey-int8", "haze-int8", "photo-x4-int8"]
)
def test_int8_runs_on_integers(name):
    session = load(name)
    assert session.integer_convs() == session.bundle.planned > 0


@pytest.mark.long
def test_mri_models_reconstruct_what_they_never_saw(tmp_path):
    """A drawn phantom, scanned by simulation: nothing like the training brain."""
    phantom = resize(shepp_logan_phantom(), (128, 112), anti_aliasing=True).astype(np.float32)
    np.savez(tmp_path / "phantom.npz", image=phantom[None])
    rows = run_mri_bench(
        tmp_path / "phantom.npz",
        Scans(["poisson"], [4.0]),
        Methods(["zero-filled", "mri", "mri-int8"]),
    )
    zero_filled, ours, int8 = (row["psnr"] for row in rows)
    assert ours > zero_filled + 3
    assert int8 > ours - 0.1
    assert [row["nfe"] for row in rows[1:]] == [3, 3]
    assert all(row["residual_over_sigma"] <= 1.01 for row in rows[1:])


@pytest.mark.long
def test_haze_models_clear_a_picture_they_never_saw():
    clear = torch.from_numpy(np.ascontiguousarray(read_image(ZOO / "demo" / "chelsea.png").pixels))
    depth, _ = procedural_depth(*clear.shape[1:], np.random.default_rng(4))
    hazy = Scattering(1.2, 0.95)(clear, depth)
    results = {}
    for model in ("haze", "haze-int8"):
        denoiser = load(model)
        for solver in (RDDMSampler(), EVODiff(), DDIM(), ResfusionSampler()):
            results[model, type(solver).__name__] = psnr(
                PairedTask(denoiser, solver)(hazy).mean, clear
            )
    for (model, solver), value in results.items():
        assert value > psnr(hazy, clear) + 2, (model, solver)
        assert abs(value - results["haze", solver]) < 0.1


@pytest.mark.parametrize(
    ("model", "degrade", "lift"), [("low-light", low_light, brightened), ("shadow", shadow, relit)]
)
def test_made_light_and_shadow_are_restored_better_than_by_a_formula(model, degrade, lift):
    """Of a picture that no run saw, on the mean of four draws; each at the truth's brightness,
    which no dark picture tells.
    """
    clear = torch.from_numpy(np.ascontiguousarray(read_image(ZOO / "demo" / "chelsea.png").pixels))

    def matched(found):
        return psnr((found * clear.mean() / found.mean()).clamp(0, 1), clear)

    gains = []
    for seed in range(4):
        degraded, mask = degrade(clear, np.random.default_rng(seed))
        kept = mask[0] if model == "shadow" else None
        found = PairedTask(load(model), num_inference_steps=1)(degraded, kept).mean
        gains.append(matched(found) - matched(lift(degraded[None], mask[None])[0]))
    assert np.mean(gains) > 1, gains


@pytest.mark.long
def test_demo_writes_its_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "restobox",
            "demo",
            "-o",
            str(tmp_path / "d"),
            "--mask",
            "text:0.1",
            "--steps",
            "2",
            "-n",
            "2",
        ],
    )
    assert main() == 0
    assert "inpaint_biharmonic" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "d").iterdir() if not p.name.startswith(".")}
    assert names == {
        "original.png",
        "degraded.png",
        "restored.png",
        "uncertainty.png",
        "side-by-side.png",
    }


def test_bench_measures_every_method_on_every_mask(tmp_path, case):
    image, mask = case
    write_image(tmp_path / "a.png", Photo(image.numpy()))
    write_image(tmp_path / "b.png", Photo(np.ascontiguousarray(image.numpy().transpose(0, 2, 1))))
    np.savez(tmp_path / "masks.npz", random80_128=mask.numpy().astype(bool))
    methods, extent = Methods(["push-pull", "photo-int8"], ["ddim", "pndm"], 2), Extent()
    masks = str(tmp_path / "masks.npz")

    def run_bench(*source):
        cases = inpainting_cases(*source, extent)
        return measure(cases, methods, extent, progress=lambda done, total: None)

    rows = run_bench(tmp_path, masks, ["random80"])
    assert [(r["model"], r["solver"], r["pictures"]) for r in rows] == [
        ("push-pull", "", 2),
        ("photo-int8", "ddim", 2),
        ("photo-int8", "pndm", 2),
    ]
    assert rows[0]["psnr"] == pytest.approx(
        np.mean(
            [
                psnr(push_pull(i[None], m[None, None])[0], i)
                for i, m in ((image, mask), (image.transpose(1, 2), mask.T.contiguous()))
            ]
        ),
        abs=0.02,  # the files hold 8 bits
    )
    with pytest.raises(ValueError, match="no mask 'strokes'"):
        run_bench(tmp_path, masks, ["strokes"])
    with pytest.raises(FileNotFoundError):
        run_bench(tmp_path / "none", None, ["random:0.5"])


def test_readme_python_runs(tmp_path, case):
    image, mask = case
    write_image(tmp_path / "photo.png", Photo(image.numpy()))
    write_image(tmp_path / "mask.png", Photo(1 - mask[None].numpy()))
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    ).group(1)
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    restored = read_image(tmp_path / "restored.png")
    known = mask.numpy() > 0
    np.testing.assert_array_equal(
        np.rint(restored.pixels[:, known] * 255), np.rint(image.numpy()[:, known] * 255)
    )
