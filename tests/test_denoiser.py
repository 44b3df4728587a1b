"""The denoiser around a network: fold, padding, condition, ranges, files."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixtures import noise
from torch import nn

from solvers import VP, Denoiser

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


@given(height=st.integers(1, 17), width=st.integers(1, 17), fold=st.sampled_from([1, 2, 3]), multiple=st.sampled_from([1, 2, 4]))
def test_fold_and_padding_round_trip(height, width, fold, multiple):
    """A network that returns its input gives the state back, whatever the size; what it sees is whole tiles of it."""
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
    bare = Denoiser(Recorder(3), PROCESS, prediction_type, condition_channels=4, residual=residual, data_std=data_std)
    x = noise(2, shape=(3, 6, 6)).float()
    for denoiser in (bare, bare.conditioned(condition)):
        for t in (0.0, 312.5, 900.0):
            p = denoiser(x, t)
            assert (PROCESS.a(t) * p.x0 + PROCESS.b(t) * p.eps - x).abs().max() < 2e-6 * max(1, PROCESS.b(t) / PROCESS.a(t) * 0.1)


def test_residual_is_taken_from_the_lift():
    """A network that sees nothing left to do returns the lift: the residual of its own image is zero."""
    lift = noise(1, 2, shape=(3, 4, 4)).float()
    network = Recorder(3)
    denoiser = Denoiser(network, PROCESS, "sample", condition_channels=3, residual=True).conditioned(lift)
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
    for network_type, state_type in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64)):
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


# -- files ------------------------------------------------------------------------------------------------------------


def tiny_unet(in_channels=3, out_channels=3):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


@pytest.fixture
def folder(tmp_path):
    from diffusers import DDPMScheduler

    tiny_unet(4, 3).save_pretrained(tmp_path / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    (tmp_path / "denoiser.json").write_text(json.dumps({"condition_channels": 1, "value_range": [0, 1]}))
    return tmp_path


def test_from_pretrained(folder):
    denoiser = Denoiser.from_pretrained(folder)
    assert (denoiser.prediction_type, denoiser.process, denoiser.multiple) == ("v_prediction", VP.cosine(), 2)
    assert denoiser.settings == {"value_range": [0.0, 1.0], "fold": 1, "condition_channels": 1, "residual": False, "data_std": 1.0}
    assert not denoiser.network.training
    x = noise(1, shape=(3, 9, 7)).float()
    assert denoiser(x, 500.0).x0.shape == x.shape
    saved = tiny_unet(4, 3).eval()
    z = torch.cat([noise(1, shape=(3, 8, 8)).float(), torch.zeros(1, 1, 8, 8)], dim=1)
    assert torch.equal(denoiser.output(z[:, :3], 7.0), saved(z, 7.0).sample)


def test_from_pretrained_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        Denoiser.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"config\.json"):
        Denoiser.from_pretrained(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def drop_a_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", truncate, "can't be loaded"),
        ("unet/diffusion_pytorch_model.safetensors", lambda p: p.write_bytes(b"no weights"), "can't be loaded"),
        ("unet/diffusion_pytorch_model.safetensors", drop_a_tensor, "conv_in.weight"),
        ("unet/diffusion_pytorch_model.safetensors", lambda p: p.unlink(), "safetensors"),
        ("unet/config.json", lambda p: p.write_text("{"), "not readable JSON"),
        ("unet/config.json", lambda p: p.write_text("[]"), "JSON object"),
        ("unet/config.json", lambda p: p.write_text('{"_class_name": "VQModel"}'), "VQModel"),
        ("scheduler/scheduler_config.json", lambda p: p.write_text('{"beta_schedule": "sigmoid"}'), "sigmoid"),
        ("scheduler/scheduler_config.json", lambda p: p.write_text('{"prediction_type": "flow"}'), "flow"),
        ("denoiser.json", lambda p: p.write_text('{"condition_channels": 2}'), "4 input and 3 output channels"),
        ("denoiser.json", lambda p: p.write_text('{"condition_channels": 1, "value_range": [1, 0]}'), "low < high"),
    ],
)
def test_damaged_folders_give_one_clear_error(folder, name, damage, said):
    damage(folder / name)
    with pytest.raises(ValueError, match=said):
        Denoiser.from_pretrained(folder)
