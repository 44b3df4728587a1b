"""Checkpoints of the field: the published code's answers, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from helpers import checkpoints
from helpers.data import GOLDEN

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.posterior import correction_by_name
from restoration.wrappers.symmetry import Symmetric
from solvers import DDIM, VE, VP, Denoiser, solve
from solvers.grid import lay
from solvers.inputs.errors import ModelError

PLACE = GOLDEN / "checkpoints"
CASES = sorted(p for p in PLACE.glob("*") if p.suffix in (".pt", ".pth", ".ckpt"))
FLAGS = {"cfg_num_head_channels": "num_head_channels", "groups": "groups"}


def options_of(case):
    """What the weights don't tell, from the flags beside the answers."""
    found = {name: int(case[flag]) for flag, name in FLAGS.items() if flag in case}
    if "cfg_num_heads" in case and "num_head_channels" not in found:
        found["num_heads"] = int(case["cfg_num_heads"])
    if case.get("cfg_use_new_attention_order", False):
        found["use_new_attention_order"] = True
    return found


def shown_to(case, network):
    """The network's input, ``(B, C, H, W)``, and times."""
    parts = [case["x"]]
    parts += [case["y"]] if "y" in case and case["y"].ndim == 4 else []
    parts += [case["mask"]] if "mask" in case else []
    x = torch.from_numpy(np.concatenate(parts, axis=1))
    t = torch.from_numpy(case["sigma"] if "sigma" in case else case["t"]).float()
    return x[:, : network.config.in_channels], t


@torch.no_grad()
def answer(network, x, t):
    out = network(x, t)
    return out if isinstance(out, torch.Tensor) else out.sample


def answers_of(case):
    outs = [case[k] for k in ("out", "out0", "out1") if k in case]
    return torch.from_numpy(np.concatenate(outs, axis=1))


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_every_family_is_there():
    assert len(CASES) >= 11


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_networks_give_the_published_answers(path, tmp_path, capsys):
    """From the file alone and its options; and again from the folder that is saved of it."""
    case = dict(np.load(path.with_suffix(".npz")))
    options, wanted = options_of(case), answers_of(case)
    labels = case["y"].tolist() if "cfg_num_classes" in case else [None] * len(wanted)
    for k, label in enumerate(labels):
        given = options if label is None else options | {"class_label": label}
        denoiser = Denoiser.from_pretrained(path, **given)
        x, t = shown_to(case, denoiser.network)
        close(answer(denoiser.network, x[k : k + 1], t[k : k + 1]), wanted[k : k + 1])
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"restobox: {path.name}: ") for line in said)
    assert len(said) == len(labels)
    denoiser.save_pretrained(tmp_path / "m")
    again = Denoiser.from_pretrained(tmp_path / "m")
    assert (again.process, again.settings) == (denoiser.process, denoiser.settings)
    assert (again.prediction_type, again.multiple) == (denoiser.prediction_type, denoiser.multiple)
    assert torch.equal(answer(again.network, x, t), answer(denoiser.network, x, t))


@pytest.mark.parametrize("name", checkpoints.MADE)
@torch.no_grad()
def test_chains_and_spandrels_networks_give_their_codes_answers(name, tmp_path):
    """From the file, from the folder that is saved of it, and through the denoiser."""
    if name in checkpoints.SPANDREL:
        pytest.importorskip("spandrel")
    published = checkpoints.write(name, tmp_path / "a.pth")
    denoiser = Denoiser.from_pretrained(tmp_path / "a.pth")
    channels = denoiser.image_channels
    coloured = ("dncnn-deepinv", "ffdnet-colour", *checkpoints.SPANDREL)
    assert channels == (3 if name in coloured else 1)
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(2, channels, 16, 12, generator=noise)
    denoiser.save_pretrained(tmp_path / "m")
    for made in (denoiser, Denoiser.from_pretrained(tmp_path / "m")):
        if name in checkpoints.SPANDREL:  # whatever the state and the time, and to the border
            from spandrel import ModelLoader

            theirs = ModelLoader("cpu").load_from_state_dict(published.state_dict())
            for size in ((16, 12), (13, 11), (21, 26)):
                shown, state = (torch.rand(1, 3, *size, generator=noise) for _ in range(2))
                found = made.conditioned(shown)(state, 500).x0
                close(found.clamp(0, 1), theirs(shown))
        elif "ffdnet" in name:
            sigma = torch.tensor([0.1, 0.3])
            close(made.network(x, sigma), published(x, sigma))
            close(made(x, 0.3).x0, published(x, sigma[1:].expand(2)))
        else:
            close(made(x, 0.1).x0, published(x))


@pytest.mark.parametrize("steps", [4, 50])
def test_a_learned_variance_is_that_of_ancestral_steps(steps):
    """diffusers' DDPM with the same network and noise."""
    from diffusers import DDPMScheduler

    process = VP.linear()

    def network(x, t):  # exact for pictures of white noise, with v from -1 to 1
        return torch.cat([process.b(float(t[0])) * x, torch.sin(3 * x)], 1)

    denoiser = Denoiser(network, process)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scheduler = DDPMScheduler(
        variance_type="learned_range", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    state, noise = x, torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        answer = network(state, t.float().expand(2))
        step = scheduler.step(answer, t, state, generator=noise)
        state = step.prev_sample
    state = step.pred_original_sample  # to which it adds noise, as the authors don't
    grid = lay("trailing", denoiser.process, steps)
    ours, fixed = (
        solve(DDIM(eta=1.0), d, x, grid, generator=torch.Generator().manual_seed(2)).x0
        for d in (denoiser, denoiser.around(lambda *a: network(*a)[:, :3]))
    )
    torch.testing.assert_close(ours, state, rtol=1e-4, atol=1e-4)
    assert (fixed - state).abs().max() > 0.05


def test_learned_variances_of_files_go_through_corrections():
    denoiser = Denoiser.from_pretrained(PLACE / "adm-imagenet256-like.pt", num_head_channels=16)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        v = denoiser.network(x, torch.tensor([500.0])).sample[:, 3:]
        assert denoiser.output(x, 500).shape == x.shape
    measured = Measurement(Inpainting((torch.arange(16) > 7).float().expand(16, 16)), x, 0.1)
    for name in ("diffpir", "dps", "pigdm", "mmps"):
        found = correction_by_name(name, denoiser, measured, steps=50)(x, 500).spread
        torch.testing.assert_close(found, (v + 1) / 2)
    painted = correction_by_name(
        "repaint", denoiser, Measurement(measured.operator, x, 0.0), steps=50
    )
    missing = 1 - measured.operator.mask
    torch.testing.assert_close(painted(x, 500).spread, missing * (v + 1) / 2)
    turned = Symmetric(denoiser, 2)(x, 500).spread
    mirrored = denoiser(x.flip(-1), 500).spread.flip(-1)
    torch.testing.assert_close(turned, ((v + 1) / 2 + mirrored) / 2)


def test_a_variance_in_another_form_is_left_out(tmp_path):
    denoiser = Denoiser.from_pretrained(PLACE / "adm-imagenet256-like.pt", num_head_channels=16)
    denoiser.save_pretrained(tmp_path)
    (tmp_path / "denoiser.json").unlink()
    place = tmp_path / "scheduler" / "scheduler_config.json"
    words = json.loads(place.read_text()) | {"_class_name": "DDPMScheduler"}
    place.write_text(json.dumps(words | {"variance_type": "learned"}))
    again = Denoiser.from_pretrained(tmp_path)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert again(x, 500).spread is None
        torch.testing.assert_close(again(x, 500).eps, denoiser(x, 500).eps)


def test_networks_that_no_family_knows_are_refused(tmp_path):
    """Other chains, and what spandrel reads but can't be a restorer here."""
    torch.save(checkpoints.DnCNN(1, layers=7).state_dict(), tmp_path / "ircnn.pth")
    with pytest.raises(ModelError, match="looks like IRCNN, whose convolutions are dilated"):
        Denoiser.from_pretrained(tmp_path / "ircnn.pth")
    odd = {f"model.{n}": v for n, v in checkpoints.chain(5, 2).state_dict().items()}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="from 5 to 2 channels: neither DnCNN nor"):
        Denoiser.from_pretrained(tmp_path / "odd.pth")
    pytest.importorskip("spandrel")
    from spandrel.architectures.Compact import Compact

    large = Compact(num_feat=8, num_conv=2, upscale=2)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    with pytest.raises(ModelError, match="enlarges 2 times"):
        Denoiser.from_pretrained(tmp_path / "large.pth")


def test_what_follows_from_a_file():
    drunet = Denoiser.from_pretrained(PLACE / "drunet-color-like.pth")
    assert (drunet.value_range, drunet.scaled, drunet.image_channels) == ((0, 1), False, 3)
    assert isinstance(drunet.process, VE)
    case = dict(np.load(PLACE / "drunet-color-like.npz"))
    x = torch.from_numpy(case["x"])[:1]
    close(drunet(x, float(case["sigma"][0])).x0, torch.from_numpy(case["out"])[:1])
    rddm = Denoiser.from_pretrained(PLACE / "rddm-two-unets.pt", groups=4, sum_scale=0.04)
    assert rddm.process.b(999) == pytest.approx(0.2)
    assert rddm.prediction_type == "residual_noise"
    resfusion = Denoiser.from_pretrained(PLACE / "resfusion-restore-mask.ckpt", groups=4)
    assert (len(resfusion.process), resfusion.prediction_type) == (5, "resnoise")
    assert resfusion.shown == "degraded+mask"


def test_released_schedules_run_on_the_networks_clock():
    """improved-diffusion's 4000 cosine steps are shown to its network as times up to 1000."""
    improved = Denoiser.from_pretrained(PLACE / "iddpm-cifar-like.pt")
    long = VP.cosine(4000)
    assert improved.process.a(250.0) == pytest.approx(long.a(1000.0), rel=1e-12)
    guided = Denoiser.from_pretrained(PLACE / "adm-ffhq-like.pt", num_head_channels=16)
    assert guided.process == VP.linear()
    short = Denoiser.from_pretrained(
        PLACE / "adm-ffhq-like.pt", num_head_channels=16, train_steps=250
    )
    assert short.process == VP.linear(250, 4e-4, 0.08)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adm-ffhq-like.pt", {"num_head_channels": 48}, "no heads of 48.*--num-head-channels"),
        ("iddpm-cifar-like.pt", {"num_heads": 3}, "can't have 3 heads.*--num-heads"),
        ("adm-class-neworder.pt", {"num_heads": 2}, "class-conditional.*--class.*0 to 9"),
        ("adm-class-neworder.pt", {"num_heads": 2, "class_label": 10}, "0 to 9; got 10"),
        ("adm-ffhq-like.pt", {"class_label": 1}, "without classes"),
        ("adm-ffhq-like.pt", {"schedule": "sigmoid"}, "known: linear, cosine"),
        ("iddpm-cifar-like.pt", {"train_steps": 1500}, "multiple of"),
        ("drunet-gray-like.pth", {"num_heads": 2}, "--num-heads has no effect"),
        ("rddm-one-unet.pt", {"groups": 7}, "--groups"),
        ("rddm-one-unet.pt", {"groups": 4, "objective": "pred_res_noise"}, "pred_res, pred_noise"),
        ("rddm-one-unet.pt", {"groups": 4, "sum_scale": 0.0}, "--sum-scale"),
        ("rddm-one-unet.pt", {"groups": "4"}, "groups must be a value of int"),
        ("rddm-one-unet.pt", {"heads": 4}, "known: num_head_channels"),
        ("resfusion-restore.ckpt", {"groups": 4, "schedule": "cubic"}, "known: linear, cosine"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, said):
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(PLACE / name, **options)


def state(name):
    return torch.load(PLACE / name, weights_only=True)


def lacking(path):
    found = state("drunet-gray-like.pth")
    found.pop("m_body.0.res.0.weight")
    torch.save(found, path)


def more(path):
    torch.save(state("drunet-gray-like.pth") | {"m_body.0.bias": torch.zeros(3)}, path)


def not_finite(path):
    found = state("drunet-gray-like.pth")
    found["m_head.weight"][0, 0, 0, 0] = torch.nan
    torch.save(found, path)


def enormous(path):
    torch.save({"m_head.weight": torch.zeros(1).expand(64, 2, 3, 3)}, path)


def later_release(path):
    found = state("rddm-one-unet.pt")
    noise = torch.linspace(0, 0.1, 1000)
    found["ema"] |= {
        "ema_model.alphas_cumsum": torch.linspace(0, 1, 1000),
        "ema_model.betas_cumsum": noise,
    }
    torch.save(found, path)


class Code:
    """An object of a class, which only its code can make."""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lacking, "lacks 1 of the tensors of a DRUNet"),
        (more, "1 tensors that a DRUNet has no place for"),
        (not_finite, "m_head.weight holds NaN|conv_in.weight holds NaN"),
        (enormous, "larger than what is stored of it"),
        (later_release, "later release"),
        (lambda p: torch.save({"a": torch.zeros(3)}, p), "no network that is known.*from_sigma"),
        (lambda p: torch.save([1, 2], p), "holds a list.*from_sigma"),
        (lambda p: torch.save({"epoch": 3}, p), "holds no weights"),
        (lambda p: torch.save({"m_head.weight": Code()}, p), "Python objects.*from_sigma"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "can't be read|holds no weights"),
        (lambda p: p.write_bytes(b"not a checkpoint"), "can't be read as a file of torch.save"),
        (lambda p: p.write_bytes(b""), "can't be read as a file of torch.save"),
    ],
)
def test_damaged_and_foreign_files_are_refused(make, said, tmp_path):
    path = tmp_path / "x.pt"
    make(path)
    with pytest.raises(ModelError, match=said) as caught:
        Denoiser.from_pretrained(path)
    assert str(path) in str(caught.value)


def test_pickled_networks_are_refused_with_the_way_round(tmp_path):
    path = tmp_path / "edm-cifar10.pkl"
    path.write_bytes(pickle.dumps({"ema": 1}))
    with pytest.raises(ModelError, match=r"hold code.*from_sigma"):
        Denoiser.from_pretrained(path)


def test_safetensors_and_bare_names_are_read_too(tmp_path):
    from safetensors.torch import save_file

    tensors = {f"module.{k}": v for k, v in state("drunet-gray-like.pth").items()}
    save_file(tensors, tmp_path / "d.safetensors")
    found = Denoiser.from_pretrained(tmp_path / "d.safetensors").network.state_dict()
    wanted = Denoiser.from_pretrained(PLACE / "drunet-gray-like.pth").network.state_dict()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())


def test_the_average_is_taken(tmp_path):
    """``model`` and the online copy hold other values."""
    case = dict(np.load(PLACE / "rddm-two-unets.npz"))
    found = state("rddm-two-unets.pt")
    torch.save({"model": found["model"]}, tmp_path / "m.pt")
    taken, plain = (
        Denoiser.from_pretrained(p, groups=4).network
        for p in (PLACE / "rddm-two-unets.pt", tmp_path / "m.pt")
    )
    x, t = shown_to(case, taken)
    close(answer(taken, x, t), answers_of(case))
    assert (answer(plain, x, t) - answers_of(case)).abs().max() > 0.1


def test_marks_of_two_kinds_become_one(tmp_path):
    """Resfusion's released mask is two planes, one the other's negative."""
    found = state("resfusion-restore-mask.ckpt")
    weights = {k: v.float() for k, v in found["state_dict"].items()}
    head = weights["denoising_module.init_conv.weight"]
    two = torch.cat([head[:, :-1], torch.randn_like(head[:, :1]), head[:, -1:]], dim=1)
    torch.save(
        found | {"state_dict": weights | {"denoising_module.init_conv.weight": two}},
        tmp_path / "m.ckpt",
    )
    network = Denoiser.from_pretrained(tmp_path / "m.ckpt", groups=4).network
    mask = 2 * torch.randint(0, 2, (1, 1, 8, 8)).float() - 1
    shown = torch.randn(1, 6, 8, 8)
    wanted = torch.conv2d(torch.cat([shown, -mask, mask], dim=1), two, padding=3)
    given = torch.conv2d(
        torch.cat([shown, mask], dim=1), network.unets[0].conv_in.weight, padding=3
    )
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
