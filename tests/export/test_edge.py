"""The runner for devices: what a bundle's ``run.py`` makes of a measurement is what the package
makes of it, without torch and with nothing but its three packages.
"""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import ROOT, smooth_picture
from helpers.quantized import one_thread  # noqa: F401
from PIL import Image

from export.bundle import RUNNER_SOURCE
from export.edge import restobox_edge as edge
from export.runtime.session import Restorer
from solvers.solver import randn

FORMER = ROOT / "tests" / "former"
ABSENT = ("torch", "brevitas", "diffusers", "onnx", "pydantic", "solvers", "export", "toolbox")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photo(tmp_path):
    """A picture larger than the graph, and a mask that marks a third of it."""
    pixels = smooth_picture(44, 50)
    missing = np.random.default_rng(0).random((44, 50)) < 0.3
    codes = (pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    Image.fromarray(codes).save(tmp_path / "photo.png")
    Image.fromarray((missing * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    return codes.transpose(2, 0, 1) / np.float32(255), ~missing


def noise_of(restorer, size, seed):
    """What the host draws for this seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [randn((1, 3, *size), generator)[0].numpy() for _ in range(restorer.draws)]
    return np.stack(drawn)


def command(*words):
    """The runner's own process, where nothing else can be imported."""
    code = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None
sys.argv = {["run.py", *map(str, words)]}
runpy.run_path({str(RUNNER_SOURCE)!r}, run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )


def test_pictures_of_any_size_are_restored_as_by_the_host(photo):
    """In tiles, on the same noise, by the same kernels: equal but for rounding."""
    image, known = photo
    ours = edge.Restorer(FORMER / "restorer", threads=1)
    found = ours.picture(image, known.astype(np.float32), noise=noise_of(ours, (44, 50), 3))
    host = Restorer(FORMER / "restorer", threads=1)
    wanted = host(torch.from_numpy(image), torch.from_numpy(known).float(), seed=3).mean.numpy()
    # 8 bits: a sum on the border of two codes may fall on either side
    assert np.abs(found - wanted).max() < 8e-3
    assert np.abs(found - wanted).mean() < 1.3e-3
    assert "QLinearConv" in ours.graph.placement


def test_runs_where_torch_is_not(photo, tmp_path):
    image, known = photo
    out = tmp_path / "out.png"
    done = command(
        *(tmp_path / "photo.png", "-o", out, "--mask", tmp_path / "mask.png"),
        *("--bundle", FORMER / "restorer", "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "runs on: CPUExecutionProvider" in done.stdout
    restored = np.asarray(Image.open(out), np.float32).transpose(2, 0, 1) / 255
    assert np.array_equal(restored[:, known], image[:, known])
    # nearer to the truth than a grey guess
    assert np.abs(restored - image)[:, ~known].mean() < np.abs(0.5 - image)[:, ~known].mean()


def test_the_runner_needs_little():
    """Three packages and Python 3.10."""
    tree = ast.parse(RUNNER_SOURCE.read_text(encoding="utf-8"), feature_version=(3, 10))
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert names - sys.stdlib_module_names == {"onnxruntime", "numpy", "PIL"}


def refused(capsys, *words):
    assert edge.main([str(w) for w in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def test_bad_input_is_refused_in_one_line(photo, tmp_path, capsys):
    bundle, out = FORMER / "restorer", tmp_path / "out.png"
    picture, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    good = (picture, "-o", out, "--mask", mask, "--bundle", bundle)
    Image.new("RGBA", (50, 44)).save(tmp_path / "clear.png")
    Image.new("L", (20, 20)).save(tmp_path / "small.png")
    Image.new("L", (50, 44), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("no picture")
    np.savez(tmp_path / "other.npz", picture=np.zeros((3, 32, 32), np.float32))
    for words, says in (
        ((picture, "-o", out, "--bundle", tmp_path), "no bundle.json"),
        ((picture, "-o", out, "--bundle", bundle), "needs --mask"),
        ((picture, "-o", picture, "--mask", mask, "--bundle", bundle), "would replace"),
        ((picture, "-o", tmp_path / "o.gif", "--mask", mask, "--bundle", bundle), ".png, .jpg"),
        ((*good, "--provider", "cuda"), "exported for CPUs"),
        ((*good, "--provider", "openvino"), "pip install onnxruntime-openvino"),
        ((*good, "--sigma", "0.1"), "the noise is fixed"),
        ((*good, "--threads", "0"), "at least 1"),
        ((tmp_path / "clear.png", *good[1:]), "transparency"),
        ((tmp_path / "text.png", *good[1:]), "no picture"),
        ((tmp_path / "none.png", *good[1:]), "doesn't exist"),
        ((*good[:4], tmp_path / "small.png", *good[5:]), "20 x 20 pixels"),
        ((*good[:4], tmp_path / "white.png", *good[5:]), "white all over"),
        ((tmp_path / "other.npz", "-o", out, "--bundle", bundle), "takes image, mask"),
    ):
        assert says in refused(capsys, *words), words
        assert not out.exists()


def test_changed_bundles_are_refused(photo, tmp_path, capsys):
    words = [tmp_path / "photo.png", "-o", tmp_path / "o.png", "--mask", tmp_path / "mask.png"]
    copy = Path(shutil.copytree(FORMER / "restorer", tmp_path / "copy"))
    words += ["--bundle", copy]
    graph = (copy / "restorer.onnx").read_bytes()
    (copy / "restorer.onnx").write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    assert "was changed" in refused(capsys, *words)
    (copy / "restorer.onnx").unlink()
    assert "missing" in refused(capsys, *words)
    content = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(content | {"format": 99}))
    assert "format 99" in refused(capsys, *words)
    (copy / "bundle.json").write_text("[")
    assert "damaged" in refused(capsys, *words)
