"""Solvers inside diffusers pipelines: the same images as :func:`solve`, run after run."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from helpers.covering import covering, crossed
from helpers.mixtures import noise, small_mixture
from helpers.networks import tiny_unet

from solvers import (
    CLEAN,
    DDIM,
    PNDM,
    SOLVERS,
    VP,
    Denoiser,
    DiffusersSolver,
    Grid,
    SolverScheduler,
    StepIndexed,
    as_scheduler,
    explicit,
    generators,
    randn,
    solve,
    trailing,
)

PROCESS = VP.linear()
MIXTURE = small_mixture()


def output(x, t, prediction_type="epsilon", process=PROCESS):
    a, b = process.a(float(t)), process.b(float(t))
    p = MIXTURE.posterior(x, a, b)
    return {"epsilon": p.eps, "sample": p.x0, "v_prediction": a * p.eps - b * p.x0}[prediction_type]


def loop(scheduler, x, timesteps=None, generator=None, edit=lambda x, k: x):
    for k, t in enumerate(scheduler.timesteps if timesteps is None else timesteps):
        x = edit(x, k)
        x = scheduler.step(
            output(x, t, scheduler.config.prediction_type, scheduler.process),
            t,
            x,
            generator=generator,
        ).prev_sample
    return x


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    crossed(SOLVERS, ["epsilon", "sample", "v_prediction"], ("ddim", "pndm", "evodiff")),
)
def test_equals_solve(name, prediction_type):
    solver = SOLVERS[name]()
    scheduler = as_scheduler(solver, PROCESS, prediction_type=prediction_type)
    for n in (1, 2, 3, 4, 7, 30):
        scheduler.set_timesteps(n)
        result = solve(
            solver,
            MIXTURE.denoiser(PROCESS),
            noise(2),
            trailing(PROCESS, n),
            generator=torch.Generator().manual_seed(3),
        )
        assert len(scheduler.timesteps) == result.nfe
        image = loop(scheduler, noise(2), generator=torch.Generator().manual_seed(3))
        assert (image - result.x0).abs().max() <= 1e-6


@pytest.mark.parametrize("spacing", ["log-snr", "karras", "linspace", "pndm", "leading"])
def test_other_grids_publish_the_times_asked(spacing):
    scheduler = as_scheduler(PNDM("plms"), PROCESS, spacing)
    scheduler.set_timesteps(9)
    calls = []
    grid = scheduler._grid
    result = solve(
        PNDM("plms"),
        MIXTURE.denoiser(PROCESS),
        noise(2),
        grid,
        callback=lambda step: calls.append(step.query.t),
    )
    assert scheduler.timesteps.tolist() == [float(np.float32(t)) for t in calls]
    assert (
        loop(scheduler, noise(2)) - result.x0
    ).abs().max() < 1e-3  # the network saw single-precision times


def test_second_run_needs_no_set_timesteps():
    scheduler = as_scheduler(PNDM("plms"))
    scheduler.set_timesteps(10)
    first, second = loop(scheduler, noise(2)), loop(scheduler, noise(2))
    assert torch.equal(first, second)
    interrupted = loop(scheduler, noise(2), scheduler.timesteps[:4])
    assert not torch.equal(interrupted, first)
    assert torch.equal(loop(scheduler, noise(2)), first)
    assert loop(scheduler, noise(3)).shape[0] == 3  # another batch size


def test_default_is_the_training_grid():
    scheduler = as_scheduler(PNDM())
    assert torch.equal(scheduler.timesteps, torch.arange(999, -1, -1))
    x = noise(1)
    step = scheduler.step(output(x, 999), 999, x)
    assert torch.allclose(
        step.prev_sample, solve(DDIM(), MIXTURE.denoiser(PROCESS), x, Grid((999, 998))).x0
    )


@pytest.mark.parametrize(
    "solver", [DDIM(), PNDM(), PNDM("plms"), PNDM("s-pndm"), PNDM("f-pndm")], ids=str
)
@pytest.mark.parametrize("strength", covering([0.1, 0.3, 0.5, 0.8], [0.1, 0.8]))
def test_partial_runs_start_at_their_level(solver, strength):
    """As image-to-image pipelines do it: cut the timesteps, noise the image to the first, loop."""
    scheduler = as_scheduler(solver, PROCESS, "leading")
    scheduler.set_timesteps(50)
    start = len(scheduler.timesteps) - round(50 * strength)
    timesteps = scheduler.timesteps[start:]
    scheduler.set_begin_index(start)
    clean = MIXTURE.sample(4, torch.Generator().manual_seed(0))
    x = scheduler.add_noise(clean, noise(4, 9), timesteps[:1].expand(4))
    assert torch.allclose(x, PROCESS.add_noise(clean, noise(4, 9), float(timesteps[0])))
    single = solver.single_call() if isinstance(solver, PNDM) else solver
    grid = Grid((*timesteps.tolist(), CLEAN))
    expected = solve(single, MIXTURE.denoiser(PROCESS), x, grid).x0
    assert (loop(scheduler, x, timesteps) - expected).abs().max() < 1e-12
    assert (loop(scheduler, x, timesteps) - expected).abs().max() < 1e-12  # and again
    full = solve(solver, MIXTURE.denoiser(PROCESS), noise(2), trailing(PROCESS, 5)).x0
    scheduler = as_scheduler(solver, PROCESS)
    scheduler.set_timesteps(5)
    assert (loop(scheduler, noise(2)) - full).abs().max() < 1e-12  # a whole run keeps its warm-up


def test_begin_index_tells_repeated_timesteps_apart():
    """PLMS lists 899 twice; a list cut between the two starts a run of its own at 899."""
    scheduler = as_scheduler(PNDM("plms"), PROCESS)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[:4].tolist() == [999, 899, 899, 799]
    scheduler.set_begin_index(2)
    expected = solve(
        PNDM("plms").single_call(),
        MIXTURE.denoiser(PROCESS),
        noise(1),
        trailing(PROCESS, 10).start_at(899),
    ).x0
    assert (loop(scheduler, noise(1), scheduler.timesteps[2:]) - expected).abs().max() < 1e-12
    scheduler.set_begin_index(1)  # the level is asked twice for one answer
    assert (loop(scheduler, noise(1), scheduler.timesteps[1:]) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("solver", "cut"), [(PNDM("f-pndm"), 2), (PNDM("fon"), 14)], ids=str)
def test_cut_inside_a_warm_up(solver, cut):
    """The rest is done by the same gradients without a warm-up, at the levels that are left; each
    call of a level made twice counts once.
    """
    scheduler = as_scheduler(solver)
    scheduler.set_timesteps(10)
    left = scheduler.timesteps[cut:]
    scheduler.set_begin_index(cut)
    grid = explicit(list(dict.fromkeys(left.tolist())))
    want = solve(PNDM(weights="fixed"), MIXTURE.denoiser(PROCESS), noise(2), grid).x0
    assert (loop(scheduler, noise(2), left) - want).abs().max() < 1e-12


# calls inside warm-up steps, where no run can begin
TRIALS = {
    "s-pndm": {1},
    "plms": {1},
    "f-pndm": {1, 2, 3, 5, 6, 7, 9, 10, 11},
    "fon": {1, 2, 3, 5, 6, 7, 9, 10, 11},
    "diffusers-plms": {1},
}


@pytest.mark.parametrize("name", SOLVERS)
def test_edits_count(name):
    """With a network that always names the same noise, a shift at level t moves the image by
    shift/a_t, also at probes and where a rule goes on from a state of its own; a shift of a trial
    point counts for that answer, which is the same here.
    """
    scheduler = as_scheduler(SOLVERS[name](), PROCESS)
    scheduler.set_timesteps(12)

    def image(where=None):
        x, rng = noise(1), torch.Generator().manual_seed(0)
        for k, t in enumerate(scheduler.timesteps):
            x = x + 0.1 if k == where else x
            x = scheduler.step(noise(1, 7), t, x, generator=rng).prev_sample
        return x

    plain = image()
    for where, t in enumerate(scheduler.timesteps.tolist()):
        if where in TRIALS.get(name, ()):
            assert (image(where) - plain).abs().max() < 1e-5
        elif name not in (
            "fon",
            "dpm-solver++-2m",
            "dpm-solver++-3m",
        ):  # straight lines, and slopes of image estimates, scale shifts
            shift = 0.1 / PROCESS.a(t)
            # those hold sigmas, one also states, in single precision
            exact = not isinstance(SOLVERS[name](), DiffusersSolver)
            assert (image(where) - plain - shift).abs().max() < (
                1e-10 if exact else 2e-6 * plain.abs().max()
            )
        else:
            assert (image(where) - plain).abs().min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_edits_in_place_count_too(dtype):
    def image(edit):
        scheduler = as_scheduler(PNDM(), PROCESS)
        scheduler.set_timesteps(12)
        return loop(scheduler, noise(1).to(dtype), edit=lambda x, k: edit(x) if k == 8 else x)

    assert torch.equal(image(lambda x: x.add_(0.25)), image(lambda x: x + 0.25))
    assert not torch.equal(image(lambda x: x.add_(0.25)), image(lambda x: x))


def test_edits_are_exactly_a_new_start_for_first_order():
    scheduler = as_scheduler(DDIM(), PROCESS)
    scheduler.set_timesteps(10)
    states = []

    def edit(x, k):
        x = x + 0.1 if k == 5 else x
        states.append(x)
        return x

    image = loop(scheduler, noise(1), edit=edit)
    rest = trailing(PROCESS, 10).start_at(float(scheduler.timesteps[5]))
    assert (
        image - solve(DDIM(), MIXTURE.denoiser(PROCESS), states[5], rest).x0
    ).abs().max() < 1e-12


def test_half_precision_samples_keep_a_single_precision_state():
    scheduler = as_scheduler(PNDM(), PROCESS)
    scheduler.set_timesteps(50)
    for dtype, bound in (
        (torch.float16, 1e-3),
        (torch.bfloat16, 8e-3),
    ):  # about the rounding of the last cast and the network's input
        x = noise(4).to(dtype)
        image = loop(scheduler, x)
        assert image.dtype == dtype
        assert (image.float() - loop(scheduler, x.float())).abs().mean() < bound


def test_zero_terminal_snr():
    process = VP.linear(zero_terminal_snr=True)
    scheduler = as_scheduler(PNDM("plms"), process, prediction_type="v_prediction")
    scheduler.set_timesteps(8)
    expected = solve(PNDM("plms"), MIXTURE.denoiser(process), noise(2), trailing(process, 8)).x0
    assert (loop(scheduler, noise(2)) - expected).abs().max() < 1e-6
    refuses = as_scheduler(PNDM(), process)
    refuses.set_timesteps(8)
    with pytest.raises(ValueError, match="zero SNR"):
        refuses.step(noise(1), 999, noise(1))


# -- inside pipelines ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    return tiny_unet().eval()


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), PNDM(), PNDM("plms"), PNDM("f-pndm")], ids=str
)
@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_pipeline_equals_solve(unet, pipeline_class, solver):
    # an untrained v keeps images of moderate size
    pipeline = pipeline_class(unet, DDPMScheduler(prediction_type="v_prediction"))
    pipeline.scheduler = as_scheduler(solver, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = Denoiser(unet, PROCESS, "v_prediction")
    rngs = generators(4, 2)
    with torch.no_grad():
        x0 = solve(
            solver, denoiser, randn((2, 3, 8, 8), rngs), trailing(PROCESS, 6), generator=rngs
        ).x0
    expected = (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for _ in range(2):
        images = pipeline(
            batch_size=2, generator=generators(4, 2), num_inference_steps=6, output_type="np"
        ).images
        assert np.abs(images - expected).max() <= 1e-6
    alone = pipeline(
        batch_size=1, generator=generators(5, 1), num_inference_steps=6, output_type="np"
    ).images
    assert np.abs(alone[0] - expected[1]).max() <= 1e-5


def test_pipeline_saves_and_loads(unet, tmp_path):
    pipeline = DDPMPipeline(unet, as_scheduler(PNDM("plms", order=3), VP.cosine()))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.solver == PNDM("plms", order=3)
    runs = [
        p(
            generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np"
        ).images
        for p in (pipeline, loaded)
    ]
    assert np.abs(runs[0] - runs[1]).max() < 1e-6


# -- configuration ---------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    scheduler = as_scheduler(
        DDIM(0.5), VP.linear(zero_terminal_snr=True), "karras", prediction_type="v_prediction"
    )
    scheduler.save_pretrained(tmp_path)
    for other in (
        SolverScheduler.from_pretrained(tmp_path),
        SolverScheduler.from_config(scheduler.config),
    ):
        assert other.solver == DDIM(0.5)
        assert (other.config.prediction_type, other.config.timestep_spacing) == (
            "v_prediction",
            "karras",
        )
        assert other.process.alphas_cumprod == pytest.approx(
            scheduler.process.alphas_cumprod, rel=1e-11, abs=0
        )
        assert other.process.alphas_cumprod[-1] == 0
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["solver"] == "ddim"


def test_takes_and_gives_diffusers_configs():
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
    )
    ours = SolverScheduler.from_config(theirs.config, solver="plms")
    assert ours.process == VP.scaled_linear()
    assert ours.solver == PNDM("plms")
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    assert sorted(set(ours.timesteps.tolist()), reverse=True) == theirs.timesteps.tolist()
    back = DDIMScheduler.from_config(ours.config)
    assert torch.allclose(back.alphas_cumprod, ours.alphas_cumprod, rtol=1e-4)
    trailing_of_theirs = as_scheduler(PNDM(), theirs.config)
    trailing_of_theirs.set_timesteps(10)
    assert trailing_of_theirs.timesteps[0] == 999


def test_own_levels():
    scheduler = as_scheduler(PNDM(), PROCESS)
    scheduler.set_timesteps(timesteps=[900, 500, 100.5])
    assert scheduler.timesteps.tolist() == [900, 500, 100.5]
    expected = solve(PNDM(), MIXTURE.denoiser(PROCESS), noise(1), Grid((900, 500, 100.5, CLEAN))).x0
    assert (loop(scheduler, noise(1)) - expected).abs().max() < 1e-12


def test_errors():
    scheduler = as_scheduler(PNDM())
    scheduler.set_timesteps(5)
    x = noise(1)
    with pytest.raises(ValueError, match="not among"):
        scheduler.step(x, 5, x)
    scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="next call is at timestep 799"):
        scheduler.step(x, 399, x)
    with pytest.raises(ValueError, match="eta"):
        scheduler.step(x, 799, x, eta=0.5)
    with pytest.raises(ValueError, match="not both"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="ends at t=999"):
        scheduler.set_timesteps(timesteps=[2000, 1000])
    with pytest.raises(ValueError, match="StepIndexed"):
        as_scheduler(PNDM(), StepIndexed(PROCESS.alphas_cumprod))
    with pytest.raises(ValueError, match="known: trailing"):
        as_scheduler(PNDM(), grid="uniform")
    with pytest.raises(ValueError, match="known: epsilon"):
        as_scheduler(PNDM(), prediction_type="flow")
    with pytest.raises(ValueError, match="known: auto"):
        SolverScheduler(solver="euler")
