"""EABM against quadrature, closed forms and the exact flow; what `auto` picks."""

import math

import pytest
import torch
from helpers.covering import covering
from helpers.mixtures import median_rmse, noise, small_mixture
from helpers.partial_runs import partial_runs
from scipy.integrate import quad

from solvers import (
    CLEAN,
    EABM,
    GRIDS,
    PNDM,
    VE,
    VP,
    Auto,
    GaussianMixture,
    Grid,
    Prediction,
    karras,
    leading,
    log_snr,
    solve,
    solver_by_name,
    trailing,
)
from solvers.methods.eabm import flow_weights, image_std, mean_square

PEERS = ("ddim", "evodiff", "ipndm", "eab", "unipc", "deis", "dpm-solver++-2m", "dpm-solver++-3m")


def test_weights_integrate_polynomials_in_the_seventh_root():
    """Of kappa, or of tau where images have a width; each sample its own."""
    std = torch.tensor([0.0, 0.05, 1.3], dtype=torch.float64).view(3, 1, 1, 1)
    for nodes in ([3.0], [3.0, 9.0], [0.02, 0.1, 0.3, 2.0], [0.5, 1.1, 4.0, 20.0, 80.0]):
        for start, end in ((nodes[0], nodes[0] / 3), (2.5 * nodes[0], nodes[0])):
            weights = flow_weights(nodes, start, end, std)
            for k, s in enumerate(std.flatten().tolist()):
                for power in range(len(nodes)):

                    def bent(kappa, s=s, power=power):
                        tau = math.hypot(kappa, s)
                        return kappa / tau * tau ** (power / 7)

                    got = sum(w[k].item() * bent(n) for w, n in zip(weights, nodes, strict=True))
                    want, _ = quad(bent, start, end)
                    assert got == pytest.approx(want, rel=1e-8)


def test_weights_follow_a_gaussian_exactly():
    """Along its flow u is ``tau z``: one node's estimate, ``kappa/tau z``, tells of any step."""
    for s, start, end in ((0.3, 2.0, 0.1), (0.02, 5.0, 0.01), (1.0, 0.5, 0.4)):
        std = torch.full((1, 1, 1, 1), s, dtype=torch.float64)
        (weight,) = flow_weights([start], start, end, std)
        moved = math.hypot(end, s) - math.hypot(start, s)
        assert weight.item() * start / math.hypot(start, s) == pytest.approx(moved, rel=1e-12)
        share = torch.full_like(std, start**2 / (start**2 + s**2))
        assert image_std(start, share).item() == pytest.approx(s, rel=1e-9)


def test_an_estimate_tells_its_own_slope():
    """On one Gaussian the noise estimate's slope is ``kappa/(s^2 + kappa^2)``."""
    process, s, x = VE(), 0.3, 2 * noise(1, shape=(3, 128, 128))
    zero = torch.zeros((1, 3, 128, 128), dtype=torch.float64)
    for t in (0.05, 0.3, 2.0):
        clean, eps = s * noise(1, 5, (3, 128, 128)), noise(1, 6, (3, 128, 128))
        prior = GaussianMixture(torch.ones(1, dtype=torch.float64), zero, zero + s)
        kappa = process.kappa(t)
        e = prior.denoiser(process)(process.add_noise(clean, eps, t), t).eps
        want = kappa / (s**2 + kappa**2)
        assert (mean_square(e) / kappa).item() == pytest.approx(want, rel=0.02)
        step = 1e-3 * torch.ones_like(x)
        moved = prior.denoiser(process)(process.add_noise(clean, eps, t) + step, t).eps
        assert ((moved - e) / step).mean().item() == pytest.approx(want * kappa / t, rel=1e-6)


def test_a_point_is_reached_in_any_number_of_steps():
    """Its noise estimates are constant along the flow, so every rule is exact."""
    point = torch.full((1, 3, 4, 4), 0.25, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1, dtype=torch.float64), point, 0 * point + 1e-6)
    for process in (VP.linear(), VE()):
        for n in (1, 2, 3, 7):
            x = process.b(process.end) * noise(2)
            end = solve(EABM(), prior.denoiser(process), x, log_snr(process, n)).x0
            assert (end - point).abs().max() < 1e-5


@pytest.mark.parametrize(("order", "least"), [(1, 1.8), (2, 2.7), (3, 3.6), (4, 3.6)])
def test_order(order, least):
    """One more than the prediction's, between two noisy levels, on steps even in log-SNR; the
    fourth's first steps, of lower orders, are seen.
    """
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(32)
    exact = mixture.flow(process, x, process.end, process.first)

    def error(n):
        grid = Grid(log_snr(process, n + 1).times[:-1])
        return median_rmse(solve(EABM(order), mixture.denoiser(process), x, grid).x0, exact)

    assert math.log2(error(30) / error(120)) / 2 > least


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "pndm"])
def test_partial_runs_are_as_accurate_as_full_ones(name):
    """Those of two calls, which have no past to predict from, to a factor of four."""
    strengths = (0.1, 0.3, 0.5, 0.8)
    errors, calls = partial_runs(EABM(), name, 20, strengths)
    assert calls == [20, 2, 6, 10, 16]
    assert errors[1] <= 4 * errors[0], errors
    assert max(errors[2:]) <= 1.35 * errors[0], errors


def test_samples_do_not_touch_each_other():
    process, mixture, x = VP.linear(), small_mixture(), noise(3)
    d, grid = mixture.denoiser(process), log_snr(process, 6)
    alone = [solve(EABM(), d, x[k : k + 1], grid).x0 for k in range(3)]
    assert (solve(EABM(), d, x, grid).x0 - torch.cat(alone)).abs().max() < 1e-12


def test_a_network_that_sees_no_noise_ends_in_numbers():
    """Its estimate's mean square is 0, of which no image's width is told."""
    process, x = VP.linear(), noise(1)

    class Blind:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return Prediction(x / process.a(t), torch.zeros_like(x))

    for n in (1, 3, 10):
        end = solve(EABM(), Blind(), x, trailing(process, n)).x0
        assert end == pytest.approx(x / process.a(process.end), rel=1e-6)


@pytest.mark.parametrize("order", [0, 5, 2.5])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=f"order must be 1, 2, 3 or 4; got {order}"):
        EABM(order)


# -- auto ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP.linear(), VP.cosine(), VE()], ids=["ddpm", "cosine", "edm"])
def test_auto_picks_by_the_grid(process):
    even = [log_snr, karras] if process.levels is None else [log_snr, karras, trailing, leading]
    for n in (3, 5, 13, 14, 17, 18, 30):
        for lay in even:
            between = lay is karras and 14 <= n <= 17
            want = PNDM("ipndm", "exponential", 3) if between else EABM()
            assert Auto().choose(process, lay(process, n), 768) == want, (lay, n)
    for lay in even:
        whole = lay(process, 16)
        assert Auto().choose(process, whole.start_at(whole.times[1] * (1 - 1e-6)), 768) == (
            Auto().choose(process, whole, 768)
        )
    for n in (1, 2):
        x, d = process.b(process.end) * noise(1), small_mixture().denoiser(process)
        assert torch.isfinite(solve(Auto(), d, x, log_snr(process, n)).x0).all()


@pytest.mark.parametrize("side", [4, 16])
def test_five_calls_on_edms_own_levels(side):
    """There `eab` of order 3, which is azula's zEAB3, is better on small images and worse on larger
    ones, and `auto` takes the better.
    """
    process = VE()
    prior = small_mixture(15, 5, (3, side, side))
    x = process.b(process.end) * noise(32, shape=(3, side, side))
    exact = prior.flow(process, x, process.end, CLEAN)

    def error(solver):
        run = solve(solver, prior.denoiser(process), x, karras(process, 5))
        return median_rmse(run.x0, exact)

    each = error(PNDM("ipndm", "exponential", 3)), error(EABM())
    assert (each[0] < each[1]) == (side == 4)
    assert error(Auto()) == min(each)


@pytest.mark.parametrize("lay", [log_snr, karras, trailing])
@pytest.mark.parametrize("n", covering((6, 8, 10, 15, 20, 30, 50), (10, 30)))
def test_auto_is_as_accurate_as_any_solver_here(lay, n):
    """Of ours and diffusers', on a mixture that the choice was not made on."""
    process, mixture, x = VP.linear(), small_mixture(7, 4), noise(32)
    exact = mixture.flow(process, x, process.end, CLEAN)

    def error(solver):
        return median_rmse(solve(solver, mixture.denoiser(process), x, lay(process, n)).x0, exact)

    others = {name: error(solver_by_name(name)) for name in PEERS}
    assert error(Auto()) <= 1.25 * min(others.values()), others
