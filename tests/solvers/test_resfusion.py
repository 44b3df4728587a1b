"""Resfusion against the authors' runs and its own equations."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.data import golden
from helpers.driver import cases, drive
from helpers.mixtures import noise

from solvers import (
    CLEAN,
    DDIM,
    VP,
    Denoiser,
    Grid,
    Prediction,
    Resfusion,
    ResfusionSampler,
    explicit,
    leading,
    solve,
    trailing,
)
from solvers.methods.resfusion import TARGETS, truncated

KIND = {"LinearPro": "linear", "CosinePro": "cosine"}
# the authors' words for the three modes
TYPE = {"epsilon": "resnoise", "sample": "sample", "residual": "residual"}


def stand_in(x, c, t):
    """The golden file's closed-form network."""
    t = t.reshape(-1, 1, 1, 1)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (
        0.5 * torch.sin(1.3 * x + 0.7 * c + 0.11 * t)
        + 0.3 * x
        - 0.2 * x.roll(1, 3)
        + 0.15 * c * torch.cos(0.05 * t)
        + 0.05 * mean
    )


def network(z, t):
    x, c = z.chunk(2, dim=1)
    return stand_in(x, c, t)


def close(a, b):
    """The golden file's tolerance."""
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def published():
    return golden("resfusion")


def test_schedules_are_the_authors(published):
    found = cases(published, "sched")
    for name, arrays in found.items():
        kind, steps = name.rsplit("-", 1)
        abar, process = (
            truncated(KIND[kind], int(steps)),
            Resfusion.scheduled(KIND[kind], int(steps)),
        )
        count = int(arrays["T_acc"])
        assert (len(abar), len(process)) == (len(arrays["alphas_hat"]), count)
        assert np.allclose(abar[:count], arrays["alphas_hat"][:count], rtol=1e-5, atol=1e-6)
        alphas = abar[1:count] / abar[: count - 1]
        assert np.allclose(alphas, arrays["alphas"][1:count], rtol=1e-5)
        assert np.allclose(1 - alphas, arrays["betas"][1:count], rtol=1e-4)
        assert np.allclose(abar[: count - 1], arrays["alphas_hat_prev"][1:count], rtol=1e-5)
        # beta~ is the variance of the fresh noise; nothing is added at the last step
        fresh = [
            process.b(t - 1) * ResfusionSampler.fresh_share(process, t, t - 1)
            for t in range(1, count)
        ]
        assert np.allclose(np.square(fresh), arrays["betas_hat"][1:count], rtol=1e-4)


def test_number_of_levels_is_the_authors(published):
    for name, arrays in cases(published, "table").items():
        for steps, count, last, length in zip(
            *(arrays[k] for k in ("T", "T_acc", "alpha_hat_at_T_acc", "schedule_length")),
            strict=True,
        ):
            process = Resfusion.scheduled(KIND[name], int(steps))
            assert (len(process), len(truncated(KIND[name], int(steps)))) == (count, length), (
                name,
                steps,
            )
            assert process.alphas_cumprod[-1] == pytest.approx(last, rel=1e-5)


def test_sampler_equals_the_authors_runs(published):
    for number, case in cases(published, "sample").items():
        options = json.loads(str(case["options"]))
        y, draws = torch.from_numpy(case["x0hat"]), torch.from_numpy(case["noise"])
        process = Resfusion.scheduled(KIND[options["schedule"]], options["T"])
        denoiser = Denoiser(
            network, process, TYPE[options["mode"]], condition_channels=y.shape[1]
        ).conditioned(y)
        solver = ResfusionSampler(clip=None if options["mode"] == "epsilon" else 1.0)
        grid = leading(process, len(process))
        assert grid.times[:-1] == tuple(case["timesteps"])
        assert len(process) == case["T_acc"]
        x = process.start(y, draws[0])
        image, states, times = drive(solver, denoiser, x, grid, y, draws[1:])
        assert times == list(case["timesteps"])
        for k, (ours, theirs) in enumerate(zip([*states, image], case["steps"], strict=True)):
            assert close(ours, theirs), (number, k, (ours - torch.from_numpy(theirs)).abs().max())


def test_training_equals_the_authors(published):
    for number, case in cases(published, "train").items():
        options = json.loads(str(case["options"]))
        clean, degraded = (torch.from_numpy(case[k]) * 2 - 1 for k in ("clean01", "degraded01"))
        t = torch.from_numpy(case["t"])
        process = Resfusion.scheduled(KIND[options["schedule"]], options["T"])
        x, target = process.training_pair(
            clean, degraded, torch.from_numpy(case["noise"]), t, TYPE[options["mode"]]
        )
        assert close(x, case["x_t"]), number
        assert close(target, case["target"]), number
        assert close(stand_in(x, degraded, t.float()), case["pred"]), number
        loss = {"L2": F.mse_loss, "L1": F.smooth_l1_loss}[options["loss"]]
        assert close(loss(stand_in(x, degraded, t.float()), target), case["loss"]), number


# -- definition ------------------------------------------------------------------------------------

PROCESSES = [
    Resfusion.scheduled(),
    Resfusion.scheduled("linear", 30),
    Resfusion.scheduled("cosine", 50),
    Resfusion.scheduled("linear", 273),
]
IDS = ["12", "30", "cosine-50", "273"]


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_states_are_ddpm_of_the_image_less_the_residual(process):
    x0, y, eps = noise(1, 1), noise(1, 2), noise(1, 3)
    residual = y - x0
    for t in range(len(process)):
        abar = process.alphas_cumprod[t]
        ddpm = abar**0.5 * (x0 - residual) + (1 - abar) ** 0.5 * eps
        assert (process.add_noise(x0, eps, t, y) - residual - ddpm).abs().max() < 1e-13
        # between the entries the three coefficients stay tied to one abar
        q = 1 - process.c(t - 0.4)
        assert (process.a(t - 0.4), process.b(t - 0.4)) == pytest.approx(
            (2 * q - 1, (1 - q * q) ** 0.5), abs=1e-12
        )
    assert (process.a(CLEAN), process.b(CLEAN), process.c(CLEAN)) == (1, 0, 0)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_every_output_form_recovers_image_and_noise(process):
    """A network that is right, in any of its forms, at every level (whole and between)."""
    x0, y, eps = noise(2, 1), noise(2, 2), noise(2, 3)
    for t in (*range(len(process)), 0.5, len(process) - 1.7):
        t = float(t)
        a, b = process.a(t), process.b(t)
        x = process.add_noise(x0, eps, t, y)
        outputs = {
            "resnoise": eps + process.resnoise_weight(t) * (y - x0),
            "residual": y - x0,
            "sample": x0,
            "epsilon": eps,
            "v_prediction": (a * eps - b * x0) / (a * a + b * b) ** 0.5,
        }
        assert set(outputs) == set(process.prediction_types)
        for kind, output in outputs.items():
            if (
                kind == "epsilon" and abs(a) < 0.02
            ):  # next to nothing about the image is in the noise there
                continue
            p = process.predict(output, x, t, kind, y)
            assert (p.x0 - x0).abs().max() < 1e-10, (t, kind)
            assert (p.eps - eps).abs().max() < 1e-10, (t, kind)


def test_training_pairs_are_what_networks_are_asked():
    """State and target of training, fed back as an answer, give the training image back."""
    process = Resfusion.scheduled("linear", 20)
    x0, y, eps = noise(3, 1), noise(3, 2), noise(3, 3)
    t = torch.tensor([0, 3, len(process) - 1])
    for target in TARGETS:
        x, output = process.training_pair(x0, y, eps, t, target)
        for k in range(3):
            p = process.predict(output[k : k + 1], x[k : k + 1], float(t[k]), target, y[k : k + 1])
            assert (p.x0 - x0[k : k + 1]).abs().max() < 1e-12
            assert (p.eps - eps[k : k + 1]).abs().max() < 1e-10


def test_start_is_the_published_one():
    """``sqrt(abar) y + sqrt(1 - abar) eps``; for the truncated schedules ``y/2 + sqrt(3)/2 eps``,
    the forward process's own end.
    """
    y, eps, x0 = noise(1, 1), noise(1, 2), noise(1, 3)
    process = Resfusion.scheduled()
    assert (process.start(y, eps) - (y / 2 + 0.75**0.5 * eps)).abs().max() < 1e-14
    assert (process.start(y, eps) - process.add_noise(x0, eps, process.end, y)).abs().max() < 1e-14
    whole = Resfusion.scheduled("linear", 30)
    abar = whole.alphas_cumprod[-1]
    assert whole.a(whole.end) < 0
    assert (whole.start(y, eps) - (abar**0.5 * y + (1 - abar) ** 0.5 * eps)).abs().max() < 1e-14


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_a_perfect_network_restores_the_image_from_the_degraded_one(process):
    x0, y = noise(1, 1), noise(1, 2)

    class Knows:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return Prediction.from_x0(x0, process.unshifted(x, t, y), process.a(t), process.b(t))

    for solver in (ResfusionSampler(), ResfusionSampler(eta=0), DDIM()):
        image = solve(
            solver, Knows(), process.start(y, noise(1, 3)), leading(process, len(process)), y=y
        ).x0
        assert torch.equal(image, x0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_noise_scale_is_a_unit_of_images(target):
    """A run with ``noise_scale=s`` is a released one of all images divided by s; so are states and
    targets of training.
    """
    s, steps = 0.05, 20
    scaled, released = Resfusion.scheduled("linear", steps, s), Resfusion.scheduled("linear", steps)
    x0, y, eps = noise(3, 1), noise(3, 2), noise(3, 3)
    t = torch.tensor([0, 3, len(released) - 1])
    x, output = scaled.training_pair(x0, y, eps, t, target)
    x_released, output_released = released.training_pair(x0 / s, y / s, eps, t, target)
    unit = 1 if target == "resnoise" else s  # noise has no unit
    assert (x - s * x_released).abs().max() < 1e-12
    assert (output - unit * output_released).abs().max() < 1e-12

    def run(process, size):
        shown = size / s * y  # the degraded image in the run's unit
        unit = 1 if target == "resnoise" else size
        network = Denoiser(
            lambda z, t: unit * stand_in(z / size, shown / size, t), process, target
        ).with_degraded(shown)
        rng = torch.Generator().manual_seed(0)
        start, grid = process.start(shown, eps), leading(process, len(process))
        return solve(ResfusionSampler(), network, start, grid, y=shown, generator=rng).x0

    assert (run(scaled, s) - s * run(released, 1.0)).abs().max() < 1e-10


def test_on_a_plain_process_it_is_ddpm():
    process, x = VP.linear(), noise(2)
    from helpers.mixtures import small_mixture

    for eta in (0.0, 0.6, 1.0):
        runs = [
            solve(
                s,
                small_mixture().denoiser(process),
                x,
                trailing(process, 12),
                generator=torch.Generator().manual_seed(0),
            ).x0
            for s in (ResfusionSampler(eta), DDIM(eta))
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-10


def test_clip_limits_the_image_and_keeps_the_state():
    process = Resfusion.scheduled()
    y, x = noise(1, 2), noise(1, 3)
    outputs = 3 * noise(1, 4)
    denoiser = Denoiser(lambda z, t: outputs, process, "sample").with_degraded(y)
    seen = solve(ResfusionSampler(0.0, clip=1.0), denoiser, x, explicit([3.0], end=2.0), y=y).x0
    x0 = outputs.clamp(-1, 1)
    eps = (x - process.a(3) * x0 - process.c(3) * y) / process.b(3)
    assert (seen - process.add_noise(x0, eps, 2.0, y)).abs().max() < 1e-12
    assert (
        solve(ResfusionSampler(clip=1.0), denoiser, x, Grid((3.0, 1.0, CLEAN)), y=y).x0.abs().max()
        == 1
    )


def test_denoiser_takes_y_from_its_condition_or_its_own():
    process = Resfusion.scheduled()
    y, x = noise(2, 2), noise(2, 3)
    shown = Denoiser(lambda z, t: z[:, :3], process, "resnoise", condition_channels=3)
    assert torch.equal(
        shown.conditioned(y)(x, 2.0).x0, process.predict(x, x, 2.0, "resnoise", y).x0
    )
    assert torch.equal(
        shown(x, 2.0).x0, process.predict(x, x, 2.0, "resnoise", 0 * y).x0
    )  # no condition: zeros
    hidden = Denoiser(lambda z, t: z, process, "resnoise")
    assert torch.equal(
        hidden.with_degraded(y)(x, 2.0).x0, process.predict(x, x, 2.0, "resnoise", y).x0
    )
    with pytest.raises(ValueError, match="pass it as y"):
        hidden(x, 2.0)
    with pytest.raises(ValueError, match="diffuses the residual itself"):
        Denoiser(None, process, condition_channels=3, residual=True)
    with pytest.raises(
        ValueError, match="known: epsilon, sample, v_prediction, residual, resnoise"
    ):
        Denoiser(None, process, "residual_noise")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Resfusion.scheduled("quadratic", 12), "linear, cosine"),
        (lambda: Resfusion.scheduled("linear", 9), "from 10 up"),
        (lambda: Resfusion.scheduled("cosine", 1.5), "whole number"),
        (lambda: Resfusion([0.9, 0.5, 0.1]), "crosses 1/2"),
        (lambda: Resfusion([0.9, 0.95]), "decreases strictly"),
        (lambda: Resfusion.scheduled(noise_scale=0), "positive number; got 0"),
        (lambda: Resfusion.scheduled(noise_scale=float("nan")), "positive number"),
        (lambda: ResfusionSampler(eta=2), r"\[0, 1\]"),
        (lambda: ResfusionSampler(clip=0), "positive"),
        (
            lambda: Resfusion.scheduled().training_pair(
                *(noise(1),) * 3, torch.tensor([0]), "score"
            ),
            "resnoise, sample, residual",
        ),
    ],
)
def test_errors_name_what_is_accepted(make, said):
    with pytest.raises(ValueError, match=said):
        make()
