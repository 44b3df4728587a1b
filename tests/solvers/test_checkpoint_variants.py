"""Families in all their shapes, and in whatever training code stores them."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.guided import Kind, answer_of, state_of
from helpers.networks import tiny_unet
from helpers.unets import drunet_answer, drunet_state, rddm_answer, rddm_state
from safetensors.torch import load_file

from solvers import VP, Denoiser
from solvers.inputs.errors import ModelError
from toolbox.api import reading_with
from toolbox.deploy.convert import run_convert

KINDS = {
    "released": Kind(mult=(1, 1, 2), blocks=2, attended=(1, 2), head_channels=32),
    "a-plain-noise": Kind(head_channels=32, outputs=3),
    "attention-in-the-middle-alone": Kind(attended=(), head_channels=64),
    "attention-at-full-size": Kind(attended=(0,), head_channels=32),
    "four-levels": Kind(mult=(1, 2, 2, 3), attended=(2, 3), head_channels=32),
    "equal-heads": Kind(mult=(1, 2, 3), attended=(1, 2)),
    "no-scale": Kind(scale_shift=False, head_channels=32),
    "later-order": Kind(new_order=True, head_channels=32),
    "convolutions": Kind(resample="convolution", blocks=3, mult=(1, 2, 2)),
    "convolutions-without-scale": Kind(resample="convolution", scale_shift=False, head_channels=32),
    "means": Kind(resample="none", mult=(1, 1, 2), blocks=2, attended=(0, 1, 2)),
    "classes": Kind(classes=10, head_channels=32),
    "one-level": Kind(mult=(1,), attended=(0,), head_channels=32),
    "a-wider-first-level": Kind(mult=(2, 1), head_channels=32),
    "grey": Kind(inputs=1, outputs=2, head_channels=32),
    "enlarging": Kind(inputs=6, head_channels=32),
}
X, T = (2, 16, 24), torch.tensor([10.0, 700.0])


def asked(kind):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(X[0], kind.inputs, *X[1:], generator=generator)


def close(found, wanted):
    found = found if isinstance(found, torch.Tensor) else found.sample
    return bool((found - wanted).abs().max() <= 1e-4 * wanted.abs().max())


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_every_shape_gives_its_equations_answers(tmp_path, name):
    kind, path = KINDS[name], tmp_path / "m.pt"
    torch.manual_seed(0)
    state = state_of(kind)
    torch.save(state, path)
    options = {"num_heads": kind.heads}
    if kind.head_channels:
        options = {"num_head_channels": kind.head_channels}
    options |= {"use_new_attention_order": True} if kind.new_order else {}
    options |= {"class_label": 3} if kind.classes else {}
    labels = torch.tensor([3, 3]) if kind.classes else None
    network = Denoiser.from_pretrained(path, **options).network
    assert close(network(asked(kind), T), answer_of(kind, state, asked(kind), T, labels))


@pytest.mark.parametrize(
    ("widths", "blocks", "channels"),
    [([8, 16, 24, 32], 4, 3), ([8, 8], 1, 1), ([8, 16, 16, 16, 16], 2, 3)],
)
@torch.no_grad()
def test_drunets_of_any_widths_give_their_equations_answers(tmp_path, widths, blocks, channels):
    """Also pictures of sizes that they are continued from, by their last rows and columns."""
    torch.manual_seed(0)
    state = drunet_state(widths, blocks, channels)
    torch.save({"params": state}, tmp_path / "m.pth")
    denoiser = Denoiser.from_pretrained(tmp_path / "m.pth")
    assert denoiser.multiple == 2 ** (len(widths) - 1)
    for size in ((32, 48), (29, 41)):
        x = torch.rand(2, channels, *size)
        more = (0, -size[1] % denoiser.multiple, 0, -size[0] % denoiser.multiple)
        shown = torch.nn.functional.pad(x, more, mode="replicate")
        shown = torch.cat([shown, torch.full_like(shown[:, :1], 0.2)], 1)
        wanted = drunet_answer(state, len(widths), blocks, shown)
        assert close(denoiser(x, 0.2).x0, wanted[..., : size[0], : size[1]])


@pytest.mark.parametrize("widths", [[16, 16, 32], [8, 8, 16, 32, 64], [16, 32]])
@torch.no_grad()
def test_rddms_and_resfusions_of_any_widths_give_their_equations_answers(tmp_path, widths):
    torch.manual_seed(0)
    one, other = (rddm_state(widths, 6, 3) for _ in range(2))
    both = under("model.unet0.", one) | under("model.unet1.", other)
    torch.save({"ema": under("ema_model.", both)}, tmp_path / "m.pt")
    torch.save({"state_dict": under("denoising_module.", one)}, tmp_path / "m.ckpt")
    x, t = torch.rand(2, 6, 16, 24), torch.tensor([30.0, 700.0])
    answers = [rddm_answer(state, widths, 8, x, t) for state in (one, other)]
    assert close(Denoiser.from_pretrained(tmp_path / "m.pt").network(x, t), torch.cat(answers, 1))
    assert close(Denoiser.from_pretrained(tmp_path / "m.ckpt").network(x, t), answers[0])
    for wrapper in ("module.", "_orig_mod.", "_orig_mod.module."):  # of a part alone
        part = under(f"denoising_module.{wrapper}", one)
        both = under(f"model.unet0.{wrapper}", one) | under(f"model.unet1.{wrapper}", other)
        for state, wanted in ((part, answers[0]), (both, torch.cat(answers, 1))):
            torch.save({"state_dict": state}, tmp_path / "wrapped.ckpt")
            found = Denoiser.from_pretrained(tmp_path / "wrapped.ckpt").network
            assert close(found(x, t), wanted)


KIND = Kind(head_channels=32)
HEADS = {"cd": {"num_heads": 4}, "ed": {"num_heads": 4}}


@pytest.fixture(scope="module")
def states():
    """The weights that are wanted, and others beside them."""
    torch.manual_seed(0)
    return state_of(KIND), state_of(KIND)


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def lightning(state, other):
    """Latent diffusion's averages have no dots in their names."""
    averages = {f"model_ema.net{n.replace('.', '')}": v for n, v in state.items()}
    return {"state_dict": under("model.net.", other) | averages, "epoch": 3}


STORED = {
    "half": lambda s, o: {n: v.half() for n, v in s.items()},
    "double": lambda s, o: {n: v.double() for n, v in s.items()},
    "module": lambda s, o: under("module.", s),
    "model": lambda s, o: under("model.", s),
    "compiled": lambda s, o: under("_orig_mod.", s),
    "nested": lambda s, o: {"anything": {"model": s}, "epoch": 2},
    "ema": lambda s, o: {"model": o, "ema": s, "opt": {}},
    "model_ema": lambda s, o: {"model": o, "model_ema": s},
    "a-decay": lambda s, o: {"model": s, "ema": 0.9999},
    "averages-without-names": lambda s, o: {"model": s, "ema": {"shadow_params": [*o.values()]}},
    "ema-beside": lambda s, o: under("net.", o) | under("net_ema.", s),
    "another-beside": lambda s, o: under("net.", s) | under("semantic_net.", o),
    "ema-pytorch": lambda s, o: {
        "ema": under("ema_model.module.", s) | under("online_model.module.", o)
    },
    "lightning": lambda s, o: {
        "state_dict": under("model.", s),
        "hyper_parameters": {"lr": 1e-4},
        "pytorch-lightning_version": "2.0",
    },
    "lightning-ema": lightning,
    "options-beside": lambda s, o: {
        "state_dict": s,
        "hyper_parameters": argparse.Namespace(lr=1e-4, out=Path("/out")),
        "psnr": np.float64(31.5),
    },
}


@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_the_network_is_found_in_every_container(tmp_path, states, name):
    path = tmp_path / "m.ckpt"
    torch.save(STORED[name](*states), path)
    network = Denoiser.from_pretrained(path, num_head_channels=32).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    state = {n: v.half().float() if name == "half" else v for n, v in states[0].items()}
    assert close(network(asked(KIND), T), answer_of(KIND, state, asked(KIND), T))


@torch.no_grad()
def test_half_precision_is_kept_by_a_conversion(tmp_path, states):
    torch.save(STORED["half"](*states), tmp_path / "m.pt")
    with reading_with({"num_head_channels": 32}):
        run_convert(str(tmp_path / "m.pt"), tmp_path / "m")
    stored = load_file(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    found, wanted = (
        Denoiser.from_pretrained(p, **options).network(asked(KIND), T).sample
        for p, options in ((tmp_path / "m", {}), (tmp_path / "m.pt", {"num_head_channels": 32}))
    )
    assert torch.equal(found, wanted)


def test_a_schedule_in_the_file_is_the_process(tmp_path, states, capsys):
    """Latent diffusion's code keeps its betas, whose "linear" is another than DDPM's."""
    process = VP.scaled_linear(1000, 0.0015, 0.0195)
    betas = 1 - process.alphas_cumprod / [1.0, *process.alphas_cumprod[:-1]]
    torch.save(under("model.", states[0]) | {"betas": torch.tensor(betas)}, tmp_path / "m.pt")
    found = Denoiser.from_pretrained(tmp_path / "m.pt", num_head_channels=32)
    assert found.process.a(500.0) == pytest.approx(process.a(500.0), rel=1e-9)
    assert "the schedule in the file" in capsys.readouterr().err
    with pytest.raises(ModelError, match="holds its own schedule: leave out --schedule"):
        Denoiser.from_pretrained(tmp_path / "m.pt", num_head_channels=32, schedule="linear")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda s, o: {"generator": s, "other": o}, r"several sets of weights \(generator, other"),
        (
            lambda s, o: under("model.", s) | {"first_stage_model.a": torch.zeros(2)},
            "latent diffusion network, which works on an autoencoder's latents",
        ),
        (
            lambda s, o: {"model": {"inner_model.proj_in.weight": torch.zeros(8, 3, 3, 3)}},
            "no network that is known here.*from_sigma",  # k-diffusion's
        ),
        (
            lambda s, o: {"model": {"module.all_modules.0.W": torch.zeros(8)}},
            "no network that is known here.*from_sigma",  # score_sde's
        ),
        (
            lambda s, o: (
                under("model.unet.", s | {"a.transformer_blocks.0": torch.zeros(2)})
                | {"first_stage_model.a": torch.zeros(2)}
            ),
            "with text .*from_single_file",
        ),
        (lambda s, o: under("control_model.", s), "is a ControlNet"),
        (
            lambda s, o: {n: (100 * v).to(torch.int8) for n, v in s.items()},
            "of 8 bits .torch.int8., whose scale nothing tells",
        ),
        (
            lambda s, o: dict.fromkeys(
                ("conv_in.weight", "time_embedding.linear_1.weight"), torch.zeros(2, 2)
            ),
            "config.json beside them: give the folder",
        ),
        (
            lambda s, o: {"state_dict": under("student_grad.model.", drunet_state([8, 8], 1, 3))},
            "gradient-step denoiser",
        ),
    ],
)
def test_what_is_another_network_is_refused(tmp_path, states, made, said):
    torch.save(made(*states), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(tmp_path / "m.pt", num_head_channels=32)


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("drunet_deblocking_color.pth", lambda: drunet_state([8, 8], 1, 3), "a JPEG's quality"),
        ("cd_imagenet64_l2.pt", lambda: state_of(Kind(outputs=3)), "name of consistency_models"),
        ("edm_cat256_ema.pt", lambda: state_of(Kind(outputs=3)), r"shown .* log\(sigma\)/4"),
    ],
)
def test_released_files_of_the_same_shapes_are_told_by_their_names(tmp_path, name, state, said):
    """They are shown something else, which no tensor tells."""
    torch.save(state(), tmp_path / name)
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "other.pt")
    assert Denoiser.from_pretrained(tmp_path / "other.pt", **HEADS.get(name[:2], {})).network


def test_what_a_folder_holds_in_place_of_its_weights_is_named(tmp_path):
    network = tiny_unet()
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    with pytest.raises(ModelError, match=r"-of-.*as one: save_pretrained\(FOLDER, max_shard_size"):
        Denoiser.from_pretrained(tmp_path / "shards")
    network.save_pretrained(tmp_path / "variant", variant="non_ema")
    with pytest.raises(ModelError, match=r"holds diffusion_pytorch_model.non_ema.safetensors;"):
        Denoiser.from_pretrained(tmp_path / "variant")
