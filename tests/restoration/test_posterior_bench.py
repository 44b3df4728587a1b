"""Restoration under a prior whose exact posterior is known: 48 grey patches, four operators, PSNR
as published for each method.
"""

import pytest
import torch
from helpers.covering import covering, crossed
from helpers.data import golden
from helpers.mixtures import Patches

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean, Separable
from restoration.posterior import CORRECTIONS, DDRM, DPS, MMPS, DDNMPlus, PiGDM, correction_by_name
from solvers import DDIM, VP, Prediction, REDDiff, generators, leading, randn, solve, trailing

TASKS = ("inpaint_random", "inpaint_box", "sr4_meanpool", "deblur")
PROCESS = VP.linear()

# mean PSNR of independent implementations on the file of this repository, by task; RED-diff at a
# data term averaged over y
FIGURES = {
    "red-diff": (24.83, 27.97, 24.54, 26.31),
    "ddrm": (24.38, 27.53, 22.91, 25.21),
    "ddnm+": (24.41, 27.12, 22.98, 25.28),
    "dps": (25.52, 26.37, 22.90, 24.79),
    "pigdm": (25.94, 28.23, 22.87, 25.07),
    "mmps": (27.31, 29.35, 23.51, 26.20),
}
PUBLISHED_BOUND = (28.2646, 30.3895, 24.8952, 27.1068)  # of the exact posterior mean there


class Bench:
    def __init__(self, arrays):
        self.arrays, self.denoiser = arrays, Patches(arrays, PROCESS)
        self.sigma = float(arrays["sigma_y"])
        self.truth = self.images(arrays["x_true"])
        self.published = [float(arrays[f"{task}/psnr_mmse"]) for task in TASKS] == pytest.approx(
            PUBLISHED_BOUND, abs=1e-3
        )

    def images(self, flat):
        return torch.from_numpy(flat).reshape(-1, 1, self.denoiser.size, self.denoiser.size)

    def psnr(self, x):
        return (10 * torch.log10(4 / (x - self.truth).square().mean((1, 2, 3)))).mean().item()

    def measurement(self, task):
        size, y = self.denoiser.size, torch.from_numpy(self.arrays[f"{task}/y"])
        if task.startswith("inpaint"):
            mask = torch.from_numpy(self.arrays["mask" if task == "inpaint_random" else "box"])
            filled = torch.zeros(len(y), size * size, dtype=y.dtype)
            filled[:, mask.flatten()] = y
            return Measurement(Inpainting(mask), filled.reshape(-1, 1, size, size), self.sigma)
        if task == "deblur":
            blur = torch.from_numpy(self.arrays["blur_1d"])
            return Measurement(Separable(blur, blur), y.reshape(-1, 1, size, size), self.sigma)
        return Measurement(
            BlockMean((size, size), 4), y.reshape(-1, 1, size // 4, size // 4), self.sigma
        )

    def strength(self, task, lam=0.25):
        """Means over y's entries and over the image's: in sums, the prior counts m/n."""
        return lam * self.arrays[f"{task}/y"].shape[1] / self.denoiser.size**2

    def run(self, method, task, steps=100):
        m, d, solver, grid = self.measurement(task), self.denoiser, DDIM(), leading(PROCESS, steps)
        rngs = generators(0, len(self.truth))
        x = randn(self.truth.shape, rngs, dtype=torch.float64)
        match method:
            case "red-diff":
                solver = REDDiff(m, lr=0.05 if steps <= 100 else 0.02, lam=self.strength(task))
            case "ddrm":
                d = DDRM(d, m)
                x = d.start(x, grid.times[0])
            case "ddnm+":
                d = DDNMPlus(d, m)
            case "dps":
                d, solver = DPS(d, m, scale=1.0 if steps <= 100 else 0.3), DDIM(eta=1.0)
            case "pigdm":
                d, solver = PiGDM(d, m), DDIM(eta=1.0)
            case "mmps":
                d, solver, grid = MMPS(d, m, iterations=5), DDIM(eta=1.0), trailing(PROCESS, 20)
        return solve(solver, d, x, grid, generator=rngs)


@pytest.fixture(scope="module")
def bench():
    return Bench(golden("posterior_bench"))


def test_the_prior_is_the_files(bench):
    keys = [key for key in bench.arrays if key.startswith("denoise_") and key.endswith("/x")]
    assert keys
    for key in keys:
        sigma = float(key.removeprefix("denoise_").removesuffix("/x"))
        got = bench.denoiser.mean(bench.images(bench.arrays[key]), 1.0, sigma)
        assert (
            got - bench.images(bench.arrays[key.removesuffix("x") + "D"])
        ).abs().max() <= 1e-10, key
    for task in TASKS:
        bound = bench.psnr(bench.images(bench.arrays[f"{task}/posterior_mean"]))
        assert bound == pytest.approx(float(bench.arrays[f"{task}/psnr_mmse"]), abs=1e-6)
        if f"{task}/posterior_sample" in bench.arrays:
            sample = bench.psnr(bench.images(bench.arrays[f"{task}/posterior_sample"]))
            assert sample == pytest.approx(
                float(bench.arrays[f"{task}/psnr_exact_sample"]), abs=1e-6
            )
            assert sample < bound - 2  # a draw is twice as far from the truth as the mean


@pytest.mark.parametrize(("method", "task"), crossed(FIGURES, TASKS, ()))
def test_methods_reach_their_figures(bench, method, task):
    """Within 0.3 dB on the published file; on any: better than zero-filling, not better than the
    bound.
    """
    result = bench.run(method, task)
    assert result.nfe == (20 if method == "mmps" else 100)
    m, reached = bench.measurement(task), bench.psnr(result.x0)
    assert (
        bench.psnr(m.operator.A_adjoint(m.y))
        < reached
        < float(bench.arrays[f"{task}/psnr_mmse"]) + 0.1
    )
    if bench.published:
        assert reached >= FIGURES[method][TASKS.index(task)] - 0.3


class FromNoise:
    """The benchmark's prior under a process that begins without signal, where its estimate is its
    mean.
    """

    process = VP.linear(zero_terminal_snr=True)

    def __init__(self, prior):
        self.prior = prior
        self.mean = (prior.log_weights.softmax(0)[:, None] * prior.means).sum(0)

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        if a == 0:
            return Prediction.from_x0(self.mean.reshape(x[:1].shape) + 0 * x, x, a, b)
        return Prediction.from_x0(self.prior.mean(x, a, b), x, a, b)


@pytest.mark.parametrize("task", covering(TASKS, ["deblur", "sr4_meanpool"]))
@pytest.mark.parametrize("noisy", [True, False])
def test_corrections_by_name_are_near_the_default_or_refused(bench, task, noisy):
    """Ten steps from pure noise: nobody is more than a decibel below what tasks take by
    themselves.
    """
    m = bench.measurement(task)
    m = m if noisy else Measurement(m.operator, m.operator.A(bench.truth))
    prior, rngs = FromNoise(bench.denoiser), len(bench.truth)
    reached = {}
    for name in CORRECTIONS:
        try:
            d = correction_by_name(name, prior, m, steps=10, prior_std=0.4)
        except ValueError:
            continue
        x = randn(bench.truth.shape, generators(0, rngs), dtype=torch.float64)
        run = solve(DDIM(), d, x, trailing(prior.process, 10), generator=generators(0, rngs))
        reached[name] = bench.psnr(run.x0)
    assert {"diffpir", "ddrm", "mmps", "pigdm"} <= set(reached)
    assert ("ddnm" in reached) == ("repaint" in reached) == (not noisy)
    assert min(reached.values()) > reached["diffpir"] - 1, reached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "figures"),
    [("red-diff", (27.26, 28.92, 24.33, 26.50)), ("dps", (25.61, 27.97, 22.19, 24.64))],
)
def test_a_thousand_steps(bench, method, figures):
    if not bench.published:
        pytest.skip("the figures are those of another file")
    for task, figure in zip(TASKS, figures, strict=True):
        assert bench.psnr(bench.run(method, task, 1000).x0) >= figure - 0.3, task


def test_time_travel_makes_holes_agree_with_their_surroundings(bench):
    """RePaint's claim: with the known pixels pasted, three passes over each stretch beat three
    times as many steps.
    """
    from restoration.posterior import RePaint
    from solvers import Resampled

    m = bench.measurement("inpaint_box")

    def run(solver, steps):
        rngs = generators(0, len(bench.truth))
        x = randn(bench.truth.shape, rngs, dtype=torch.float64)
        return solve(solver, RePaint(bench.denoiser, m), x, leading(PROCESS, steps), generator=rngs)

    once, again = run(DDIM(eta=1.0), 150), run(Resampled(DDIM(eta=1.0), jump=5, repeats=3), 50)
    assert once.nfe == again.nfe
    assert bench.psnr(again.x0) > bench.psnr(once.x0)
