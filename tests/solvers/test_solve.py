"""The loop, DDIM, and what every named solver must satisfy."""

import math
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from helpers.covering import KINDS, covering
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

import solvers
from solvers import (
    CLEAN,
    DDIM,
    GRIDS,
    PNDM,
    SOLVERS,
    VE,
    VP,
    Denoiser,
    EVODiff,
    Prediction,
    ProbabilityFlow,
    Process,
    Query,
    RDDMSampler,
    REDDiff,
    Resampled,
    ResfusionSampler,
    explicit,
    generators,
    randn,
    solve,
    solver_by_name,
    trailing,
)

PROCESS = VP.linear()
MIXTURE = small_mixture()
DENOISER = MIXTURE.denoiser(PROCESS)


def network(prediction_type, process):
    """The exact mixture as a network of this output form."""

    def call(x, t):
        a, b = process.a(float(t[0])), process.b(float(t[0]))
        p = MIXTURE.posterior(x, a, b)
        return {
            "epsilon": p.eps,
            "sample": p.x0,
            "v_prediction": (a * p.eps - b * p.x0) / (a * a + b * b) ** 0.5,
        }[prediction_type]

    return call


@pytest.mark.parametrize("name", SOLVERS)
def test_output_forms_give_the_same_image(name):
    grid = trailing(PROCESS, 12)
    images = [
        solve(
            SOLVERS[name](),
            Denoiser(network(form, PROCESS), PROCESS, form),
            noise(2),
            grid,
            generator=torch.Generator().manual_seed(0),
        ).x0
        for form in ("epsilon", "sample", "v_prediction")
    ]
    assert (images[0] - images[1]).abs().max() < 1e-6
    assert (images[0] - images[2]).abs().max() < 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    def run(seed, count):
        rngs = generators(seed, count)
        return solve(
            SOLVERS[name](),
            DENOISER,
            randn((count, 3, 4, 4), rngs),
            trailing(PROCESS, 8),
            generator=rngs,
        ).x0

    assert torch.allclose(run(10, 3)[1], run(11, 1)[0], atol=1e-6)
    assert not torch.allclose(run(10, 3)[1], run(12, 1)[0], atol=1e-2)


@pytest.mark.parametrize("name", SOLVERS)
def test_second_run_equals_the_first(name):
    solver = SOLVERS[name]()
    runs = [
        solve(
            solver,
            DENOISER,
            noise(2),
            trailing(PROCESS, 8),
            generator=torch.Generator().manual_seed(5),
        ).x0
        for _ in range(2)
    ]
    assert torch.equal(*runs)


ENDS: dict[bytes, torch.Tensor] = {}


def end_of_the_flow(process, start):
    """The same for every solver that starts there."""
    key = start.numpy().tobytes()
    if key not in ENDS:
        plain = Process(process.a_table, process.b_table)
        ENDS[key] = exact_flow(MIXTURE, plain, start, 199, CLEAN)
    return ENDS[key]


@pytest.mark.parametrize("name", covering(n for n in SOLVERS if n != "fon"))
def test_runs_on_a_residual_process(name):
    """A shifted process, answered by a denoiser of the plain one: y only says where the runs start,
    the images are the mixture's.
    """
    eta = torch.linspace(0.001, 0.96, 200, dtype=torch.float64)
    shifted = Process(1 - eta, 2 * eta.sqrt(), eta)
    y, eps, x0 = noise(16, 2), noise(16, 3), MIXTURE.sample(16, torch.Generator().manual_seed(4))
    grid = GRIDS["log-snr"](shifted, 100)
    start = shifted.add_noise(x0, eps, grid.times[0], y)
    image = solve(
        SOLVERS[name](),
        DENOISER,
        start,
        grid,
        process=shifted,
        y=y,
        generator=torch.Generator().manual_seed(0),
    ).x0
    if name in (
        "ddpm",
        "ddcm",
        "resfusion",
    ):  # a random image: near one of the means for its spread
        gap = (
            ((image[:, None] - MIXTURE.means) / MIXTURE.stds)
            .square()
            .mean(dim=(2, 3, 4))
            .sqrt()
            .amin(dim=1)
        )
        assert gap.median() < 1.3
    else:
        reference = end_of_the_flow(shifted, start - shifted.c(grid.times[0]) * y)
        assert median_rmse(image, reference) < 0.02


class Fixed:
    """A network that answers with one picture whatever it sees."""

    def __init__(self, picture, process):
        self.picture, self.process = picture, process

    def __call__(self, x, t):
        return Prediction.from_x0(
            self.picture.to(x).expand_as(x), x, self.process.a(t), self.process.b(t)
        )


def every_solver(picture):
    """The named ones, and those that are about something: data, an image, an inversion."""
    known = SimpleNamespace(
        operator=SimpleNamespace(A=lambda x: x, A_adjoint=lambda y: y, A_dagger=lambda y: y),
        y=picture,
    )
    return {name: make() for name, make in SOLVERS.items()} | {
        "evodiff-paper": EVODiff("paper"),
        "pndm-fixed": PNDM("plms", "variable"),
        "resampled": Resampled(DDIM(1.0), 2, 2),
        "rddm-clipped": RDDMSampler("res", clip=1.0, ancestral=True),
        "resfusion-clipped": ResfusionSampler(clip=1.0),
        "probability-flow": ProbabilityFlow(1e-2, 1e-2),
        "red-diff": REDDiff(known),
        "red-diff-fit": REDDiff(known, sigma_x0=0.1, fit_sigma=True, parallel=2),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        if dtype == torch.float64 or (dtype == torch.bfloat16 and name in KINDS)
        else pytest.param(name, dtype, marks=pytest.mark.long)
        for name in every_solver(noise(1))
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    ],
    ids=str,
)
def test_degenerate_targets_stay_finite(name, dtype):
    """A Dirac target, the zero picture and a saturated one; one to four steps to no noise and to
    some, on every kind of process.
    """
    zero_snr = VP.linear(zero_terminal_snr=True)
    # all but straight lines, the released EVODiff's contrast, optimisation, and Runge-Kutta over
    # the whole range in few digits
    exact = set(every_solver(noise(1))) - {
        "fon",
        "evodiff-paper",
        "red-diff",
        "red-diff-fit",
        "probability-flow",
    }
    exact -= (
        set()
        if dtype == torch.float64
        else {"f-pndm", "pndm-fixed", "plms", "s-pndm", "diffusers-plms"}
    )
    pictures = (noise(1, 8).clamp(-1, 1), torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    for picture in pictures if name != "probability-flow" else pictures[:1]:
        solver = every_solver(picture.to(dtype))[name]
        for process in (PROCESS, zero_snr, VE()) if not name.startswith("red") else (PROCESS, VE()):
            for n in (1, 2, 3, 4):
                grid = GRIDS["log-snr"](process, n)
                for part in (
                    grid,
                    explicit(grid.times[:-1], end=0.5 * (grid.times[-2] + process.origin)),
                ):
                    x = (process.b(process.end) * noise(2)).to(dtype)
                    image = solve(
                        solver,
                        Fixed(picture, process),
                        x,
                        part,
                        generator=torch.Generator().manual_seed(0),
                    ).x0
                    assert image.dtype == dtype
                    assert torch.isfinite(image).all(), (process, n, part)
                    if part is grid and name in exact:
                        assert (image - picture).abs().max() <= (
                            0.01 if dtype == torch.bfloat16 else 2e-3
                        ), (process, n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_starts_are_sampled_in_single_precision(name, dtype):
    """The single precision run from the same start, rounded once."""
    seen = []

    def run(x):
        rng = torch.Generator().manual_seed(0)
        grid = trailing(PROCESS, 12)
        return solve(
            SOLVERS[name](),
            DENOISER,
            x,
            grid,
            generator=rng,
            callback=lambda step: seen.append(step.query.x.dtype),
        ).x0

    x = noise(2).to(dtype)
    image = run(x)
    assert set(seen) == {torch.float32}
    assert image.dtype == dtype
    assert torch.equal(image, run(x.float()).to(dtype))


def test_ddim_first_step_is_the_textbook_formula():
    t, s, x, eta = 800.0, 600.0, noise(2), 0.7
    abar_t, abar_s = PROCESS.alphas_cumprod[800], PROCESS.alphas_cumprod[600]
    p = DENOISER(x, t)
    sigma = eta * math.sqrt((1 - abar_s) / (1 - abar_t)) * math.sqrt(1 - abar_t / abar_s)
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected = math.sqrt(abar_s) * p.x0 + math.sqrt(1 - abar_s - sigma**2) * p.eps + sigma * fresh
    result = solve(
        DDIM(eta), DENOISER, x, explicit([t], end=s), generator=torch.Generator().manual_seed(1)
    ).x0
    assert (result - expected).abs().max() < 1e-13


def test_ancestral_sampling_has_the_mixtures_moments():
    """eta = 1 on a fine grid draws from the mixture itself."""
    rng = torch.Generator().manual_seed(0)
    mixture = small_mixture(shape=(1, 1, 2))
    count = 4000
    x = torch.randn((count, 1, 1, 2), generator=rng, dtype=torch.float64)
    images = solve(
        DDIM(1.0), mixture.denoiser(PROCESS), x, trailing(PROCESS, 250), generator=rng
    ).x0
    w = mixture.weights[:, None, None, None]
    mean = (w * mixture.means).sum(0)
    variance = (w * (mixture.stds**2 + mixture.means**2)).sum(0) - mean**2
    assert ((images.mean(0) - mean).abs() < 4 * (variance / count).sqrt() + 0.01).all()
    assert (images.var(0) / variance - 1).abs().max() < 0.1


def test_ddim_error_for_eta():
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            DDIM(eta)


def test_nfe_callback_and_early_stop():
    seen = []
    result = solve(
        PNDM("plms"),
        DENOISER,
        noise(1),
        trailing(PROCESS, 6),
        callback=lambda step: seen.append(step.index),
    )
    assert result.nfe == len(seen) == 7
    assert seen == list(range(7))
    stopped = solve(
        PNDM("plms"),
        DENOISER,
        noise(1),
        trailing(PROCESS, 6),
        callback=lambda step: step.index == 2,
    )
    assert stopped.nfe == 3
    assert torch.isfinite(stopped.x0).all()


def test_bad_starts():
    with pytest.raises(ValueError, match="NaN"):
        solve(DDIM(), DENOISER, noise(1) / 0, trailing(PROCESS, 3))
    with pytest.raises(ValueError, match="ends at t=999"):
        solve(DDIM(), DENOISER, noise(1), explicit([1200, 3]))
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        solve(DDIM(1.0), DENOISER, noise(3), trailing(PROCESS, 3), generator=generators(0, 2))


def test_a_solver_that_asks_nothing():
    class Same:
        def run(self, problem, grid, x):
            return x
            yield Query(x, 0.0)

    assert solve(Same(), DENOISER, noise(1), trailing(PROCESS, 3)).nfe == 0


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_runs_from_any_level(name):
    for n in (1, 2, 3, 4, 30):
        grid = GRIDS[name](PROCESS, n)
        for part in (grid, grid.start_at(0.3)):
            if part.times[0] <= 999:
                assert torch.isfinite(solve(PNDM(), DENOISER, noise(1).float(), part).x0).all()


@dataclass(frozen=True)
class Heun:
    """A solver from outside the package: the average of two slopes in ``kappa``, the second asked
    where the first leads.
    """

    def run(self, problem, grid, x):
        process = problem.process
        for t, s in grid.pairs():
            p = yield Query(x, t, editable=True)
            eps = p.eps
            if s > CLEAN:
                there = process.add_noise(p.x0, p.eps, s, problem.y)
                eps = (eps + (yield Query(there, s)).eps) / 2
            gain = process.a(s) * (process.kappa(s) - process.kappa(t))
            x = process.add_noise(p.x0, p.eps, s, problem.y) + gain * (eps - p.eps)
        return x


def test_a_solver_of_ones_own_runs_everywhere():
    """In the loop (to second order), as a diffusers scheduler, with a correction, on a process with
    an image.
    """
    from restoration.operators.linear import Inpainting
    from restoration.operators.measurement import Measurement
    from restoration.posterior import DDNM
    from solvers import as_scheduler

    x, reference = noise(8), None
    errors = []
    for n in (25, 50):
        grid = explicit([900 - 800 * k / n for k in range(n)], end=100)
        reference = exact_flow(MIXTURE, PROCESS, x, 900, 100) if reference is None else reference
        errors.append(median_rmse(solve(Heun(), DENOISER, x, grid).x0, reference))
    assert math.log2(errors[0] / errors[1]) > 1.8

    direct = solve(Heun(), DENOISER, x, trailing(PROCESS, 10))
    scheduler, sample = as_scheduler(Heun(), PROCESS), x
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == direct.nfe == 19
    for t in scheduler.timesteps:
        sample = scheduler.step(DENOISER(sample, float(t)).eps, t, sample).prev_sample
    assert (sample - direct.x0).abs().max() < 1e-9

    mask = torch.eye(4)
    truth = MIXTURE.sample(8, torch.Generator().manual_seed(0))
    corrected = solve(
        Heun(),
        DDNM(DENOISER, Measurement(Inpainting(mask), mask * truth)),
        x,
        trailing(PROCESS, 10),
    ).x0
    assert (mask * (corrected - truth)).abs().max() < 1e-6

    eta = torch.linspace(0.001, 0.96, 200, dtype=torch.float64)
    plain, shifted, y = (
        Process(1 - eta, 2 * eta.sqrt()),
        Process(1 - eta, 2 * eta.sqrt(), eta),
        noise(8, 2),
    )
    grid = GRIDS["log-snr"](plain, 12)
    one = solve(Heun(), MIXTURE.denoiser(plain), x, grid).x0
    two = solve(
        Heun(), MIXTURE.denoiser(plain), x + shifted.c(199) * y, grid, process=shifted, y=y
    ).x0
    assert (one - two).abs().max() < 1e-9


def test_names():
    assert solver_by_name("pndm", variant="plms") == PNDM("plms") == solver_by_name("plms")
    with pytest.raises(ValueError, match="known: auto, ddim, ddpm, pndm"):
        solver_by_name("euler")
    with pytest.raises(ValueError, match="can't be made with options"):
        solver_by_name("ddim", steps=3)
    for name in solvers.__all__:
        assert getattr(solvers, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        solvers.nothing  # noqa: B018


def test_import_leaves_diffusers_alone():
    subprocess.run(
        [sys.executable, "-c", "import sys, solvers; sys.exit('diffusers' in sys.modules)"],
        check=True,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_answers_with_no_number_is_an_error(solver, value):
    """From the third call on: an image of NaN must never look like a result."""
    process, calls = VP.linear(), []
    exact = small_mixture().denoiser(process)

    class Failing:
        process = exact.process

        def __call__(self, x, t):
            calls.append(t)
            answer = exact(x, t)
            return answer if len(calls) < 3 else Prediction(answer.x0 * value, answer.eps * value)

    with pytest.raises(ValueError, match="NaN or infinite"):
        solve(solver_by_name(solver), Failing(), noise(1), trailing(process, 6))
