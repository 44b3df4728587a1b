"""Level matching with the degraded image: any network of one process under the solvers of another,
against closed forms.

The images are a Gaussian mixture, the degraded image is ``y = x0 + s n``, so ``p(x0 | y)`` is a
mixture too and its exact denoiser is the conditional network that level matching asks for.
"""

import math

import pytest
import torch
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

from solvers import (
    CLEAN,
    DDIM,
    PNDM,
    RDDM,
    VE,
    VP,
    ContinuousVP,
    Denoiser,
    EVODiff,
    GaussianMixture,
    Grid,
    LevelMatched,
    RDDMSampler,
    Resfusion,
    ResfusionSampler,
    explicit,
    log_snr,
    solve,
    trailing,
)

COUNT, SPREAD = 96, 0.8
PRIOR = small_mixture(components=5)
TRUTH = PRIOR.sample(1, torch.Generator().manual_seed(3))
DEGRADED = TRUTH + SPREAD * noise(1, 4)
Y = DEGRADED.expand(COUNT, -1, -1, -1)
EPS = noise(COUNT, 5)

RESIDUAL = {
    "resfusion-5-levels": Resfusion.scheduled(),
    "resfusion-11-levels": Resfusion.scheduled("linear", 30),
    "resfusion-little-noise": Resfusion.scheduled(noise_scale=0.05),
    "resfusion-100-levels": Resfusion.scheduled("linear", 273),
    "rddm": RDDM.scheduled(),
    "rddm-little-noise": RDDM.scheduled(200, 0.01),
    "rddm-later": RDDM.scheduled(100, residual=("decreased", 2.0), release="later"),
}
PLAIN = {
    "vp": VP.linear(zero_terminal_snr=True),
    "edm": VE(1e-4, 1e5),
    "continuous-vp": ContinuousVP(0.1, 40.0),
}


def given(y: torch.Tensor, spread: float) -> GaussianMixture:
    """``p(x0 | y)`` for one degraded image ``y (1, C, H, W)``."""
    variance = PRIOR.stds**2
    total = variance + spread**2
    log_weights = PRIOR.weights.log() - 0.5 * ((y - PRIOR.means) ** 2 / total + total.log()).sum(
        dim=(1, 2, 3)
    )
    means = (PRIOR.means * spread**2 + y * variance) / total
    return GaussianMixture(
        log_weights.softmax(0).clamp_min(1e-300), means, (variance * spread**2 / total).sqrt()
    )


POSTERIOR = given(DEGRADED, SPREAD)


def native(process, kind):
    """A network trained to the end on a residual process: it sees the state with its share of
    ``y``, and the integer time.
    """

    def network(x, t):
        t = float(t[0])
        y = Y[: len(x)]
        p = POSTERIOR.posterior(process.unshifted(x, t, y), process.a(t), process.b(t))
        return {
            "sample": lambda: p.x0,
            "residual": lambda: y - p.x0,
            "resnoise": lambda: p.eps + process.resnoise_weight(t) * (y - p.x0),
            "residual_noise": lambda: torch.cat([y - p.x0, p.eps], dim=1),
        }[kind]()

    return Denoiser(network, process, kind).with_degraded(DEGRADED)


@pytest.fixture(scope="module")
def exact():
    """Where the ODE takes ``y``'s runs: from pure noise ``eps`` (at kappa = 1e5 the image is 1e-5
    of the state) to the clean image.
    """
    kappa = 1e5
    mean = (POSTERIOR.weights[:, None, None, None] * POSTERIOR.means).sum(0)
    return exact_flow(POSTERIOR, VE(1e-3, kappa), mean + kappa * EPS, kappa, CLEAN)


@pytest.mark.parametrize("plain", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("process", RESIDUAL.values(), ids=RESIDUAL)
def test_a_plain_network_answers_for_a_residual_process(process, plain):
    """The exact estimates at every level the two share; at levels beyond the network's, an answer
    that explains the state.
    """
    matched = LevelMatched(POSTERIOR.denoiser(plain), process, Y)
    for t in (process.first, process.end / 2, process.end - 0.5, process.end):
        x = noise(COUNT, 7)
        told = matched(x, t)
        assert (process.add_noise(told.x0, told.eps, t, Y) - x).abs().max() < 1e-10
        true = POSTERIOR.posterior(process.unshifted(x, t, Y), process.a(t), process.b(t))
        if plain.log_snr(plain.end) <= process.log_snr(t) and process.a(t) >= 0:
            assert (told.x0 - true.x0).abs().max() < 1e-8
            assert (told.eps - true.eps).abs().max() < 1e-8
        # answered at the network's noisiest level; at most 2 % of the image is left in the state
        # that was asked about
        else:
            assert process.a(t) < 0.02
            assert (told.x0 - true.x0).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["sample", "residual", "resnoise"])
@pytest.mark.parametrize("asked", PLAIN.values(), ids=PLAIN)
def test_a_resfusion_network_answers_for_a_plain_process(asked, kind):
    process = RESIDUAL["resfusion-100-levels"]
    matched = LevelMatched(native(process, kind), asked, Y)
    for t in (0.5 * asked.end, 0.2 * asked.end, 0.05 * asked.end):
        if not process.log_snr(process.end) <= asked.log_snr(t) <= process.log_snr(0):
            continue
        x = asked.a(t) * TRUTH + asked.b(t) * EPS
        true, told = POSTERIOR.posterior(x, asked.a(t), asked.b(t)), matched(x, t)
        # the network is told the time in single precision
        assert (told.x0 - true.x0).abs().max() < 1e-4
        assert (told.eps - true.eps).abs().max() < 1e-4 / min(1, asked.b(t))


@pytest.mark.parametrize("solver", [DDIM(), PNDM(), PNDM("ipndm", "fixed"), EVODiff()], ids=str)
@pytest.mark.parametrize("name", ["resfusion-100-levels", "rddm", "rddm-little-noise"])
def test_the_same_levels_give_the_same_image_on_either_process(name, solver):
    """ODE solvers see only ``b/a``: a residual run is the VP run over the same levels."""
    process, plain = RESIDUAL[name], VP.linear()
    times = trailing(process, 8).times[1:-1]  # all but the start, which has no signal
    levels = [process.log_snr(t) for t in times]
    residual = Grid((*times, CLEAN))
    matching = Grid((*(plain.time_at(level) for level in levels), CLEAN))
    t, s = times[0], matching.times[0]
    z = process.a(t) * TRUTH + process.b(t) * EPS
    denoiser = POSTERIOR.denoiser(plain)
    one = solve(solver, denoiser, z + process.c(t) * Y, residual, process=process, y=Y).x0
    two = solve(solver, denoiser, z * plain.a(s) / process.a(t), matching).x0
    assert (one - two).abs().max() < 1e-8


@pytest.mark.parametrize("solver", [PNDM(), PNDM("plms"), EVODiff()], ids=str)
@pytest.mark.parametrize("name", ["resfusion-100-levels", "rddm", "rddm-little-noise"])
def test_many_steps_reach_the_exact_solution_from_the_degraded_image(exact, name, solver):
    """The start holds y and noise alone; what comes out is a draw of ``p(x0 | y)``: its ODE
    solution, its mean and its spread.
    """
    process = RESIDUAL[name]
    errors = []
    for steps in (10, 50):
        result = solve(
            solver,
            POSTERIOR.denoiser(VP.linear()),
            process.start(Y, EPS),
            trailing(process, steps),
            process=process,
            y=Y,
        )
        errors.append(median_rmse(result.x0, exact))
    assert errors[1] < errors[0] / 3, errors
    assert errors[1] < 0.01, errors
    assert (result.x0.mean(0) - exact.mean(0)).abs().max() < 0.01
    assert (result.x0.std(0) / exact.std(0)).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "name", ["resfusion-5-levels", "resfusion-11-levels", "rddm", "rddm-little-noise"]
)
def test_five_steps_from_the_degraded_image(exact, name):
    """Every solver beats y by far; the two-step methods come closer to the exact solution than
    first-order DDIM on the same levels.
    """
    process = RESIDUAL[name]
    start, grid = process.start(Y, EPS), trailing(process, 5)
    denoiser = POSTERIOR.denoiser(VP.linear())
    spread = median_rmse(exact, exact.mean(0))
    errors = {}
    for solver in (DDIM(), PNDM(), PNDM("plms"), EVODiff(), ResfusionSampler(), RDDMSampler()):
        result = solve(
            solver,
            denoiser,
            start,
            grid,
            process=process,
            y=Y,
            generator=torch.Generator().manual_seed(0),
        )
        assert result.nfe == 5 + (solver == PNDM("plms"))
        assert median_rmse(result.x0, TRUTH) < 0.45 * median_rmse(Y, TRUTH)
        errors[str(solver)] = median_rmse(result.x0, exact)
    first_order = errors[str(DDIM())]
    assert first_order < 0.6 * spread
    assert errors[str(RDDMSampler())] == pytest.approx(first_order, rel=1e-9)
    for solver in (PNDM(), PNDM("plms"), EVODiff()):
        assert errors[str(solver)] < first_order, errors


@pytest.mark.parametrize("solver", [PNDM(), EVODiff(), DDIM()], ids=str)
def test_a_resfusion_network_under_a_vp_solver(exact, solver):
    """Vice versa: a network of 100 residual levels restores along VP's levels, from noise added to
    nothing.
    """
    process, plain = RESIDUAL["resfusion-100-levels"], VP.linear()
    denoiser = native(process, "resnoise")
    grid = explicit(
        [plain.time_at(level) for level in torch.linspace(-4.5, process.log_snr(0), 40).tolist()]
    )
    t = grid.times[0]
    x = plain.add_noise(TRUTH, EPS, t)
    reference = exact_flow(POSTERIOR, plain, x, t, CLEAN)
    image = solve(solver, denoiser, x, grid, process=plain, y=Y).x0
    assert median_rmse(image, reference) < (0.02 if solver == DDIM() else 0.004)


@pytest.mark.parametrize("lift", [False, True])
def test_a_conditional_vp_network_restores_in_five_residual_steps(lift):
    """A network of condition y (plain, or of what y lacks) through the denoiser equals the closed
    form under EVODiff and Resfusion.
    """
    plain, process = VP.linear(zero_terminal_snr=True), Resfusion.scheduled()

    def network(stacked, t):
        shown, y = stacked.chunk(2, dim=1)
        a, b = plain.a(float(t[0])), plain.b(float(t[0]))
        # of a residual it is shown a z
        state = shown if not lift else a * y + (shown / a if a > 0 else 0)
        p = POSTERIOR.posterior(state, a, b)
        return a * p.eps - b * (p.x0 - y if lift else p.x0)

    denoiser = Denoiser(
        network, plain, "v_prediction", condition_channels=3, residual=lift
    ).conditioned(DEGRADED)
    for solver in (EVODiff(), ResfusionSampler()):
        runs = [
            solve(
                solver,
                d,
                process.start(Y, EPS),
                trailing(process, 5),
                process=process,
                y=Y,
                generator=torch.Generator().manual_seed(1),
            ).x0
            for d in (denoiser, POSTERIOR.denoiser(plain))
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-3  # times are told in single precision


@pytest.mark.parametrize("kind", ["sample", "residual", "resnoise"])
def test_native_networks_need_no_matching(kind):
    """Under its own process a native network is asked at its own times, and gives what the closed
    form gives.
    """
    process = Resfusion.scheduled()
    seen = []
    for solver in (ResfusionSampler(), PNDM(), EVODiff(), DDIM()):
        runs = [
            solve(
                solver,
                d,
                process.start(Y, EPS),
                trailing(process, 5),
                process=process,
                y=Y,
                generator=torch.Generator().manual_seed(1),
                callback=lambda step: seen.append(step.query.t),
            ).x0
            for d in (native(process, kind), POSTERIOR.denoiser(PLAIN["vp"]))
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-6
    assert set(seen) == {0, 1, 2, 3, 4}


def test_the_degraded_image_must_be_given():
    process = Resfusion.scheduled()
    with pytest.raises(ValueError, match="pass it as y"):
        LevelMatched(POSTERIOR.denoiser(VP.linear()), process)(EPS, 2.0)
    with pytest.raises(ValueError, match="the denoiser's own process"):
        LevelMatched(native(process, "residual"), VP.linear())(EPS, 300.0)


def test_grids_by_level_reach_a_process_without_signal():
    """Log-SNR grids of processes whose start has none: strictly descending, from the start to the
    clean image.
    """
    for process in RESIDUAL.values():
        grid = log_snr(process, 5)
        assert grid.times[0] == process.end
        assert math.isfinite(process.log_snr(grid.times[-2]))


@pytest.mark.parametrize(
    "solver",
    [
        DDIM(),
        PNDM(),
        PNDM("plms"),
        EVODiff(),
        EVODiff("paper"),
        ResfusionSampler(clip=3.0),
        RDDMSampler(),
    ],
    ids=str,
)
def test_levels_without_noise_may_be_visited(solver):
    """The later RDDM releases' first level holds a little residual and no noise at all; runs may
    also end there.
    """
    process = RESIDUAL["rddm-later"]
    assert (process.b(0.0), process.first) == (0, 1)
    for grid in (Grid((99, 60, 30, 10, 0, CLEAN)), Grid((99, 60, 30, 10, 0))):
        image = solve(
            solver,
            POSTERIOR.denoiser(VP.linear()),
            process.start(Y, EPS),
            grid,
            process=process,
            y=Y,
        ).x0
        assert torch.isfinite(image).all()
        assert median_rmse(image, TRUTH) < 0.45 * median_rmse(Y, TRUTH)
