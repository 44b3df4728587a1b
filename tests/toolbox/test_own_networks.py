"""Networks that people bring: each family's small checkpoint through the whole line."""

import re

import pytest
import torch
from helpers import checkpoints
from helpers.commands import restobox
from helpers.data import GOLDEN, ROOT, smooth_picture
from helpers.deploy import calibrate
from helpers.quantized import one_thread  # noqa: F401

from quant.files import load_quantized
from quant.temporal.table import step_network, temporal_table
from restoration.io.images import Photo, write_image
from toolbox.api import load, reading_with
from toolbox.deploy.convert import run_convert
from toolbox.deploy.export import run_export, run_export_restorer
from toolbox.deploy.options import Checks, Graph, Origin, Trials, Whole
from toolbox.deploy.quantize import run_quantize
from toolbox.deploy.verify import run_verify, run_verify_restorer
from toolbox.tasks import task_by_name
from toolbox.tasks.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
PLACE = GOLDEN / "checkpoints"
# the file, what its weights don't tell, the task it is for
FAMILIES = {
    "drunet": ("drunet-gray-like.pth", {}, "denoise"),
    "drunet-colour": ("drunet-color-like.pth", {}, "inpaint"),
    "guided": ("adm-ffhq-like.pt", {"num_head_channels": 16}, "inpaint"),
    "class": (
        "adm-class-neworder.pt",
        {"num_heads": 2, "use_new_attention_order": True, "class_label": 3},
        "inpaint",
    ),
    "improved": ("iddpm-cifar-like.pt", {"num_heads": 4}, "inpaint"),
    "rddm": ("rddm-two-unets.pt", {"groups": 4}, "paired"),
    "rddm-one": ("rddm-one-unet.pt", {"groups": 4}, "paired"),
    "rddm-shared": ("rddm-shared-encoder.pt", {"groups": 4}, "paired"),
    "resfusion": ("resfusion-restore.ckpt", {"groups": 4}, "paired"),
    "dncnn": ("dncnn", {}, "denoise"),
    "ffdnet": ("ffdnet", {}, "denoise"),
    "nafnet": ("nafnet", {}, "paired"),
    "swinir": ("swinir", {}, "paired"),
    "resfusion-mask": ("resfusion-restore-mask.ckpt", {"groups": 4}, "paired"),
}
STEPS, SIDE = 2, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    for folder in ("degraded", "clean", "mask"):
        (place / folder).mkdir()
        for k in range(2):
            picture = smooth_picture(40, 36) * (1 - 0.2 * k)
            if folder == "mask":
                picture = (picture > 0.5).astype(picture.dtype)
            write_image(place / folder / f"{k}.png", Photo(picture))
    return place


@pytest.mark.long
def test_a_checkpoint_is_converted_restored_by_and_quantized(data, tmp_path):
    """By the commands, from the file to 8 bits; the options are said once."""
    model, file = tmp_path / "m", PLACE / "rddm-two-unets.pt"
    done = restobox("convert", file, "-o", model, "--groups", "4")
    assert done.returncode == 0, done.stderr
    assert "assumed --objective pred_res_noise, --train-steps 1000" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert restobox_restores(data, tmp_path, str(model), "paired", {}, "rddm")
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.long if n == "drunet" else pytest.mark.slow)
        for n in FAMILIES
    ],
)
def test_a_checkpoint_goes_through_the_whole_line(data, tmp_path, name):
    """Converted, restored by, calibrated, quantized, exported and verified; the graph is the
    network.
    """
    file, options, kind = FAMILIES[name]
    model = str(tmp_path / "model")
    weights = {k: v for k, v in options.items() if k != "class_label"}
    source = PLACE / file
    if file in checkpoints.MADE:
        if file in checkpoints.SPANDREL:
            pytest.importorskip("spandrel")
        source = tmp_path / "made.pth"
        checkpoints.write(file, source)
    with reading_with(weights):  # a folder keeps all classes
        run_convert(str(source), tmp_path / "model")
    label = {"class_label": options["class_label"]} if "class_label" in options else {}
    with reading_with(label):
        task, denoiser = task_by_name(kind), load(model)
        assert restobox_restores(data, tmp_path, model, kind, label, name)
        solver = task.settings.solver
        pictures = data if kind == "paired" else data / "clean"
        calibration, codes = tmp_path / "c.safetensors", tmp_path / "q"
        runs = {"solver": solver, "steps": [STEPS], "count": 2, "side": SIDE}
        calibrate(model, pictures, calibration, task=kind, **runs)
        run_quantize(model, calibration, codes)
        run_export(model, tmp_path / "b", Graph(codes, "cpu"))
        origin, trials = Origin(model, codes, calibration), Trials(pictures, 1, SIDE)
        run = Settings(solver, STEPS)
        figures = run_verify(tmp_path / "b", origin, trials, run, Checks(psnr_drop=100.0))
        assert not figures["failures"]
        assert figures["fused"] == figures["planned"] > 0
        run_export(model, tmp_path / "f", Graph(target="float"))
        options = task.simulated(denoiser)
        trial = task.trial(task.source(pictures, denoiser, SIDE, 0), 0, options)
        host, graph = (
            task.restorer(d, options, run)(trial.inputs, seed=1).mean
            for d in (denoiser, load(tmp_path / "f"))
        )
        torch.testing.assert_close(graph, host, atol=1e-3, rtol=1e-3)
        sigma, steps = (0.1, 1) if kind == "denoise" else (0.0, STEPS)
        whole = Whole(kind, sigma=sigma, size=f"{SIDE}x{SIDE}")
        run_export_restorer(
            model, tmp_path / "w", Graph(target="float"), whole, Settings(solver, steps)
        )
        figures = run_verify_restorer(
            tmp_path / "w", Origin(model), Trials(pictures, 1), Checks(psnr_drop=100.0)
        )
        assert not figures["failures"]
        assert figures["psnr_between"] > 60


def restobox_restores(data, place, model, kind, label, name):
    """The command restores a picture with it."""
    words = ["restore", kind, str(data / "degraded" / "0.png"), "-o", str(place / "o.png")]
    words += ["--model", model, "--steps", "1" if kind == "denoise" else str(STEPS)]
    words += {"inpaint": ["-m", "random:0.5"], "denoise": ["--sigma", "0.1"]}.get(kind, [])
    words += ["-m", str(data / "mask" / "0.png")] if name == "resfusion-mask" else []
    words += ["--class", str(label["class_label"])] if label else []
    done = restobox(*words)
    assert done.returncode == 0, done.stderr
    return (place / "o.png").stat().st_size > 0
