"""The denoiser around a network: fold, padding, condition, ranges, files."""

import json

import pytest
import torch
from helpers.mixtures import noise
from helpers.networks import tiny_unet
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from solvers import RDDM, VE, VP, ContinuousVP, Denoiser, Process, Resfusion, StepIndexed
from solvers.inputs.errors import ModelError
from solvers.prediction import HEADS

PROCESS = VP.linear()


class Recorder(nn.Module):
    """Keeps what it was shown and returns its first channels."""

    def __init__(self, channels, dtype=torch.float32):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.channels = channels

    def forward(self, x, t):
        self.shown, self.times = x, t
        return self.scale * x[:, : self.channels]


@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    fold=st.sampled_from([1, 2, 3]),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_fold_and_padding_round_trip(height, width, fold, multiple):
    """A network that returns its input gives the state back, whatever the size; what it sees is
    whole tiles of it.
    """
    network = Recorder(3 * fold**2)
    z = noise(2, shape=(3, height, width)).float()
    out = Denoiser(network, PROCESS, fold=fold, multiple=multiple).output(z, 5.0)
    assert torch.equal(out, z)
    assert network.shown.shape[1] == 3 * fold**2
    assert network.shown.shape[2] % multiple == network.shown.shape[3] % multiple == 0
    assert network.shown.shape[2] * fold - height < fold * multiple
    assert torch.equal(network.times, torch.full((2,), 5.0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("data_std", [1.0, 0.12])
@pytest.mark.parametrize("residual", [False, True])
def test_prediction_explains_the_state(prediction_type, residual, data_std):
    """``x = a x0 + b eps`` with and without a condition and a residual."""
    condition = noise(1, 2, shape=(4, 6, 6)).float()
    bare = Denoiser(
        Recorder(3),
        PROCESS,
        prediction_type,
        condition_channels=4,
        residual=residual,
        data_std=data_std,
    )
    x = noise(2, shape=(3, 6, 6)).float()
    for denoiser in (bare, bare.conditioned(condition)):
        for t in (0.0, 312.5, 900.0):
            p = denoiser(x, t)
            assert (PROCESS.a(t) * p.x0 + PROCESS.b(t) * p.eps - x).abs().max() < 2e-6 * max(
                1, PROCESS.b(t) / PROCESS.a(t) * 0.1
            )


def test_residual_is_taken_from_the_lift():
    """A network that sees nothing left to do returns the lift: the residual of its own image is
    zero.
    """
    lift = noise(1, 2, shape=(3, 4, 4)).float()
    network = Recorder(3)
    denoiser = Denoiser(
        network, PROCESS, "sample", condition_channels=3, residual=True
    ).conditioned(lift)
    p = denoiser(PROCESS.a(500.0) * lift, 500.0)
    assert torch.equal(p.x0, lift)
    assert network.shown[:, :3].abs().max() == 0
    assert torch.equal(network.shown[:, 3:], lift)


def test_condition_is_shared_with_neither_original_nor_batch():
    network = Recorder(3)
    bare = Denoiser(network, PROCESS, condition_channels=1)
    x = noise(2, shape=(3, 4, 4)).float()
    bare.conditioned(torch.ones(1, 1, 4, 4))(x, 3.0)
    assert network.shown[:, 3].eq(1).all()
    bare(x, 3.0)
    assert network.shown[:, 3].eq(0).all()
    for wrong in (torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4)):
        with pytest.raises(ValueError, match="1 channels"):
            bare.conditioned(wrong)
    with pytest.raises(ValueError, match="its condition"):
        bare.conditioned(torch.ones(1, 1, 5, 5))(x, 3.0)


def test_state_keeps_its_precision():
    for network_type, state_type in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ):
        network = Recorder(3, network_type)
        p = Denoiser(network, PROCESS)(noise(1).to(state_type), 10.0)
        assert network.shown.dtype == network_type
        assert p.x0.dtype == p.eps.dtype == state_type


@given(low=st.floats(-100, 100), span=st.floats(0.01, 1000))
def test_value_range_round_trip(low, span):
    denoiser = Denoiser(None, PROCESS, value_range=(low, low + span))
    unit = torch.linspace(0, 1, 11, dtype=torch.float64)
    there = denoiser.from_unit(unit)
    assert there.min().item() == pytest.approx(low, abs=1e-9)
    assert there.max().item() == pytest.approx(low + span, abs=1e-9)
    assert (denoiser.to_unit(there) - unit).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"prediction_type": "score"}, "known: epsilon, sample, v_prediction"),
        ({"value_range": (1, -1)}, "low < high"),
        ({"fold": 0}, "at least 1"),
        ({"multiple": 0}, "at least 1"),
    ],
)
def test_errors_name_what_is_accepted(kwargs, said):
    with pytest.raises(ValueError, match=said):
        Denoiser(None, PROCESS, **kwargs)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    from diffusers import DDPMScheduler

    tiny_unet(4, 3).save_pretrained(tmp_path / "unet")
    DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    ).save_pretrained(tmp_path / "scheduler")
    (tmp_path / "denoiser.json").write_text(
        json.dumps({"condition_channels": 1, "value_range": [0, 1]})
    )
    return tmp_path


def test_from_pretrained(folder):
    denoiser = Denoiser.from_pretrained(folder)
    assert (denoiser.prediction_type, denoiser.process, denoiser.multiple) == (
        "v_prediction",
        VP.cosine(),
        2,
    )
    assert denoiser.settings == {
        "value_range": [0.0, 1.0],
        "fold": 1,
        "condition_channels": 1,
        "residual": False,
        "data_std": 1.0,
    }
    assert not denoiser.network.training
    x = noise(1, shape=(3, 9, 7)).float()
    assert denoiser(x, 500.0).x0.shape == x.shape
    saved = tiny_unet(4, 3).eval()
    z = torch.cat([noise(1, shape=(3, 8, 8)).float(), torch.zeros(1, 1, 8, 8)], dim=1)
    assert torch.equal(denoiser.output(z[:, :3], 7.0), saved(z, 7.0).sample)


PROCESSES = {
    "vp": VP.cosine(50, max_beta=0.9),
    "zero-snr": VP.linear(20, zero_terminal_snr=True),
    "step-indexed": StepIndexed(VP.linear(30).alphas_cumprod),
    "resfusion": Resfusion.scheduled("cosine", 30),
    "resfusion-little-noise": Resfusion.scheduled(noise_scale=0.05),
    "rddm": RDDM.scheduled(
        40, 0.01, residual=("decreased", 2.0), noise=("normal", 1.0), release="later"
    ),
    "ve": VE(0.01, 20.0),
    "continuous-vp": ContinuousVP(0.2, 15.0, 0.01),
    "tables": Process([0.9, 0.3, 0.1], [0.1, 0.7, 0.9], [0.0, 0.2, 0.5]),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_process_is_saved_and_loaded(tmp_path, process):
    """To the bit, with every form of output it knows, whatever the number of heads."""
    for kind in process.prediction_types:
        # as it is loaded: with gradients, other kernels run
        network = tiny_unet(6, 3 * HEADS.get(kind, 1)).eval().requires_grad_(False)
        denoiser = (
            Denoiser(
                network,
                process,
                kind,
                value_range=(0, 1),
                multiple=2,
                condition_channels=3,
                data_std=0.5,
            )
            if not process.holds_image
            else Denoiser(network, process, kind, multiple=2, condition_channels=3)
        )
        denoiser.save_pretrained(tmp_path / kind)
        denoiser.save_pretrained(tmp_path / kind)  # over itself
        loaded = Denoiser.from_pretrained(tmp_path / kind)
        assert (loaded.process, loaded.prediction_type, loaded.settings) == (
            process,
            kind,
            denoiser.settings,
        )
        assert not [p for p in (tmp_path / kind).rglob("*") if p.name.startswith((".", "tmp"))]
        x, y = noise(2, 1, (3, 8, 8)).float(), noise(2, 2, (3, 8, 8)).float()
        t = 0.5 * (process.first + process.end)
        one, two = (d.conditioned(y)(x, t) for d in (denoiser, loaded))
        assert torch.equal(one.x0, two.x0)
        assert torch.equal(one.eps, two.eps)


def test_diffusers_reads_a_saved_schedule(tmp_path):
    from diffusers import DDIMScheduler

    Denoiser(tiny_unet(), VP.linear(100), "v_prediction", multiple=2).save_pretrained(tmp_path)
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert torch.allclose(
        scheduler.alphas_cumprod.double(),
        torch.from_numpy(VP.linear(100).alphas_cumprod.copy()),
        rtol=1e-5,
    )
    (tmp_path / "denoiser.json").unlink()
    assert Denoiser.from_pretrained(tmp_path).process.a(99) == pytest.approx(
        VP.linear(100).a(99), rel=1e-12
    )


@pytest.mark.parametrize(
    ("data", "process"),
    [
        ({"kind": "resfusion", "schedule": "linear", "steps": 12}, Resfusion.scheduled()),
        (
            {"kind": "resfusion", "schedule": "linear", "steps": 12, "noise_scale": 0.1},
            Resfusion.scheduled(noise_scale=0.1),
        ),
        ({"kind": "resfusion", "alphas_cumprod": [0.9, 0.5, 0.25]}, Resfusion([0.9, 0.5, 0.25])),
        ({"kind": "rddm", "steps": 1000}, RDDM.scheduled()),
        (
            {
                "kind": "rddm",
                "steps": 10,
                "sum_scale": 0.01,
                "residual": ["average", 1],
                "noise": ["increased", 2.0],
                "release": "later",
            },
            RDDM.scheduled(
                10, 0.01, residual=("average", 1), noise=("increased", 2), release="later"
            ),
        ),
        ({"kind": "ve", "sigma_min": 0.002, "sigma_max": 80}, VE()),
    ],
)
def test_schedules_may_be_named(folder, data, process):
    extra = {"condition_channels": 1, "process": data, "prediction_type": "sample"}
    (folder / "denoiser.json").write_text(json.dumps(extra))
    assert Denoiser.from_pretrained(folder).process == process


def test_words_that_say_nothing_are_not_passed_over(folder, capsys):
    """Of our own description they are refused; of diffusers' they are told, since its releases know
    different ones.
    """
    own = folder / "denoiser.json"
    said = json.loads(own.read_text()) if own.exists() else {}
    own.write_text(json.dumps(said | {"value_rang": [0, 1]}))
    with pytest.raises(ModelError, match=r"holds 'value_rang', which says nothing here; known:"):
        Denoiser.from_pretrained(folder)
    own.write_text(json.dumps(said))
    config = next(folder.rglob("config.json"))
    told = json.loads(config.read_text())
    capsys.readouterr()
    Denoiser.from_pretrained(folder)
    assert "left out" not in capsys.readouterr().err
    config.write_text(json.dumps(told | {"flip_sin_to_cosine": True}))
    Denoiser.from_pretrained(folder)
    assert "left out 'flip_sin_to_cosine'" in capsys.readouterr().err


def test_what_cannot_be_saved_says_so(tmp_path):
    class Own(VP):
        pass

    for denoiser, said in (
        (Denoiser(Recorder(3), PROCESS), "UNet2DModel"),
        (Denoiser(tiny_unet(), PROCESS, multiple=4), "multiple"),
        (Denoiser(tiny_unet(), Own([0.9, 0.5]), multiple=2), "Own"),
    ):
        with pytest.raises(ValueError, match=said):
            denoiser.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_from_pretrained_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        Denoiser.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"config\.json"):
        Denoiser.from_pretrained(tmp_path)


def test_a_device_that_does_not_exist_is_no_damage(folder):
    with pytest.raises(RuntimeError, match="device"):
        Denoiser.from_pretrained(folder, device="nonsense")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def drop_a_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


def describes(process, prediction_type="sample"):
    extra = (
        f'{{"condition_channels": 1, "process": {process}, "prediction_type":'
        f" {json.dumps(prediction_type)}}}"
    )
    return lambda p: p.write_text(extra)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "unet/diffusion_pytorch_model.safetensors",
            truncate,
            "can't be read as a UNet2DModel|belongs to another network",
        ),
        (
            "unet/diffusion_pytorch_model.safetensors",
            lambda p: p.write_bytes(b"no weights"),
            "can't be read as a UNet2DModel|belongs to another network",
        ),
        ("unet/diffusion_pytorch_model.safetensors", drop_a_tensor, "conv_in.weight"),
        ("unet/diffusion_pytorch_model.safetensors", lambda p: p.unlink(), "safetensors"),
        ("unet/config.json", lambda p: p.write_text("{"), "not readable JSON"),
        ("unet/config.json", lambda p: p.write_text("[]"), "JSON object"),
        ("unet/config.json", lambda p: p.write_text('{"_class_name": "VQModel"}'), "VQModel"),
        (
            "scheduler/scheduler_config.json",
            lambda p: p.write_text('{"beta_schedule": "laplace"}'),
            "sigmoid",
        ),
        (
            "scheduler/scheduler_config.json",
            lambda p: p.write_text('{"prediction_type": "flow"}'),
            "flow",
        ),
        (
            "denoiser.json",
            lambda p: p.write_text('{"condition_channels": 2}'),
            "4 input and 3 output channels",
        ),
        (
            "denoiser.json",
            lambda p: p.write_text('{"condition_channels": 1, "value_range": [1, 0]}'),
            "low < high",
        ),
        (
            "denoiser.json",
            describes('{"kind": "flow"}'),
            "vp, step-indexed, resfusion, rddm, ve, continuous-vp, tables",
        ),
        ("denoiser.json", describes('"rddm"'), "an object with a kind"),
        (
            "denoiser.json",
            describes('{"kind": "resfusion", "steps": 12}'),
            r"alphas_cumprod, \[noise_scale\] or schedule, steps, \[noise_scale\]; got steps",
        ),
        (
            "denoiser.json",
            describes('{"kind": "resfusion", "schedule": "quadratic", "steps": 12}'),
            "linear, cosine",
        ),
        ("denoiser.json", describes('{"kind": "rddm", "steps": 1e30}'), "whole number"),
        (
            "denoiser.json",
            describes('{"kind": "rddm", "steps": 100, "noise": ["gaussian", 1]}'),
            "increased, decreased, average, normal",
        ),
        (
            "denoiser.json",
            describes('{"kind": "rddm", "steps": 100, "noise": 3}'),
            "don't make one|no finite number",
        ),
        (
            "denoiser.json",
            describes('{"kind": "vp", "alphas_cumprod": [0.9, "x"]}'),
            "don't make one|no finite number",
        ),
        (
            "denoiser.json",
            describes('{"kind": "vp", "alphas_cumprod": [0.9, NaN]}'),
            "don't make one|no finite number",
        ),
        ("denoiser.json", describes('{"kind": "vp", "alphas_cumprod": [0.9, 0.95]}'), "decrease"),
        (
            "denoiser.json",
            describes('{"kind": "rddm", "steps": 100}', "resnoise"),
            "residual, residual_noise, sample_noise",
        ),
        (
            "denoiser.json",
            describes('{"kind": "rddm", "steps": 100}', "residual_noise"),
            "output channels can't have",
        ),
        (
            "denoiser.json",
            describes('{"kind": "rddm", "steps": 100}', ["residual"]),
            "prediction_type",
        ),
    ],
)
def test_damaged_folders_give_one_clear_error(folder, name, damage, said):
    damage(folder / name)
    with pytest.raises(ValueError, match=said):
        Denoiser.from_pretrained(folder)
