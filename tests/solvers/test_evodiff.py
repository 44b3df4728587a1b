"""EVODiff against the authors' runs, the exact flow, diffusers' UniPC and its own definition."""

import json

import numpy as np
import pytest
import torch
from helpers.covering import covering
from helpers.data import golden
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

from solvers import (
    CLEAN,
    DDIM,
    GRIDS,
    PNDM,
    VE,
    VP,
    ContinuousVP,
    EVODiff,
    GaussianMixture,
    Grid,
    Prediction,
    Process,
    explicit,
    log_snr,
    solve,
)
from solvers.methods.evodiff import FINALS, INNERS, MODES

EDM = VE(sigma_max=80.01)  # some grids in the file start a rounding above 80
PROCESSES = {"edm": EDM, "vp": ContinuousVP()}


class Clipped:
    """A denoiser whose image estimates are cut to [-0.6, 0.6]."""

    def __init__(self, denoiser):
        self.denoiser, self.process = denoiser, denoiser.process

    def __call__(self, x, t):
        return Prediction.from_x0(
            self.denoiser(x, t).x0.clamp(-0.6, 0.6), x, self.process.a(t), self.process.b(t)
        )


class PublishedRuns:
    """The golden file's cases, whatever grids and step counts it holds."""

    def __init__(self):
        self.arrays = golden("evodiff")
        self.mixture = GaussianMixture(*(self.tensor(k) for k in ("weights", "means", "stds")))

    def tensor(self, key):
        return torch.from_numpy(self.arrays[key])

    def run(self, name, times, **options):
        """The result, the times of the calls and the states they saw."""
        _, denoise, lower_order_final, clip, *_ = self.arrays[f"{name}_cfg"]
        family = name.split("_")[0]
        denoiser = self.mixture.denoiser(PROCESSES[family])
        solver = EVODiff("paper", final="paper" if lower_order_final else "full", **options)
        queries = []
        result = solve(
            solver,
            Clipped(denoiser) if clip else denoiser,
            self.tensor(f"x_T_{family}"),
            Grid((*times, CLEAN) if denoise else (*times,)),
            callback=lambda step: queries.append(step.query),
        )
        return result.x0, [q.t for q in queries], torch.stack([q.x for q in queries])


@pytest.fixture(scope="module")
def published():
    return PublishedRuns()


def test_equals_the_authors_runs(published):
    names = [str(name) for name in published.arrays["names"]]
    assert names
    for name in names:
        x0, times, states = published.run(name, published.arrays[f"{name}_timesteps"])
        assert (x0 - published.tensor(f"{name}_x0")).abs().max() <= 1e-10, name
        assert len(times) == len(published.arrays[f"{name}_calls_t"])
        assert np.abs(times - published.arrays[f"{name}_calls_t"]).max() <= 1e-12, name
        if f"{name}_calls_x" in published.arrays:
            assert (states - published.tensor(f"{name}_calls_x")).abs().max() <= 1e-10, name


class Watched(EVODiff):
    """Keeps the clamped ratios of inner products of its main steps, in the order of their use."""

    seen = ()

    def _ratio(self, *args, **kwargs):
        ratio = super()._ratio(*args, **kwargs)
        Watched.seen = (*Watched.seen, ratio[..., 0, 0])
        return ratio


def test_coefficients_equal_the_authors(published):
    """Of each main step, sample and channel: ``2 eta*``, ``zeta* H`` and, above 20 steps, the
    projection on the slope.
    """
    checked = 0
    for name in map(str, published.arrays["names"]):
        theirs = published.tensor(f"{name}_proj")
        _, denoise, lower_order_final, clip, *_ = published.arrays[f"{name}_cfg"]
        family = name.split("_")[0]
        denoiser = published.mixture.denoiser(PROCESSES[family])
        times, Watched.seen = published.arrays[f"{name}_timesteps"], ()
        solver = Watched("paper", final="paper" if lower_order_final else "full")
        grid = Grid((*times, CLEAN) if denoise else (*times,))
        solve(
            solver, Clipped(denoiser) if clip else denoiser, published.tensor(f"x_T_{family}"), grid
        )
        width = 2 + theirs.shape[1]  # two balance coefficients come before them
        ours = torch.stack(Watched.seen).reshape(-1, width, *theirs.shape[2:])[:, 2:]
        assert ours.shape == theirs.shape, name
        assert (ours - theirs).abs().max() <= 1e-8, name
        checked += 1
    assert checked
    assert torch.equal(published.tensor("x_T_edm"), 80 * published.tensor("z"))
    assert torch.equal(published.tensor("x_T_vp"), published.tensor("z"))


def test_equals_the_authors_runs_on_single_precision_grids(published):
    for key in published.arrays:
        if key.endswith("_x0_default32"):
            name = key.removesuffix("_x0_default32")
            x0, *_ = published.run(name, published.arrays[f"{name}_timesteps"].astype(np.float32))
            assert (x0 - published.tensor(key)).abs().max() <= 2e-5


def test_consistent_mode_is_closer_to_the_published_exact_solutions(published):
    """On every log-SNR grid. (On coarse quadratic grids no two-step method is good.)"""
    for name in map(str, published.arrays["names"]):
        steps, denoise, _, clip, *_ = published.arrays[f"{name}_cfg"]
        if clip or steps < 8 or "logsnr" not in name:
            continue
        family = name.split("_")[0]
        exact = published.tensor(f"exact_{family}_{'zero' if denoise else 'end'}")
        times = published.arrays[f"{name}_timesteps"]
        grid = Grid((*times, CLEAN) if denoise else (*times,))
        x0 = solve(
            EVODiff(),
            published.mixture.denoiser(PROCESSES[family]),
            published.tensor(f"x_T_{family}"),
            grid,
        ).x0
        ours, theirs = median_rmse(x0, exact), median_rmse(published.tensor(f"{name}_x0"), exact)
        assert ours < theirs, (name, ours, theirs)


# -- accuracy --------------------------------------------------------------------------------------


def errors(solver, process, mixture, x, counts):
    """From the noisiest level to the first, which the log-SNR grids of ``n + 1`` nodes reach in
    ``n`` calls.
    """
    reference = exact_flow(mixture, process, x, process.end, process.first)
    grids = [Grid(log_snr(process, n + 1).times[:-1]) for n in counts]
    return [
        median_rmse(solve(solver, mixture.denoiser(process), x, grid).x0, reference)
        for grid in grids
    ]


@pytest.mark.parametrize(
    "process", [VE(), ContinuousVP(), VP.linear()], ids=["edm", "continuous-vp", "vp"]
)
def test_order_of_the_consistent_mode(process):
    """At least 2.5 between 30 and 100 calls, over the whole range of any process."""
    x = process.b(process.end) * noise(48)
    found = errors(EVODiff(), process, small_mixture(components=5), x, (30, 100))
    assert np.log(found[0] / found[1]) / np.log(100 / 30) >= 2.5, found


def unipc(mixture, x, sigmas):
    """diffusers' UniPC of order 2 from ``x = x0 + sigma eps`` over these sigmas, then to 0; the
    network sees the exact sigma.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(solver_order=2, solver_type="bh2")
    scheduler.set_timesteps(len(sigmas))
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
    scheduler.set_begin_index(0)
    x = x / (1 + sigmas[0] ** 2) ** 0.5
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        a = 1 / (1 + sigma**2) ** 0.5
        x = scheduler.step(mixture.posterior(x, a, sigma * a).eps, t, x).prev_sample
    return x


def test_consistent_mode_is_not_worse_than_unipc():
    """From 8 to 50 calls on the same log-SNR grid, on a mixture that neither was chosen on."""
    process, mixture, x = VE(), small_mixture(components=5), 80 * noise(96)
    reference = exact_flow(mixture, process, x, 80.0, CLEAN)
    for n in (8, 10, 12, 15, 20, 25, 30, 50):
        grid = log_snr(process, n)
        result = solve(EVODiff(), mixture.denoiser(process), x, grid)
        assert result.nfe == n
        assert median_rmse(result.x0, reference) <= median_rmse(
            unipc(mixture, x, grid.times[:-1]), reference
        ), n


def test_log_snr_grids_are_its_home():
    """Under DDPM's process it beats PNDM's default there, and loses to it where the last step to
    the clean image is long.
    """
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(48)
    reference = exact_flow(mixture, process, x, 999.0, CLEAN)
    for name, n, better in (
        ("log-snr", 10, True),
        ("log-snr", 20, True),
        ("trailing", 20, False),
        ("trailing", 50, False),
    ):
        grid = GRIDS[name](process, n)
        ours, pndm = (
            median_rmse(solve(s, mixture.denoiser(process), x, grid).x0, reference)
            for s in (EVODiff(), PNDM())
        )
        assert (ours < pndm) == better, (name, n, ours, pndm)


def test_bench_table():
    """The stored benchmark's mixture: not above its UniPC row at 8 to 50 calls, whichever of them
    the file holds (spec table of log-SNR grids).
    """
    arrays = golden("solvers_bench")
    mixture = GaussianMixture(
        *(torch.from_numpy(arrays[f"B_{k}"]) for k in ("weights", "means", "stds"))
    )
    x, exact = (torch.from_numpy(arrays[k]) for k in ("B_x_T", "B_exact_80_to_0"))
    row = json.loads(str(arrays["json"]))["B-logSNR"]["UniPC-2 bh2"]
    counts = [n for n in map(int, row) if 8 <= n <= 50]
    assert counts
    for n in counts:
        result = solve(EVODiff(), mixture.denoiser(VE()), x, log_snr(VE(), n))
        assert median_rmse(result.x0, exact) <= row[str(n)][1], n


# -- definition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_scaled_process_gives_the_same_image(mode):
    """The core update only knows ``b/a`` and the paper's rules only ``b`` ratios: a VP run in the
    consistent mode is its VE run.
    """
    vp, mixture, x = ContinuousVP(), small_mixture(), noise(4)
    grid = log_snr(vp, 12)
    ve_grid = Grid((*(vp.kappa(t) for t in grid.times[:-1]), CLEAN))
    ve = VE(sigma_max=ve_grid.times[0])
    runs = [
        solve(EVODiff(mode), mixture.denoiser(p), z, g).x0
        for p, z, g in ((vp, x, grid), (ve, x / vp.a(1.0), ve_grid))
    ]
    difference = (runs[0] - runs[1]).abs().max()
    assert difference < 1e-9 if mode == "consistent" else difference > 1e-4


def test_one_step_is_ddim_and_two_are_pndm():
    """From one estimate there is only one way to go; from two, both extrapolate the noise linearly
    in ``kappa``.
    """
    for process in (VE(), VP.linear(), VP.linear(zero_terminal_snr=True)):
        x = process.b(process.end) * noise(3)
        for n, other in ((1, DDIM()), (2, PNDM())):
            grid = log_snr(process, n)
            runs = [
                solve(s, small_mixture().denoiser(process), x, grid).x0 for s in (EVODiff(), other)
            ]
            assert (runs[0] - runs[1]).abs().max() < 1e-12
            plain = [
                solve(s, small_mixture().denoiser(process), x, grid).x0
                for s in (EVODiff(final="euler"), DDIM())
            ]
            assert (plain[0] - plain[1]).abs().max() < 1e-12


def test_the_last_step_is_of_second_order_on_trailing_grids():
    """Against the plain image estimate of the last noisy node: a smaller error, half of it at 50
    calls.
    """
    process, mixture, x = VP.linear(), small_mixture(components=5), noise(48)
    reference = exact_flow(mixture, process, x, 999.0, CLEAN)
    for n, share in ((8, 1), (20, 0.75), (50, 0.5)):
        grid = GRIDS["trailing"](process, n)
        found = [
            median_rmse(solve(EVODiff(final=f), mixture.denoiser(process), x, grid).x0, reference)
            for f in ("second", "euler", "full")
        ]
        assert found[0] < share * min(found[1:]), (n, found)


def test_final_steps_differ_only_at_the_end():
    mixture, x = small_mixture(), 80 * noise(2)
    grid = log_snr(VE(), 9)
    for mode in MODES:
        seen, images = {}, {}
        for final in FINALS:
            seen[final] = queries = []
            run = solve(
                EVODiff(mode, final),
                mixture.denoiser(VE()),
                x,
                grid,
                callback=lambda step, q=queries: q.append(step.query.x),
            )
            images[final] = run.x0
        assert [len(q) for q in seen.values()] == [9, 9, 9, 10]
        for final in ("paper", "euler", "full"):
            assert all(
                torch.equal(a, b) for a, b in zip(seen["second"][:8], seen[final][:8], strict=True)
            )
        for k, final in enumerate(FINALS):
            assert all((images[final] - images[other]).abs().max() > 1e-6 for other in FINALS[:k])


def test_paper_mode_raises_contrast_at_few_steps():
    """The released last step multiplies a settled image: what `final="euler"` avoids."""
    mixture, x = small_mixture(components=5), 80 * noise(64)
    reference = exact_flow(mixture, VE(), x, 80.0, CLEAN)

    def gain(final):
        image = solve(EVODiff("paper", final), mixture.denoiser(VE()), x, log_snr(VE(), 10)).x0
        return ((image * reference).sum() / (reference * reference).sum()).item()

    assert gain("paper") > 1.05
    assert abs(gain("euler") - 1) < 0.03


def test_inner_products_over_samples_ignore_channel_mixing():
    """Rotating the channels of data and start rotates the result; per-channel coefficients do not
    survive that.
    """
    shape = (3, 4, 4)
    mixture = small_mixture(shape=shape)
    spread = GaussianMixture(mixture.weights, mixture.means, torch.full((3,), 0.2))
    rotation = torch.linalg.qr(noise(1, 7, (3, 3))[0])[0]

    def turned(image):
        return torch.einsum("ij,bjhw->bihw", rotation, image)

    other = GaussianMixture(spread.weights, turned(spread.means), torch.full((3,), 0.2))
    x, grid = 80 * noise(4), log_snr(VE(), 10)
    for inner in INNERS:
        solver = EVODiff("paper", inner=inner)
        one, two = (
            solve(solver, m.denoiser(VE()), z, grid).x0
            for m, z in ((spread, x), (other, turned(x)))
        )
        difference = (turned(one) - two).abs().max()
        assert difference < 1e-9 if inner == "sample" else difference > 1e-3


def test_a_shift_of_the_process_changes_nothing():
    """Runs follow ``x - c y``."""
    eta = torch.linspace(0.001, 0.96, 200, dtype=torch.float64)
    plain, shifted = Process(1 - eta, 2 * eta.sqrt()), Process(1 - eta, 2 * eta.sqrt(), eta)
    mixture, y, x = small_mixture(), noise(3, 2), noise(3, 3)
    grid = GRIDS["log-snr"](plain, 12)
    for mode in MODES:
        one = solve(EVODiff(mode), mixture.denoiser(plain), x, grid).x0
        two = solve(
            EVODiff(mode),
            mixture.denoiser(plain),
            x + shifted.c(199) * y,
            grid,
            process=shifted,
            y=y,
        ).x0
        assert (one - two).abs().max() < 1e-9


class Saturated:
    """A network whose image estimate is the same white picture everywhere."""

    def __init__(self, denoiser):
        self.process = denoiser.process

    def __call__(self, x, t):
        return Prediction.from_x0(torch.ones_like(x), x, self.process.a(t), self.process.b(t))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "process",
    [VE(), ContinuousVP(), VP.linear(), VP.linear(zero_terminal_snr=True)],
    ids=["edm", "cvp", "vp", "zero"],
)
@pytest.mark.parametrize("counts", covering([(1, 2, 3, 4), (10, 25)], [(1, 2, 3, 4)]))
def test_degenerate_targets_stay_finite(mode, process, counts):
    """One picture, the zero picture, a saturated network: all inner products of differences
    vanish.
    """
    picture = noise(1, 8).clamp(-1, 1)
    one = torch.ones(1)
    cases = [
        (GaussianMixture(one, picture, torch.zeros(1)).denoiser(process), picture),
        (GaussianMixture(one, 0 * picture, torch.zeros(1)).denoiser(process), 0 * picture),
        (Saturated(small_mixture().denoiser(process)), 0 * picture + 1),
    ]
    x = process.b(process.end) * noise(2)
    for denoiser, target in cases:
        for n in counts:
            for inner in INNERS:
                for final in FINALS:
                    image = solve(EVODiff(mode, final, inner), denoiser, x, log_snr(process, n)).x0
                    assert torch.isfinite(image).all()
                    if mode == "consistent":
                        assert (image - target).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_starts_are_sampled_in_single_precision(dtype, mode):
    x = (80 * noise(2)).to(dtype)
    seen = []
    image = solve(
        EVODiff(mode),
        small_mixture().denoiser(VE()),
        x,
        log_snr(VE(), 12),
        callback=lambda s: seen.append(s.query.x.dtype),
    ).x0
    reference = solve(
        EVODiff(mode), small_mixture().denoiser(VE()), x.double(), log_snr(VE(), 12)
    ).x0
    assert set(seen) == {torch.float32}
    assert image.dtype == dtype
    assert (image.double() - reference).abs().max() <= torch.finfo(dtype).eps


def test_every_start_level_and_explicit_end():
    process, mixture = VP.linear(), small_mixture()
    for times, end in (([999, 500, 100], CLEAN), ([999, 500, 100], 10), ([300], 20), ([999, 3], 0)):
        grid = explicit(times, end)
        result = solve(EVODiff(), mixture.denoiser(process), noise(2), grid)
        assert result.nfe == len(times)
        assert torch.isfinite(result.x0).all()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"mode": "fast"}, "consistent, paper"),
        ({"final": "heun"}, "second, paper, euler, full"),
        ({"inner": "pixel"}, "channel, sample"),
    ],
)
def test_errors_name_what_is_accepted(kwargs, said):
    with pytest.raises(ValueError, match=said):
        EVODiff(**kwargs)


# -- continuous processes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process",
    [VE(), ContinuousVP(), ContinuousVP(beta_min=2.0, beta_max=2.0)],
    ids=["edm", "cvp", "constant"],
)
def test_continuous_processes(process):
    assert (process.a(CLEAN), process.b(CLEAN), process.c(CLEAN)) == (1, 0, 0)
    for u in (1e-4, 0.01, 0.3, 0.999, 1.0):
        t = u * process.end
        assert process.time_at(process.log_snr(t)) == pytest.approx(t, rel=1e-9)
    assert process.time_at(-100) == process.end
    assert process.time_at(float("inf")) == 0
    with pytest.raises(ValueError, match="must lie in"):
        process.a(process.end * 1.01)
    with pytest.raises(ValueError, match="whole levels"):
        GRIDS["trailing"](process, 10)
    for grid in ("log-snr", "karras", "linspace"):
        times = GRIDS[grid](process, 7).times
        assert (times[0], times[-2], times[-1]) == (
            process.end,
            pytest.approx(process.first),
            CLEAN,
        )


def test_edm_grid_is_the_published_one():
    """``sigma_i = (smax^(1/7) + i/n (smin^(1/7) - smax^(1/7)))^7``."""
    expected = (80 ** (1 / 7) + np.linspace(0, 1, 9) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert GRIDS["karras"](VE(), 9).times[:-1] == pytest.approx(expected, rel=1e-12)


def test_continuous_processes_compare_by_their_numbers():
    assert VE() == VE()
    assert hash(VE()) == hash(VE())
    assert VE() != VE(0.01)
    assert ContinuousVP() != VE()
    for make in (
        lambda: VE(0, 1),
        lambda: VE(2, 1),
        lambda: ContinuousVP(0.0),
        lambda: ContinuousVP(3, 2),
    ):
        with pytest.raises(ValueError, match="must satisfy"):
            make()
