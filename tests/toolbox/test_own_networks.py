"""Networks that people bring: each family's small checkpoint through the whole line."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import checkpoints
from helpers.commands import restobox
from helpers.data import ROOT
from helpers.deploy import calibrate
from helpers.line import FAMILIES, PLACE, SIDE, furnish, through
from helpers.quantized import one_thread  # noqa: F401

from export import exporter
from export.edge import restobox_edge as edge
from export.exporter import export_bundle
from quant.files import load_quantized
from quant.temporal.table import step_network, temporal_table
from restoration.photo.linear import denoised
from solvers import VP, Denoiser
from solvers.methods.rddm import RDDM
from toolbox.api import check_model, load
from toolbox.deploy.convert import run_convert
from toolbox.deploy.quantize import run_quantize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("data") / "data")


@pytest.mark.long
def test_a_checkpoint_is_converted_and_quantized(data, tmp_path):
    """By the commands, from the file to 8 bits; the options are said once."""
    model, file = tmp_path / "m", PLACE / "rddm-two-unets.pt"
    done = restobox("convert", file, "-o", model, "--groups", "4")
    assert done.returncode == 0, done.stderr
    assert "assumed --objective pred_res_noise, --train-steps 1000" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    denoiser = load(model)
    runs = {"solver": "rddm", "steps": [1], "count": 1, "side": SIDE}
    calibrate(model, data, tmp_path / "c.safetensors", task="paired", **runs)
    figures = run_quantize(str(model), tmp_path / "c.safetensors", tmp_path / "q")
    assert figures["layers"] > 30
    quantized = load_quantized(tmp_path / "q", denoiser.network)
    x, t = torch.rand(1, 6, SIDE, SIDE), torch.tensor([999.0])
    exact = denoiser.network(x, t)
    assert 0 < (quantized(x, t) - exact).norm() < 0.2 * exact.norm()
    # one row of a table stands for both networks' layers of time
    step = step_network(denoiser.network, temporal_table(denoiser.network, [999.0]))
    torch.testing.assert_close(step(x, torch.tensor([0])), exact)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{f}", "-o", "{o}", "--groups", "4"), "--groups has no effect"),
        (("{f}", "-o", "{f}"), "is a file|folder"),
        (("{m}", "-o", "{o}", "--num-heads", "4"), "leave out --num-heads"),
        (("{o}.pkl", "-o", "{o}"), "hold code"),
        (("{o}/none", "-o", "{o}"), "neither a shipped model .* nor a file or folder"),
    ],
)
def test_conversions_that_can_not_be_are_refused(tmp_path, words, said):
    places = {"f": PLACE / "drunet-gray-like.pth", "o": tmp_path / "o"}
    places["m"] = ROOT / "tests" / "former" / "model"
    (tmp_path / "o.pkl").write_bytes(b"")
    done = restobox("convert", *(word.format(**places) for word in words))
    assert done.returncode == 2
    assert re.search(said, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_names_of_the_hub_and_of_shipped_models_are_converted(tmp_path, monkeypatch):
    """What the hub gives is read as a folder is; a name that it doesn't know is refused."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)

    def snapshot(name, **_):
        if name != "someone/network":
            raise OSError("404 not found")
        return str(ROOT / "tests" / "former" / "model")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    found = run_convert("someone/network", tmp_path / "m")
    assert found["network"] == "UNet2DModel"
    assert load(tmp_path / "m").process == load(ROOT / "tests" / "former" / "model").process
    assert run_convert("grey", tmp_path / "g")["parameters"] > 0
    with pytest.raises(ValueError, match=r"hub can't be asked for it \(404 not found\)"):
        run_convert("someone/other", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_folder_of_ones_own_is_not_replaced(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("mine")
    done = restobox("convert", PLACE / "drunet-gray-like.pth", "-o", tmp_path / "o")
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["resfusion-restore-mask.ckpt", "rddm-one-unet.pt"])
def test_networks_of_pairs_are_measured(data, name):
    """Beside the degraded pictures themselves; with masks where a network is shown them."""
    words = ("--model", "input", "--model", PLACE / name, "--steps", "1", "--limit", "1", "--json")
    done = restobox("bench", "paired", data, *words, "--groups", "4")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["calls"] for row in rows] == [0, 1]
    assert rows[0]["psnr"] is None  # the degraded ones are the clean ones here, without an error
    assert rows[1]["psnr"] > 0
    refused = restobox("bench", "paired", data / "clean", *words, "--groups", "4")
    assert refused.returncode == 2
    assert "holds no folder 'degraded'" in refused.stderr


class Outputs(torch.nn.Module):
    """Six outputs for three channels: a learned variance, or two heads."""

    def __init__(self, in_channels):
        super().__init__()
        self.config = SimpleNamespace(in_channels=in_channels, get=lambda *_: None)
        self.layer = torch.nn.Conv2d(in_channels, 6, 1)

    def forward(self, x, t):
        return self.layer(x) * (1 + t.reshape(-1, 1, 1, 1) / 1000)


def test_graphs_that_no_file_holds_are_refused_before_they_are_written(tmp_path, monkeypatch):
    """guided-diffusion's largest and Stable Diffusion, in float."""
    monkeypatch.setattr(exporter, "MOST_BYTES", 50)
    with pytest.raises(ValueError, match=r"GB of weights, .*--quantized.*--target cuda"):
        export_bundle(Denoiser(Outputs(3), VP.linear()), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("task", ["inpaint", "paired"])
def test_bundles_of_networks_with_more_outputs_are_for_the_same_pictures(tmp_path, task):
    denoiser = Denoiser(Outputs(3), VP.linear())
    if task == "paired":
        sums = np.linspace(0.001, 1, 1000)
        kinds = {"prediction_type": "residual_noise", "condition_channels": 3}
        denoiser = Denoiser(Outputs(6), RDDM(sums, sums / 10), **kinds)
    export_bundle(denoiser, tmp_path / "b")
    session = check_model(load(tmp_path / "b"), task, "b")
    assert session.image_channels == denoiser.image_channels == 3
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(session(x, 500.0).x0, denoiser(x, 500.0).x0)
    if task == "inpaint":  # without restobox, too
        sigma = edge.Network(tmp_path / "b").levels[0]["kappa"] / 2
        host = denoised(session, x[0], sigma)
        alone = edge.Network(tmp_path / "b").picture(x[0].numpy(), sigma=sigma)
        assert abs(host.numpy() - alone).max() < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.long if n == "drunet-grey" else pytest.mark.slow)
        for n in FAMILIES
    ],
)
def test_a_checkpoint_goes_through_the_whole_line(data, tmp_path, name):
    """Converted, restored by, calibrated, quantized, exported and verified; the graph is the
    network.
    """
    if name in checkpoints.SPANDREL:
        pytest.importorskip("spandrel")
    found = through(name, data, tmp_path)
    assert found.published is None or found.published < 1e-4
    assert found.restored > 0
    assert not found.failures
    assert found.onnx < 1e-3
    assert found.whole > 60
