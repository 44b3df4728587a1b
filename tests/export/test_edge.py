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

from export.bundle import FORMAT, RUNNER, RUNNER_SOURCE, Bundle, read_bundle
from export.edge import restobox_edge as edge
from export.runtime.session import Restorer, Session
from export.tables import renew_bundle, run_table
from restoration.paired.task import PairedTask
from restoration.photo.inpainting import InpaintingTask
from solvers import DDIM, SOLVERS, VP, Denoiser, RDDMSampler, solver_by_name
from solvers.inputs.errors import FullDiskError
from solvers.methods.rddm import RDDM
from solvers.solver import Query, randn
from toolbox.api import ZOO
from toolbox.support.inspect import inspect_bundle

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


def noise_of(draws, size, seed):
    """What the host draws for this seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [randn((1, 3, *size), generator)[0].numpy() for _ in range(draws)]
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
    noise = noise_of(ours.draws, (44, 50), 3)
    found = ours.picture(image, known.astype(np.float32), noise=noise)
    host = Restorer(FORMER / "restorer", threads=1)
    wanted = host(torch.from_numpy(image), torch.from_numpy(known).float(), seed=3).mean.numpy()
    # 8 bits: a sum on the border of two codes may fall on either side
    assert np.abs(found - wanted).max() < 8e-3
    assert np.abs(found - wanted).mean() < 1.3e-3
    assert "QLinearConv" in ours.graph.placement


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network's bundle of an earlier version, with the tables and the runner of this one."""
    folder = shutil.copytree(FORMER / "bundle", tmp_path_factory.mktemp("network") / "b")
    renew_bundle(folder)
    return Path(folder)


def test_networks_follow_their_tables(network, photo, monkeypatch):
    """The lift, the solver's weights, folding and tiles: the host's run without its code."""
    image, known = photo
    monkeypatch.setattr(edge, "TILE", 24)
    ours = edge.Network(network, threads=1)
    noise = noise_of(ours.runs[0]["draws"], (44, 50), 3)
    session = Session(network, threads=1)
    assert {run["steps"] for run in ours.runs} >= {1, 2}
    for steps in (1, 2):
        task = InpaintingTask(session, DDIM(), steps, tile=24)
        mask = torch.from_numpy(known).float()
        wanted = task(torch.from_numpy(image), mask, seed=3).mean.numpy()
        found = ours.picture(image, known.astype(np.float32), noise=noise, steps=steps)
        assert np.abs(found - wanted).max() < 8e-3
        assert np.abs(found - wanted).mean() < 1.3e-3
    assert (network / RUNNER).read_bytes() == RUNNER_SOURCE.read_bytes()
    assert read_bundle(network).format == FORMAT


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
    (tmp_path / "folder.png").mkdir()
    for words, says in (
        ((picture, "-o", tmp_path / "folder.png", *good[3:]), "is no file"),
        ((picture, "-o", out, "--bundle", tmp_path), "no bundle.json"),
        ((picture, "-o", out, "--bundle", bundle), "needs --mask"),
        ((picture, "-o", picture, "--mask", mask, "--bundle", bundle), "would replace"),
        ((picture, "-o", tmp_path / "o.gif", "--mask", mask, "--bundle", bundle), ".png, .jpg"),
        ((*good, "--provider", "cuda"), "exported for CPUs"),
        ((*good, "--provider", "openvino"), "pip install onnxruntime-openvino"),
        ((*good, "--sigma", "0.1"), "noise and steps are fixed"),
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


def test_results_are_whole_or_not_there(photo, tmp_path, capsys, monkeypatch):
    picture, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    places, before = [tmp_path / "out.png", tmp_path / "out.NPZ"], set(tmp_path.iterdir())
    words = ("--mask", mask, "--bundle", FORMER / "restorer", "--threads", "1")

    def full(file):
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda self, file, **_: full(file))
        patch.setattr(np, "savez", lambda file, **_: full(file))
        for place in places:
            place.write_text("what was there")
            assert "No space left" in refused(capsys, picture, "-o", place, *words)
            assert place.read_text() == "what was there"
    for place in places:
        assert edge.main([*map(str, (picture, "-o", place, *words))]) == 0
    with np.load(places[1]) as found:
        codes = (found["restored"] * 255).round().transpose(1, 2, 0)
    assert np.array_equal(np.asarray(Image.open(places[0])), codes)
    assert set(tmp_path.iterdir()) == before | set(places)


def test_networks_refuse_what_their_tables_lack(network, photo, tmp_path, capsys):
    picture, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    good = (picture, "-o", tmp_path / "o.png", "--bundle", network)
    for words, says in (
        (good, "needs --mask"),
        ((*good, "--mask", mask, "--steps", "7"), "holds runs of 1, 2 steps"),
        ((*good, "--sigma", "0.1"), "removes no noise"),
        ((*good[:-1], FORMER / "bundle"), "without the tables"),
    ):
        assert says in refused(capsys, *words), words


def test_a_bundle_is_renewed_as_a_whole(tmp_path, monkeypatch):
    copy = Path(shutil.copytree(FORMER / "restorer", tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Bundle, "model_dump_json", full)
    with pytest.raises(FullDiskError):
        renew_bundle(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_bundle_says_what_it_can_run(network):
    found = inspect_bundle(network)["can run"]
    assert found["inpaint"] == "1, 2 steps of ddim"
    assert inspect_bundle(FORMER / "restorer")["can run"]["inpaint"].startswith("ddim of 2 steps")
    assert inspect_bundle(ZOO / "haze-int8")["can run"]["dehaze"].startswith("1, 5 steps of rddm")
    assert "at 100 levels" in inspect_bundle(ZOO / "grey-int8")["can run"]["denoise"]


# -- tables ----------------------------------------------------------------------------------------


def answer(x, t):
    """Stands for a network: no sum of pictures, and other at every time."""
    return torch.tanh(3 * x[:, :3]) + 0.01 * t.view(-1, 1, 1, 1) * x[:, :3].square()


def followed(table, y, known, condition, noise, network):
    """The runner's way, in its own code."""
    parts = [y, *[None] * len(table.times), *noise]
    for k, t in enumerate(table.times):
        z = edge._mixed([kind[k] for kind in table.asked], parts, known)
        x = torch.from_numpy(np.concatenate([z, condition]))[None]
        parts[1 + k] = network(x, torch.tensor([t]))[0].numpy()
    return edge._mixed(table.end, parts, known)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "pndm", "evodiff", "dpm-solver++-2m"])
def test_a_table_is_the_solvers_run(solver):
    image, steps = torch.from_numpy(smooth_picture(16, 16)), 4
    known = (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    options = {"condition_channels": 4, "residual": True, "data_std": 0.3}
    d = Denoiser(answer, VP.cosine(100), "v_prediction", **options)
    d.network.__dict__["out_channels"] = 3
    wanted = InpaintingTask(d, solver_by_name(solver), steps)(image, known, seed=3).mean.numpy()
    table = run_table(d, "inpaint", solver, steps)
    y = edge.thin_plate((image * 2 - 1).numpy() * known.numpy(), known.numpy())
    condition = np.concatenate([y, known[None].numpy()])
    noise = noise_of(table.draws, (16, 16), 3)
    found = followed(table, y, known.numpy(), condition, noise, answer) / 2 + 0.5
    np.testing.assert_allclose(found.clip(0, 1), wanted, rtol=0, atol=3.5e-5)


@pytest.mark.parametrize("process", [VP.cosine(100), RDDM.scheduled(100)])
def test_tables_of_pairs(process):
    """By level matching, and on the process that holds the degraded picture."""
    image = torch.from_numpy(smooth_picture(16, 16))
    d = Denoiser(answer, process, "epsilon", condition_channels=3)
    wanted = PairedTask(d, RDDMSampler(), 3)(image, seed=3).mean.numpy()
    table = run_table(d, "paired", "rddm", 3)
    y = (image * 2 - 1).numpy()
    noise = noise_of(table.draws, (16, 16), 3)
    found = followed(table, y, None, y, noise, answer) / 2 + 0.5
    np.testing.assert_allclose(found.clip(0, 1), wanted, rtol=0, atol=3.5e-5)


def test_a_run_that_is_no_sum_has_no_table(monkeypatch):
    class Bounded:
        def run(self, problem, grid, x):
            for t, s in grid.pairs():
                p = yield Query(x, t)
                x = problem.process.add_noise(p.x0.clamp(-0.5, 0.5), p.eps, s)
            return x

    monkeypatch.setitem(SOLVERS, "bounded", Bounded)
    d = Denoiser(answer, VP.cosine(100), "v_prediction", condition_channels=4, residual=True)
    assert run_table(d, "inpaint", "bounded", 3) is None
    assert run_table(d, "inpaint", "ddim", 3) is not None


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
    unlisted = {"files": {k: v for k, v in content["files"].items() if k != "restorer.onnx"}}
    (copy / "bundle.json").write_text(json.dumps(content | unlisted))
    assert "doesn't list restorer.onnx" in refused(capsys, *words)
    (copy / "bundle.json").write_text("[")
    assert "damaged" in refused(capsys, *words)
    (copy / "restorer.onnx").write_bytes(graph)
    for gone in ("target", "run", "files", "graph"):
        (copy / "bundle.json").write_text(
            json.dumps({key: value for key, value in content.items() if key != gone})
        )
        assert "damaged" in refused(capsys, *words)
    for key in content["run"]:
        for wrong in ("x", [["x"]]):
            (copy / "bundle.json").write_text(
                json.dumps(content | {"run": content["run"] | {key: wrong}})
            )
            found = edge.main([*map(str, words)])
            said = capsys.readouterr().err
            assert found == 0 or (found == 2 and said.count("\n") == 1)
