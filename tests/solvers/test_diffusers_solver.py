"""diffusers' schedulers as solvers: the same images as their own loops, on our grids, processes,
tasks and corrections.
"""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers.covering import crossed
from helpers.data import smooth_picture
from helpers.exact_flow import exact_flow
from helpers.mixtures import median_rmse, noise, small_mixture
from helpers.networks import tiny_unet

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.photo.inpainting import InpaintingTask
from restoration.posterior import DDNM, DDRM
from solvers import (
    CLEAN,
    VE,
    VP,
    Denoiser,
    DiffusersSolver,
    GaussianMixture,
    Process,
    as_scheduler,
    as_solver,
    explicit,
    log_snr,
    solve,
    solver_by_name,
    trailing,
)

PROCESS = VP.linear()
MIXTURE = small_mixture(components=5)
NAMES = ("dpm-solver++-2m", "dpm-solver++-3m", "unipc", "deis", "diffusers-ddim", "diffusers-plms")

ACCEPTED = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim-clipped": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "dpm-2m": ("DPMSolverMultistepScheduler", {}),
    "dpm-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm-noise": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {}),
    "deis-3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}


class NearNoise(torch.nn.Module):
    """An untrained U-Net whose noise estimates are about the state: images keep the size of real
    ones.
    """

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t):
        return SimpleNamespace(sample=x + 0.1 * self.unet(x, t).sample)


@pytest.fixture(scope="module")
def unet():
    """A real network in double precision: what remains is the schedulers' own rounding."""
    torch.manual_seed(0)
    return NearNoise(tiny_unet().eval().double())


@torch.no_grad()
def their_loop(scheduler, unet, x, steps):
    scheduler.set_timesteps(steps)
    x, rng = x * scheduler.init_noise_sigma, torch.Generator().manual_seed(7)
    noise_source = {"generator": rng} if "generator" in scheduler.step.__code__.co_varnames else {}
    for t in scheduler.timesteps:
        x = scheduler.step(
            unet(scheduler.scale_model_input(x, t), t).sample, t, x, **noise_source
        ).prev_sample
    return x


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    crossed(ACCEPTED, ["epsilon", "v_prediction"], ("ddim", "unipc", "heun")),
)
def test_equals_diffusers_own_loop(unet, name, prediction_type):
    """On its own timesteps. Its table, products of single-precision betas, is held in double
    precision, as ours are.
    """
    class_name, options = ACCEPTED[name]
    if name == "plms" and prediction_type == "v_prediction":
        pytest.skip("diffusers' PNDM combines v's of different levels, which is no reference")
    scheduler = getattr(diffusers, class_name)(
        timestep_spacing="trailing", prediction_type=prediction_type, **options
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    process = VP(scheduler.alphas_cumprod.numpy())
    denoiser, start = Denoiser(unet, process, prediction_type), noise(2, shape=(3, 8, 8))
    for steps in (4, 5, 20):
        theirs = their_loop(scheduler, unet, start, steps)
        times = list(dict.fromkeys(scheduler.timesteps.tolist()))
        ends_noisy = options.get("final_sigmas_type") == "sigma_min" or "DEIS" in class_name
        grid = explicit(times, end=0 if ends_noisy else CLEAN)
        scale = scheduler.init_noise_sigma
        x = start if scale == 1 else start * scale / (1 + process.kappa(times[0]) ** 2) ** 0.5
        ours = solve(
            DiffusersSolver.of(scheduler),
            denoiser,
            x,
            grid,
            generator=torch.Generator().manual_seed(7),
        )
        assert (ours.x0 - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max()), steps
        assert ours.nfe == len(scheduler.timesteps)


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_equals_diffusers_on_the_leading_grid(unet, steps_offset):
    """Stable Diffusion's settings; with no offset the last of diffusers' PNDM calls changes
    nothing, and the grid ends before it.
    """
    for class_name, options in (
        ("DDIMScheduler", {"clip_sample": False}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
    ):
        scheduler = getattr(diffusers, class_name)(
            steps_offset=steps_offset, set_alpha_to_one=False, **options
        )
        process, x = VP(scheduler.alphas_cumprod.double().numpy()), noise(2, shape=(3, 8, 8))
        theirs = their_loop(scheduler, unet, x, 10)
        times = [t for t in dict.fromkeys(scheduler.timesteps.tolist()) if t > 0]
        ours = solve(scheduler, Denoiser(unet, process), x, explicit(times, end=0))
        assert (ours.x0 - theirs).abs().max() <= 1e-6


def test_a_scheduler_object_is_a_solver_and_stays_as_it_is(unet):
    scheduler = diffusers.UniPCMultistepScheduler()
    before, x, grid = dict(vars(scheduler)), noise(2, shape=(3, 8, 8)), trailing(PROCESS, 6)
    runs = [solve(scheduler, Denoiser(unet, PROCESS), x, grid).x0 for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(runs[0], solve(solver_by_name("unipc"), Denoiser(unet, PROCESS), x, grid).x0)
    assert all(vars(scheduler)[key] is value for key, value in before.items())
    solver = solver_by_name("unipc")
    assert as_solver(as_scheduler(solver)) is solver
    with pytest.raises(TypeError, match="no solver"):
        as_solver("unipc")


def test_a_scheduler_object_serves_a_task(unet):
    image = torch.from_numpy(smooth_picture(16, 16))
    mask = (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    denoiser = Denoiser(tiny_unet().eval(), PROCESS, "v_prediction")
    one, two = (
        InpaintingTask(denoiser, s, 4)(image, mask, num_samples=2, seed=3)
        for s in (diffusers.DEISMultistepScheduler(), solver_by_name("deis"))
    )
    assert torch.equal(one.samples, two.samples)
    assert torch.equal(one.mean[:, mask > 0], image[:, mask > 0])
    assert one.nfe == 8


# -- on our levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("diffusers-ddim", 0.9),
        ("dpm-solver++-2m", 1.8),
        ("dpm-solver++-3m", 2.3),
        ("unipc", 2.4),
        ("deis", 1.8),
    ],
)
def test_order_on_log_snr_grids(name, least):
    """From 20 to 60 steps between two noisy levels (above where single-precision sigmas end the
    convergence).
    """
    x = noise(32)
    reference = exact_flow(MIXTURE, PROCESS, x, PROCESS.end, PROCESS.first)
    grids = [explicit(log_snr(PROCESS, n + 1).times[:-2], end=PROCESS.first) for n in (20, 60)]
    errors = [
        median_rmse(solve(solver_by_name(name), MIXTURE.denoiser(PROCESS), x, grid).x0, reference)
        for grid in grids
    ]
    assert torch.tensor(errors[0] / errors[1]).log() / torch.tensor(3.0).log() >= least, errors


@pytest.mark.parametrize("name", NAMES)
def test_every_process_with_the_same_levels_gives_the_same_image(name):
    """VP, its VE form and a residual process: only the log-SNR counts."""
    grid, x = log_snr(PROCESS, 12), noise(4)
    vp = solve(solver_by_name(name), MIXTURE.denoiser(PROCESS), x, grid).x0
    ve = VE(sigma_max=PROCESS.kappa(grid.times[0]))
    ve_grid = explicit([PROCESS.kappa(t) for t in grid.times[:-1]])
    other = solve(
        solver_by_name(name), MIXTURE.denoiser(ve), x / PROCESS.a(grid.times[0]), ve_grid
    ).x0
    assert (vp - other).abs().max() < 1e-4
    y, c = noise(4, 2), 0.3 * PROCESS.b_table
    shifted = Process(PROCESS.a_table, PROCESS.b_table, c)
    whole = trailing(PROCESS, 12)
    plain = solve(solver_by_name(name), MIXTURE.denoiser(PROCESS), x, whole).x0
    moved = solve(
        solver_by_name(name), MIXTURE.denoiser(PROCESS), x + c[-1] * y, whole, process=shifted, y=y
    ).x0
    assert (plain - moved).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_and_few_steps(name):
    picture = noise(1, 8).clamp(-1, 1)
    dirac = GaussianMixture(torch.ones(1), picture, torch.zeros(1))
    for process in (PROCESS, VP.linear(zero_terminal_snr=True), VE()):
        for n in (1, 2, 3, 4, 7):
            grid = log_snr(process, n)
            x = process.b(process.end) * noise(2)
            image = solve(solver_by_name(name), MIXTURE.denoiser(process), x, grid)
            assert torch.isfinite(image.x0).all()
            assert image.nfe == n + (
                name == "diffusers-plms" and n > 1 + (process.a(process.end) == 0)
            )
            assert (
                solve(solver_by_name(name), dirac.denoiser(process), x, grid).x0 - picture
            ).abs().max() < 1e-3
    one = solve(solver_by_name(name), MIXTURE.denoiser(PROCESS), noise(2), trailing(PROCESS, 1)).x0
    assert torch.allclose(one, MIXTURE.denoiser(PROCESS)(noise(2), 999.0).x0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_sampled_in_single_precision(dtype):
    seen, x = [], noise(2).to(dtype)
    image = solve(
        solver_by_name("unipc"),
        MIXTURE.denoiser(PROCESS),
        x,
        log_snr(PROCESS, 8),
        callback=lambda s: seen.append(s.query.x),
    ).x0
    assert {s.dtype for s in seen} == {torch.float32}
    assert image.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_noiseless_data_are_met(name):
    mask = (torch.rand(4, 4, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    m = Measurement(
        Inpainting(mask), Inpainting(mask).A(MIXTURE.sample(2, torch.Generator().manual_seed(1)))
    )
    image = solve(
        solver_by_name(name), DDNM(MIXTURE.denoiser(PROCESS), m), noise(2), trailing(PROCESS, 10)
    ).x0
    assert m.residual(image).abs().max() < 1e-6


def test_what_draws_noise_is_refused_where_answers_are_combined():
    m = Measurement(Inpainting(torch.ones(4, 4)), noise(2), 0.1)
    with pytest.raises(
        ValueError,
        match="DDRM puts fresh noise into its answers, which DiffusersSolver would combine",
    ):
        solve(
            solver_by_name("unipc"),
            DDRM(MIXTURE.denoiser(PROCESS), m),
            noise(2),
            trailing(PROCESS, 5),
        )
    solve(
        solver_by_name("diffusers-ddim"),
        DDRM(MIXTURE.denoiser(PROCESS), m),
        noise(2),
        trailing(PROCESS, 5),
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DiffusersSolver("DimScheduler"), "has no scheduler 'DimScheduler'"),
        (
            lambda: DiffusersSolver("DDIMScheduler", {"eta": 1}),
            "has no option eta; it has num_train_timesteps",
        ),
        (lambda: DiffusersSolver.of(diffusers.PNDMScheduler()), "skip_prk_steps=True"),
        (
            lambda: DiffusersSolver.of(diffusers.DDPMScheduler(variance_type="learned_range")),
            "learned variance",
        ),
        (lambda: DiffusersSolver("FlowMatchEulerDiscreteScheduler"), "does not walk the levels"),
        (lambda: DiffusersSolver("EDMEulerScheduler"), "does not walk the levels"),
        (lambda: DiffusersSolver("LCMScheduler"), "does not walk the levels"),
        (lambda: DiffusersSolver("SASolverScheduler"), "does not walk the levels"),
        (
            lambda: DiffusersSolver("DDIMInverseScheduler").make([3.0, 2.0, 1.0], False),
            "does not visit the levels",
        ),
    ],
)
def test_errors_say_what_is_accepted(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_runs_any_number_of_steps(order):
    """Its rounds of calls fit few numbers; on its own timesteps it is diffusers' own loop, wherever
    that runs.
    """
    made = diffusers.DPMSolverSinglestepScheduler
    for steps in (1, 2, 3, 10, 30):
        theirs, x = made(solver_order=order, lower_order_final=True), noise(2)
        theirs.set_timesteps(steps)
        for t in theirs.timesteps:
            eps = MIXTURE.posterior(x, PROCESS.a(float(t)), PROCESS.b(float(t))).eps
            x = theirs.step(eps, t, x).prev_sample
        solver = DiffusersSolver("DPMSolverSinglestepScheduler", {"solver_order": order})
        grid = explicit(theirs.timesteps.tolist())
        ours = solve(solver, MIXTURE.denoiser(PROCESS), noise(2), grid)
        assert ours.nfe == steps
        assert (ours.x0 - x).abs().max() < 1e-5
