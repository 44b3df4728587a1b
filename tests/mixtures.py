"""Small mixtures and networks for tests that need no golden file."""

import torch

from solvers import GaussianMixture


def small_mixture(seed: int = 0, components: int = 3, shape=(3, 4, 4)) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    weights = 0.5 + torch.rand(components, generator=g, dtype=torch.float64)
    means = 1.6 * torch.rand((components, *shape), generator=g, dtype=torch.float64) - 0.8
    stds = 0.08 + 0.22 * torch.rand((components, *shape), generator=g, dtype=torch.float64)
    return GaussianMixture(weights, means, stds)


def noise(count: int, seed: int = 1, shape=(3, 4, 4)) -> torch.Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def median_rmse(x: torch.Tensor, reference: torch.Tensor) -> float:
    """Median over the samples of each sample's root mean square difference."""
    return (x - reference).square().mean(dim=(1, 2, 3)).sqrt().median().item()
