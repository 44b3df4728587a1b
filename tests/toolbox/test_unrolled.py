"""Training through the sampler: the gradient is right, the run is the sampler's own, networks know
what they were trained for.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data import TINY_RECIPE
from PIL import Image

from restoration.mri.consistency import Alternation, Slice
from restoration.mri.sampling import column_mask
from restoration.mri.simulation import ring_maps, simulate_kspace
from restoration.mri.task import MRITask
from restoration.operators.linear import conjugate_gradient
from solvers.denoiser import Denoiser
from solvers.grid import trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from toolbox.training.examples.mri import MRIExamples
from toolbox.training.examples.photo import PhotoExamples
from toolbox.training.examples.scans import Scans
from toolbox.training.loop import measured_batches, train
from toolbox.training.network import build
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import Simulation
from toolbox.training.unrolled import unroll, unrolled_gain, unrolled_loss

UNROLLED = "[unrolled]\nsteps = 3\n"
MRI_RECIPE = (
    TINY_RECIPE.replace('"inpaint"', '"mri"').replace(
        '[condition]\nkinds = ["random", "strokes"]', ""
    )
    + UNROLLED
    + "[process]\nnoise_scale = 0.03\n[loss]\ndata_std = 0.03\n[simulation]\nsides = [32,"
    ' 48]\nkinds = ["equispaced-fraction", "poisson"]\n'
)


@pytest.fixture
def photo_recipe(tmp_path) -> TrainingRecipe:
    path = tmp_path / "unrolled.toml"
    kinds = TINY_RECIPE.replace("strokes", "blocks").replace("patch_size = 32", "patch_size = 24")
    path.write_text(kinds + UNROLLED)
    return TrainingRecipe.read(path)


@pytest.fixture
def mri_recipe(tmp_path) -> TrainingRecipe:
    path = tmp_path / "mri.toml"
    path.write_text(MRI_RECIPE)
    return TrainingRecipe.read(path)


@pytest.fixture
def slices(tmp_path):
    folder = tmp_path / "slices"
    folder.mkdir()
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    disc = (np.hypot(x, y) < 0.8) * (1 + 0.4 * np.sin(7 * x))
    np.savez(folder / "a.npz", image=np.stack([disc, disc.T]).astype(np.float32))
    return folder


def test_gradient_of_a_solution_solves_the_same_equation():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, generator=g, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(7, dtype=torch.float64)
    b = torch.randn(2, 7, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, generator=g, dtype=torch.float64)
    (conjugate_gradient(lambda v: v @ matrix, b) * weight).sum().backward()
    torch.testing.assert_close(b.grad, torch.linalg.solve(matrix, weight.T).T)


@pytest.mark.long
def test_gradient_through_sense_is_that_of_finite_differences():
    size, rng, g = (12, 10), np.random.default_rng(0), torch.Generator().manual_seed(0)
    maps = ring_maps(3, size, rng).to(torch.complex128)
    image = torch.randn(size, generator=g, dtype=torch.complex128)
    operator, y = simulate_kspace(image, maps, column_mask("equispaced", 10, 2, 0.2, 0), 0.1, g)
    x = torch.randn(1, 2, *size, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: operator.prox_l2(x, y, 3.0), x, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_unrolled_run_is_the_samplers(photo_recipe, pictures, steps):
    d = build(photo_recipe)
    examples = PhotoExamples(photo_recipe, pictures)
    batch = next(measured_batches(photo_recipe, examples, d, 0, 0))
    example = next(e for e, *_ in batch)
    asked = example.correct(d.conditioned(example.condition))
    ours = unroll(asked, tuple(example.x0.shape), steps)
    theirs = solve(DDIM(), asked, torch.zeros_like(example.x0), trailing(d.process, steps)).x0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours.requires_grad


def test_ends_of_noiseless_runs_explain_what_was_measured(photo_recipe, pictures):
    d = build(photo_recipe)
    examples = PhotoExamples(photo_recipe, pictures)
    seen = set()
    for k in range(40):
        for e in examples.measured(d, np.random.default_rng(k)):
            if e.correct is None:
                assert (e.missing == 1).all()  # of a share of the batches nothing was measured
                seen.add("nothing")
                continue
            corrected = e.correct(d.conditioned(e.condition))
            m = corrected.measurement
            with torch.no_grad():
                end = unroll(corrected, tuple(e.x0.shape), 2)
            assert m.residual(e.x0).abs().max() < 1e-5
            assert m.residual(end).abs().max() < 1e-4
            seen.add(type(m.operator).__name__)
    assert seen == {"nothing", "Inpainting", "BlockMean"}


@pytest.mark.long
def test_training_lowers_the_error_at_the_end_of_the_run(photo_recipe, pictures, tmp_path):
    recipe = photo_recipe.model_copy(update={"steps": 60, "batch_size": 4})
    held = [
        e
        for k in range(4)
        for e in PhotoExamples(recipe, pictures).measured(
            build(recipe), np.random.default_rng([9, k])
        )
    ]
    held = [e for e in held if e.correct is not None]
    before = unrolled_gain(build(recipe), held, 3)
    trained = Denoiser.from_pretrained(train(recipe, pictures, tmp_path / "m"))
    assert trained.unrolled_steps == 3
    assert unrolled_gain(trained, held, 3) > before + 0.2


def test_loss_is_relative_to_what_the_lift_leaves(photo_recipe, pictures):
    d = build(photo_recipe)
    example = next(
        e
        for e, *_ in next(
            measured_batches(photo_recipe, PhotoExamples(photo_recipe, pictures), d, 3, 0)
        )
    )

    class Lifted:  # a denoiser that adds nothing to the lift
        process, device = d.process, d.device

        def __call__(self, x, t):
            from solvers.prediction import Prediction

            lift = example.condition[:, :3]
            return Prediction.from_x0(lift, x, self.process.a(t), self.process.b(t))

    same = replace(example, correct=lambda _: Lifted())
    gap = example.missing * (example.x0 - example.condition[:, :3]) ** 2
    assert (
        gap.sum((1, 2, 3)) / (3 * example.missing.sum((1, 2, 3)))
        > photo_recipe.loss.floor * d.data_std**2
    ).all()
    assert float(unrolled_loss(d, same, 3, photo_recipe.loss)) == pytest.approx(1.0, rel=1e-5)


def test_mri_scans_train_a_network_that_knows_its_steps(mri_recipe, slices, tmp_path):
    folder = train(mri_recipe, slices, tmp_path / "mri")
    d = Denoiser.from_pretrained(folder)
    rng = np.random.default_rng(0)
    x0, _, measurement = MRIExamples(mri_recipe, slices).scans.simulate(rng)
    assert (
        measurement.residual(x0).square().mean().sqrt() < 5 * measurement.sigma + 0.05
    )  # up to the errors of the maps
    size, g = (32, 36), torch.Generator().manual_seed(0)
    maps = ring_maps(4, size, rng)
    mask = column_mask("equispaced-fraction", 36, 3, 0.2, 0)
    _, y = simulate_kspace(torch.ones(size, dtype=torch.complex64), maps, mask, 0.01, g)
    kspace = torch.complex(*y[0].chunk(2))
    one, other = (MRITask(d)(kspace, mask, maps, sigma=0.01, seed=seed) for seed in (0, 1))
    assert one.nfe == 3
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=0)  # an estimate, not a sample
    assert MRITask(d).plan() == (3, "alternation")
    assert MRITask(d).plan(2) == (4, "consistency")
    assert MRITask(d, num_inference_steps=2).plan() == (2, "consistency")
    assert MRITask(d)(kspace, mask, maps, sigma=0.01, num_samples=2).std.max() > 0


def test_folders_keep_the_steps(mri_recipe, tmp_path):
    d = build(mri_recipe)
    d.save_pretrained(tmp_path / "saved")
    assert Denoiser.from_pretrained(tmp_path / "saved").unrolled_steps == 3
    with pytest.raises(ValueError, match="unrolled_steps must be at least 1"):
        Denoiser(d.network, d.process, "v_prediction", unrolled_steps=0)


def test_photographs_are_anatomy_inside_outlines(slices, tmp_path):
    """Within smooth outlines, in other contrasts; without any the recipe is refused in words."""
    settings = {"sides": (40, 48), "photographs": 1.0, "kinds": ["random"]}
    simulation = Simulation(**settings)
    with pytest.raises(ValueError, match="photographs = 0"):
        Scans(slices, simulation, 32, 0)
    pixels = np.random.default_rng(0).integers(60, 256, (60, 90), dtype=np.uint8)
    Image.fromarray(pixels).save(slices / "photo.png")
    scans = Scans(slices, simulation, 32, 0)
    objects = [scans._object((40, 48), np.random.default_rng(k)) for k in range(20)]
    assert all(found.shape == (40, 48) and found.min() >= 0 for found in objects)
    empty = [float((found == 0).mean()) for found in objects]
    assert max(empty) > 0.4 > min(empty)
    again = scans._object((40, 48), np.random.default_rng(3))
    np.testing.assert_array_equal(again, objects[3])


def test_turns_are_proximal_steps_but_the_last(mri_recipe, slices):
    d = build(mri_recipe)
    e = MRIExamples(mri_recipe, slices).measured(d, np.random.default_rng(1))[0]
    task = e.correct(d.conditioned(e.condition))
    assert isinstance(task, Alternation)
    grid = trailing(d.process, 2)
    bound = task.bind(grid.times, torch.zeros_like)
    m, x = task.measurement, e.condition[:, :2]
    first = bound.correct(x, grid.times[0])
    gamma = d.data_std**2 / m.sigma**2
    torch.testing.assert_close(first, m.operator.prox_l2(x, m.y, gamma))
    exact = Slice(m.operator, m.operator.A(e.x0), 10.0)
    assert (
        Alternation(d, exact, prior_std=0.03)
        .bind(grid.times, torch.zeros_like)
        .correct(x, grid.times[1])
        == x
    ).all()


@pytest.mark.parametrize(
    ("text", "said"), [("steps = 0", "steps"), ("steps = 3\nnoise = 1", "noise")]
)
def test_wrong_sections_are_refused(tmp_path, text, said):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE + "[unrolled]\n" + text)
    with pytest.raises(ValueError, match=said):
        TrainingRecipe.read(path)


def test_patches_hold_whole_blocks(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace('"strokes"', '"blocks"'))
    with pytest.raises(ValueError, match="multiple of 12; got 32"):
        TrainingRecipe.read(path)


def test_other_tasks_are_not_unrolled(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        TINY_RECIPE.replace('"inpaint"', '"denoise"').replace(
            '[condition]\nkinds = ["random", "strokes"]', ""
        )
        + UNROLLED
    )
    with pytest.raises(ValueError, match="inpaint and mri"):
        TrainingRecipe.read(path)
