"""What diffusers demands of every scheduler, checked for every solver of ours: it is saved and
loaded, copied at any call, given its own timesteps back, noised and read as diffusers' are.
"""

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from helpers.mixtures import noise, small_mixture

from solvers import (
    CLEAN,
    DDIM,
    SOLVERS,
    VP,
    DiffusersSolver,
    GaussianMixture,
    ProbabilityFlow,
    REDDiff,
    SolverScheduler,
    as_scheduler,
)
from solvers.grid import GRIDS
from solvers.interop import pipeline_run
from solvers.solver import Query

PROCESS = VP.linear()
MIXTURE: GaussianMixture = small_mixture()
EVERY = pytest.mark.parametrize("name", SOLVERS)


def made(name, steps=6, **options):
    scheduler = as_scheduler(SOLVERS[name](), PROCESS, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def answer(x, t):
    return MIXTURE.posterior(x, PROCESS.a(float(t)), PROCESS.b(float(t))).eps


def walk(scheduler, x, times, rng=None):
    for t in times:
        x = scheduler.step(answer(x, t), t, x, generator=rng).prev_sample
    return x


def rng():
    return torch.Generator().manual_seed(0)


@EVERY
def test_saves_and_loads(name, tmp_path):
    scheduler = made(name)
    scheduler.save_pretrained(tmp_path)
    loaded = SolverScheduler.from_pretrained(tmp_path)
    assert loaded.solver == scheduler.solver
    loaded.set_timesteps(6)
    assert torch.equal(loaded.timesteps, scheduler.timesteps)
    x = noise(2)
    one, other = (walk(s, x, s.timesteps, rng()) for s in (scheduler, loaded))
    assert (one - other).abs().max() < 1e-6


def test_any_update_rule_of_diffusers_saves_and_loads(tmp_path):
    solver = DiffusersSolver(diffusers.HeunDiscreteScheduler)
    as_scheduler(solver, PROCESS).save_pretrained(tmp_path)
    assert SolverScheduler.from_pretrained(tmp_path).solver.name == "HeunDiscreteScheduler"


@EVERY
def test_takes_its_own_timesteps(name):
    scheduler = made(name)
    again = made(name, 3)
    again.set_timesteps(timesteps=scheduler.timesteps)
    assert torch.equal(again.timesteps, scheduler.timesteps)
    x = noise(2)
    one, other = (walk(s, x, s.timesteps, rng()) for s in (scheduler, again))
    assert torch.equal(one, other)


@EVERY
def test_copies_go_on_by_themselves(name):
    """Copied at any call, both end as one run would have, each by noise of its own source."""
    scheduler, x = made(name), noise(2)
    times = list(scheduler.timesteps)
    whole = walk(scheduler, x, times, rng())
    for cut in range(1, len(times)):
        state = walk(scheduler, x, times[:cut], rng())
        twin = copy.deepcopy(scheduler)
        for s in (scheduler, twin):
            assert torch.equal(walk(s, state, times[cut:]), whole), cut


def test_copies_of_noisy_runs_have_their_own_noise():
    scheduler = as_scheduler(DDIM(eta=1.0), PROCESS)
    scheduler.set_timesteps(6)
    x, times = noise(2), list(scheduler.timesteps)
    whole = walk(scheduler, x, times, rng())
    state = walk(scheduler, x, times[:3], rng())
    twin = copy.deepcopy(scheduler)
    for s in (scheduler, twin):
        assert torch.equal(walk(s, state, times[3:]), whole)


def test_a_run_that_is_too_large_to_be_kept_goes_on_but_is_not_copied(monkeypatch):
    scheduler, x = made("ddim"), noise(2)
    times = list(scheduler.timesteps)
    whole = walk(scheduler, x, times)
    monkeypatch.setattr(pipeline_run, "KEPT", 5 * x.nbytes)  # two answers of two tensors each
    state = walk(scheduler, x, times[:2])
    copy.deepcopy(scheduler)
    state = walk(scheduler, state, times[2:3])
    with pytest.raises(ValueError, match="copy the scheduler before the run"):
        copy.deepcopy(scheduler)
    assert torch.equal(walk(scheduler, state, times[3:]), whole)


@EVERY
def test_step_keeps_shapes_types_and_samples(name):
    for dtype in (torch.float16, torch.float32):
        scheduler, x = made(name), noise(2).to(dtype)
        for t in scheduler.timesteps:
            kept, output = x.clone(), answer(x.double(), t).to(dtype)
            result = scheduler.step(output, t, x, generator=rng())
            assert torch.equal(x, kept)
            assert result.prev_sample.shape == x.shape
            assert result.prev_sample.dtype == dtype
            assert result.pred_original_sample.shape == x.shape
            x = result.prev_sample
    scheduler, x = made(name), noise(2)
    t = scheduler.timesteps[0]
    asked = (answer(x, t), t, x)
    named = scheduler.step(*asked, generator=rng()).prev_sample
    assert torch.equal(scheduler.step(*asked, generator=rng(), return_dict=False)[0], named)


def test_public_interface():
    scheduler = made("pndm")
    for words in ("set_timesteps", "step", "scale_model_input", "add_noise", "get_velocity"):
        theirs = inspect.signature(getattr(DDIMScheduler, words)).parameters
        ours = inspect.signature(getattr(SolverScheduler, words)).parameters
        lacking = set(theirs) - set(ours) - {"variance_noise"}
        assert not lacking, (words, lacking)
    assert scheduler.init_noise_sigma == 1
    assert scheduler.order == 1
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000
    x = noise(1)
    assert torch.equal(scheduler.scale_model_input(x, 999), x)


def test_levels_noise_and_velocity_are_diffusers():
    ours, theirs = made("pndm"), DDPMScheduler()
    torch.testing.assert_close(ours.betas, theirs.betas, atol=2e-7, rtol=1e-4)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    x, eps, t = noise(3), noise(3, 2), torch.tensor([0, 500, 999])
    for call in ("add_noise", "get_velocity"):
        found, wanted = (getattr(s, call)(x, eps, t) for s in (ours, theirs))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_noise_is_added_without_double_precision_on_the_device():
    """Some devices have none. The meta device says what it is asked to do and computes nothing."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                assert result.device.type == "cpu" or result.dtype != torch.float64
            return result

    x = torch.zeros(2, 3, 4, 4, device="meta")
    t = torch.tensor([3, 700])
    with NoDouble():
        for call in ("add_noise", "get_velocity"):
            assert getattr(made("pndm"), call)(x, x, t).dtype == torch.float32


def test_compatible_schedulers_take_each_others_configs():
    ours = as_scheduler(SOLVERS["pndm"]())
    assert set(SolverScheduler._compatibles) == {s.name for s in KarrasDiffusionSchedulers}
    assert DDIMScheduler in ours.compatibles
    for other in ours.compatibles:
        if "dummy" in other.__module__ or not hasattr(other(), "betas"):  # needs another package
            continue
        theirs = other.from_config(ours.config)
        back = SolverScheduler.from_config(theirs.config)
        assert isinstance(back, SolverScheduler)
        assert back.process.alphas_cumprod == pytest.approx(PROCESS.alphas_cumprod, rel=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_spacing_and_count(grid):
    for steps in (1, 2, 3, 10):
        scheduler = made("pndm", steps, grid=grid)
        assert torch.isfinite(walk(scheduler, noise(1), scheduler.timesteps)).all()


def test_a_network_that_answers_nan_is_an_error():
    scheduler, x = made("ddim", 2), noise(1)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match="NaN"):
        scheduler.step(x * float("nan"), scheduler.timesteps[1], x)


def test_solvers_without_steps_are_refused_at_once():
    class Measured:
        operator = y = torch.zeros(1)

    for solver in (ProbabilityFlow(), REDDiff(Measured())):
        with pytest.raises(ValueError, match="can't run in a pipeline"):
            as_scheduler(solver)
    with pytest.raises(ValueError, match="can't run in a pipeline"):
        SolverScheduler(solver="red-diff")


class Heun:
    """Two calls for every step but the last, and no form with one."""

    def run(self, problem, grid, x):
        process = problem.process
        for t, s in grid.pairs():
            p = yield Query(x, t)
            if s == CLEAN:
                return p.x0
            q = yield Query(process.a(s) * p.x0 + process.b(s) * p.eps, s, editable=False)
            x0, eps = (p.x0 + q.x0) / 2, (p.eps + q.eps) / 2
            x = process.a(s) * x0 + process.b(s) * eps
        return x


def test_steps_of_two_calls_are_not_cut_inside():
    scheduler = as_scheduler(Heun(), PROCESS)
    scheduler.set_timesteps(4)
    times, x = list(scheduler.timesteps), noise(2)
    scheduler.set_begin_index(2)
    assert torch.isfinite(walk(scheduler, x, times[2:])).all()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    with pytest.raises(ValueError, match="cut inside a step of"):
        walk(scheduler, x, times[1:])


def test_timesteps_that_are_no_runs():
    scheduler = made("plms")
    with pytest.raises(ValueError, match="timesteps must descend, or be all calls of PNDM"):
        scheduler.set_timesteps(timesteps=[900, 800, 800, 900])
