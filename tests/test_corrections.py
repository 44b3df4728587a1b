"""Posterior corrections against the closed-form posterior of a Gaussian."""

import pytest
import torch

from restoration.measurement import Measurement
from restoration.operators import Denoising, Inpainting
from restoration.posterior import CORRECTIONS, DDNM, DiffPIR
from solvers.ddim import DDIM
from solvers.grid import log_snr, trailing
from solvers.prediction import Prediction
from solvers.process import VP
from solvers.solver import solve

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
    return MEAN + STD * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = (torch.rand(6, 5, generator=torch.Generator().manual_seed(5)) > 0.5).float()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_noiseless_estimates_agree_with_the_data_and_the_state(name):
    x0 = image()
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0))
    corrected = CORRECTIONS[name](GaussianPrior(), m)
    for t in (999.0, 500.0, 12.5, 0.0):
        x = PROCESS.add_noise(x0, image(seed=1), t)
        p = corrected(x, t)
        assert m.residual(p.x0).abs().max() < 1e-12
        torch.testing.assert_close(PROCESS.a(t) * p.x0 + PROCESS.b(t) * p.eps, x, rtol=1e-10, atol=1e-10)
        unknown = MASK == 0
        torch.testing.assert_close(p.x0[..., unknown], GaussianPrior()(x, t).x0[..., unknown])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_noiseless_runs_end_on_the_data(name):
    x0 = image()
    m = Measurement(Inpainting(MASK), Inpainting(MASK).A(x0))
    run = solve(DDIM(), CORRECTIONS[name](GaussianPrior(), m), image(seed=2), trailing(PROCESS, 10))
    assert m.residual(run.x0).abs().max() < 1e-12


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_diffpir_samples_the_exact_gaussian_posterior(sigma):
    """With the prior's width known every step is exact, so samples must have the posterior's mean, spread and coverage."""
    x0, count = image((1, 1, 20, 20)), 200
    y = x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    m = Measurement(Denoising(), y, sigma)
    start = torch.randn(count, 1, 20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = solve(DDIM(), DiffPIR(GaussianPrior(), m, prior_std=STD), start, log_snr(PROCESS, 200)).x0
    mean = (MEAN * sigma**2 + y * STD**2) / (sigma**2 + STD**2)
    std = sigma * STD / (sigma**2 + STD**2) ** 0.5
    z = (samples.mean(0, keepdim=True) - mean) / (std / count**0.5)
    assert z.abs().mean() < 1.0  # 0.80 for a perfect sampler, above 1 as soon as the bias is half a standard error
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
