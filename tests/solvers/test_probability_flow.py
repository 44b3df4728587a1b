"""The adaptive solver against the authors' run, the exact flow and its own promises."""

import pytest
import torch
from helpers.data import golden
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture

from solvers import (
    GRIDS,
    PNDM,
    VE,
    VP,
    ContinuousVP,
    GaussianMixture,
    Grid,
    ProbabilityFlow,
    Process,
    Resfusion,
    solve,
)


def test_equals_the_authors_run():
    """They integrate in time and in single precision; the flow is the same."""
    arrays = golden("pndm")
    mixture = GaussianMixture(*(torch.from_numpy(arrays[k]) for k in ("weights", "means", "stds")))
    process = ContinuousVP()  # their schedule, t in [0, 1]
    x, theirs = torch.from_numpy(arrays["x_T"]), torch.from_numpy(arrays["PF_x0_float32"])
    for start in (x, x.float()):
        run = solve(ProbabilityFlow(), mixture.denoiser(process), start, Grid((1.0, 1e-3)))
        assert run.x0.dtype == start.dtype
        assert (run.x0 - theirs).abs().max() <= 1e-4
        assert run.nfe <= 2 * arrays["PF_nfe"]


@pytest.mark.parametrize(
    "process", [VP.linear(), VE(), VP.linear(zero_terminal_snr=True)], ids=["vp", "edm", "zero-snr"]
)
def test_follows_the_exact_flow_to_its_tolerance(process):
    mixture, x = small_mixture(), process.b(process.end) * noise(4)
    grid = Grid(GRIDS["log-snr"](process, 30).times[:-1])
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        seen = []
        run = solve(
            ProbabilityFlow(tolerance, tolerance),
            mixture.denoiser(process),
            x,
            grid,
            callback=lambda s, q=seen: q.append(s.query),
        )
        start = next(q for q in seen if process.a(q.t) > 0)
        errors.append(
            median_rmse(run.x0, exact_flow(mixture, process, start.x, start.t, grid.times[-1]))
        )
        calls.append(run.nfe)
    assert errors == sorted(errors, reverse=True)
    assert all(
        error < 10 * tolerance for error, tolerance in zip(errors, (1e-3, 1e-5, 1e-7), strict=True)
    ), errors
    assert calls == sorted(calls)


def test_grids_that_end_noisy_and_processes_with_an_image():
    process, mixture, x = VP.linear(), small_mixture(), noise(2)
    part = solve(
        ProbabilityFlow(1e-8, 1e-8), mixture.denoiser(process), x, Grid((800, 400, 100))
    ).x0
    assert (part - exact_flow(mixture, process, x, 800, 100)).abs().max() < 1e-6
    eta = torch.linspace(0.001, 0.96, 200, dtype=torch.float64)
    plain, shifted, y = (
        Process(1 - eta, 2 * eta.sqrt()),
        Process(1 - eta, 2 * eta.sqrt(), eta),
        noise(2, 2),
    )
    grid = GRIDS["log-snr"](plain, 12)
    one = solve(ProbabilityFlow(), mixture.denoiser(plain), x, grid).x0
    two = solve(
        ProbabilityFlow(),
        mixture.denoiser(plain),
        x + shifted.c(199) * y,
        grid,
        process=shifted,
        y=y,
    ).x0
    assert (one - two).abs().max() < 1e-9
    for process in (Resfusion.scheduled(), Resfusion.scheduled("linear", 30)):
        grid = GRIDS["leading"](process, len(process))
        start = process.start(y, noise(2, 3))
        runs = [
            solve(s, mixture.denoiser(VP.linear()), start, grid, process=process, y=y).x0
            for s in (ProbabilityFlow(), PNDM())
        ]
        assert (runs[0] - runs[1]).square().mean().sqrt() < 0.2


def test_gives_up_with_a_word():
    with pytest.raises(RuntimeError, match="max_calls"):
        solve(
            ProbabilityFlow(max_calls=20),
            small_mixture().denoiser(VP.linear()),
            noise(1),
            Grid((999, 0)),
        )
    for wrong in ({"rtol": 0}, {"atol": -1}, {"max_calls": 0}):
        with pytest.raises(ValueError, match="positive"):
            ProbabilityFlow(**wrong)
