"""The mixture's answers against sampling, quadrature and limits."""

import numpy as np
import pytest
import torch
from helpers.data import golden
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

from solvers import CLEAN, VP, GaussianMixture, Process, generators


def test_posterior_against_quadrature():
    """One pixel, two components: E[x0 | x] by summing over a fine line of x0."""
    mixture = GaussianMixture([1, 3], torch.tensor([-0.5, 0.7]).reshape(2, 1, 1, 1), [0.1, 0.3])
    line = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    prior = sum(
        w / s * torch.exp(-0.5 * ((line - m) / s) ** 2)
        for w, m, s in ((1, -0.5, 0.1), (3, 0.7, 0.3))
    )
    for a, b, x in ((0.9, 0.4, 0.2), (0.3, 0.95, -1.0), (1.0, 0.05, 0.6)):
        weight = prior * torch.exp(-0.5 * ((x - a * line) / b) ** 2)
        x0 = (weight * line).sum() / weight.sum()
        p = mixture.posterior(torch.full((1, 1, 1, 1), x, dtype=torch.float64), a, b)
        assert p.x0.item() == pytest.approx(x0.item(), abs=1e-6)  # the means were given in float32
        assert a * p.x0.item() + b * p.eps.item() == pytest.approx(x, abs=1e-14)


def test_ends():
    mixture, x = small_mixture(), noise(2)
    assert torch.allclose(mixture.posterior(x, 1.0, 0.0).x0, x, atol=1e-14)
    mean = (mixture.weights[:, None, None, None] * mixture.means).sum(0)
    assert torch.allclose(mixture.posterior(x, 0.0, 1.0).x0, mean.expand_as(x), atol=1e-14)
    assert torch.allclose(mixture.posterior(x, 0.0, 1.0).eps, x, atol=1e-14)
    assert mixture.posterior(x.float(), 0.5, 0.5).x0.dtype == torch.float32


def test_samples_have_the_mixtures_moments_and_do_not_depend_on_the_batch():
    mixture = small_mixture()
    draws = mixture.sample(20000, torch.Generator().manual_seed(0))
    w = mixture.weights[:, None, None, None]
    mean = (w * mixture.means).sum(0)
    variance = (w * (mixture.stds**2 + mixture.means**2)).sum(0) - mean**2
    assert (draws.mean(0) - mean).abs().max() < 5 * (variance.max() / 20000) ** 0.5
    assert (draws.var(0) / variance - 1).abs().max() < 0.1
    assert torch.equal(
        mixture.sample(3, generators(7, 3))[1:2], mixture.sample(1, generators(8, 1))
    )


def test_exact_flow_equals_the_published_one():
    arrays = {k: torch.from_numpy(v) if v.ndim else v for k, v in golden("pndm").items()}
    mixture, process = (
        GaussianMixture(arrays["weights"], arrays["means"], arrays["stds"]),
        VP(arrays["alphas_cumprod"].numpy()),
    )
    n = int(arrays["steps"][0])
    start = float(arrays[f"timesteps_N{n}"][0]) + 1
    assert (
        exact_flow(mixture, process, arrays["x_T"], start, 0.0) - arrays[f"exact_N{n}"]
    ).abs().max() < 1e-7
    assert (
        exact_flow(mixture, process, arrays["x_T"], start, CLEAN) - arrays[f"exact0_N{n}"]
    ).abs().max() < 1e-7
    assert (
        median_rmse(arrays[f"exact_N{n}"], arrays[f"exact0_N{n}"]) > 1e-4
    )  # the two levels do differ


def test_errors():
    means = np.zeros((2, 1, 2, 2))
    for weights, mu, stds in (
        ([1], means, [1, 1]),
        ([1, 1], means[0], [1, 1]),
        ([1, 1], means, [1, 1, 1]),
        ([1, -1], means, [1, 1]),
    ):
        with pytest.raises(ValueError, match="must be"):
            GaussianMixture(weights, mu, stds)
    with pytest.raises(ValueError, match="not negative"):
        GaussianMixture([1, 1], means, [1, -1])
    with pytest.raises(ValueError, match="clean level"):
        GaussianMixture([1, 1], means, [0, 1]).posterior(torch.zeros(1, 1, 2, 2), 1.0, 0.0)
    with pytest.raises(ValueError, match="c = 0"):
        small_mixture().denoiser(Process([0.9, 0.1], [0.1, 0.9], [0.1, 0.9]))
