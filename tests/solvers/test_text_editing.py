"""Attention control and prompt editing in real (tiny, untrained) diffusers networks."""

import pytest
import torch
from helpers.pipeline import TOKENS, Pipeline

from solvers import VP, generators
from solvers.editing.attention_control import LocalBlend, Prompts
from solvers.editing.attention_processor import AttentionControl
from solvers.editing.text_editing import PromptBranches, PromptEdit, edit_prompt

PROCESS = VP.scaled_linear()


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline()


@pytest.fixture
def image():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def roundtrip(pipeline, image):
    with torch.no_grad():
        latent = pipeline.vae.encode(2 * image - 1).latent_dist.mode()
        return ((pipeline.vae.decode(latent.float().double()).sample + 1) / 2).clamp(0, 1)


def branches(
    pipeline,
    prompts=("a red cat", "a blue cat", "a red cat"),
    control=None,
    guidance=(1.0, 2.0, 1.0),
):
    return PromptBranches(
        pipeline.unet,
        PROCESS,
        torch.cat([pipeline.embed(p) for p in prompts]),
        pipeline.embed(""),
        guidance,
        control=control,
    )


def control(pipeline, source="a red cat", target="a blue cat", **options):
    ids = [pipeline.tokenizer(p).input_ids for p in (source, target)]
    return AttentionControl(Prompts(*ids, TOKENS), **{"num_steps": 4} | options)


def states(count=3, images=1):
    return torch.randn(
        count * images, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 2])
def test_late_control_leaves_source_and_target_alone(pipeline, images):
    x = states(3, images)
    plain = branches(pipeline)(x, 500.0).eps.chunk(3)
    state = control(pipeline, cross_fraction=0.0, self_fraction=0.0)
    with state.installed(pipeline.unet):
        controlled = branches(pipeline, control=state)(x, 500.0).eps.chunk(3)
    for k in (0, 1):
        torch.testing.assert_close(controlled[k], plain[k], rtol=1e-9, atol=1e-9)
    assert (
        controlled[2] - plain[2]
    ).abs().max() > 1e-6  # the layout asks with the target's queries


@torch.no_grad()
def test_early_control_changes_the_target_only(pipeline):
    x = states()
    plain = branches(pipeline)(x, 500.0).eps.chunk(3)
    state = control(pipeline)
    with state.installed(pipeline.unet):
        controlled = branches(pipeline, control=state)(x, 500.0).eps.chunk(3)
    torch.testing.assert_close(controlled[0], plain[0], rtol=1e-9, atol=1e-9)
    assert (controlled[1] - plain[1]).abs().max() > 1e-6
    assert (controlled[1] - controlled[0]).abs().max() > 1e-6


@torch.no_grad()
def test_each_image_of_a_batch_is_controlled_alone(pipeline):
    x = states(3, 2)
    halves = x.reshape(3, 2, 4, 16, 16)

    def answer(x):
        state = control(pipeline)
        with state.installed(pipeline.unet):
            return branches(pipeline, control=state)(x, 500.0).eps

    together = answer(x).reshape(3, 2, 4, 16, 16)
    for k in range(2):
        torch.testing.assert_close(together[:, k], answer(halves[:, k]), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_guidance_is_each_branchs_own(pipeline):
    x = states()
    free, full = (branches(pipeline, guidance=(g,) * 3)(x, 500.0).eps for g in (0.0, 1.0))
    mixed = branches(pipeline, guidance=(0.0, 1.0, 2.5))(x, 500.0).eps
    weight = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64).reshape(3, 1, 1, 1)
    torch.testing.assert_close(mixed, free + weight * (full - free), rtol=1e-9, atol=1e-9)


def test_processors_come_back(pipeline):
    own = pipeline.unet.attn_processors
    with pytest.raises(RuntimeError), control(pipeline).installed(pipeline.unet):
        raise RuntimeError
    assert pipeline.unet.attn_processors == own


@torch.no_grad()
def test_progress_and_stored_maps(pipeline):
    words = torch.zeros(TOKENS)
    words[2] = 1
    state = control(
        pipeline,
        num_steps=8,
        skipped=4,
        blend=LocalBlend(words, torch.zeros(TOKENS), 5, threshold=0.99),
    )
    with state.installed(pipeline.unet):
        for k in range(4):
            branches(pipeline, control=state)(states(), 500.0)
            assert state.progress == (5 + k) / 8
            if k == 0:
                target = states(1)
                assert torch.equal(state.blender(PROCESS)(target, target, target, 500.0), target)
    cross = [name for name in pipeline.unet.attn_processors if "attn2" in name]
    assert set(state.maps) == set(cross)
    for maps in state.maps.values():  # four calls' probabilities
        assert maps.shape[-1] == TOKENS
        assert maps.amin() >= 0
        assert maps.amax() <= 4
    source, target, layout = states().chunk(3)  # an untrained network looks almost everywhere alike
    blended = state.blender(PROCESS)(source, target, layout, 20.0)
    taken = (blended == target).all(dim=1)
    assert torch.equal(taken | (blended == layout).all(dim=1), torch.ones_like(taken))
    assert 0 < taken.double().mean() < 1
    with pytest.raises(ValueError, match="without local blend"):
        state.blender(PROCESS)(*[torch.zeros(1, 4, 128, 128)] * 3, 500.0)


@pytest.mark.parametrize("attention", [True, False])
def test_equal_prompts_return_the_picture(pipeline, image, attention):
    out = edit_prompt(
        pipeline,
        image,
        "a red cat",
        "a red cat",
        PromptEdit(num_inference_steps=4, target_guidance=1.0, control=attention),
        generator=generators(0, 1),
    )
    assert out.shape == image.shape
    assert (out - roundtrip(pipeline, image)).abs().max() < 1e-3


def test_prompts_edit_the_picture(pipeline, image):
    def run(**options):
        return edit_prompt(
            pipeline,
            image,
            "a red cat",
            "a blue cat",
            PromptEdit(num_inference_steps=4, **options),
            generator=generators(0, 1),
        )

    same, free = roundtrip(pipeline, image), run(control=False)
    controlled, weak = run(), run(strength=0.5)
    assert (free - same).abs().max() > 1e-4
    assert (controlled - free).abs().max() > 1e-5
    assert (weak - same).abs().mean() < (controlled - same).abs().mean()
    assert torch.isfinite(run(edited_words="blue", kept_words="cat")).all()
    assert torch.equal(run(), controlled)  # nothing of a run stays in the network


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edited_words": "dog"}, "'dog'"),
        ({"edited_words": "blue", "control": False}, "control=True"),
        ({"strength": 0.0}, "strength"),
        ({"cross_fraction": 2.0}, "cross_fraction"),
    ],
)
def test_refusals(pipeline, image, options, said):
    with pytest.raises(ValueError, match=said):
        edit_prompt(pipeline, image, "a red cat", "a blue cat", PromptEdit(4, **options))


def test_bad_shapes(pipeline):
    with pytest.raises(ValueError, match="image must be"):
        edit_prompt(pipeline, torch.rand(3, 8, 8), "a", "b")
    with pytest.raises(ValueError, match="divided"):
        branches(pipeline)(states(4), 5.0)
    with pytest.raises(ValueError, match="guidance"):
        branches(pipeline, guidance=(1.0,))
    for options, said in (({"inject": "target"}, "layout, source"), ({"skipped": 4}, "skipped")):
        with pytest.raises(ValueError, match=said):
            control(pipeline, **options)
    state = control(pipeline)
    with (
        torch.no_grad(),
        state.installed(pipeline.unet),
        pytest.raises(ValueError, match="6 parts"),
    ):
        branches(pipeline, prompts=("a", "b"), guidance=(1.0, 1.0), control=state)(states(2), 5.0)
