"""Training from a folder of full k-space: what is undersampled, what is the target, what is
refused.
"""

import h5py
import numpy as np
import pytest
import torch

from restoration.io.mri import read_slice, volume_shape
from restoration.mri import column_mask, fft2c
from restoration.mri.estimate import CONDITION_CHANNELS, condition
from restoration.mri.simulation import ring_maps, smooth_phase
from solvers.denoiser import Denoiser
from toolbox.training.examples.fastmri import MeasuredScans, rephased
from toolbox.training.loop import train
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import FastMRI

SIZE, UNIT, SIGMA, PADDING = (64, 72), 2e-5, 0.01, 4
RECIPE = """
name = "tiny"
task = "mri"
steps = 2
batch_size = 2
patch_size = 32
[network]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
fold = 2
[process]
noise_scale = 0.03
[loss]
data_std = 0.03
[fastmri]
scans = 3
kinds = ["random", "equispaced-fraction"]
accelerations = [3.0, 4.0]
center_fractions = [0.14, 0.12]
[optimizer]
warmup = 1
"""


def head(radius):
    """A smooth object, whose outer k-space is noise alone."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    return (1 - (y**2 + x**2) / radius**2).clamp(min=0) ** 2 * (
        1 + 0.4 * torch.sin(6 * x) * torch.cos(5 * y)
    )


def volume(path, coils=5, slices=3, seed=0, pad=0, change=lambda kspace: kspace, **arrays):
    """A fastMRI-like file of a drawn object, in small units as fastMRI's are; returns its true
    magnitudes.
    """
    rng = np.random.default_rng(seed)
    maps = ring_maps(coils, SIZE, rng)
    truth = torch.stack([head(0.7 + 0.1 * k) for k in range(slices)])
    images = torch.polar(truth, smooth_phase(SIZE, rng, 0.5).expand(truth.shape))
    g = torch.Generator().manual_seed(seed)
    kspace = fft2c(images[:, None] * maps)
    kspace = kspace + SIGMA * 2**0.5 * torch.randn(kspace.shape, generator=g, dtype=kspace.dtype)
    if pad:
        kspace[..., :pad] = kspace[..., -pad:] = 0
    with h5py.File(path, "w") as file:
        file["kspace"] = change((UNIT * kspace).numpy())
        for key, value in arrays.items():
            file[key] = value
    return truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fastmri")
    volume(folder / "a.h5")
    volume(folder / "b.h5", coils=4, slices=2, seed=1, pad=PADDING)
    return folder


def recipe(tmp_path, **changes):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    read = TrainingRecipe.read(path)
    return read.model_copy(update={"fastmri": read.fastmri.model_copy(update=changes)})


def test_one_slice_is_read(folder):
    assert volume_shape(folder / "b.h5") == (2, 4, *SIZE)
    with h5py.File(folder / "b.h5") as file:
        np.testing.assert_array_equal(read_slice(folder / "b.h5", 1), file["kspace"][1])
    for index in (2, -1):
        with pytest.raises(ValueError, match=f"slices 0 to 1; there is no slice {index}"):
            read_slice(folder / "b.h5", index)
    with pytest.raises(FileNotFoundError):
        read_slice(folder / "c.h5", 0)


@pytest.mark.parametrize(
    ("acceleration", "fraction"), [(2.0, 0.4), (3.0, 0.14)]
)  # 29 centre columns, as many as full data use; 10
def test_examples_are_what_a_scanner_would_have_measured(tmp_path, acceleration, fraction):
    truth = volume(tmp_path / "a.h5", slices=1, pad=PADDING)
    settings = FastMRI(
        kinds=["equispaced-fraction"], accelerations=[acceleration], center_fractions=[fraction]
    )
    scans = MeasuredScans(tmp_path, settings, 32, 0)
    for seed in range(3):
        x0, shown, measurement = scans.simulate(np.random.default_rng(seed))
        assert x0.shape == (1, 2, *SIZE)
        assert shown.shape == (1, CONDITION_CHANNELS, *SIZE)
        mask = measurement.operator.mask
        columns = mask[0]
        assert (mask == columns).all()
        drawn = [
            column_mask("equispaced-fraction", SIZE[1], acceleration, fraction, k)
            for k in range(200)
        ]
        inner = slice(PADDING, SIZE[1] - PADDING)
        assert any(torch.equal(columns[inner], d[inner]) for d in drawn)
        assert columns[:PADDING].sum() == columns[-PADDING:].sum() == 0
        # the data are the file's, on the mask, in one unit
        measured = torch.from_numpy(read_slice(tmp_path / "a.h5", 0)) * mask
        y = torch.complex(*measurement.y[0].chunk(2))
        unit = y.abs().max() / measured.abs().max()
        torch.testing.assert_close(y, measured * unit, rtol=1e-4, atol=1e-5)
        assert measurement.sigma == pytest.approx(float(unit) * UNIT * SIGMA, rel=0.25)
        # the target is the object, and it explains the data about as well as their noise allows
        found = x0.square().sum(1).sqrt()[0] / float(unit) / UNIT
        inside = head(0.5) > 0
        assert ((found - truth[0])[inside].abs().mean() / truth[0][inside].mean()) < 0.05
        residual = (
            measurement.residual(x0).square().sum() / (2 * measurement.operator.coils * mask.sum())
        ).sqrt()
        assert float(residual) < 1.5 * measurement.sigma
        # the network is shown what the task would show it
        again, scale = condition(measurement.operator, measurement.y, measurement.sigma)
        assert scale == pytest.approx(1, abs=1e-2)
        torch.testing.assert_close(again, shown, rtol=0.02, atol=0.02)


def test_phase_of_other_sensitivities():
    rng = np.random.default_rng(0)
    maps, image = ring_maps(4, SIZE, rng), torch.polar(head(0.9), smooth_phase(SIZE, rng, 1.0))
    others = maps * torch.polar(torch.ones(SIZE), smooth_phase(SIZE, rng, 2.0))
    torch.testing.assert_close(others * rephased(image, maps, others), maps * image)
    assert not rephased(image, maps, 0 * others).any()


@pytest.mark.long
def test_training_on_patches_and_through_the_sampler(tmp_path, folder):
    settings = recipe(tmp_path)
    model = train(settings, folder, tmp_path / "m")
    assert Denoiser.from_pretrained(model).condition_channels == CONDITION_CHANNELS
    path = tmp_path / "u.toml"
    path.write_text(
        RECIPE.replace("batch_size = 2", "batch_size = 1").replace(
            "[fastmri]", "[unrolled]\nsteps = 2\n[fastmri]"
        )
    )
    losses = []
    second = train(
        TrainingRecipe.read(path),
        folder,
        tmp_path / "u",
        start_from=model,
        progress=lambda step, loss: losses.append(loss),
    )
    assert np.isfinite(losses).all()
    a, b = (Denoiser.from_pretrained(m).network.state_dict() for m in (model, second))
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_sensitivities_are_estimated_once(tmp_path, folder, monkeypatch):
    cached, plain = recipe(tmp_path, cache=str(tmp_path / "maps")).fastmri, recipe(tmp_path).fastmri
    rng = np.random.default_rng
    want = MeasuredScans(folder, plain, 32, 0).simulate(rng(5))
    for _ in range(2):
        got = MeasuredScans(folder, cached, 32, 0).simulate(rng(5))
        torch.testing.assert_close(got[:2], want[:2], rtol=0, atol=0)
        # the second time it is not called
        monkeypatch.setattr("toolbox.training.examples.fastmri.espirit", None)
    kept = sorted((tmp_path / "maps").iterdir())
    assert len(kept) == 2  # from the full data, and from the centre
    kept[0].write_bytes(b"broken")
    kept[1].write_bytes(b"broken")
    with pytest.raises(ValueError, match="delete it"):
        MeasuredScans(folder, cached, 32, 0).simulate(rng(5))


def test_empty_slices_are_passed_over(tmp_path, folder):
    def last_is_empty(kspace):
        kspace[2] = 0
        return kspace

    volume(tmp_path / "a.h5", change=last_is_empty)
    scans = MeasuredScans(tmp_path, recipe(tmp_path).fastmri, 32, 0)
    assert len(scans.slices) == 3
    for seed in range(3):
        assert scans.simulate(np.random.default_rng(seed))[0].abs().max() > 0.5


def undersampled(kspace):
    kspace[..., 1::4] = 0
    return kspace


def broken(kspace):
    kspace[:, 0, 3, 3] = np.nan
    return kspace


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (undersampled, r"undersampled \(75% of its points"),
        (lambda k: k[:, 0], r"several coils"),
        (lambda k: k[:, :1], r"several coils"),
        (abs, r"several coils"),
        (lambda k: 0 * k, "only zeros"),
        (broken, "NaN"),
        (lambda k: k[:, :, :30], "smaller than patch_size 32"),
        (lambda k: k[..., :40], "a centre of 0.12 of its 40 columns is 5"),
    ],
)
def test_bad_volumes(tmp_path, change, says):
    volume(tmp_path / "a.h5", change=change)
    with pytest.raises(ValueError, match=says):
        MeasuredScans(tmp_path, recipe(tmp_path).fastmri, 32, 0)


def test_bad_folders_and_recipes(tmp_path, folder):
    with pytest.raises(ValueError, match="holds no volumes"):
        MeasuredScans(tmp_path, recipe(tmp_path).fastmri, 32, 0)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(folder / "a.h5"), "kspace")
    with pytest.raises(ValueError, match="only data inside the file"):
        MeasuredScans(tmp_path, recipe(tmp_path).fastmri, 32, 0)
    for old, new, says in (
        ("[0.14, 0.12]", "[0.14]", "pairs"),
        ("[0.14, 0.12]", "[0.14, 1.2]", "between 0 and 1"),
        ('"random"', '"poisson"', "kinds"),
        ('"mri"', '"denoise"', "in place of"),
        ("[optimizer]", '[simulation]\nkinds = ["random"]\n[optimizer]', "in place of"),
    ):
        (tmp_path / "bad.toml").write_text(RECIPE.replace(old, new))
        with pytest.raises(ValueError, match=says):
            TrainingRecipe.read(tmp_path / "bad.toml")
