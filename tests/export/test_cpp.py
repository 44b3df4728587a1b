"""The C++ program restores a picture as the runner does.

Needs a compiler and ONNX Runtime's release (folders ``include`` and ``lib``) in
``examples/edge/onnxruntime``, or where ``ONNXRUNTIME_ROOT`` says.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.data import ROOT, smooth_picture
from PIL import Image

from export.edge import restobox_edge as edge

SOURCE = ROOT / "examples" / "edge" / "restore.cpp"
RUNTIME = Path(os.environ.get("ONNXRUNTIME_ROOT", SOURCE.parent / "onnxruntime"))
BUNDLE = ROOT / "tests" / "former" / "restorer"
COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not (RUNTIME / "lib").is_dir(), reason="no release of ONNX Runtime"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out, lib = tmp_path_factory.mktemp("cpp") / "restore", RUNTIME / "lib"
    words = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", SOURCE]
    words += ["-isystem", RUNTIME / "include", "-L", lib, "-lonnxruntime", f"-Wl,-rpath,{lib}"]
    subprocess.run([*words, "-o", out], check=True)
    return out


@pytest.fixture
def files(tmp_path):
    """``p.ppm`` and ``m.pgm`` of 32 x 32 pixels."""
    pixels = (smooth_picture(32, 32).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    missing = np.random.default_rng(0).random((32, 32)) < 0.4
    Image.fromarray(pixels).save(tmp_path / "p.ppm")
    Image.fromarray((missing * 255).astype(np.uint8)).save(tmp_path / "m.pgm")
    return tmp_path


def ran(program, folder, *words):
    return subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, cwd=folder, check=False
    )


def test_the_program_restores_as_the_runner_does(program, files):
    runner = edge.Restorer(BUNDLE, threads=1)
    noise = runner.noise((3, 32, 32), 0)
    (files / "n.bin").write_bytes(noise.tobytes())
    done = ran(program, files, BUNDLE, "p.ppm", "o.ppm", "m.pgm", "n.bin")
    assert (done.returncode, done.stderr) == (0, "")
    found = np.asarray(Image.open(files / "o.ppm"), np.float32).transpose(2, 0, 1) / 255
    given = np.asarray(Image.open(files / "p.ppm"), np.float32).transpose(2, 0, 1) / 255
    known = np.asarray(Image.open(files / "m.pgm")) < 128
    wanted = runner.picture(given, known.astype(np.float32), noise=noise)
    # half a grey level of the file, and 8 bits whose sums fall on either side of a code
    assert np.abs(found - wanted).max() < 0.5 / 255 + 8e-3
    np.testing.assert_array_equal(found[:, known], given[:, known])
    assert np.abs(found - given)[:, ~known].max() > 0.02
    for seed in (1, 2):
        assert ran(program, files, BUNDLE, "p.ppm", f"{seed}.ppm", "m.pgm", seed).returncode == 0
    assert (files / "1.ppm").read_bytes() != (files / "2.ppm").read_bytes()


def test_what_it_cannot_use_is_said_in_a_line(program, files):
    Image.open(files / "p.ppm").resize((40, 32)).save(files / "wide.ppm")
    (files / "cut.ppm").write_bytes((files / "p.ppm").read_bytes()[:-1])
    (files / "deep.ppm").write_bytes(b"P6 32 32 65535 " + bytes(32 * 32 * 6))
    (files / "short.bin").write_bytes(bytes(12))
    cases = [
        (("nothing", "p.ppm", "o.ppm", "m.pgm"), "restorer.onnx"),
        ((BUNDLE, "wide.ppm", "o.ppm", "m.pgm"), "pictures of 32 x 32"),
        ((BUNDLE, "cut.ppm", "o.ppm", "m.pgm"), "cut short"),
        ((BUNDLE, "deep.ppm", "o.ppm", "m.pgm"), "not of 8 bits"),
        ((BUNDLE, "p.ppm", "o.ppm"), "give a mask"),
        ((BUNDLE, "p.ppm", "o.ppm", "wide.ppm"), "not of the picture's size"),
        ((BUNDLE, "p.ppm", "o.ppm", "m.pgm", "short.bin"), "neither a seed nor a file of 3072"),
        ((BUNDLE, "p.ppm", "o.ppm", "m.pgm", "-1"), "neither a seed"),
    ]
    for words, says in cases:
        done = ran(program, files, *words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
    assert not (files / "o.ppm").exists()
