"""The command line as users meet it: the whole road on a tiny model, and one clear line for each
kind of bad input.
"""

import json
import os
import re
import sys
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import restobox, restobox_process
from helpers.data import smooth_picture
from PIL import Image

from export.runtime.auto import has_bfloat16
from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from quant.recipe import QuantRecipe
from quant.sensitivity import layer_costs, trajectory_errors
from quant.structure.equalize import behind_scale
from restoration.io.images import Photo, read_image, write_image
from solvers.denoiser import Denoiser
from toolbox.bench.runtime import FLOAT, _compiled, verdict
from toolbox.cli import main
from toolbox.support.doctor import mend, needed
from toolbox.support.sheets import chart


def run(*arguments, capsys, monkeypatch):
    """Exit code, stdout, stderr of ``restobox arguments``."""
    monkeypatch.setattr(sys, "argv", ["restobox", *map(str, arguments)])
    code = main()
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def cli(capsys, monkeypatch):
    return lambda *arguments: run(*arguments, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def photo(tmp_path):
    write_image(tmp_path / "photo.png", Photo(smooth_picture(40, 52)))
    mask = np.zeros((40, 52), np.uint8)
    mask[10:20, 15:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


@pytest.mark.long
def test_quantize_minds_solver_and_selection(cli, road, tiny_model, tmp_path):
    calibration = ("--calibration", road / "c.safetensors", "-o", tmp_path / "q")
    code, _, err = cli("quantize", tiny_model, *calibration, "--solver", "pndm")
    assert code == 2
    assert "recorded with solver ddim, not pndm" in err
    assert not (tmp_path / "q").exists()
    code, _, err = cli(
        "quantize", tiny_model, *calibration, "--solver", "ddim", "--preset", "ptq4dm-w8a8"
    )
    assert code == 0, err
    assert "--select ptq4dm" in err


@pytest.mark.long
def test_quantize_leaves_a_share_of_the_work_in_float(cli, road, tiny_model, tmp_path):
    """As many layers as the share allows, fewer multiplications than it, and less error than
    without.
    """
    runs = {}
    for share in ("0", "0.3"):
        out = tmp_path / share
        code, text, err = cli(
            "quantize",
            tiny_model,
            "--calibration",
            road / "c.safetensors",
            "-o",
            out,
            "--float-macs",
            share,
            "--json",
        )
        assert code == 0, err
        runs[share] = json.loads(text)["recipe"]["skip"]
    chosen = set(runs["0.3"]) - set(runs["0"])
    network = Denoiser.from_pretrained(tiny_model).network
    calibration = CalibrationSet.load(road / "c.safetensors", network)
    plain, mixed = (load_quantized(tmp_path / share, network) for share in ("0", "0.3"))
    costs = layer_costs(plain, *next(iter(calibration.batches(1))))
    chosen = {behind_scale(name) for name in chosen}  # as the default's grids by channel name them
    assert chosen == set(plain.names) - set(mixed.names) != set()
    assert sum(costs[name].macs for name in chosen) <= 0.3 * sum(c.macs for c in costs.values())
    errors = [sum(trajectory_errors(q, network, calibration).values()) for q in (plain, mixed)]
    assert errors[1] < errors[0]
    code, _, err = cli(
        "quantize",
        tiny_model,
        "--calibration",
        road / "c.safetensors",
        "-o",
        tmp_path / "bad",
        "--float-macs",
        "1.5",
    )
    assert code == 2
    assert "[0, 1); got 1.5" in err


def test_quantize_takes_iterations_and_lambda_where_rounding_is_learned(
    cli, road, tiny_model, tmp_path
):
    given = (tiny_model, "--calibration", road / "c.safetensors", "-o", tmp_path / "q")
    code, _, err = cli("quantize", *given, "--iterations", 5, "--lambda", 0)
    assert code == 2
    assert "--iterations and --lambda: the recipe's rounding is nearest" in err
    code, _, err = cli("quantize", *given, "--preset", "eda-dm-w8a8", "--iterations", 0)
    assert code == 2
    assert "reconstruction.iterations must be a whole number" in err
    assert not (tmp_path / "q").exists()
    recipe = QuantRecipe.preset("eda-dm-w8a8")
    skip = ("conv_*", "mid_block.*", "up_blocks.*", "*conv_shortcut")
    (tmp_path / "r.json").write_text(replace(recipe, skip=skip, split_shortcut=False).to_json())
    more = ("--recipe", tmp_path / "r.json", "--iterations", 1, "--lambda", 0.5, "--json")
    code, text, err = cli("quantize", *given, *more)
    assert code == 0, err
    found = json.loads(text)["recipe"]["reconstruction"]
    assert (found["iterations"], found["lambda_round"]) == (1, 0.5)
    assert found["lr_step"] == recipe.reconstruction.lr_step


@pytest.fixture(scope="module")
def road(tmp_path_factory, tiny_model, pictures):
    """Calibrate, quantize and export the tiny model once through the command line, the first in a
    process of its own.
    """
    place = tmp_path_factory.mktemp("road")
    calibrated = ("--steps", 2, "--steps", 3, "--count", 4, "--side", 48)
    for run, arguments in (
        (
            restobox_process,
            (
                "calibrate",
                tiny_model,
                "--data",
                pictures,
                "-o",
                place / "c.safetensors",
                *calibrated,
            ),
        ),
        (
            restobox,
            ("quantize", tiny_model, "--calibration", place / "c.safetensors", "-o", place / "q"),
        ),
        (restobox, ("export", tiny_model, "--quantized", place / "q", "-o", place / "bundle")),
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.long
def test_restore_with_the_exported_bundle(cli, photo, road):
    arguments = (
        "restore",
        "inpaint",
        photo / "photo.png",
        "--mask",
        photo / "mask.png",
        "-o",
        photo / "out.png",
        "--model",
        road / "bundle",
    )
    code, out, err = cli(
        *arguments,
        "--steps",
        2,
        "-n",
        2,
        "--std",
        "--seed",
        3,
        "--reference",
        photo / "photo.png",
        "--json",
    )
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert (figures["nfe"], figures["samples"], figures["seed"]) == (4, 2, 3)
    assert figures["psnr"] > 15
    restored, original = read_image(photo / "out.png"), read_image(photo / "photo.png")
    known = read_image(photo / "mask.png").pixels[0] < 0.5
    np.testing.assert_array_equal(restored.pixels[:, known], original.pixels[:, known])
    assert read_image(photo / "out-std.png").pixels.shape == (3, 40, 52)
    # the same seed gives the same file
    first = (photo / "out.png").read_bytes()
    assert cli(*arguments, "--steps", 2, "-n", 2, "--seed", 3)[0] == 0
    assert (photo / "out.png").read_bytes() == first


def test_restore_with_a_cache_of_features(cli, photo, tiny_model):
    def restored(name, *cache):
        out, given = photo / name, (photo / "photo.png", "-m", photo / "mask.png")
        options = ("--model", tiny_model, "--steps", 4, "--json", *cache)
        code, told, err = cli("restore", "inpaint", *given, "-o", out, *options)
        assert code == 0, err
        return json.loads(told), out.read_bytes()

    (whole, plain), (found, reused) = restored("a.png"), restored("b.png", "--cache", "2")
    assert found["nfe"] == whole["nfe"] == 4
    assert found["cache"] == "2"
    assert "cache" not in whole
    assert reused != plain
    assert restored("c.png", "--cache", "0,1,2,3")[1] == plain


def test_depth_and_alpha_are_kept(cli, photo, tiny_model):
    pixels = smooth_picture(24, 20)
    write_image(
        photo / "deep.tif",
        Photo(pixels, np.linspace(0, 1, 480, dtype=np.float32).reshape(24, 20), bits=16),
    )
    code, _out, err = cli(
        "restore",
        "inpaint",
        photo / "deep.tif",
        "-m",
        "box:0.1",
        "-o",
        photo / "deep-out.tif",
        "--model",
        tiny_model,
        "--steps",
        1,
    )
    assert code == 0, err
    back, before = read_image(photo / "deep-out.tif"), read_image(photo / "deep.tif")
    assert back.bits == 16
    np.testing.assert_array_equal(back.alpha, before.alpha)
    assert (back.pixels == before.pixels).mean() > 0.8


@pytest.mark.long
def test_table_bundles_name_the_steps_they_hold(cli, photo, road):
    code, _, err = cli(
        "restore",
        "inpaint",
        photo / "photo.png",
        "-m",
        "box:0.1",
        "-o",
        photo / "o.png",
        "--model",
        road / "bundle",
        "--steps",
        7,
    )
    assert code == 2
    assert "999" in err
    assert not (photo / "o.png").exists()


@pytest.mark.long
def test_verify(cli, road, tiny_model, pictures, tmp_path):
    common = (
        "verify",
        road / "bundle",
        "--model",
        tiny_model,
        "--quantized",
        road / "q",
        "--calibration",
        road / "c.safetensors",
    )
    common = (*common, "--data", pictures, "--count", 2, "--side", 48, "--steps", 2)
    code, out, err = cli(*common, "--psnr-drop", 5, "--report", tmp_path / "report", "--json")
    figures = json.loads(out)
    assert figures["fused"] == figures["planned"] > 0
    assert code == (3 if figures["failures"] else 0), err
    assert len(figures["images"]) == 2
    assert (tmp_path / "report" / "report.html").read_text().count("<img") == 2
    assert (
        json.loads((tmp_path / "report" / "report.json").read_text())["planned"]
        == figures["planned"]
    )
    # figures end up in the bundle
    assert (
        json.loads((road / "bundle" / "bundle.json").read_text())["parity"]["planned"]
        == figures["planned"]
    )
    # a limit that can't be met ends with code 3 and says which
    code, _, err = cli(*common, "--psnr-drop", -100)
    assert code == 3
    assert "restored images lose" in err
    # a calibration file says nothing about another solver's trajectory
    code, _, err = cli(*common, "--solver", "pndm")
    assert code == 2
    assert "recorded with solver ddim, not pndm" in err


@pytest.mark.long
def test_report(cli, road, tiny_model, pictures, tmp_path):
    common = (
        "report",
        road / "q",
        "--model",
        tiny_model,
        "--calibration",
        road / "c.safetensors",
        "-o",
        tmp_path / "report",
    )
    code, out, err = cli(
        *common, "--data", pictures, "--count", 2, "--side", 48, "--steps", 3, "--json"
    )
    assert code == 0, err
    figures = json.loads(out)
    assert {row["t"] for row in figures["timesteps"]} == {999, 666, 499, 332}
    assert figures["error"] == pytest.approx(
        np.mean([row["error"] for row in figures["timesteps"]])
    )
    assert [row["step"] for row in figures["chain"]] == [1, 2, 3]
    assert all(0 < row["error"] < 0.2 for row in figures["chain"])
    alone = [row["error_alone"] for row in figures["layers"]]
    assert alone == sorted(alone, reverse=True)
    assert figures["bytes"]["total"] < 0.5 * figures["bytes"]["float32"]
    assert figures["psnr_between"] > 25
    page = (tmp_path / "report" / "report.html").read_text()
    for name in ("timesteps.png", "chain.png", "case-0.png", "case-1.png"):
        assert name in page
        assert read_image(tmp_path / "report" / name).pixels.std() > 0
    assert (
        json.loads((tmp_path / "report" / "report.json").read_text())["error"] == figures["error"]
    )


def test_chart_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="2 places"):
        chart("t", ["a", "b"], [1.0])
    with pytest.raises(ValueError, match="finite values"):
        chart("t", ["a"], [float("nan")])
    drawn = chart("t", ["a", "b"], [0.0, 1.0])
    rows, columns = np.nonzero(drawn.max(0) - drawn.min(0) > 0.2)  # the curve has the only colour
    assert rows[columns.argmin()] > rows[columns.argmax()]  # the first point is low on the page


@pytest.mark.long
def test_restorer_bundle(cli, photo, road, tiny_model, pictures, tmp_path):
    bundle = tmp_path / "restorer"
    made = (
        "export",
        tiny_model,
        "--quantized",
        road / "q",
        "--restorer",
        "--steps",
        2,
        "--size",
        "48x32",
        "-o",
        bundle,
    )
    assert cli(*made)[0] == 0
    # a picture larger than the graph goes through in tiles
    code, out, err = cli(
        "restore",
        "inpaint",
        photo / "photo.png",
        "-m",
        "random:0.5",
        "-o",
        photo / "o.png",
        "--model",
        bundle,
        "--json",
    )
    assert code == 0, err
    figures = json.loads(out)
    assert (figures["solver"], figures["steps"], figures["nfe"]) == ("ddim", 2, 2 * 2 * 2)
    assert read_image(photo / "o.png").pixels.shape == (3, 40, 52)
    code, _, err = cli(
        "restore",
        "inpaint",
        photo / "photo.png",
        "-m",
        "random:0.5",
        "-o",
        photo / "p.png",
        "--model",
        bundle,
        "--sigma",
        0.1,
    )
    assert code == 2
    assert "exported for noise of sigma 0" in err
    common = (
        "verify",
        bundle,
        "--model",
        tiny_model,
        "--quantized",
        road / "q",
        "--data",
        pictures,
        "--count",
        2,
    )
    code, out, _ = cli(*common, "--psnr-drop", 5, "--report", tmp_path / "report", "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["fused"] == figures["planned"] > 0
    assert figures["psnr_bundle_simulated"] > 50
    assert (tmp_path / "report" / "report.html").read_text().count("<img") == 2
    assert cli(*common, "--psnr-drop", -100)[0] == 3
    assert cli("verify", bundle, "--model", tiny_model)[0] == 2
    code, out, _ = cli("inspect", bundle, "--placement", "--json")
    content = json.loads(out)
    assert content["run"]["steps"] == 2
    assert content["inputs"]["noise"].endswith(", 3, 32, 48)")
    assert (
        sum(p["count"] for p in content["placement"] if p["op"] == "QLinearConv")
        == content["planned"]
    )
    assert content["weights"]["int8"] > 0


@pytest.mark.long
def test_dehazing_restorer(cli, pictures, tmp_path):
    bundle = tmp_path / "dehazer"
    made = (
        "export",
        "haze",
        "--restorer",
        "--task",
        "dehaze",
        "--target",
        "float",
        "--steps",
        1,
        "--size",
        "48x32",
        "-o",
        bundle,
    )
    assert cli(*made)[0] == 0
    code, out, _ = cli(
        "verify", bundle, "--model", "haze", "--data", pictures, "--count", 1, "--json"
    )
    figures = json.loads(out)
    assert (code, figures["failures"]) == (0, [])
    assert figures["psnr_between"] > 80  # the host's loop
    assert cli("export", "haze", "--restorer", "--task", "paired", "-o", tmp_path / "other")[0] == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_inspect_prints_tables(cli, road):
    code, out, err = cli("inspect", road / "bundle")
    assert code == 0, err
    for word in ("QuantizeLinear", "network.onnx", "step graph for cpu", "weight_bits"):
        assert word in out


@pytest.mark.long
def test_bench_runtime(cli, road, tiny_model):
    code, out, err = cli(
        "bench",
        "runtime",
        road / "bundle",
        "--model",
        tiny_model,
        "--size",
        "16x16",
        "--repeats",
        2,
        "--json",
    )
    assert code == 0, err
    figures = json.loads(out)
    rows = {row["name"]: row for row in figures["rows"]}
    named = ["PyTorch eager", "ONNX fp32", "ONNX fp16", "bundle (cpu)"]
    if find_spec("openvino"):
        half = ["OpenVINO bf16"] if has_bfloat16() else []
        named += ["OpenVINO fp32", *half, "bundle (cpu), OpenVINO"]
    assert list(rows) == named
    assert rows["ONNX fp32"]["speedup"] == 1
    assert all(row["ms"] > 0 for row in rows.values())
    assert rows["ONNX fp16"]["mb"] < rows["ONNX fp32"]["mb"]
    assert all(
        row["peak_mb"] is None or row["peak_mb"] > 0
        for name, row in rows.items()
        if name.startswith("ONNX")
    )
    assert re.search(r"bundle \(cpu\)(, OpenVINO)? is", figures["verdict"])
    assert cli("bench", "runtime", road / "bundle", "--model", "photo")[0] == 2


def test_a_network_that_cannot_be_compiled_is_left_out_with_the_reason(monkeypatch):
    def refuse(network):
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr("torch.compile", refuse)
    made, reason = _compiled(torch.nn.Identity(), torch.zeros(1), torch.zeros(1))
    assert (made, reason) == (None, "no compiler found")


def test_verdict_says_when_8_bits_do_not_pay(monkeypatch):
    rows = [
        {"name": n, "threads": 1, "ms": ms, "device": "cpu"}
        for n, ms in (
            ("PyTorch eager", 9.0),
            ("ONNX fp32", 4.0),
            ("ONNX fp16", 5.0),
            ("b (cpu)", 3.9),
        )
    ]
    stay = "1 thread: stay with float32: b (cpu) is 1.03 times as fast as ONNX fp32, since "
    assert verdict(rows).startswith(stay)
    monkeypatch.setattr("toolbox.bench.runtime.DOT_PRODUCTS", {"no such word"})
    assert verdict(rows) == stay + "this processor has no instruction for products of 8 bits"
    rows[1]["device"] = "cuda"
    assert "CUDA provider has no integer convolution" in verdict(rows)
    rows[-1]["ms"] = 2.0
    assert verdict(rows) == "1 thread: take int8: b (cpu) is 2.00 times as fast as ONNX fp32"
    rows[2]["ms"] = 1.9
    assert verdict(rows).startswith("1 thread: stay with float16: b (cpu) is 0.95 times as fast")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("ONNX fp32", "float32"),
        ("ONNX fp16", "float16"),
        ("OpenVINO fp32", "float32"),
        ("OpenVINO bf16", "bfloat16"),
    ],
)
def test_verdict_names_the_numbers_of_each_float_candidate(name, numbers):
    assert set(FLOAT) == {"ONNX fp32", "ONNX fp16", "OpenVINO fp32", "OpenVINO bf16"}
    rows = [
        {"name": n, "threads": 2, "ms": ms, "device": "cpu"} for n, ms in ((name, 2.0), ("b", 3.0))
    ]
    assert verdict(rows).startswith(
        f"2 threads: stay with {numbers}: b is 0.67 times as fast as {name}, since "
    )


def test_doctor(cli):
    code, out, err = cli("doctor", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["usable"]["cpu"]
    assert report["packages"]["torch"]
    assert cli("doctor", "--require", "cpu")[0] == 0
    usable = report["usable"]["tensorrt"]
    assert cli("doctor", "--require", "tensorrt")[0] == (0 if usable else 3)
    assert cli("doctor", "--require", "tpu")[0] == 2


def test_doctor_reads_what_a_library_is_linked_with(tmp_path):
    assert any(name.startswith("libc.") for name in needed(Path(os.path.realpath(sys.executable))))
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ValueError, match="ELF"):
        needed(tmp_path / "text.so")


def test_doctor_names_the_matching_packages():
    cuda = ["libcublas.so.13", "libcudart.so.13"]
    assert mend("libnvinfer.so.10", cuda) == 'pip install "tensorrt-cu13>=10,<11"'
    assert mend("libcudnn.so.9", cuda) == 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def test_models_lists_what_load_takes(cli):
    code, out, err = cli("models", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found
    for model in found:
        assert Path(model["folder"]).is_dir()


BAD = [
    ("missing image", ("{dir}/no.png", "-m", "{mask}", "-o", "{out}"), "does not exist"),
    ("corrupt image", ("{corrupt}", "-m", "{mask}", "-o", "{out}"), "can't be read"),
    ("mask of another size", ("{image}", "-m", "{small}", "-o", "{out}"), "same size"),
    ("all missing", ("{image}", "-m", "{white}", "-o", "{out}"), "every pixel as missing"),
    ("no such mask", ("{image}", "-m", "{dir}/no.png", "-o", "{out}"), "neither a file nor"),
    ("zero steps", ("{image}", "-m", "{mask}", "-o", "{out}", "--steps", "0"), "from 1 to 1000"),
    (
        "a million steps",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--steps", "1000000"),
        "from 1 to 1000",
    ),
    (
        "unknown solver",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--solver", "euler9"),
        "known: auto",
    ),
    (
        "unknown model",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--model", "nonesuch"),
        "neither a shipped model",
    ),
    (
        "no model folder",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--model", "{dir}"),
        "no model folder",
    ),
    (
        "unknown grid",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--grid", "spiral"),
        "known: trailing",
    ),
    ("negative sigma", ("{image}", "-m", "{mask}", "-o", "{out}", "--sigma", "-1"), "sigma"),
    ("sigma is NaN", ("{image}", "-m", "{mask}", "-o", "{out}", "--sigma", "nan"), "sigma"),
    (
        "no folder for output",
        ("{image}", "-m", "{mask}", "-o", "{dir}/none/o.png"),
        "does not exist",
    ),
    ("output is a folder", ("{image}", "-m", "{mask}", "-o", "{dir}"), "must end in"),
    ("unknown output format", ("{image}", "-m", "{mask}", "-o", "{dir}/o.xyz"), "must end in"),
    ("std of one sample", ("{image}", "-m", "{mask}", "-o", "{out}", "--std"), "-n 4"),
    ("no samples", ("{image}", "-m", "{mask}", "-o", "{out}", "-n", "0"), "equal to 1"),
    (
        "reference of another size",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--reference", "{small}"),
        "the result is",
    ),
    (
        "steps that are no number",
        ("{image}", "-m", "{mask}", "-o", "{out}", "--steps", "abc"),
        "--steps",
    ),
    ("no mask", ("{image}", "-o", "{out}"), "--mask"),
    ("seed below zero", ("{image}", "-m", "{mask}", "-o", "{out}", "--seed", "-1"), "--seed"),
    (
        "tiny reference",
        ("{small}", "-m", "box:0.3", "-o", "{out}", "--reference", "{small}"),
        "11 x 11",
    ),
    (
        "mask that misses nothing",
        ("{small}", "-m", "random:0.0001", "-o", "{out}"),
        "nothing missing",
    ),
    ("cache no number", ("{image}", "-m", "{mask}", "-o", "{out}", "--cache", "x"), "0,1,4; got"),
    ("cache of one step", ("{image}", "-m", "{mask}", "-o", "{out}", "--cache", "2"), "one step"),
    ("tile too small", ("{image}", "-m", "{mask}", "-o", "{out}", "--tile", "3"), "tile"),
]


@pytest.mark.parametrize(("name", "arguments", "says"), BAD, ids=[b[0] for b in BAD])
def test_bad_input_is_one_line(cli, photo, tiny_model, name, arguments, says):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(photo / "small.png")
    Image.fromarray(np.full((40, 52), 255, np.uint8)).save(photo / "white.png")
    (photo / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    before = sorted(p.name for p in photo.iterdir())
    places = {"dir": photo, "image": photo / "photo.png", "out": photo / "o.png"}
    places |= {key: photo / f"{key}.png" for key in ("mask", "small", "white", "corrupt")}
    filled = [str(a).format(**places) for a in arguments]
    if "--model" not in filled:
        filled += ["--model", str(tiny_model)]
    code, out, err = cli("restore", "inpaint", *filled)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.startswith("restobox: ")
    assert err.count("\n") == 1
    assert sorted(p.name for p in photo.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(cli, photo, tiny_model):
    (photo / "locked").mkdir(mode=0o500)
    arguments = (
        "restore",
        "inpaint",
        photo / "photo.png",
        "-m",
        photo / "mask.png",
        "-o",
        photo / "locked" / "o.png",
        "--model",
        tiny_model,
    )
    code, _, err = cli(*arguments)
    assert code == 2
    assert "not writable" in err


def test_output_below_a_file_is_refused_before_any_work(cli, photo, tiny_model):
    code, _, err = cli(
        "demo", "-o", photo / "photo.png", "--model", tiny_model, "--steps", 1, "-n", 1
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "folder" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("train", "nonesuch", "--data", "{dir}", "-o", "{dir}/m"),
            "neither a file nor a shipped recipe",
        ),
        (("train", "photo", "--data", "{dir}/none", "-o", "{dir}/m"), "does not exist"),
        (("train", "photo", "--data", "{dir}", "-o", "{dir}/m"), "no picture of at least"),
        (
            ("bench", "{dir}", "--masks", "{dir}/photo.png", "--mask", "x", "--model", "{model}"),
            "as .npz",
        ),
        (("nonesuch",), "nonesuch"),
        (("calibrate", "{model}", "--data", "{dir}/none", "-o", "{dir}/c"), "does not exist"),
        (
            ("quantize", "{model}", "--calibration", "{dir}/none", "-o", "{dir}/q"),
            "restobox calibrate",
        ),
        (
            ("quantize", "{model}", "--calibration", "{dir}/photo.png", "-o", "{dir}/q"),
            "as a calibration set",
        ),
        (("export", "{model}", "-o", "{dir}/b"), "quantized"),
        (("export", "{model}", "-o", "{dir}", "--target", "float"), "no bundle"),
        (("export", "{model}", "-o", "{dir}/b", "--target", "toaster"), "known: float"),
        (
            (
                "verify",
                "{dir}",
                "--model",
                "{model}",
                "--quantized",
                "{dir}/q",
                "--calibration",
                "{dir}/c",
            ),
            "no bundle",
        ),
    ],
)
def test_bad_input_elsewhere(cli, photo, tiny_model, arguments, says):
    before = sorted(p.name for p in photo.iterdir())
    code, _out, err = cli(*(str(a).format(dir=photo, model=tiny_model) for a in arguments))
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in photo.iterdir()) == before


@pytest.mark.parametrize("device", ["2.5", "gpu", "meta", "", "openvino", "cuda:99"])
def test_a_device_that_is_none_is_named(cli, photo, tiny_model, device):
    out = photo / "o.png"
    arguments = ("restore", "inpaint", photo / "photo.png", "--mask", photo / "mask.png", "-o", out)
    code, _, err = cli(*arguments, "--model", tiny_model, f"--device={device}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "device" in err
    assert "doesn't know" not in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "photo", "--mixed-precision", "half"), "known: no, bf16, fp16"),
        (("calibrate", "grey", "--threads", "99999999999999999999"), "1024"),
    ],
)
def test_words_and_numbers_that_are_no_choice(cli, pictures, tmp_path, arguments, says):
    code, _, err = cli(*arguments, "--data", pictures, "-o", tmp_path / "o")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (tmp_path / "o").exists()


def test_version(cli):
    code, out, _ = cli("--version")
    assert (code, out.strip()) == (0, metadata.version("restobox"))
