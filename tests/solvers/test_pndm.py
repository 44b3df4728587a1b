"""PNDM against the authors' runs, the exact flow and its own definition."""

import math
import re

import numpy as np
import pytest
import torch
from helpers.covering import covering
from helpers.data import golden
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture
from helpers.partial_runs import partial_runs
from scipy.integrate import quad

from solvers import (
    CLEAN,
    DDIM,
    GRIDS,
    PNDM,
    VP,
    Denoiser,
    GaussianMixture,
    Grid,
    Prediction,
    StepIndexed,
    explicit,
    karras,
    log_snr,
    pndm_nodes,
    solve,
    trailing,
)
from solvers.methods.pndm import ADAMS_BASHFORTH, VARIANTS, exponential_weights, lagrange_weights


def recorded(solver, denoiser, x, grid, **kwargs):
    """The result, the times of the calls, and the states that the calls saw."""
    steps = []
    result = solve(
        solver, denoiser, x, grid, callback=lambda step: steps.append(step.query), **kwargs
    ).x0
    return result, [q.t for q in steps], [q.x for q in steps]


class PublishedRuns:
    """The golden file's cases, whatever methods and step counts it holds."""

    def __init__(self):
        self.arrays = golden("pndm")
        self.mixture = GaussianMixture(*(self.tensor(k) for k in ("weights", "means", "stds")))
        self.x = self.tensor("x_T")

    def tensor(self, key):
        return torch.from_numpy(self.arrays[key])

    def cases(self, suffix):
        """Pairs (method, N) of keys ``{method}_N{N}_{suffix}``; there must be some."""
        found = [
            m.groups() for key in self.arrays if (m := re.fullmatch(rf"(.+)_N(\d+)_{suffix}", key))
        ]
        assert found
        return [(method, int(n)) for method, n in found]

    def abar(self, schedule):
        if schedule == "linear":
            return self.arrays["alphas_cumprod"]
        return np.cumprod(1 - self.arrays[f"betas_{schedule}"])


@pytest.fixture(scope="module")
def published():
    return PublishedRuns()


def test_equals_the_authors_runs(published):
    process = StepIndexed(published.abar("linear"))
    denoiser = published.mixture.denoiser(process)
    for method, n in published.cases("x0"):
        if method.startswith("diffusers"):
            continue
        grid = pndm_nodes(process, n)
        assert grid.times == tuple(published.arrays[f"timesteps_N{n}"])
        x0, times, states = recorded(PNDM(method.lower()), denoiser, published.x, grid)
        assert np.array_equal(times, published.arrays[f"{method}_N{n}_calls"])
        assert (x0 - published.tensor(f"{method}_N{n}_x0")).abs().max() <= 1e-10, (method, n)
        if f"{method}_N{n}_traj" in published.arrays:
            trajectory = published.tensor(f"{method}_N{n}_traj")
            # each node's state is what the last call at that time of a step's start saw
            firsts = [
                states[k]
                for k, t in enumerate(times)
                if t in grid.times and (k + 1 == len(times) or times[k + 1] != t)
            ]
            assert len(firsts) == len(trajectory)
            assert (
                max((a - b).abs().max() for a, b in zip(firsts[1:], trajectory[:-1], strict=True))
                <= 1e-10
            ), (method, n)


@pytest.mark.parametrize("schedule", ["quad", "cosine"])
def test_equals_the_authors_runs_on_other_schedules(published, schedule):
    process = StepIndexed(published.abar(schedule))
    for method, n in published.cases(f"x0_{schedule}"):
        x0 = solve(
            PNDM(method.lower()),
            published.mixture.denoiser(process),
            published.x,
            pndm_nodes(process, n),
        ).x0
        assert (x0 - published.tensor(f"{method}_N{n}_x0_{schedule}")).abs().max() <= 1e-10, (
            method,
            n,
        )


def test_equals_the_authors_runs_with_a_network_one_level_off(published):
    """Their training pairs ``t`` with ``abar[t]``, their sampler with ``abar[t+1]``."""
    abar = published.abar("linear")
    process = StepIndexed(abar)

    def network(x, t):
        level = abar[int(t[0])]
        return published.mixture.posterior(x, level**0.5, (1 - level) ** 0.5).eps

    for method, n in published.cases("x0_trainindex"):
        x0 = solve(
            PNDM(method.lower()), Denoiser(network, process), published.x, pndm_nodes(process, n)
        ).x0
        assert (x0 - published.tensor(f"{method}_N{n}_x0_trainindex")).abs().max() <= 1e-10, (
            method,
            n,
        )


def test_equals_the_authors_single_precision_runs(published):
    process = StepIndexed(
        np.cumprod(1 - published.arrays["betas"].astype(np.float32), dtype=np.float32)
    )
    for method, n in published.cases("x0_float32"):
        x0 = solve(
            PNDM(method.lower()),
            published.mixture.denoiser(process),
            published.x.float(),
            pndm_nodes(process, n),
        ).x0
        assert x0.dtype == torch.float32
        assert (x0 - published.tensor(f"{method}_N{n}_x0_float32")).abs().max() <= 2e-5, (method, n)


def test_equals_diffusers(published):
    """With an offset of 1 its network is asked one step later than the authors' for the same
    level.
    """
    process = VP(published.abar("linear"))
    for method, n in published.cases("x0"):
        skip = 1000 // n
        if method == "diffusers_plms":
            solver = PNDM("plms")
        elif (
            method == "diffusers_prk" and skip % 2 == 0 and skip * n == 1000
        ):  # odd strides: its half steps miss their levels
            solver = PNDM("f-pndm")
        else:
            continue
        grid = explicit([k * skip + 1 for k in reversed(range(n))], end=0)
        x0, times, _ = recorded(solver, published.mixture.denoiser(process), published.x, grid)
        assert (x0 - published.tensor(f"{method}_N{n}_x0")).abs().max() <= 1e-10, (method, n)
        assert np.array_equal(times, published.arrays[f"{method}_N{n}_calls"])
        # the same runs through step-indexed levels, answered by a denoiser of the plain process
        shifted = Grid((*(t - 1 for t in grid.times),))
        x0 = solve(
            solver,
            published.mixture.denoiser(process),
            published.x,
            shifted,
            process=StepIndexed(process.alphas_cumprod),
        ).x0
        assert (x0 - published.tensor(f"{method}_N{n}_x0")).abs().max() <= 1e-10, (method, n)


def test_approaches_the_published_exact_solutions(published):
    """Variable weights between the authors' own start and end levels: the error falls with N and
    ends below 1.5e-4.
    """
    process = StepIndexed(published.abar("linear"))
    errors = {}
    for n in sorted(published.arrays["steps"]):
        x0 = solve(
            PNDM(), published.mixture.denoiser(process), published.x, pndm_nodes(process, int(n))
        ).x0
        errors[int(n)] = median_rmse(x0, published.tensor(f"exact_N{n}"))
    values = list(errors.values())
    assert values == sorted(values, reverse=True)
    assert values[-1] <= 1.5e-4
    assert max(errors) >= 100


def test_approaches_the_published_exact_images(published):
    """To the clean level, which their sampler leaves out: the same levels as plain times, and one
    more step.
    """
    process = VP(published.abar("linear"))
    errors = {}
    for n in sorted(int(n) for n in published.arrays["steps"]):
        grid = explicit([t + 1 for t in published.arrays[f"timesteps_N{n}"]])
        x0 = solve(PNDM(), published.mixture.denoiser(process), published.x, grid).x0
        errors[n] = median_rmse(x0, published.tensor(f"exact0_N{n}"))
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[max(errors)] <= 3e-4


# -- accuracy --------------------------------------------------------------------------------------


def order(solver, process, mixture, x, grids):
    reference = exact_flow(mixture, process, x, grids[0].times[0], grids[0].times[-1])
    errors = [
        median_rmse(solve(solver, mixture.denoiser(process), x, grid).x0, reference)
        for grid in grids
    ]
    return np.log2(errors[-2] / errors[-1]), errors


@pytest.mark.parametrize(
    ("solver", "least"),
    [
        (DDIM(), 0.9),
        (PNDM("ddim"), 0.9),
        (PNDM("s-pndm"), 1.9),
        (PNDM("plms"), 1.9),
        (PNDM("f-pndm"), 1.9),
        (PNDM(order=2), 1.9),
    ],
    ids=str,
)
def test_order_on_equal_steps(solver, least):
    grids = [explicit(np.linspace(900, 100, n + 1)[:-1], end=100) for n in (50, 100, 200)]
    observed, errors = order(solver, VP.linear(), small_mixture(), noise(16), grids)
    assert observed >= least, errors


@pytest.mark.parametrize(("most", "least"), [(2, 1.9), (3, 2.7), (4, 3.5)])
def test_order_of_variable_weights_on_unequal_steps(most, least):
    """Equal steps in kappa^(1/7): far from equal in time, and reaching down to kappa 0.02."""
    process = VP.linear()
    roots = [process.kappa(950) ** (1 / 7), 0.02 ** (1 / 7)]
    times = [
        [process.time_at(-14 * math.log(r)) for r in np.linspace(*roots, n + 1)]
        for n in (40, 80, 160)
    ]
    observed, errors = order(
        PNDM(order=most), process, small_mixture(), noise(16), [Grid((*t,)) for t in times]
    )
    assert observed >= least, errors


def test_variable_weights_reach_1e_4_at_100_calls():
    """From one level of the table to the clean image, 64 samples; the equal-step weights stay above
    5e-4 there.
    """
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(64)
    grid = GRIDS["leading"](process, 100)
    reference = exact_flow(mixture, process, x, grid.times[0], CLEAN)
    result = solve(PNDM(), mixture.denoiser(process), x, grid)
    assert result.nfe == 100
    assert median_rmse(result.x0, reference) <= 1.1e-4
    assert (
        median_rmse(solve(PNDM("ipndm", "fixed"), mixture.denoiser(process), x, grid).x0, reference)
        > 5e-4
    )


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "pndm"])
@pytest.mark.parametrize("n", covering([20, 50], [20]))
def test_partial_runs_are_as_accurate_as_full_ones(name, n):
    """At any strength, on any grid, with the calls of a partial run: no warm-up."""
    errors, calls = partial_runs(PNDM(), name, n, (0.1, 0.3, 0.5, 0.8))
    assert calls == [n, *(n - round(n * (1 - s)) for s in (0.1, 0.3, 0.5, 0.8))]
    assert max(errors[1:]) <= 1.2 * errors[0], errors


@pytest.mark.parametrize(
    ("variant", "strengths"), [("plms", (0.1, 0.3, 0.5, 0.8)), ("f-pndm", (0.3, 0.5, 0.8))]
)
def test_partial_runs_of_published_variants(variant, strengths):
    """The Runge-Kutta warm-up is three steps long: of the five that are left at 0.1 two go on from
    it.
    """
    errors, _ = partial_runs(PNDM(variant), "leading", 50, strengths)
    assert max(errors[1:]) <= 1.2 * errors[0], errors


def test_a_short_first_step_is_corrected_without_a_call():
    """Two short steps: the state after the first is pseudo Heun's once the second call has been
    made.
    """
    process, mixture, x = VP.linear(), small_mixture(), noise(2)
    times = (150.0, 140.0, 130.0)
    result, _, states = recorded(PNDM(), mixture.denoiser(process), x, Grid(times))
    k = [process.kappa(t) for t in times]
    e = [mixture.denoiser(process)(s, t).eps for s, t in zip(states, times, strict=False)]
    corrected = states[1] + process.a(140) * (k[1] - k[0]) * (e[1] - e[0]) / 2
    weights = lagrange_weights([k[1], k[0]], k[2])
    expected = process.transfer(corrected, weights[0] * e[1] + weights[1] * e[0], 140.0, 130.0)
    assert (result - expected).abs().max() < 1e-12
    # out of strong noise the steps are long, and left alone
    long = Grid((900.0, 800.0, 700.0))
    result, _, states = recorded(PNDM(), mixture.denoiser(process), x, long)
    k = [process.kappa(t) for t in long.times]
    e = [mixture.denoiser(process)(s, t).eps for s, t in zip(states, long.times, strict=False)]
    weights = lagrange_weights([k[1], k[0]], k[2])
    plain = process.transfer(states[1], weights[0] * e[1] + weights[1] * e[0], 800.0, 700.0)
    assert (result - plain).abs().max() < 1e-12


# -- definition ------------------------------------------------------------------------------------


def test_lagrange_weights():
    rng = np.random.default_rng(0)
    for count, fixed in ADAMS_BASHFORTH.items():
        assert lagrange_weights([float(-k) for k in range(count)], 1.0) == pytest.approx(
            fixed, abs=1e-14
        )
        nodes = np.sort(rng.uniform(0.5, 100, count))
        target = 0.3
        weights = np.array(lagrange_weights(list(nodes), target))
        for power in range(count):  # exact for polynomials that the nodes can carry
            mean = (target ** (power + 1) - nodes[0] ** (power + 1)) / (
                (power + 1) * (target - nodes[0])
            )
            assert weights @ nodes**power == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("n", covering([1, 2, 3, 4, 7, 30, 79, 999, 1000], [1, 2, 3, 4, 7, 30, 79]))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_number_of_steps(variant, n):
    """One call per step and the warm-up's extra ones; the result is an image of the mixture, not
    just finite.
    """
    process, mixture = VP.linear(), small_mixture(shape=(1, 2, 2))
    result = solve(
        PNDM(variant),
        mixture.denoiser(process),
        noise(2, shape=(1, 2, 2)),
        GRIDS["trailing"](process, n),
    )
    extra = {
        "s-pndm": min(1, n - 1),
        "plms": min(1, n - 1),
        "f-pndm": 3 * min(3, n - 1),
        "fon": 3 * min(3, n - 1),
    }
    assert result.nfe == n + extra.get(variant, 0)
    assert torch.isfinite(result.x0).all()
    if n >= 30 and variant != "fon":
        assert result.x0.abs().max() < 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_zero_terminal_snr(variant, n):
    process, mixture = VP.linear(zero_terminal_snr=True), small_mixture()
    x = noise(8)
    result = solve(PNDM(variant), mixture.denoiser(process), x, GRIDS["trailing"](process, n))
    assert torch.isfinite(result.x0).all()
    if n == 1:  # the mean image is all that pure noise can say
        assert torch.allclose(result.x0, mixture.posterior(x, 0.0, 1.0).x0, atol=1e-14)
    if n == 50 and variant in ("ipndm", "plms"):
        assert (
            median_rmse(
                result.x0,
                solve(PNDM(), mixture.denoiser(process), x, GRIDS["trailing"](process, 400)).x0,
            )
            < 2e-2
        )


def test_one_step_returns_the_image_estimate_exactly():
    process, mixture, x = VP.linear(), small_mixture(), noise(2).float()
    for variant in set(VARIANTS) - {"fon"}:
        x0 = solve(PNDM(variant), mixture.denoiser(process), x, GRIDS["trailing"](process, 1)).x0
        assert torch.equal(x0, mixture.denoiser(process)(x, 999.0).x0)


def test_ddim_variant_is_ddim():
    process, mixture, x = VP.linear(), small_mixture(), noise(2)
    grid = GRIDS["karras"](process, 12)
    runs = [
        solve(solver, mixture.denoiser(process), x, grid).x0
        for solver in (DDIM(), PNDM("ddim"), PNDM(order=1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_changed_image_estimate_changes_the_run():
    """A correction that replaces the image and keeps the noise is followed, not only first-order
    solvers see it.
    """
    process, x = VP.linear(), noise(2)
    target = torch.full_like(x, 0.25)

    class Corrected:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return Prediction(target, small_mixture().denoiser(process)(x, t).eps)

    for solver in (PNDM("ddim"), PNDM(), PNDM("plms")):
        grid = GRIDS["leading"](process, 20)
        corrected, plain = (
            solve(solver, d, x, grid).x0 for d in (Corrected(), small_mixture().denoiser(process))
        )
        assert (corrected - target).abs().mean() < 0.1 * (plain - target).abs().mean()


def test_single_call_forms():
    assert PNDM().single_call() == PNDM()
    assert PNDM("plms").single_call() == PNDM("ipndm", "fixed")
    assert PNDM("s-pndm").single_call() == PNDM("ipndm", "fixed", order=2)
    with pytest.raises(ValueError, match="warm-up"):
        PNDM("fon").single_call()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"variant": "p-pndm"}, "ddim, s-pndm, f-pndm, plms, ipndm, fon"),
        ({"weights": "equal"}, "fixed, variable"),
        ({"order": 5}, "1, 2, 3 or 4"),
        ({"order": 0}, "1, 2, 3 or 4"),
        ({"variant": "fon", "weights": "variable"}, "fixed"),
    ],
)
def test_errors_name_what_is_accepted(kwargs, said):
    with pytest.raises(ValueError, match=said):
        PNDM(**kwargs)


# -- exponential weights, the choice by grid, steep warm-ups -------------------------------------


def test_exponential_weights_are_exact_for_polynomials_in_the_log_of_kappa():
    for nodes, target in (((3.0,), 2.0), ((3.0, 5.0), 0.4), ((0.5, 0.9, 1.4, 3.0), 0.1)):
        weights = exponential_weights(nodes, target)
        assert sum(weights) == pytest.approx(1, abs=1e-9)
        for power in range(len(nodes)):
            got = sum(w * math.log(k) ** power for w, k in zip(weights, nodes, strict=True))
            want, _ = quad(lambda k, power=power: math.log(k) ** power, nodes[0], target)
            assert got * (target - nodes[0]) == pytest.approx(want, rel=1e-7, abs=1e-9)


def test_exponential_weights_have_their_order():
    """Between two noisy levels, on steps that are even in log-SNR."""
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(32)
    exact = mixture.flow(process, x, process.end, process.first)
    for order, least in ((2, 1.7), (3, 2.5), (4, 3.2)):
        errors = [
            median_rmse(
                solve(
                    PNDM("ipndm", "exponential", order),
                    mixture.denoiser(process),
                    x,
                    Grid(log_snr(process, n + 1).times[:-1]),
                ).x0,
                exact,
            )
            for n in (40, 80)
        ]
        assert math.log2(errors[0] / errors[1]) > least, (order, errors)


@pytest.mark.parametrize("variant", ["s-pndm", "plms", "f-pndm", "fon"])
@pytest.mark.parametrize("lay", [log_snr, karras, trailing])
def test_warm_ups_do_not_explode_on_steep_grids(variant, lay):
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(32)
    exact = mixture.flow(process, x, process.end, CLEAN)
    for n in range(2, 9):
        error = median_rmse(
            solve(PNDM(variant), mixture.denoiser(process), x, lay(process, n)).x0, exact
        )
        assert error < 1, (n, error)
