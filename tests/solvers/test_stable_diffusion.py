"""Solvers as schedulers of Stable Diffusion: real pipelines around tiny random networks, and what
diffusers expects of its schedulers.
"""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from helpers.covering import covering
from helpers.latent import STABLE_DIFFUSION, autoencoder, conditional_unet, text_parts
from helpers.networks import tiny_unet

from solvers import (
    SOLVERS,
    VP,
    Denoiser,
    Prediction,
    PromptEdit,
    SolverScheduler,
    as_scheduler,
    edit_prompt,
    generators,
    randn,
    solve,
    solver_by_name,
    trailing,
)

STEPS = 4


# -- pipelines -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """CLIP text model, tokenizer with a vocabulary of letters, VAE and conditional U-Net, all tiny
    and untrained.
    """
    pytest.importorskip("transformers")
    return text_parts(tmp_path_factory.mktemp("tokenizer")) | {
        "unet": conditional_unet(),
        "vae": autoencoder(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def pipeline_of(made, components, solver, **config):
    theirs = DDIMScheduler(**{**STABLE_DIFFUSION, **config})
    pipeline = made(
        **components, scheduler=as_scheduler(solver, theirs.config), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_to_image(pipeline, seed, count, **options):
    return pipeline(
        ["red cat"] * count,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="np",
        generator=generators(seed, count),
        **options,
    ).images


@pytest.mark.parametrize("name", covering(SOLVERS))
def test_text_to_image(components, name):
    """The pipeline's latents are the ones that solve() finds with the guided network, run after
    run, whatever the batch.
    """
    pipeline = pipeline_of(StableDiffusionPipeline, components, solver_by_name(name))
    two = text_to_image(pipeline, 5, 2)
    assert two.shape == (2, 32, 32, 3)
    assert np.isfinite(two).all()
    assert np.abs(text_to_image(pipeline, 6, 1)[0] - two[1]).max() < 1e-4
    assert np.array_equal(text_to_image(pipeline, 5, 2), two)
    expected = guided_solution(pipeline, solver_by_name(name), 5, 2)
    assert np.abs(two - expected).max() < 1e-4


@torch.no_grad()
def guided_solution(pipeline, solver, seed, count):
    process = VP.from_diffusers(pipeline.scheduler.config)
    prompt, free = pipeline.encode_prompt("red cat", "cpu", 1, True)

    class Guided:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            prompts = torch.cat([free.expand(len(x), -1, -1), prompt.expand(len(x), -1, -1)])
            out = pipeline.unet(torch.cat([x, x]), t, encoder_hidden_states=prompts).sample
            without, given = out.chunk(2)
            v = without + 3.0 * (given - without)
            return Prediction.from_output(v, x, process.a(t), process.b(t), "v_prediction")

    rngs = generators(seed, count)
    latents = solve(
        solver, Guided(), randn((count, 4, 16, 16), rngs), trailing(process, STEPS), generator=rngs
    ).x0
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", covering(SOLVERS))
def test_image_to_image(components, name):
    """Starts inside the grid, again and again; each sample depends on its generator alone."""
    pipeline = pipeline_of(StableDiffusionImg2ImgPipeline, components, solver_by_name(name))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def run(strength, seed=5, count=2):
        return pipeline(
            ["red cat"] * count,
            image=picture.expand(count, -1, -1, -1),
            strength=strength,
            num_inference_steps=6,
            output_type="np",
            generator=generators(seed, count),
        ).images

    half = run(0.5)
    assert np.isfinite(half).all()
    assert np.array_equal(run(0.5), half)
    assert np.abs(run(0.5, 6, 1)[0] - half[1]).max() < 1e-4
    assert np.abs(half[0] - half[1]).max() > 1e-3
    whole = run(1.0)
    assert np.isfinite(whole).all()
    assert np.abs(whole - half).max() > 1e-3


@pytest.mark.parametrize("name", ["ddim", "pndm", "plms", "f-pndm", "evodiff", "resfusion", "ddcm"])
def test_pipelines_save_and_load(components, tmp_path, name):
    """With the scheduler's options; and other schedulers take its config."""
    kind = type(solver_by_name(name))
    pipeline = pipeline_of(StableDiffusionPipeline, components, kind())
    pipeline.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(
        tmp_path, scheduler=SolverScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    )
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, SolverScheduler)
    assert loaded.scheduler.solver == kind()
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert np.abs(text_to_image(loaded, 0, 1) - text_to_image(pipeline, 0, 1)).max() < 1e-4
    back = DDIMScheduler.from_config(loaded.scheduler.config)
    assert (back.config.beta_schedule, back.config.steps_offset) == ("scaled_linear", 1)


@pytest.mark.parametrize("name", covering(SOLVERS))
@pytest.mark.parametrize("made", [DDPMPipeline, DDIMPipeline])
def test_unconditional_pipelines(made, name):
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    scheduler = SolverScheduler.from_config(
        as_scheduler(solver_by_name("ddim"), prediction_type="v_prediction").config
    )
    scheduler.solver = solver_by_name(name)
    pipeline = made(unet, scheduler)
    pipeline.scheduler = scheduler  # DDIMPipeline turns its scheduler into DDIM
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2, generator=generators(4, 2), num_inference_steps=5, output_type="np"
    ).images
    rngs = generators(4, 2)
    with torch.no_grad():
        denoiser, start = Denoiser(unet, VP.linear(), "v_prediction"), randn((2, 3, 8, 8), rngs)
        x0 = solve(
            solver_by_name(name), denoiser, start, trailing(VP.linear(), 5), generator=rngs
        ).x0
    assert np.abs(images - (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < 1e-4


def test_edit_prompt_through_the_pipeline(components):
    pipeline = pipeline_of(StableDiffusionPipeline, components, solver_by_name("ddim"))
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def run(target, **options):
        return edit_prompt(
            pipeline,
            image,
            "red cat",
            target,
            PromptEdit(num_inference_steps=4, **options),
            generator=generators(0, 1),
        )

    with torch.no_grad():
        latent = pipeline.vae.encode(2 * image - 1).latent_dist.mode()
        same = (pipeline.vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    assert (run("red cat", target_guidance=1.0) - same).abs().max() < 1e-3
    edited = run("red dog")
    assert edited.shape == image.shape
    assert (edited - same).abs().max() > 1e-3
    assert torch.isfinite(run("red dog", edited_words="dog", kept_words="red")).all()


# -- what diffusers' common scheduler tests expect -------------------------------------------------


def stepped(scheduler, steps=3, dtype=torch.float32, prediction_type="epsilon"):
    """A whole run with a network that is a fixed function of the state."""
    scheduler.set_timesteps(steps)
    x, rng = (
        randn((2, 3, 4, 4), torch.Generator().manual_seed(0)).to(dtype),
        torch.Generator().manual_seed(1),
    )
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, generator=rng).prev_sample
    return x


@pytest.mark.parametrize("name", SOLVERS)
def test_config_round_trip(tmp_path, name):
    made = SolverScheduler(
        solver=name,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )
    made.save_config(tmp_path)
    loaded = SolverScheduler.from_pretrained(tmp_path)
    one, two = (
        {key: value for key, value in c.config.items() if not key.startswith("_")}
        for c in (loaded, made)
    )
    assert one == two
    assert loaded.solver == made.solver
    assert torch.equal(stepped(made), stepped(loaded))
    assert torch.equal(stepped(made), stepped(SolverScheduler.from_config(made.config)))


@pytest.mark.parametrize("name", SOLVERS)
def test_step_shapes_and_forms(name):
    """return_dict, timesteps as int and as 0-dim tensors, set_timesteps twice, dtype kept."""
    scheduler, x = (
        SolverScheduler(solver=name),
        randn((2, 3, 4, 4), torch.Generator().manual_seed(0)),
    )
    results = []
    for return_dict in (True, False):
        for whole in (True, False):
            scheduler.set_timesteps(20)
            scheduler.set_timesteps(5)
            sample, rng = x, torch.Generator().manual_seed(1)
            for t in scheduler.timesteps[:2]:
                assert t.ndim == 0
                out = scheduler.step(
                    0.5 * sample,
                    int(t) if whole else t,
                    sample,
                    generator=rng,
                    return_dict=return_dict,
                )
                if return_dict:
                    assert out.pred_original_sample.shape == x.shape
                    assert torch.equal(out.prev_sample, out[0])
                sample = out[0]
                assert (sample.shape, sample.dtype, sample.device) == (x.shape, x.dtype, x.device)
            results.append(sample)
    assert all(torch.equal(results[0], other) for other in results[1:])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert stepped(scheduler, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("name", SOLVERS)
def test_trained_betas_and_prediction_types(name):
    given = SolverScheduler(
        solver=name, trained_betas=[1e-4, 1e-3, 1e-2, 0.1, 0.3], num_train_timesteps=5
    )
    assert given.alphas_cumprod.tolist() == pytest.approx(
        np.cumprod(1 - np.array([1e-4, 1e-3, 1e-2, 0.1, 0.3])).tolist()
    )
    assert torch.isfinite(stepped(given)).all()
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        assert torch.isfinite(
            stepped(SolverScheduler(solver=name, prediction_type=prediction_type))
        ).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_at_each_samples_timestep(dtype):
    scheduler = SolverScheduler()
    clean, eps = (randn((4, 3, 8, 8), torch.Generator().manual_seed(k)).to(dtype) for k in (0, 1))
    times = torch.tensor([999, 500, 3, 0])
    noisy = scheduler.add_noise(clean, eps, times)
    assert noisy.dtype == dtype
    assert torch.isfinite(noisy).all()
    abar = scheduler.process.alphas_cumprod[times.numpy()]
    for k, level in enumerate(abar):
        expected = level**0.5 * clean[k].double() + (1 - level) ** 0.5 * eps[k].double()
        assert (noisy[k].double() - expected).abs().max() < 4 * torch.finfo(
            dtype
        ).eps * expected.abs().max()
        assert torch.equal(
            scheduler.add_noise(clean[k : k + 1], eps[k : k + 1], times[k : k + 1])[0], noisy[k]
        )


@pytest.mark.parametrize("name", covering(SOLVERS, ["evodiff", "unipc", "f-pndm", "fon", "pndm"]))
def test_inpainting_at_every_strength(components, name):
    """The pipeline blends known latents into the state between calls, at trial points too. Where
    all is known the picture comes back as the autoencoder knows it.
    """
    pipeline = pipeline_of(StableDiffusionInpaintPipeline, components, solver_by_name(name))
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def run(strength, missing):
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., :missing] = 1
        return pipeline(
            "red cat",
            image=picture,
            mask_image=mask,
            height=32,
            width=32,
            strength=strength,
            num_inference_steps=5,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images

    for strength in (0.3, 0.7, 1.0):
        assert np.isfinite(run(strength, 16)).all()
    assert np.abs(run(0.3, 0) - run(1.0, 0)).max() < 1e-3
