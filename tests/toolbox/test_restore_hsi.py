"""`restobox restore hsi` and `bench hsi`: files in, files out."""

import json
import sys

import numpy as np
import pytest
import torch

from restoration.io.cubes import Cube, read_cube, write_cube
from restoration.io.images import read_image
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from toolbox.bench.hyperspectral import run_bench_hsi, simulated
from toolbox.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny untrained denoiser of one channel: what is tested here is everything around it."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "block_out_channels": (8,),
        "norm_num_groups": 4,
    }
    network = UNet2DModel(
        in_channels=1, out_channels=1, layers_per_block=1, add_attention=False, **blocks
    )
    folder = tmp_path_factory.mktemp("grey")
    Denoiser(network, VP.cosine(), "v_prediction").save_pretrained(folder)
    return folder


@pytest.fixture
def scene(tmp_path):
    noisy = simulated(20, 24) + 0.05 * np.random.default_rng(0).standard_normal((20, 24, 24))
    values = np.rint(10000 * noisy).astype(np.int16)
    values[3, 4, 5] = -9999
    cube = Cube(values, np.linspace(400, 900, 20), -9999.0)
    write_cube(tmp_path / "scene.hdr", cube, lambda rows: values[:, rows])
    return tmp_path / "scene.hdr"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["restobox", *map(str, arguments)])
    code = main()
    return code, capsys.readouterr()


@pytest.mark.parametrize("out", ["clean.hdr", "clean.mat"])
def test_restores_a_file(scene, model, monkeypatch, capsys, out):
    out, look = scene.with_name(out), scene.with_name("look.png")
    code, text = run(
        monkeypatch,
        capsys,
        "restore",
        "hsi",
        scene,
        "-o",
        out,
        "--model",
        model,
        "--quicklook",
        look,
        "--reference",
        scene,
        "--json",
    )
    assert code == 0, text.err
    figures = json.loads(text.out)
    assert figures["bands"] == 20
    assert figures["mpsnr"] > 10
    before, after = read_cube(scene), read_cube(out)
    assert after.values.dtype == np.int16
    assert after.values[3, 4, 5] == -9999
    assert after.no_data == -9999
    np.testing.assert_allclose(after.wavelengths, before.wavelengths, rtol=1e-4)
    assert read_image(look).pixels.shape[0] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sigma", "many"], "--sigma takes auto or a number"),
        (["--rank", "2.5"], "--rank takes auto or a number"),
        (["--rank", "21"], "between 1 and the number of bands, 20"),
        (["--reference", "other.npz"], "other.npz has shape"),
        (["--sigma", "1e300"], "between 0 and 1e+12"),
        (["--quicklook", "look.xyz"], "must end in"),
        (["--correction", "magic"], "unknown; known"),
        (["--symmetries", "5"], "symmetries"),
    ],
)
def test_bad_options_write_nothing(scene, model, monkeypatch, capsys, options, words):
    np.savez(scene.with_name("other.npz"), cube=np.zeros((4, 4, 3)))
    monkeypatch.chdir(scene.parent)
    code, text = run(
        monkeypatch, capsys, "restore", "hsi", scene, "-o", "clean.hdr", "--model", model, *options
    )
    assert code == 2
    assert words in text.err
    assert not scene.with_name("clean.hdr").exists()


def test_bench_measures_each_method(scene, model, monkeypatch, capsys):
    methods = [x for m in ("noisy", "subspace", "fasthyde-nlm", model) for x in ("--method", m)]
    code, text = run(
        monkeypatch,
        capsys,
        "bench",
        "hsi",
        "simulated",
        "--case",
        "50",
        "--case",
        "stripe",
        "--crop",
        "24",
        *methods,
        "--json",
    )
    assert code == 0, text.err
    rows = json.loads(text.out)
    assert len(rows) == 8
    quality = {(r["case"], r["method"]): r["mpsnr"] for r in rows}
    for case in ("50", "stripe"):
        assert quality[case, "noisy"] < quality[case, "subspace"] < quality[case, "fasthyde-nlm"]
    code, text = run(monkeypatch, capsys, "bench", "hsi", "simulated", "--case", "rain")
    assert code == 2
    assert "noise case 'rain' is unknown" in text.err


@pytest.mark.long
def test_shipped_models_beat_the_subspace_and_8_bits_cost_nothing():
    rows = run_bench_hsi(
        ["simulated"],
        cases=["50", "mixture"],
        methods=["subspace", "fasthyde-nlm", "grey", "grey-int8"],
        symmetries=2,
    )
    quality = {(r["case"], r["method"]): r for r in rows}
    for case in ("50", "mixture"):
        q = {m: quality[case, m] for m in ("subspace", "fasthyde-nlm", "grey", "grey-int8")}
        assert q["grey"]["mpsnr"] > q["subspace"]["mpsnr"] + 5
        assert q["grey"]["mpsnr"] > q["fasthyde-nlm"]["mpsnr"]
        assert q["grey"]["sam"] < q["subspace"]["sam"]
        assert q["grey-int8"]["mpsnr"] > q["grey"]["mpsnr"] - 0.05
