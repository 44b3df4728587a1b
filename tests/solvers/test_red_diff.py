"""RED-diff against recorded runs of published code, its analytic fixed points and its own
definition.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from helpers.covering import covering
from helpers.data import golden, smooth_picture
from helpers.mixtures import Guided, noise, replay, small_mixture

from restoration.metrics import psnr
from restoration.operators.linear import Denoising, Inpainting, NonlinearOperator
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean, Separable
from restoration.photo.inpainting import InpaintingTask
from solvers import (
    VP,
    Denoiser,
    GaussianMixture,
    REDDiff,
    explicit,
    solve,
    solver_by_name,
    trailing,
)
from solvers.methods.red_diff import WEIGHTINGS, Adam, data_gradient
from toolbox.api import load

PROCESS = VP.linear()


class Case:
    def __init__(self, arrays, name):
        self.arrays, self.name = arrays, name
        self.options = json.loads(str(arrays[f"{name}/opts"]))
        self.start = self["mu_init"]
        self.operator = self.find_operator()
        y = self["y"].reshape(self.operator.A(self.start).shape)
        self.measurement = SimpleNamespace(operator=self.operator, y=y)
        self.single = self.start.dtype == torch.float32

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def __contains__(self, key):
        return f"{self.name}/{key}" in self.arrays

    def find_operator(self):
        if "mask" in self:
            return Inpainting(self["mask"])
        if self.name.startswith("sr"):
            return BlockMean(tuple(self.start.shape[-2:]), int(self.name.removeprefix("sr")))
        if "A_1d" in self:
            return Separable(self["A_1d"], self["A_1d"])
        assert self.name == "hdr"
        return NonlinearOperator(lambda x: (2 * x).clamp(-1, 1), lambda y: y / 2)

    def denoiser(self):
        names = {"A_1d": "gmmC", "mask": "gmmA"}
        prior = next((names[key] for key in names if key in self), "gmmB")
        table = "alphas_cumprod_f32_reference" if self.single else "alphas_cumprod"
        return Guided(self.arrays, prior, VP(self.arrays[table]))

    def draws(self):
        for k, n in enumerate(self["noise_xt"]):
            if "noise_x0" in self:
                yield self["noise_x0"][k]
            yield n

    def solver(self, **changes):
        o = self.options
        chosen = {
            "weighting": o["weight"],
            "lam": o["lam"],
            "lr": o["lr"],
            "sigma_x0": o["sigma_x0"],
            "data_weight": o["obs_weight"],
        }
        return REDDiff(
            self.measurement, **chosen, **{"reduction": "mean", "start": self.start} | changes
        )


@pytest.fixture(scope="module")
def cases():
    arrays = golden("reddiff")
    return [Case(arrays, key.removesuffix("/opts")) for key in arrays if key.endswith("/opts")]


def test_equals_the_published_runs(cases):
    assert cases
    for case in cases:
        tolerance = 2e-3 if case.single else 1e-7
        grid, denoiser = explicit(case["timesteps"].tolist()), case.denoiser()
        for returns, key in (("mu", "final_mu"), ("x0_pred", "final_x0_pred")):
            end, queries = replay(
                case.solver(returns=returns), denoiser, case.start, grid, case.draws()
            )
            assert end.dtype == case.start.dtype
            assert (end - case[key]).abs().max() <= tolerance, (case.name, key)
        if "xt" in case:
            for k, (query, answer) in enumerate(queries):
                assert (query.x - case["xt"][k]).abs().max() <= tolerance, (case.name, k)
                assert (answer.eps - case["eps"][k]).abs().max() <= tolerance, (case.name, k)
        if "grad" in case:  # what Adam was handed, from the network's recorded answers
            o = case.options
            for k, t in enumerate(grid.times[:-1]):
                before = case.start if k == 0 else case["mu"][k - 1]
                seen = (
                    before + o["sigma_x0"] * case["noise_x0"][k] if "noise_x0" in case else before
                )
                weight = (
                    o["lam"] * WEIGHTINGS[o["weight"]](denoiser.process.kappa(t)) / seen.numel()
                )
                slope = (
                    o["obs_weight"]
                    * data_gradient(case.operator, seen, case.measurement.y)
                    / case.measurement.y.numel()
                )
                ours = slope + weight * (case["eps"][k] - case["noise_xt"][k])
                assert (ours - case["grad"][k]).abs().max() <= tolerance, (case.name, k)
        if (
            "mu" in case and "noise_x0" not in case
        ):  # without variational noise the states give the iterates away
            a, b = (
                [f(t) for t in grid.times[:-1]] for f in (denoiser.process.a, denoiser.process.b)
            )
            for k in range(1, len(queries)):
                mu = (queries[k][0].x - b[k] * case["noise_xt"][k]) / a[k]
                assert (mu - case["mu"][k - 1]).abs().max() <= tolerance / min(a[k], 1), (
                    case.name,
                    k,
                )


def test_operators_equal_the_published_ones(cases):
    """Inverses and adjoints were recorded for data without noise, starts for the data of the
    run.
    """
    for case in cases:
        if "pinv_y" in case:
            assert (
                case.operator.A_dagger(case.operator.A(case["x_true"])) - case["pinv_y"]
            ).abs().max() <= 1e-7, case.name
        if "At_y" in case:
            assert (
                case.operator.A_adjoint(case.operator.A(case["x_true"])) - case["At_y"]
            ).abs().max() <= 1e-12, case.name
        if case.single or case.name == "hdr":
            continue
        assert (case.operator.A_dagger(case.measurement.y) - case.start).abs().max() <= 1e-7, (
            case.name
        )


def test_sums_are_means_with_other_weights(cases):
    """Up to Adam's epsilon: the same run with v/m and lam/n written out."""
    for case in cases:
        if case.single:
            continue
        y, o = case.measurement.y, case.options
        grid, denoiser = explicit(case["timesteps"].tolist()), case.denoiser()
        weights = {
            "data_weight": o["obs_weight"] / y.numel(),
            "lam": o["lam"] / case.start.numel(),
            "lr": o["lr"],
        }
        others = {"weighting": o["weight"], "sigma_x0": o["sigma_x0"], "start": case.start}
        end, _ = replay(
            REDDiff(case.measurement, **weights, **others), denoiser, case.start, grid, case.draws()
        )
        assert (end - case["final_mu"]).abs().max() <= 1e-7, case.name


def test_adam_is_pytorchs():
    x = torch.randn(
        5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    optimizer, mine = torch.optim.Adam([x], lr=0.1, betas=(0.9, 0.99)), Adam((0.9, 0.99), 1e-8)
    y = x.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        x.pow(4).sum().backward()
        y = y - 0.1 * mine.direction(4 * y**3)
        optimizer.step()
        torch.testing.assert_close(y, x.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighting", covering(WEIGHTINGS, ["linear", "sqrt"]))
def test_finds_the_posterior_mean_of_a_gaussian(weighting):
    """Repeated at one level, the fixed point is ``v (mu - y) + lam w (a b/(a^2 s^2 + b^2)) (mu - m)
    = 0`` (noise averages out).
    """
    m, s, y, v, lam, t = (
        0.2,
        0.5,
        torch.full((1, 1, 40, 40), -0.4, dtype=torch.float64),
        0.7,
        0.3,
        300.0,
    )
    a, b, kappa = PROCESS.a(t), PROCESS.b(t), PROCESS.kappa(t)
    prior = GaussianMixture(torch.ones(1), torch.full((1, 1, 40, 40), m), torch.tensor([s]))
    grid = explicit([t - 1e-9 * k for k in range(600)])
    solver = REDDiff(
        SimpleNamespace(operator=Denoising(), y=y),
        weighting,
        lam=lam,
        data_weight=v,
        lr=0.02,
        decay=True,
    )
    x0 = solve(
        solver, prior.denoiser(PROCESS), y, grid, generator=torch.Generator().manual_seed(0)
    ).x0
    pull = lam * WEIGHTINGS[weighting](kappa) * a * b / (a * a * s * s + b * b)
    assert x0.mean() == pytest.approx((v * y[0, 0, 0, 0].item() + pull * m) / (v + pull), abs=0.01)


@pytest.mark.parametrize("weighting", covering(["linear", "const", "trunc_linear"], ["linear"]))
def test_fits_the_spread_of_a_gaussian_prior(weighting):
    """Without data the variational distribution becomes the prior: its mean and its deviation, read
    off the last draw from it.
    """
    m, s = 0.2, 0.3
    x = torch.zeros(2, 1, 40, 40, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1), torch.full((1, 1, 40, 40), m), torch.tensor([s]))
    options = {
        "sigma_x0": 0.05,
        "fit_sigma": True,
        "data_weight": 0.0,
        "lr": 0.01,
        "decay": True,
        "start": x,
        "returns": "x0_pred",
    }
    solver = REDDiff(SimpleNamespace(operator=Denoising(), y=x), weighting, **options)
    grid = explicit([300.0 - 0.4 * k for k in range(500)])
    draw = solve(
        solver, prior.denoiser(PROCESS), x, grid, generator=torch.Generator().manual_seed(0)
    ).x0
    assert draw.mean() == pytest.approx(m, abs=0.03)
    assert draw.std() == pytest.approx(s, rel=0.1)
    fixed = solve(
        dataclasses.replace(solver, fit_sigma=False),
        prior.denoiser(PROCESS),
        x,
        grid,
        generator=torch.Generator(),
    ).x0
    assert fixed.std() < 0.5 * s


def test_data_narrow_the_distribution():
    """A deviation costs what it adds to the misfit: without a prior it goes to zero."""
    s, sigma = 0.5, 0.1
    y = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1), torch.zeros(1, 1, 40, 40), torch.tensor([s]))
    options = {
        "sigma_x0": 0.4,
        "fit_sigma": True,
        "data_weight": sigma**-2,
        "lr": 0.01,
        "decay": True,
        "start": y,
        "returns": "x0_pred",
    }
    grid = explicit([300.0 - 0.4 * k for k in range(500)])
    solver = REDDiff(SimpleNamespace(operator=Denoising(), y=y), lam=1e-9, **options)
    without = solve(
        solver, prior.denoiser(PROCESS), y, grid, generator=torch.Generator().manual_seed(0)
    ).x0
    assert without.std() < 0.02


def test_parallel_levels_share_a_step():
    """The gradient of a step is the mean over its levels; calls stay one per node."""
    mixture = small_mixture()
    truth = mixture.sample(4, torch.Generator().manual_seed(0))
    m = Measurement(Denoising(), truth)
    d, grid = mixture.denoiser(PROCESS), explicit([600.0, 500.0, 400.0])
    draws = [noise(4, k) for k in range(3)]
    one, queries = replay(
        REDDiff(m, parallel=3, start=truth + 0.1, lr=0.01), d, truth, grid, iter(draws)
    )
    assert len(queries) == 3
    gradient = (truth + 0.1 - truth) + sum(
        0.25 * PROCESS.kappa(q.t) * (p.eps - n) / 3
        for (q, p), n in zip(queries, draws, strict=True)
    )
    assert (one - (truth + 0.1 - 0.01 * gradient / (gradient.abs() + 1e-8))).abs().max() < 1e-9
    for parallel in (1, 4):
        solver = REDDiff(m, parallel=parallel)
        run = solve(
            solver, d, noise(4), trailing(PROCESS, 30), generator=torch.Generator().manual_seed(1)
        )
        assert run.nfe == 30
        assert torch.isfinite(run.x0).all()


def test_only_asks_forward_questions():
    """An inference-only network is enough; the number of calls is the number of steps."""

    class Session:
        def __call__(self, x, t):
            assert not torch.is_grad_enabled()
            return 0.1 * x

    x = noise(2).float()
    operators = (
        Inpainting(torch.eye(4)),
        NonlinearOperator(torch.tanh, lambda y: y),
        SimpleNamespace(A=torch.tanh),
    )
    for op in operators:
        start = None if hasattr(op, "A_dagger") else x
        solver = REDDiff(SimpleNamespace(operator=op, y=op.A(x)), start=start)
        result = solve(solver, Denoiser(Session(), PROCESS), x, trailing(PROCESS, 7))
        assert result.nfe == 7
        assert torch.isfinite(result.x0).all()


def test_restores_with_sums_and_means():
    mixture = small_mixture()
    truth = mixture.sample(8, torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]])
    m = Measurement(Inpainting(mask), mask * truth)
    for reduction in ("sum", "mean"):
        solver = REDDiff(m, reduction=reduction)
        x0 = solve(
            solver,
            mixture.denoiser(PROCESS),
            noise(8),
            trailing(PROCESS, 100),
            generator=torch.Generator().manual_seed(1),
        ).x0
        assert (x0 - truth).square().mean() < 0.3 * (m.y - truth).square().mean()


def test_a_sample_does_not_depend_on_its_batch():
    mixture = small_mixture()
    truth = mixture.sample(3, torch.Generator().manual_seed(0))

    def run(keep):
        rngs = [torch.Generator().manual_seed(k) for k in keep]
        m = Measurement(Denoising(), truth[keep])
        return solve(
            REDDiff(m, sigma_x0=0.1),
            mixture.denoiser(PROCESS),
            truth[keep],
            trailing(PROCESS, 10),
            generator=rngs,
        ).x0

    torch.testing.assert_close(run([0, 1, 2])[2:], run([2]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weighting": "cubic"}, "trunc_linear"),
        ({"reduction": "max"}, "sum, mean"),
        ({"returns": "x"}, "mu, x0_pred"),
        ({"lam": -1}, "negative"),
        ({"lr": 0}, "positive"),
        ({"fit_sigma": True}, "positive sigma_x0"),
        ({"parallel": 0}, "at least 1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"measurement": 3}, "operator and y"),
    ],
)
def test_errors_name_what_is_accepted(options, said):
    m = Measurement(Denoising(), noise(1))
    with pytest.raises(ValueError, match=said):
        REDDiff(**{"measurement": m} | options)


def test_levels_without_signal_are_left_out():
    process = VP.linear(zero_terminal_snr=True)
    solver = REDDiff(Measurement(Denoising(), noise(1)))
    times = []
    end = solve(
        solver,
        small_mixture().denoiser(process),
        noise(1),
        trailing(process, 3),
        callback=lambda step: times.append(step.query.t),
    )
    assert torch.isfinite(end.x0).all()
    assert times == list(trailing(process, 3).times[1:-1])
    with pytest.raises(ValueError, match="take more steps"):
        solve(solver, small_mixture().denoiser(process), noise(1), trailing(process, 1))
    with pytest.raises(ValueError, match="restores a measurement"):
        solve(REDDiff(), small_mixture().denoiser(process), noise(1), trailing(process, 3))


@pytest.mark.long
def test_inpainting_beats_ddim_with_ddnm_at_equal_calls():
    """As its paper has it; by name, in the task, with the shipped network."""
    image = torch.from_numpy(smooth_picture(48, 48)).float()
    mask = (torch.rand(48, 48, generator=torch.Generator().manual_seed(3)) > 0.7).float()
    found = {}
    for name in ("red-diff", "ddim"):
        task = InpaintingTask(load("photo"), solver_by_name(name), 60)
        result = task(image, mask)
        found[name] = psnr(result.mean.numpy(), image.numpy())
        assert result.nfe == (59 if name == "red-diff" else 60)
    assert found["red-diff"] > found["ddim"], found
    with pytest.raises(ValueError, match="leave out the correction"):
        InpaintingTask(load("photo"), solver_by_name("red-diff"), 5, correction="ddnm")(image, mask)
