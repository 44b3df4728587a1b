"""Folders by their schedulers: process, prediction and scaling as diffusers' own steps are."""

import json

import diffusers
import pytest
import torch
from helpers.networks import tiny_unet

from solvers import DDIM, VE, VP, Denoiser, Flow, explicit, karras, linspace, solve
from solvers.inputs.errors import ModelError

SIDE = 8
STEPPED = [
    ("EDMEulerScheduler", {}, VE),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}, VE),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 1, "final_sigmas_type": "zero"}, VE),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, Flow),
    ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}, VP),
    (
        "EulerDiscreteScheduler",
        {
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "sigma_min": 0.002,
            "sigma_max": 700.0,
            "use_karras_sigmas": True,
        },
        VE,
    ),
]


@pytest.fixture(scope="module")
def network():
    return tiny_unet().eval().requires_grad_(False)


def folder_of(place, network, scheduler):
    network.save_pretrained(place / "unet")
    scheduler.save_pretrained(place / "scheduler")
    return Denoiser.from_pretrained(place)


@pytest.mark.parametrize(("name", "config", "process"), STEPPED)
def test_runs_are_those_of_the_pipeline(tmp_path, network, name, config, process):
    """First-order steps on the scheduler's own levels are DDIM's; and again once saved."""
    scheduler = getattr(diffusers, name)(**config)
    denoiser = folder_of(tmp_path / "a", network, scheduler)
    assert type(denoiser.process) is process
    scheduler.set_timesteps(5)
    start = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    wanted = x
    for t in scheduler.timesteps:
        flow = name.startswith("Flow")
        shown = wanted if flow else scheduler.scale_model_input(wanted, t)
        wanted = scheduler.step(network(shown, t).sample, t, wanted).prev_sample
    if process is VP:
        x, times = x / (1 + scheduler.sigmas[0] ** 2) ** 0.5, scheduler.timesteps.tolist()
    else:
        times = scheduler.sigmas[:-1].double().tolist()
        times = [min(s, denoiser.process.end) for s in times]
    denoiser.save_pretrained(tmp_path / "b")
    for found in (denoiser, Denoiser.from_pretrained(tmp_path / "b")):
        image = solve(DDIM(), found, x, explicit(times)).x0
        torch.testing.assert_close(image, wanted, atol=1e-4, rtol=1e-4)


def test_the_score_becomes_the_noise(tmp_path, network):
    """ScoreSdeVe: the network says the score, of pictures in [0, 1] that are not scaled."""
    found = folder_of(tmp_path / "a", network, diffusers.ScoreSdeVeScheduler())
    assert (found.value_range, found.process) == ((0, 1), VE(0.01, 1348.0))
    x = torch.randn(1, 3, SIDE, SIDE)
    score = network(x, torch.tensor([3.0])).sample
    found.save_pretrained(tmp_path / "b")
    for denoiser in (found, Denoiser.from_pretrained(tmp_path / "b")):
        torch.testing.assert_close(denoiser(x, 3.0).x0, x + 9 * score)


def test_a_class_takes_its_own_defaults(tmp_path, network):
    """``HeunDiscreteScheduler`` begins at another beta than ``DDIMScheduler``."""
    network.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    for name in ("HeunDiscreteScheduler", "LCMScheduler", "DDIMScheduler"):
        content = json.dumps({"_class_name": name})
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
        made = getattr(diffusers, name)().alphas_cumprod.double().numpy()
        found = Denoiser.from_pretrained(tmp_path).process.alphas_cumprod
        assert found == pytest.approx(made, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "is a KarrasVeScheduler.*known: DDIM"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochasticIterativeScheduler"),
        ({"_class_name": "MySchedule"}, "is a MySchedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "'sample' is unknown"),
    ],
)
def test_unknown_schedulers_are_refused_by_name(tmp_path, network, config, said):
    network.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
        ("DDPMScheduler", {"prediction_type": "sample", "num_train_timesteps": 100}),
        ("DPMSolverMultistepScheduler", {}),  # whose file holds -Infinity
        ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    ],
)
def test_predictions_and_levels_are_the_schedulers(tmp_path, network, name, config):
    """Of the state at a level between: the image that the scheduler's own formulas find."""
    scheduler = getattr(diffusers, name)(**config)
    denoiser = folder_of(tmp_path / "a", network, scheduler)
    x, t = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), 60
    out = network(x, torch.tensor([60.0])).sample
    a, b = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
    wanted = {"epsilon": (x - b * out) / a, "sample": out, "v_prediction": a * x - b * out}
    found = denoiser(x, t).x0
    torch.testing.assert_close(
        found, wanted[scheduler.config.prediction_type], rtol=1e-4, atol=1e-4
    )
    assert len(denoiser.process) == scheduler.config.num_train_timesteps


def test_a_learned_embedding_of_time_is_refused(tmp_path):
    made = tiny_unet(time_embedding_type="learned", num_train_timesteps=1000)
    made.save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match="'learned' knows whole times alone"):
        Denoiser.from_pretrained(tmp_path)


def test_transformers_are_refused_by_name(tmp_path):
    (tmp_path / "transformer").mkdir()
    content = json.dumps({"_class_name": "SD3Transformer2DModel"})
    (tmp_path / "transformer" / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"SD3Transformer2DModel.*only U-Nets"):
        Denoiser.from_pretrained(tmp_path)


# -- functions of the state itself -----------------------------------------------------------------

STD = 0.5


def exact_denoiser(x, sigma):
    return x * STD**2 / (STD**2 + sigma.reshape(-1, 1, 1, 1) ** 2)


def exact_velocity(x, t):
    t = t.reshape(-1, 1, 1, 1)
    return x * (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)


@pytest.mark.parametrize(
    ("denoiser", "grid"),
    [
        (Denoiser(exact_denoiser, VE(), "sample"), karras),
        (Denoiser.from_sigma(exact_denoiser), karras),
        (Denoiser(lambda x, s: (x - exact_denoiser(x, s)) / s.reshape(-1, 1, 1, 1), VE()), karras),
        (Denoiser(exact_velocity, Flow(), "velocity"), linspace),
    ],
    ids=["VE", "from_sigma", "VE-epsilon", "flow"],
)
def test_a_gaussian_ends_as_wide_as_it_is(denoiser, grid):
    """Its flow is a scaling; DDIM's error halves with the steps."""
    process = denoiser.process
    x = process.end * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    errors = [
        abs(float(solve(DDIM(), denoiser, x, grid(process, n)).x0.std()) - STD) for n in (50, 100)
    ]
    assert errors[0] < 0.035
    assert errors[1] < 0.6 * errors[0] + 0.004


def test_a_flow_matches_other_processes():
    flow = Flow()
    for t in (0.1, 0.5, 0.99):
        assert (flow.a(t), flow.b(t)) == pytest.approx((1 - t, t))
        assert flow.time_at(flow.log_snr(t)) == pytest.approx(t)
    x = torch.randn(1, 1, 4, 4)
    p = Denoiser(exact_velocity, flow, "velocity")(x, 0.3)
    torch.testing.assert_close(0.7 * p.x0 + 0.3 * p.eps, x)


def test_what_can_not_be_scaled_is_refused():
    with pytest.raises(ValueError, match="scaled=False"):
        Denoiser(exact_denoiser, VE(), "sample", scaled=False, data_std=0.5)
    with pytest.raises(ValueError, match="velocity"):
        Denoiser(exact_velocity, Flow(), "velocity", scaled=True)
    with pytest.raises(ValueError, match="prediction_type"):
        Denoiser(exact_velocity, VP.linear(), "velocity")
