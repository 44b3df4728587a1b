"""Posterior corrections against the closed-form posterior of a Gaussian."""

import itertools
import math

import pytest
import torch
from helpers.covering import covering, crossed

from restoration.metrics.intervals import conformal_factor
from restoration.operators.linear import Denoising, Inpainting, LinearFunction, conjugate_gradient
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean, Blur, gaussian_kernel
from restoration.posterior import (
    CORRECTIONS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    DDNMPlus,
    DiffPIR,
    PiGDM,
    RePaint,
    correction_by_name,
)
from restoration.posterior.mmps import gmres
from restoration.wrappers.tiling import TiledNetwork
from solvers.denoiser import Denoiser
from solvers.grid import explicit, leading, log_snr, trailing
from solvers.loop import solve
from solvers.methods import solver_by_name
from solvers.methods.ddim import DDIM
from solvers.methods.pndm import PNDM
from solvers.methods.resampled import Resampled, noise_up
from solvers.prediction import Prediction
from solvers.processes.process import VP
from solvers.solver import Problem, generators, randn

PROCESS = VP.linear()
MEAN, STD = 0.3, 0.5


class GaussianPrior:
    """Exact E[x0 | x_t] for white Gaussian images."""

    process = PROCESS

    def __call__(self, x, t):
        a, b = PROCESS.a(t), PROCESS.b(t)
        gain = a * STD**2 / (a**2 * STD**2 + b**2)
        return Prediction.from_x0(MEAN + gain * (x - a * MEAN), x, a, b)


def image(shape=(2, 3, 6, 5), seed=0):
    return MEAN + STD * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


MASK = (torch.rand(6, 5, generator=torch.Generator().manual_seed(5)) > 0.5).float()


@pytest.mark.parametrize("name", ["ddnm", "diffpir", "mmps"])
def test_noiseless_estimates_agree_with_the_data_and_the_state(name):
    x0 = image()
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0))
    corrected = CORRECTIONS[name](GaussianPrior(), m)
    for t in (999.0, 500.0, 12.5, 0.0):
        x = PROCESS.add_noise(x0, image(seed=1), t)
        p = corrected(x, t)
        assert m.residual(p.x0).abs().max() < 1e-12
        torch.testing.assert_close(
            PROCESS.a(t) * p.x0 + PROCESS.b(t) * p.eps, x, rtol=1e-10, atol=1e-10
        )
        unknown = MASK == 0
        torch.testing.assert_close(p.x0[..., unknown], GaussianPrior()(x, t).x0[..., unknown])


@pytest.mark.parametrize("name", ["ddnm", "ddnm+", "ddrm", "diffpir", "mmps", "repaint"])
def test_noiseless_runs_end_on_the_data(name):
    x0 = image()
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0))
    run = solve(DDIM(), CORRECTIONS[name](GaussianPrior(), m), image(seed=2), trailing(PROCESS, 10))
    assert m.residual(run.x0).abs().max() < 1e-12


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_diffpir_samples_the_exact_gaussian_posterior(sigma):
    """With the prior's width known every step is exact, so samples must have the posterior's mean,
    spread and coverage.
    """
    x0, count = image((1, 1, 20, 20)), 200
    y = x0 + sigma * torch.randn(
        x0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    m = Measurement(Denoising(), y, sigma)
    start = torch.randn(
        count, 1, 20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    samples = solve(
        DDIM(), DiffPIR(GaussianPrior(), m, prior_std=STD), start, log_snr(PROCESS, 200)
    ).x0
    mean = (MEAN * sigma**2 + y * STD**2) / (sigma**2 + STD**2)
    std = sigma * STD / (sigma**2 + STD**2) ** 0.5
    z = (samples.mean(0, keepdim=True) - mean) / (std / count**0.5)
    assert (
        z.abs().mean() < 1.0
    )  # 0.80 for a perfect sampler, above 1 as soon as the bias is half a standard error
    assert samples.std(0).mean() == pytest.approx(std, rel=0.02)
    low, high = samples.quantile(0.05, 0), samples.quantile(0.95, 0)
    covered = ((x0 >= low) & (x0 <= high)).double().mean()
    assert 0.85 < covered < 0.95


def test_diffpir_is_the_proximal_point():
    x0, sigma, lam, t = image(), 0.3, 4.0, 300.0
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0), sigma)
    estimate = image(seed=7)
    got = DiffPIR(GaussianPrior(), m, lam=lam).correct(estimate, t)
    weight = lam * sigma**2 / PROCESS.kappa(t) ** 2
    want = torch.where(MASK > 0, (m.y + weight * estimate) / (1 + weight), estimate)
    torch.testing.assert_close(got, want)


def test_refusals():
    noisy = Measurement(Denoising(), image(), 0.1)
    with pytest.raises(ValueError, match="DiffPIR"):
        DDNM(GaussianPrior(), noisy)
    with pytest.raises(ValueError, match="lam"):
        DiffPIR(GaussianPrior(), noisy, lam=0)
    with pytest.raises(ValueError, match="DDNMPlus"):
        DDNM(GaussianPrior(), noisy)
    with pytest.raises(ValueError, match="eta"):
        DDRM(GaussianPrior(), noisy, eta=1.5)
    with pytest.raises(TypeError, match="singular value"):
        DDNMPlus(GaussianPrior(), Measurement(LinearFunction(lambda x: x, (3, 6, 5)), image(), 0.1))
    for make in (DPS, PiGDM):
        with pytest.raises(ValueError, match="scale"):
            make(GaussianPrior(), noisy, scale=-1)
    with pytest.raises(ValueError, match="iterations"):
        MMPS(GaussianPrior(), noisy, iterations=0)
    with pytest.raises(ValueError, match="jump and repeats"):
        Resampled(repeats=0)
    for solver in (PNDM(), PNDM("s-pndm"), Resampled(PNDM())):
        with pytest.raises(
            ValueError, match=r"DDRM puts fresh noise into its answers, which .* would combine"
        ):
            solve(solver, DDRM(GaussianPrior(), noisy), image(), trailing(PROCESS, 5))
    # that is DDIM
    solve(PNDM(order=1), DDRM(GaussianPrior(), noisy), image(), trailing(PROCESS, 5))


# -- corrections with gradients --------------------------------------------------------------------

GRADIENT = [name for name, made in CORRECTIONS.items() if made.needs_gradient]


class Session:
    """Stands for an inference session: it answers, but no gradient flows."""

    def __call__(self, x, t):
        return x.detach()


@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_corrections_refuse_networks_without_gradients(name):
    m = Measurement(Denoising(), image(), 0.1)
    for network in (Session(), TiledNetwork(Session(), 4, 2)):
        with pytest.raises(
            TypeError, match="needs the gradient of the network, which Session can't give"
        ):
            CORRECTIONS[name](Denoiser(network, PROCESS), m)

    class Detached(torch.nn.Module):
        def forward(self, x, t):
            return x.detach()

    with pytest.raises(TypeError, match="carries none"):
        CORRECTIONS[name](Denoiser(Detached(), PROCESS), m)(image(), 500.0)


def test_other_corrections_accept_networks_without_gradients():
    m = Measurement(Denoising(), image(), 0.0)
    for name in set(CORRECTIONS) - set(GRADIENT):
        x0 = solve(
            DDIM(),
            CORRECTIONS[name](Denoiser(Session(), PROCESS), m),
            image(),
            trailing(PROCESS, 3),
        ).x0
        assert torch.isfinite(x0).all()


def test_dps_takes_the_papers_step():
    """Each next state is the uncorrected one less zeta times the gradient of each image's residual
    norm, which is known here.
    """
    op, zeta, eta = Inpainting(MASK), 0.7, 0.6
    m = Measurement(op, op.A(image()), 0.1)
    grid = explicit([800, 300], end=40)
    x = image(seed=8)
    for t, s in grid.pairs():
        step = explicit([t], end=s)
        got, plain = (
            solve(DDIM(eta), d, x, step, generator=generators(0, 2)).x0
            for d in (DPS(GaussianPrior(), m, zeta), GaussianPrior())
        )
        a, b = PROCESS.a(t), PROCESS.b(t)
        r = m.residual(GaussianPrior()(x, t).x0)
        gain = a * STD**2 / (a**2 * STD**2 + b**2)
        gradient = -gain * op.A_adjoint(r) / r.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        torch.testing.assert_close(got, plain - zeta * gradient, rtol=1e-10, atol=1e-10)
        x = got


def test_mmps_is_the_exact_posterior_mean_of_a_gaussian():
    op, sigma = Blur((6, 5), gaussian_kernel(0.7, 2)), 0.3
    m = Measurement(op, op.A(image()) + sigma * image(seed=6), sigma)
    for t in (900.0, 400.0, 30.0):
        x, kappa, a = image(seed=9), PROCESS.kappa(t), PROCESS.a(t)
        got = MMPS(GaussianPrior(), m, iterations=60)(x, t).x0

        def precision(u, kappa=kappa):
            return (STD**-2 + kappa**-2) * u + op.A_adjoint(op.A(u)) / sigma**2

        want = conjugate_gradient(
            precision, MEAN * STD**-2 + x / a * kappa**-2 + op.A_adjoint(m.y) / sigma**2
        )
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.long
def test_mmps_samples_the_exact_gaussian_posterior():
    """Also through a blur: mean, spread and coverage of the samples in every pixel."""
    op, sigma, count = Blur((12, 12), gaussian_kernel(0.7, 2)), 0.3, 150
    x0 = image((1, 1, 12, 12))
    m = Measurement(
        op,
        op.A(x0) + sigma * randn(x0.shape, torch.Generator().manual_seed(4), dtype=torch.float64),
        sigma,
    )
    start = randn((count, 1, 12, 12), torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = solve(
        DDIM(), MMPS(GaussianPrior(), m, iterations=12), start, log_snr(PROCESS, 150)
    ).x0
    mean = op.spectral_filter(
        MEAN / STD**2 + op.A_adjoint(m.y) / sigma**2, lambda s: 1 / (STD**-2 + s**2 / sigma**2)
    )
    basis = torch.eye(144, dtype=torch.float64).reshape(144, 1, 12, 12)
    std = (
        op.spectral_filter(basis, lambda s: 1 / (STD**-2 + s**2 / sigma**2))
        .reshape(144, 144)
        .diagonal()
        .sqrt()
        .reshape(12, 12)
    )
    z = (samples.mean(0) - mean[0]) / (std / count**0.5)
    assert z.abs().mean() < 1.0  # 0.80 for a perfect sampler
    assert (samples.std(0) / std).mean() == pytest.approx(1, abs=0.02)
    low, high = samples.quantile(0.05, 0), samples.quantile(0.95, 0)
    assert 0.83 < ((x0 >= low) & (x0 <= high)).double().mean() < 0.97


def test_pigdm_direction_solves_its_system():
    op, sigma, t = Blur((6, 5), gaussian_kernel(0.7, 2)), 0.3, 300.0
    m = Measurement(op, op.A(image(seed=2)), sigma)
    x = image(seed=3)
    estimate = GaussianPrior()(x, t).x0
    v = PiGDM(GaussianPrior(), m).direction(estimate, PROCESS.kappa(t))
    r2 = 1 - PROCESS.a(t) ** 2  # VP
    torch.testing.assert_close(
        r2 * op.A_adjoint(op.A(v)) + sigma**2 * v,
        r2 * op.A_adjoint(m.residual(estimate)),
        rtol=1e-9,
        atol=1e-9,
    )
    a, b = PROCESS.a(t), PROCESS.b(t)
    gain = a * STD**2 / (a**2 * STD**2 + b**2)
    p = PiGDM(GaussianPrior(), m, keep_noise=False)(x, t)
    torch.testing.assert_close(p.x0, estimate + a * gain * v)
    torch.testing.assert_close(a * p.x0 + b * p.eps, x)


# -- corrections with noise ------------------------------------------------------------------------


def test_ddrm_states_have_the_level_of_the_grid():
    """For data without error each next state is ``a_s x0 + b_s n`` with n white and of variance 1,
    measured or not.
    """
    x0 = image((400, 1, 6, 5))
    op = Inpainting(MASK)
    for sigma, s in ((0.0, 300.0), (0.5, 300.0), (2.0, 50.0)):
        y = op.A(x0) + sigma * randn(
            x0.shape, torch.Generator().manual_seed(1), dtype=torch.float64
        )

        class Oracle:
            process = PROCESS

            def __call__(self, x, t):
                return Prediction.from_x0(x0, x, PROCESS.a(t), PROCESS.b(t))

        start = PROCESS.add_noise(
            x0, randn(x0.shape, torch.Generator().manual_seed(2), dtype=torch.float64), 600.0
        )
        for made in (DDRM, DDNMPlus):
            m = Measurement(op, y, sigma)
            state = solve(
                DDIM(),
                made(Oracle(), m),
                start,
                explicit([600], end=s),
                generator=torch.Generator().manual_seed(3),
            ).x0
            n = (state - PROCESS.a(s) * x0) / PROCESS.b(s)
            assert n.mean().abs() < 4 / n.numel() ** 0.5
            for part in (n[..., MASK > 0], n[..., MASK == 0]):
                assert part.var() == pytest.approx(1, abs=5 * (2 / part.numel()) ** 0.5)


def test_ddrm_start_holds_the_data():
    x0, op, t = image((400, 1, 6, 5)), Inpainting(MASK), 999.0
    m = Measurement(op, op.A(x0 + 3 * image((400, 1, 6, 5), 3)), 3 * STD)
    x = DDRM(GaussianPrior(), m).start(
        randn(x0.shape, torch.Generator().manual_seed(0), dtype=torch.float64), t
    )
    known = x[..., MASK > 0] - PROCESS.a(t) * m.y[..., MASK > 0]
    assert known.var() == pytest.approx(PROCESS.b(t) ** 2 - (PROCESS.a(t) * m.sigma) ** 2, rel=0.05)
    assert x[..., MASK == 0].var() == pytest.approx(PROCESS.b(t) ** 2, rel=0.05)


def test_repaint_puts_the_noised_data_into_each_state():
    op, s = Inpainting(MASK), 200.0
    x0 = image((300, 1, 6, 5))
    m = Measurement(op, op.A(x0))
    for solver in (DDIM(), DDIM(eta=1)):
        x = solve(
            solver, RePaint(GaussianPrior(), m), image((300, 1, 6, 5), 1), explicit([700], end=s)
        ).x0
        n = (x - PROCESS.a(s) * m.y)[..., MASK > 0] / PROCESS.b(s)
        assert n.mean().abs() < 4 / n.numel() ** 0.5
        assert n.var() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", [name for name, made in CORRECTIONS.items() if made.draws_noise])
def test_samples_do_not_depend_on_their_batch(name):
    op = Inpainting(MASK)
    y = op.A(image((1, 3, 6, 5)))

    def run(seed, count):
        x = randn((count, 3, 6, 5), generators(seed, count))
        corrected = CORRECTIONS[name](GaussianPrior(), Measurement(op, y.float(), 0.1))
        return solve(
            DDIM(), corrected, x, trailing(PROCESS, 5), generator=generators(seed, count)
        ).x0

    torch.testing.assert_close(run(0, 3)[2:], run(2, 1), rtol=1e-5, atol=1e-5)


# -- runs ------------------------------------------------------------------------------------------


def test_corrections_know_the_next_level_also_of_another_process():
    other = VP.cosine()
    seen = []

    class Watching(DPS):
        def __call__(self, x, t):
            seen.append((PROCESS.kappa(t), PROCESS.kappa(self.next_time(t))))
            return super().__call__(x, t)

    grid = explicit([700, 300], end=20)
    solve(
        DDIM(),
        Watching(GaussianPrior(), Measurement(Denoising(), image(), 0.1)),
        image(),
        grid,
        process=other,
    )
    levels = [other.kappa(t) for t in grid.times]
    assert seen == [
        pytest.approx(pair, rel=1e-9) for pair in zip(levels[:-1], levels[1:], strict=True)
    ]
    alone = DPS(GaussianPrior(), Measurement(Denoising(), image(), 0.1))
    assert (alone.next_time(700.0), alone.next_time(0.0)) == (699.0, -1.0)


def test_resampling_repeats_each_stretch():
    x, denoiser = image((1, 1, 6, 5)), GaussianPrior()
    grid = leading(PROCESS, 10)
    again = solve(
        Resampled(DDIM(), jump=4, repeats=3),
        denoiser,
        x,
        grid,
        generator=torch.Generator().manual_seed(0),
    )
    assert again.nfe == 30
    assert torch.equal(
        solve(Resampled(DDIM(), jump=3, repeats=1), denoiser, x, grid).x0,
        solve(DDIM(), denoiser, x, grid).x0,
    )


def test_noising_up_keeps_the_process():
    x0, problem = image((500, 1, 6, 5)), Problem(PROCESS, None, torch.Generator().manual_seed(1))
    for s, t in ((-1.0, 100.0), (100.0, 110.0), (100.0, 900.0)):
        x = noise_up(problem, PROCESS.add_noise(x0, problem.noise(x0), s), s, t)
        n = (x - PROCESS.a(t) * x0) / PROCESS.b(t)
        assert n.mean().abs() < 4 / n.numel() ** 0.5
        assert n.var() == pytest.approx(1, rel=0.04)


MATRIX = {
    "inpainting": Inpainting(
        (torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    ),
    "x4": BlockMean((8, 8), 4),
    "blur": Blur((8, 8), gaussian_kernel(1.0, 3)),
    "denoising": Denoising(),
}


NOISELESS = ("ddnm", "repaint")


@pytest.mark.parametrize(
    ("name", "operator"),
    crossed(NOISELESS, [op for op in MATRIX if op != "denoising"], ())
    + crossed([n for n in CORRECTIONS if n not in NOISELESS], MATRIX, ("diffpir",)),
)
def test_every_correction_restores_with_every_solver(name, operator):
    """Smooth random images of a known Gaussian law: closer to the truth than ``A^H y`` on data with
    little noise.
    """
    op, sigma = MATRIX[operator], 0.0 if name in NOISELESS else 0.1
    g = torch.Generator().manual_seed(0)
    white = torch.randn(8, 1, 8, 8, generator=g, dtype=torch.float64)
    smooth = Blur((8, 8), gaussian_kernel(1.5, 4))
    gain = 1 / smooth.values.square().mean().sqrt()  # pixel variance 1

    class SmoothPrior:
        process = PROCESS

        def __call__(self, x, t):
            a, b = PROCESS.a(t), PROCESS.b(t)
            # Cov = gain^2 S S^T: in the left singular basis of S, which is the right one of S^T
            transposed = Transposed(smooth)
            return Prediction.from_x0(
                transposed.spectral(
                    x, lambda v: a * (gain * v) ** 2 / ((a * gain * v) ** 2 + b * b)
                ),
                x,
                a,
                b,
            )

    truth = gain * smooth.A(white)
    m = Measurement(op, op.A(truth), sigma)
    m = Measurement(op, m.y + sigma * randn(m.y.shape, g, dtype=torch.float64), sigma)
    adjoint = (op.A_adjoint(m.y) - truth).square().mean()
    options = {"scale": 0.5} if name == "dps" else {}
    solvers = [DDIM(), DDIM(eta=1.0), Resampled(DDIM(), 10, 2)]
    if not CORRECTIONS[name].draws_noise:
        solvers.append(PNDM())
    for solver in solvers:
        corrected = CORRECTIONS[name](SmoothPrior(), m, **options)
        start = randn(truth.shape, torch.Generator().manual_seed(1), dtype=torch.float64)
        x0 = solve(
            solver,
            corrected,
            start,
            trailing(PROCESS, 50),
            generator=torch.Generator().manual_seed(2),
        ).x0
        assert (x0 - truth).square().mean() < adjoint, solver


class Transposed:
    def __init__(self, operator):
        self.operator = operator

    def spectral(self, x, f):
        op = self.operator
        u_rows, u_columns = op.u_rows.to(x), op.u_columns.to(x)
        return u_rows @ (f(op.all_values.to(x)) * (u_rows.T @ x @ u_columns)) @ u_columns.T


# -- by name ---------------------------------------------------------------------------------------


def test_mmps_is_stable_where_the_covariance_is_not_symmetric():
    """A network's Jacobian, skewed and of rank as low as in a flat region: the estimate must stay
    with the data, and no farther from the image than without a correction.
    """
    g = torch.Generator().manual_seed(3)
    skew = torch.randn(30, 30, generator=g, dtype=torch.float64) / 30**0.5
    matrix = 0.1 * torch.eye(30, dtype=torch.float64) + 0.8 * (skew - skew.T)

    class Skewed(torch.nn.Module):
        def forward(self, x, t):
            return (x.flatten(2) @ matrix.to(x)).reshape(x.shape)

    denoiser = Denoiser(Skewed(), PROCESS, "sample")
    x0 = image((2, 1, 6, 5))
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0))
    for t in (900.0, 400.0, 50.0):
        x = PROCESS.add_noise(x0, image((2, 1, 6, 5), seed=1), t)
        p = MMPS(denoiser, m)(x, t)
        plain = denoiser(x, t).x0
        assert m.residual(p.x0).abs().max() < 1e-6
        assert (p.x0 - x0).norm() < 1.5 * (plain - x0).norm()


def test_gmres_solves_any_square_system():
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 12, 12, generator=g, dtype=torch.float64)
    b = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)

    def apply(v):
        return (matrix @ v.reshape(2, 12, 1)).reshape(b.shape)

    residuals = [(b - apply(gmres(apply, b, k))).norm() for k in range(1, 13)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(residuals))
    assert residuals[-1] < 1e-8
    assert torch.equal(gmres(apply, torch.zeros_like(b), 3), torch.zeros_like(b))
    done = gmres(lambda v: 2 * v, b, 5)  # one direction is all there is
    torch.testing.assert_close(done, b / 2)


def test_refusals_by_name():
    clean, noisy = Measurement(Denoising(), image()), Measurement(Denoising(), image(), 0.1)
    for name, m, steps, said in (
        ("repaint", noisy, 5, "take diffpir"),
        ("ddnm", noisy, 5, "diffpir"),
        ("dps", clean, 100, "take ddnm"),
        ("dps", noisy, 5, "needs at least 50; got 5"),
        ("magic", noisy, 5, "unknown; known: ddnm"),
    ):
        with pytest.raises(ValueError, match=said):
            correction_by_name(name, GaussianPrior(), m, steps=steps)
    with pytest.raises(
        ValueError, match="diffpir has no option 'scale'; it has lam, prior_std, draw"
    ):
        correction_by_name("diffpir", GaussianPrior(), noisy, steps=5, options={"scale": 1})
    made = correction_by_name("dps", GaussianPrior(), noisy, steps=100, options={"scale": 0.3})
    assert made.scale == 0.3
    assert correction_by_name("diffpir", GaussianPrior(), noisy, steps=5).prior_std == math.inf


# -- uncertainty -----------------------------------------------------------------------------------

NOISY = {
    "denoising": Denoising(),
    "inpainting": Inpainting(torch.rand(12, 12, generator=torch.Generator().manual_seed(2)) > 0.4),
    "blur": Blur((12, 12), gaussian_kernel(0.7, 2)),
}


def measured(op, sigma, seed):
    x0 = image((1, 1, 12, 12), seed)
    y = op.A(x0)
    noise = randn(y.shape, torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
    return x0, Measurement(op, op.A(x0) + sigma * noise, sigma)


def samples_of(corrected, count, seed, eta=0.0, steps=5):
    rngs = generators(seed, count)
    start = randn((count, 1, 12, 12), rngs, dtype=torch.float64)
    return solve(DDIM(eta), corrected, start, trailing(PROCESS, steps), generator=rngs).x0


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("sigma", [0.05, 0.2])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_drawn_diffpir_has_the_exact_spread_at_any_number_of_steps(name, sigma, eta):
    """Exact prior, exact width: mean, spread and coverage of the 90 % interval are the posterior's,
    at one, two and five steps.
    """
    op, count = NOISY[name], 400
    x0, m = measured(op, sigma, 0)
    basis = torch.eye(144, dtype=torch.float64).reshape(144, 1, 12, 12)
    variance = op.spectral_filter(basis, lambda s: 1 / (STD**-2 + s**2 / sigma**2))
    std = variance.reshape(144, 144).diagonal().sqrt().reshape(12, 12)
    mean = op.spectral_filter(
        MEAN / STD**2 + op.A_adjoint(m.y) / sigma**2, lambda s: 1 / (STD**-2 + s**2 / sigma**2)
    )
    for steps in (1, 2, 5):
        corrected = DiffPIR(GaussianPrior(), m, prior_std=STD, draw=True)
        found = samples_of(corrected, count, 0, eta, steps)
        assert (found.std(0) / std).mean() == pytest.approx(1, abs=0.02)
        assert (
            (found.mean(0) - mean[0]) / (std / count**0.5)
        ).abs().mean() < 1.0  # 0.80 is perfect
        low, high = found.quantile(0.05, 0), found.quantile(0.95, 0)
        # of 144 pixels: three standard deviations about 0.9
        assert 0.82 < ((x0 >= low) & (x0 <= high)).double().mean() < 0.98
    if name == "denoising":
        plain = DiffPIR(GaussianPrior(), m, prior_std=STD)
        assert samples_of(plain, 50, 0).std(0).mean() < 0.5 * std.mean()  # what draws are for


@pytest.mark.parametrize("name", covering(["ddrm", "diffpir", "pigdm", "mmps"], ["ddrm"]))
def test_a_factor_fitted_on_other_pictures_gives_intervals_that_cover(name):
    """Five deterministic steps leave too small a spread by construction; the conformal factor makes
    it an uncertainty, with the same prior and noise and pictures of their own.
    """
    sigma, errors, spreads = 0.2, [], []
    for k in range(60):  # 40 pictures, so that the promise is 0.9 to 0.925
        x0, m = measured(NOISY["denoising"], sigma, k)
        corrected = correction_by_name(name, GaussianPrior(), m, steps=5, prior_std=STD)
        found = samples_of(corrected, 8, 100 * k)
        errors.append((found.mean(0) - x0[0]).numpy())
        spreads.append(found.std(0).numpy())
    factor = conformal_factor(errors[:40], spreads[:40], 0.9)
    held = [(abs(e) <= factor * s).mean() for e, s in zip(errors[40:], spreads[40:], strict=True)]
    assert 0.85 <= sum(held) / len(held) <= 0.95
    with pytest.raises(ValueError, match="prior_std"):
        DiffPIR(GaussianPrior(), m, draw=True)


@pytest.mark.parametrize(
    "name", [name for name, made in CORRECTIONS.items() if made.needs_gradient]
)
def test_corrections_by_gradient_refuse_what_does_not_follow_them(name):
    """Measured on photographs, solvers that combine noise estimates lose 1 to 7 dB by them, and
    runs that begin without noise up to 2 dB.
    """
    _, m = measured(NOISY["denoising"], 0.1, 0)
    for solver in ("pndm", "auto", "plms", "ipndm", "f-pndm", "diffusers-plms"):
        with pytest.raises(ValueError, match="take ddim or evodiff"):
            correction_by_name(name, GaussianPrior(), m, steps=50, solver=solver_by_name(solver))
    with pytest.raises(ValueError, match="begin it from noise"):
        correction_by_name(name, GaussianPrior(), m, steps=50, from_noise=False)
    for solver in ("ddim", "ddpm", "evodiff", "dpm-solver++-2m", "unipc"):
        correction_by_name(name, GaussianPrior(), m, steps=50, solver=solver_by_name(solver))


@pytest.mark.parametrize("name", [n for n, made in CORRECTIONS.items() if made.draws_noise])
def test_noise_is_not_drawn_twice_over_a_start_without_it(name):
    """Measured on blurred photographs, 4.7 dB are lost."""
    _, m = measured(NOISY["denoising"], 0.0 if name == "repaint" else 0.1, 0)
    ddcm = solver_by_name("ddcm")
    with pytest.raises(ValueError, match="take diffpir, or another solver"):
        correction_by_name(name, GaussianPrior(), m, steps=50, solver=ddcm, from_noise=False)
    correction_by_name(name, GaussianPrior(), m, steps=50, solver=ddcm)
    ddim = solver_by_name("ddim")
    correction_by_name(name, GaussianPrior(), m, steps=50, solver=ddim, from_noise=False)
