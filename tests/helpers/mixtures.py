"""Small mixtures and networks for tests that need no golden file."""

import torch

from solvers import GaussianMixture, Prediction, Problem


def small_mixture(seed: int = 0, components: int = 3, shape=(3, 4, 4)) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    weights = 0.5 + torch.rand(components, generator=g, dtype=torch.float64)
    means = 1.6 * torch.rand((components, *shape), generator=g, dtype=torch.float64) - 0.8
    stds = 0.08 + 0.22 * torch.rand((components, *shape), generator=g, dtype=torch.float64)
    return GaussianMixture(weights, means, stds)


def noise(count: int, seed: int = 1, shape=(3, 4, 4)) -> torch.Tensor:
    return torch.randn(
        (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def median_rmse(x: torch.Tensor, reference: torch.Tensor) -> float:
    """Median over the samples of each sample's root mean square difference."""
    return (x - reference).square().mean(dim=(1, 2, 3)).sqrt().median().item()


class Guided:
    """A golden file's class-conditional mixture as a denoiser with classifier-free guidance.

    ``arrays`` holds ``{name}/means``, ``{name}/stds`` and ``{name}/class_weights`` (row 0:
    unconditional). A guidance of 1 is the class's own prediction.
    """

    def __init__(self, arrays, name, process, label=0, guidance=1.0):
        self.process, self.guidance = process, guidance
        self.own = self.mixture(arrays, name, label)
        self.all = self.mixture(arrays, name, 0)

    @staticmethod
    def mixture(arrays, name, label):
        weights = torch.from_numpy(arrays[f"{name}/class_weights"][label])
        used = weights > 0
        means, stds = (torch.from_numpy(arrays[f"{name}/{key}"])[used] for key in ("means", "stds"))
        return GaussianMixture(weights[used], means, stds)

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        p = self.own.posterior(x, a, b)
        if self.guidance == 1:
            return p
        eps = self.all.posterior(x, a, b).eps
        return Prediction.from_output(eps + self.guidance * (p.eps - eps), x, a, b, "epsilon")


@torch.no_grad()
def replay(solver, denoiser, x, grid, draws, process=None, y=None):
    """Run with recorded noise: ``draws`` yields the tensors that the run asks for, in order.
    Returns the result and the queries.
    """

    class Recorded(Problem):
        def noise(self, like):
            return next(draws).to(like)

    problem = Recorded(process or denoiser.process, y)
    if hasattr(denoiser, "bind"):
        denoiser = denoiser.bind(grid.times, problem.noise)
    run, queries = solver.run(problem, grid, x), []
    try:
        query = next(run)
        while True:
            answer = denoiser(query.x, query.t)
            queries.append((query, answer))
            query = run.send(answer)
    except StopIteration as end:
        return end.value, queries


class Patches:
    """The benchmark's prior as a denoiser: ``sum_k w_k N(m_k, C_k)`` over S x S grey patches with
    full covariances, in float64.
    """

    def __init__(self, arrays, process):
        self.process, self.size = process, int(arrays["size"])
        self.log_weights = torch.from_numpy(arrays["weights"]).double().log()
        self.means = torch.from_numpy(arrays["means"]).double()
        # reads the lower triangles
        values, self.basis = torch.linalg.eigh(torch.from_numpy(arrays["covs"]).double())
        self.values = values.clamp(min=0)

    def mean(self, x, a, b):
        """``E[x0 | a x0 + b eps = x]``, ``x (B, 1, S, S)``."""
        v = a * a * self.values + b * b  # (K, n)
        gap = torch.einsum("bkn,knm->bkm", x.flatten(1)[:, None] - a * self.means, self.basis)
        r = (self.log_weights - 0.5 * (gap**2 / v + v.log()).sum(-1)).softmax(1)
        parts = self.means + torch.einsum("bkm,knm->bkn", a * self.values / v * gap, self.basis)
        return (r[..., None] * parts).sum(1).reshape(x.shape)

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        return Prediction.from_x0(self.mean(x, a, b), x, a, b)
