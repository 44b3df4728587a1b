"""``restobox calibrate`` on any diffusers U-Net folder, with its own data or none."""

import copy
import json
import os
import signal
import sys

import numpy as np
import psutil
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from helpers.covering import covering
from helpers.data import ROOT, smooth_picture
from helpers.deploy import calibrate as run_calibrate
from helpers.quantized import one_thread  # noqa: F401
from safetensors.torch import save, save_file

from export.graphs.network import trace
from quant.calibration.trajectory import CalibrationSet
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.temporal.table import step_network, temporal_table
from restoration.io.images import Photo, write_image
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS
from solvers.inputs.errors import UncalibratedError
from solvers.processes.process import VP
from toolbox.cli import main
from toolbox.deploy.export import make_job
from toolbox.deploy.options import Whole
from toolbox.tasks import task_by_name
from toolbox.tasks.inpainting import Inpaint
from toolbox.tasks.options import Deblurring
from toolbox.tasks.settings import Settings
from toolbox.training.loop import train
from toolbox.training.recipe import TrainingRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "sample_size": 16,
}
SCHEDULE = {"beta_schedule": "linear", "num_train_timesteps": 200, "prediction_type": "epsilon"}


def pipeline(folder, network):
    """A pipeline folder as diffusers writes it: ``unet/`` and ``scheduler/``."""
    network.save_pretrained(folder / "unet")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    return folder


def unet(channels=3, **options):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(
        **SMALL | blocks | {"in_channels": channels, "out_channels": channels} | options
    )


def text_unet(**options):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**SMALL | blocks | {"cross_attention_dim": 8} | options)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return pipeline(tmp_path_factory.mktemp("colour"), unet())


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A text-conditional U-Net on four channels, with one prompt's embedding."""
    folder = pipeline(tmp_path_factory.mktemp("latent"), text_unet())
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    save_file({"encoder_hidden_states": states}, folder / "encoder_hidden_states.safetensors")
    return folder


def calibrate(folder, data, out, **options):
    return run_calibrate(folder, data, out, **{"steps": (3,), "count": 2} | options)


@pytest.mark.parametrize(
    "task", covering(["inpaint", "denoise", "superresolve", "deblur"], ["inpaint", "deblur"])
)
def test_restoring_tasks_record_and_quantize(colour, pictures, tmp_path, task):
    out = tmp_path / "c.safetensors"
    figures = calibrate(colour, pictures, out, task=task)
    network = Denoiser.from_pretrained(colour).network
    found = CalibrationSet.load(out, network)
    assert found.hash == figures["hash"]
    assert [len(found.timesteps), len(found.grid)] == [6, 3]
    # the size it was trained on; of a blurred picture the scene around it too
    side = 32 if task == "deblur" else 16
    assert {tuple(s.shape) for s in found.samples} == {(3, side, side)}
    assert found.provenance.task.startswith(task)
    assert len(found.provenance.data) == 2
    assert list(tmp_path.iterdir()) == [out]
    x, t = next(found.batches())
    quantized = quantize(network, found, QuantRecipe())
    assert quantized(x, t).shape == x.shape


def test_by_default_a_calibration_covers_the_tasks_own_runs(colour, pictures, tmp_path):
    """And a run beyond it is refused with the command that calibrates for it."""
    d = Denoiser.from_pretrained(colour)
    held, options = {}, {"count": 2, "side": 16, "steps": None}
    for name in ("inpaint", "denoise", "deblur"):
        calibrate(colour, pictures, tmp_path / name, task=name, **options)
        held[name] = CalibrationSet.load(tmp_path / name).grid
    trailing = GRIDS["trailing"](d.process, 5).times[:-1]
    assert set(held["inpaint"]) == set(trailing)
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    asked = []

    def known_at(name):
        """The network as exported with these times."""
        one = copy.copy(d)
        one.network = lambda x, t: asked.append(float(t[0])) or torch.zeros_like(x)
        one.network.timesteps, one.network.out_channels = held[name], 3
        return one

    for sigma in (0.02, 0.1, 0.5):  # one call, and five for samples
        for steps in (1, 5):
            LinearTask(known_at("denoise"), num_inference_steps=steps)(
                picture, Denoising(), sigma=sigma
            )
    assert set(asked) <= set(held["denoise"])
    asked.clear()
    task, options = task_by_name("deblur"), Deblurring(1.6, "0.01")
    settings = Settings(steps=8)
    task.restorer(known_at("deblur"), options, settings)({"image": picture}, seed=0)
    assert asked == list(held["deblur"])
    says = "restobox calibrate MODEL --data DATA -o c.safetensors --task deblur --steps 9"
    settings = Settings(steps=9)
    with pytest.raises(UncalibratedError, match=says), task.calibrated(settings):
        task.restorer(known_at("deblur"), options, settings)({"image": picture}, seed=0)


def test_what_only_some_need_is_named_where_it_is_missing(colour, latent, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    recipe = TrainingRecipe.read(ROOT / "toolbox" / "recipes" / "photo.toml")
    with pytest.raises(ImportError, match=r"restobox\[train\]"):
        train(recipe, tmp_path, tmp_path / "out")
    monkeypatch.setattr("export.graphs.network.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"restobox\[export\]"):
        trace(torch.nn.Identity(), (torch.zeros(1),), None, "nothing")
    with pytest.raises(ValueError, match="4 channels, the latents of an autoencoder"):
        make_job(Denoiser.from_pretrained(latent), Whole("denoise"))


def test_only_calibration_sets_are_replaced(colour, pictures, tmp_path):
    """A file of the user's that `-o` names by mistake stays."""
    for name, content in (
        ("a.png", b"a picture"),
        ("model.safetensors", save({"w": torch.ones(1)})),
    ):
        out = tmp_path / name
        out.write_bytes(content)
        with pytest.raises(ValueError, match="is no calibration set"):
            calibrate(colour, pictures, out)
        assert out.read_bytes() == content


def test_tasks_see_different_inputs(colour, pictures, tmp_path):
    hashes = {
        calibrate(colour, pictures, tmp_path / str(k), **options)["hash"]
        for k, options in enumerate(OPTIONS)
    }
    assert len(hashes) == len(OPTIONS)


OPTIONS = (
    {"task": "denoise"},
    {"task": "denoise", "sigma": 0.3},
    {"task": "inpaint"},
    {"task": "inpaint", "correction": "ddrm"},
    {"task": "inpaint", "solver": "pndm"},
    {"task": "inpaint", "grid": "leading"},
    {"task": "inpaint", "seed": 1},
)


def test_grey_networks_see_grey_pictures(pictures, tmp_path):
    folder = pipeline(tmp_path / "grey", unet(1))
    for task in ("inpaint", "denoise"):
        calibrate(folder, pictures, tmp_path / task, task=task, sigma=0.05)
        assert CalibrationSet.load(tmp_path / task).samples[0].shape == (1, 16, 16)


def test_generation_needs_no_data(colour, tmp_path):
    figures = calibrate(colour, None, tmp_path / "c", task="generate", steps=(2, 4), count=3)
    assert figures["samples"] == 3 * (2 + 4)
    assert CalibrationSet.load(tmp_path / "c").provenance.data == ()


@pytest.mark.long
def test_text_conditional_networks_run_on_the_stored_embedding(latent, tmp_path):
    calibrate(latent, None, tmp_path / "c", task="generate")
    network = Denoiser.from_pretrained(latent).network
    found = CalibrationSet.load(tmp_path / "c", network)
    x, t = next(found.batches())
    expected = network(x, t).sample
    assert torch.equal(
        network(
            x, t, encoder_hidden_states=network.encoder_hidden_states.expand(len(x), -1, -1)
        ).sample,
        expected,
    )
    assert not torch.equal(
        network(x, t, encoder_hidden_states=torch.zeros(len(x), 5, 8)).sample, expected
    )
    quantized = quantize(network, found, QuantRecipe())
    assert 0 < float((quantized(x, t) - expected).norm() / expected.norm()) < 0.2
    step = step_network(network, temporal_table(network, found.grid))
    torch.testing.assert_close(
        step(x[:1], torch.tensor([found.grid.index(float(t[0]))])).sample,
        network(x[:1], t[:1]).sample,
    )


def test_another_embedding_is_another_model(latent, tmp_path):
    calibrate(latent, None, tmp_path / "c", task="generate")
    path = latent / "encoder_hidden_states.safetensors"
    kept = path.read_bytes()
    try:
        save_file({"encoder_hidden_states": torch.zeros(1, 5, 8)}, path)
        with pytest.raises(ValueError, match="another model"):
            CalibrationSet.load(tmp_path / "c", Denoiser.from_pretrained(latent).network)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (None, "needs a text embedding"),
        ({"other": torch.zeros(1, 5, 8)}, "must hold a tensor"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 8)}, "one prompt"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 9)}, "got (1, 5, 9)"),
        ({"encoder_hidden_states": torch.full((1, 5, 8), torch.nan)}, "finite"),
    ],
)
def test_missing_or_wrong_embeddings_are_refused(tmp_path, states, says):
    folder = pipeline(tmp_path / "m", text_unet())
    if states is not None:
        save_file(states, folder / "encoder_hidden_states.safetensors")
    with pytest.raises(ValueError, match=r".") as error:
        calibrate(folder, None, tmp_path / "c", task="generate")
    assert says in str(error.value)


def test_networks_that_take_more_than_text_are_refused(tmp_path):
    folder = pipeline(tmp_path / "m", text_unet(num_class_embeds=3))
    with pytest.raises(ValueError, match=r"is told a class.*num_class_embeds"):
        calibrate(folder, None, tmp_path / "c", task="generate")


@pytest.mark.parametrize("select", ["uniform", "ptq4dm", "eda-dm"])
def test_selection_keeps_the_asked_number(colour, pictures, tmp_path, select):
    options = {"task": "denoise", "count": 12, "select": select, "samples": 12}
    figures = calibrate(colour, pictures, tmp_path / "c", **options)
    found = CalibrationSet.load(tmp_path / "c")
    assert len(found) == figures["samples"] == sum(figures["per_timestep"].values()) == 12
    assert found.provenance.selection.startswith(select)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    calibrate(colour, pictures, tmp_path / "d", **options)
    assert (tmp_path / "d").read_bytes() == (tmp_path / "c").read_bytes()


def test_an_interrupted_call_goes_on(colour, pictures, tmp_path, monkeypatch):
    whole = calibrate(colour, pictures, tmp_path / "whole", count=4, samples=6)
    original = Inpaint.trial

    def dies(self, source, k, options):
        if k == 2:
            raise KeyboardInterrupt
        return original(self, source, k, options)

    monkeypatch.setattr(Inpaint, "trial", dies)
    with pytest.raises(KeyboardInterrupt):
        calibrate(colour, pictures, tmp_path / "cut", count=4, samples=6)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(Inpaint, "trial", original)
    done = []
    assert (
        calibrate(colour, pictures, tmp_path / "cut", count=4, samples=6, progress=done.append)[
            "hash"
        ]
        == whole["hash"]
    )
    assert done == [2, 3, 4]
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_workers_choose_the_same(colour, pictures, tmp_path, scheduler, monkeypatch):
    """To the byte; also where they were cut and one process goes on."""
    options = {"count": 3, "steps": (1, 2), "select": "ptq4dm", "samples": 5, "per_timestep": 3}
    calibrate(colour, pictures, tmp_path / "one", **options)
    done: list[int] = []
    told = {"scheduler": scheduler, "progress": done.append}
    calibrate(colour, pictures, tmp_path / "three", **options, **told)
    assert (tmp_path / "three").read_bytes() == (tmp_path / "one").read_bytes()
    assert done[0] == 0
    assert done == sorted(done)
    original, calls = Inpaint.trial, []

    def dies(self, source, k, options):
        calls.append(k)
        if k == 2:
            raise ValueError("picture 2")
        return original(self, source, k, options)

    monkeypatch.setattr(Inpaint, "trial", dies)
    with pytest.raises(ValueError, match="picture 2"):
        calibrate(colour, pictures, tmp_path / "cut", **options, scheduler=scheduler)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(Inpaint, "trial", original)
    calibrate(colour, pictures, tmp_path / "cut", **options)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "one").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "one", "three"]


@pytest.mark.long
def test_processes_choose_the_same(colour, pictures, tmp_path):
    """Also where one of them is killed."""
    killed: list[int] = []

    def kill(done):
        found = psutil.Process().children(recursive=True)
        found = [p.pid for p in found if "spawn_main" in " ".join(p.cmdline())]
        if found and not killed:
            os.kill(found[0], signal.SIGKILL)
            killed.append(found[0])

    options = {"count": 3, "samples": 5}
    calibrate(colour, pictures, tmp_path / "one", **options)
    calibrate(colour, pictures, tmp_path / "two", **options, workers=2, progress=kill)
    assert killed
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{colour} --data {place}/none -o {place}/c", "does not exist"),
        ("{colour} --data {place}/empty -o {place}/c", "holds no picture"),
        ("{colour} -o {place}/c", "needs --data"),
        ("{colour} --data {place}/broken -o {place}/c", "broken/p.png"),
        ("{colour} --data {place}/empty --task generate -o {place}/c", "takes no --data"),
        ("{colour} --task paint -o {place}/c", "task 'paint' is unknown; known: inpaint"),
        ("{colour} --task generate --grid coarse -o {place}/c", "grid 'coarse' is unknown"),
        ("{colour} --task generate --solver none -o {place}/c", "solver 'none' is unknown"),
        ("{colour} --task generate --steps 900 -o {place}/c", "1 to 200"),
        (
            "{colour} --task generate --select random -n 3 -o {place}/c",
            "select 'random' is unknown",
        ),
        ("{colour} --task generate --select ptq4dm -o {place}/c", "needs --samples"),
        (
            "{colour} --task generate --workers 2 --threads 2 -o {place}/c",
            "--threads has no effect",
        ),
        (
            "{colour} --task generate --workers 2 --scheduler tcp://x -o {place}/c",
            "give one of them",
        ),
        ("{colour} --task generate --count 2 --steps 2 -n 50 -o {place}/c", "were recorded"),
        (
            "{colour} --task inpaint --correction magic --data {place}/good -o {place}/c",
            "correction 'magic' is unknown",
        ),
        ("{latent} --task denoise --data {place}/good -o {place}/c", "has 4 image channels"),
        ("{place}/good --task generate -o {place}/c", "no model folder"),
        (
            "haze --task deblur --data {place}/good -o {place}/c",
            "models that fit: colour, colour-int8, grey, grey-int8",
        ),
        ("photo-int8 --data {place}/good -o {place}/c", "exported bundle"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    colour, latent, tmp_path, capsys, monkeypatch, arguments, says
):
    for name in ("empty", "broken", "good"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "good" / "p.png", Photo(smooth_picture(32, 32)))
    (tmp_path / "broken" / "p.png").write_bytes(b"not a picture")
    before = sorted(p.name for p in tmp_path.iterdir())
    words = arguments.format(colour=colour, latent=latent, place=tmp_path).split()
    monkeypatch.setattr("sys.argv", ["restobox", "calibrate", *words])
    assert main() == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_command_prints_shares(colour, tmp_path, capsys, monkeypatch):
    words = [
        colour,
        "--task",
        "generate",
        "--steps",
        2,
        "--count",
        4,
        "-n",
        4,
        "--json",
        "-o",
        tmp_path / "c",
    ]
    monkeypatch.setattr("sys.argv", ["restobox", "calibrate", *map(str, words)])
    assert main() == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["per_timestep"].values()) == [2, 2]
    assert figures["selection"] == "uniform(n=4, seed=0)"
    assert set(figures["cost"]) == {"cpu_seconds", "peak_mb"}
    assert np.all(np.diff(figures["timesteps"]) < 0)


@pytest.fixture(scope="module")
def mri_model(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet2DModel(
        in_channels=36,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    options = {
        "fold": 2,
        "multiple": 2,
        "condition_channels": 7,
        "residual": True,
        "data_std": 0.03,
    }
    folder = tmp_path_factory.mktemp("mri") / "model"
    Denoiser(
        network.eval(), VP.cosine(100, zero_terminal_snr=True), "v_prediction", **options
    ).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_mri_networks_are_calibrated_on_simulated_scans(mri_model, tmp_path):
    rows, columns = np.mgrid[-1:1:128j, -1:1:120j]
    slices = np.stack(
        [np.exp(-4 * ((rows - shift) ** 2 + columns**2)) for shift in (0.0, 0.2, -0.3)]
    ).astype(np.float32)
    np.savez(tmp_path / "brain.npz", image=slices)
    common = {"task": "mri", "steps": [1, 2], "count": 3, "per_timestep": 2}
    found = run_calibrate(
        str(mri_model), tmp_path / "brain.npz", tmp_path / "a.safetensors", **common
    )
    assert found["per_timestep"] == {"99": 2, "49": 2}
    again = run_calibrate(
        str(mri_model), tmp_path / "brain.npz", tmp_path / "b.safetensors", **common
    )
    assert again["hash"] == found["hash"]
    other = run_calibrate(
        str(mri_model), tmp_path / "brain.npz", tmp_path / "c.safetensors", seed=1, **common
    )
    assert other["hash"] != found["hash"]
    inputs = torch.stack(list(CalibrationSet.load(tmp_path / "a.safetensors").samples))
    assert inputs.shape[1:] == (36, 64, 60)
    assert torch.isfinite(inputs).all()
    with pytest.raises(ValueError, match="magnitude images"):
        run_calibrate(str(mri_model), None, tmp_path / "d.safetensors", task="mri")
    np.savez(tmp_path / "raw.npz", kspace=np.ones((2, 16, 16), np.complex64))
    with pytest.raises(ValueError, match="k-space"):
        run_calibrate(str(mri_model), tmp_path / "raw.npz", tmp_path / "d.safetensors", task="mri")
    with pytest.raises(ValueError, match="2-channel"):
        run_calibrate("photo", tmp_path / "brain.npz", tmp_path / "d.safetensors", task="mri")
    assert not (tmp_path / "d.safetensors").exists()
