"""The joint latent model: the simulator mixes what it says, the network's frame is exact, training
runs in its stages.
"""

import numpy as np
import pytest
import torch
from helpers.deploy import calibrate as run_calibrate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from quant.calibration.trajectory import CalibrationSet
from quant.quantize import quantize
from restoration.hyperspectral.eigen_images import Counter, Sampling, Statistics, jointly
from restoration.hyperspectral.joint import (
    CHANNELS,
    CONDITION_CHANNELS,
    groups,
    measured_features,
    shown,
    strengths,
)
from restoration.hyperspectral.noise import add_noise
from restoration.hyperspectral.quality import mpsnr
from restoration.hyperspectral.simulation import (
    SENSORS,
    SpectralLibrary,
    abundances,
    bands_of,
    fields,
    simulate_cube,
)
from restoration.hyperspectral.task import HyperspectralTask
from solvers.denoiser import Denoiser
from solvers.methods.ddim import DDIM
from solvers.processes.process import VP
from toolbox.bench.hyperspectral import run_bench_hsi
from toolbox.training.examples.hyperspectral import LatentExamples
from toolbox.training.loop import batches, train
from toolbox.training.recipe import TrainingRecipe

RECIPE = """
name = "tiny"
task = "hsi"
steps = 4
batch_size = 2
patch_size = 32

[network]
block_out_channels = [8]
layers_per_block = 1
norm_num_groups = 4
fold = 2

[scenes]
stage = "STAGE"
scenes = 3
side = 40
bands = [24, 30]
sensors = ["finch", "vnir"]
cases = ["iid", "mixture"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A library of smooth spectra of every group and a picture."""
    folder, rng = tmp_path_factory.mktemp("library"), np.random.default_rng(0)
    wavelengths = np.arange(400, 2460, 10.0)
    labels = [
        f"{group}/{k}"
        for group in ("pervious/bare", "pervious/npv", "pervious/vegetation", "impervious")
        for k in range(3)
    ]
    centre = rng.uniform(500, 2300, (len(labels), 1))
    reflectance = 0.2 + 0.6 * np.exp(-0.5 * ((wavelengths - centre) / 300) ** 2)
    scale = {"reflectance": np.rint(1e4 * reflectance).astype(np.uint16), "scale": 1e4}
    np.savez(
        folder / "spectral_library.npz",
        wavelength_nm=wavelengths,
        label=labels,
        name=labels,
        **scale,
    )
    y, x = np.mgrid[:200, :220] / 200
    picture = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x + 7 * y)]) + 0.05 * rng.standard_normal(
        (3, 200, 220)
    )
    Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)).save(
        folder / "picture.png"
    )
    return folder


@pytest.fixture(scope="module")
def library(folder):
    return SpectralLibrary.read(folder / "spectral_library.npz")


def picture(side=32, seed=0):
    return np.random.default_rng(seed).random((3, side, side)).cumsum(2) / side


# -- the simulator ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", SENSORS)
def test_scenes_are_seeded_and_mixed_of_the_library(library, sensor):
    wavelengths = bands_of(sensor)
    a, b, c = (simulate_cube(library, picture(), wavelengths, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert a.shape == (SENSORS[sensor][2], 32, 32)
    assert (a.min() >= 0, a.max()) == (True, 1)
    # every spectrum is a mixture, of positive weights, of the library's twelve
    spectra = np.stack(
        [np.interp(wavelengths, library.wavelengths, s) for s in library.reflectance], 1
    )
    pixels = a.reshape(len(wavelengths), -1).astype(np.float64)
    weights = np.linalg.lstsq(spectra, pixels, rcond=None)[0]
    np.testing.assert_allclose(spectra @ weights, pixels, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_shares_are_positive_and_sum_to_one(seed, count):
    for share in (
        abundances(picture(16), count, np.random.default_rng(seed)),
        fields(16, 20, count, np.random.default_rng(seed)),
    ):
        assert share.min() >= 0
        np.testing.assert_allclose(share.sum(0), 1, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda lib: simulate_cube(lib, picture(), np.array([300.0, 900.0]), 0),
            "400 to 2450 nm; bands lie from 300",
        ),
        (
            lambda lib: simulate_cube(lib, np.zeros((32, 32)), bands_of("vnir"), 0),
            "picture must be",
        ),
        (lambda lib: bands_of("eyes"), "known: finch"),
        (lambda lib: lib.group("water"), "known: soil"),
        (
            lambda lib: SpectralLibrary(lib.reflectance[:1], lib.wavelengths, lib.labels[:1]).group(
                "built"
            ),
            "no spectra of group",
        ),
        (lambda lib: run_bench_hsi(["finch"], cases=["50"], methods=["noisy"]), "give --library"),
    ],
)
def test_bad_scenes(library, call, words):
    with pytest.raises(ValueError, match=words):
        call(library)


def test_bad_libraries(tmp_path):
    with pytest.raises(FileNotFoundError):
        SpectralLibrary.read(tmp_path / "none.npz")
    np.savez(tmp_path / "lacks.npz", reflectance=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="holds no array"):
        SpectralLibrary.read(tmp_path / "lacks.npz")
    np.savez(
        tmp_path / "falls.npz",
        reflectance=np.zeros((2, 3)),
        scale=1.0,
        wavelength_nm=[3.0, 2, 1],
        label=["a", "b"],
    )
    with pytest.raises(ValueError, match="rising wavelengths"):
        SpectralLibrary.read(tmp_path / "falls.npz")


def test_bench_measures_a_simulated_scene(folder):
    rows = run_bench_hsi(
        ["finch"],
        cases=["50"],
        methods=["noisy", "subspace"],
        library=folder / "spectral_library.npz",
        crop=24,
    )
    assert rows[1]["mpsnr"] > rows[0]["mpsnr"] + 5


# -- the network's frame ---------------------------------------------------------------------------


class Silent(nn.Module):
    """A network that always says v = 0: what remains is the frame around it."""

    timesteps = ()

    def forward(self, z, t):
        return torch.zeros_like(z[:, :CHANNELS])


def silent(fold=1):
    return Denoiser(Silent(), VP.cosine(), "v_prediction", condition_channels=CONDITION_CHANNELS)


SAMPLING = Sampling(DDIM(), 1, None, 1, 1, 0)


def latents(channels, side=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    size = torch.logspace(2, -0.3, channels)[:, None, None]
    clean = size * torch.nn.functional.avg_pool2d(
        4 * torch.randn(channels, side, side, generator=g), 3, 1, 1
    )
    return clean, clean + torch.randn(clean.shape, generator=g)


def test_strengths_are_those_of_the_clean_latent():
    clean, noisy = latents(6, side=200)
    std = strengths(noisy, torch.ones_like(noisy))
    torch.testing.assert_close(std[:5], clean.flatten(1).std(1)[:5], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("channels", [1, 8, 13])
def test_a_silent_network_is_the_wiener_filter_of_each_channel(channels):
    _, noisy = latents(channels)
    variance = torch.ones_like(noisy)
    like = Statistics.of(noisy.numpy(), variance.numpy())
    calls = Counter(silent())
    got = jointly(calls, noisy, variance, like, SAMPLING)
    std, middle = (
        strengths(noisy, variance)[:, None, None],
        noisy.flatten(1).median(1).values[:, None, None],
    )
    torch.testing.assert_close(
        got, middle + std**2 / (std**2 + 1) * (noisy - middle), rtol=1e-4, atol=1e-4
    )
    assert calls.count == len(groups(std.flatten().numpy()))


def test_an_exported_network_is_asked_at_the_time_it_holds():
    """At another noise level than 1 the latent is scaled to it; the frame around the network then
    gives the same answer.
    """
    _, noisy = latents(8)
    like = Statistics.of(noisy.numpy(), np.ones(noisy.shape))
    want = jointly(Counter(silent()), noisy, torch.ones_like(noisy), like, SAMPLING)
    got = jointly(
        Counter(silent(), (100.0, 450.0, 999.0)), noisy, torch.ones_like(noisy), like, SAMPLING
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@given(st.lists(st.floats(0.2, 500), min_size=1, max_size=24))
def test_groups_restore_every_channel_once(std):
    sets = groups(np.array(std))
    new = [k for members, old in sets for k in members[old:]]
    assert sorted(new) == list(range(len(std)))
    assert all(len(members) <= CHANNELS for members, _ in sets)
    assert [std[k] for k in new] == sorted(std, reverse=True)


def test_features_show_noise_at_unit_size_and_gaps():
    _, noisy = latents(8, side=64)
    variance = torch.ones_like(noisy)
    variance[2, 5, 6] = 1e6
    shown_ = measured_features(noisy, strengths(noisy, torch.ones_like(noisy)), variance)
    assert shown_.shape == (1, CONDITION_CHANNELS, 64, 64)
    assert 0.4 < float(shown_[0, CHANNELS + 7].std()) < 1.2
    assert int((shown_[0, -1] > 0).sum()) == 1
    assert shown(silent(), shown_, torch.ones(8)).data_std.shape == (8, 1, 1)


@pytest.mark.parametrize("options", [{}, {"num_inference_steps": 3, "symmetries": 2}])
def test_the_task_takes_a_joint_denoiser(library, options):
    clean = simulate_cube(library, picture(40), bands_of("finch"), 3)
    noisy = add_noise(clean, "iid", 0, 0.1)
    task = HyperspectralTask(silent(), **options)
    result = task(noisy)
    assert result.nfe == options.get("num_inference_steps", 1) * options.get("symmetries", 8)
    assert mpsnr(result.rows(), clean) > mpsnr(result.truncated(), clean)
    np.testing.assert_array_equal(task(noisy).rows(), result.rows())
    with pytest.raises(ValueError, match="takes no correction"):
        HyperspectralTask(silent(), correction="diffpir")


# -- training --------------------------------------------------------------------------------------


def recipe(tmp_path, stage="measured"):
    path = tmp_path / f"{stage}.toml"
    path.write_text(RECIPE.replace("STAGE", stage))
    return TrainingRecipe.read(path)


def test_stages_train_from_each_other(folder, tmp_path):
    prior = train(recipe(tmp_path, "prior"), folder, tmp_path / "prior")
    losses = []
    out = train(
        recipe(tmp_path),
        folder,
        tmp_path / "m",
        start_from=prior,
        progress=lambda step, loss: losses.append(loss),
    )
    assert np.isfinite(losses).all()
    trained = Denoiser.from_pretrained(out)
    assert trained.condition_channels == CONDITION_CHANNELS
    assert not trained.residual
    noisy = add_noise(
        simulate_cube(
            SpectralLibrary.read(folder / "spectral_library.npz"), picture(40), bands_of("vnir"), 0
        ),
        "mixture",
        0,
    )
    assert np.isfinite(HyperspectralTask(trained, symmetries=1)(noisy).rows()).all()
    other = recipe(tmp_path).model_copy(
        update={"network": recipe(tmp_path).network.model_copy(update={"block_out_channels": [16]})}
    )
    with pytest.raises(ValueError, match="other weights"):
        train(other, folder, tmp_path / "other", start_from=prior)


@pytest.mark.long
def test_a_joint_model_is_calibrated_and_runs_in_eight_bits(folder, tmp_path):
    """On simulated scenes of both sensors; on another scene the 8-bit network's cube is the float
    one's to a percent.
    """
    model = train(recipe(tmp_path), folder, tmp_path / "m")
    with pytest.raises(ValueError, match=r"spectral_library.npz; got None"):
        run_calibrate(str(model), None, tmp_path / "no.safetensors", task="hsi")
    with pytest.raises(ValueError, match="joint latents"):
        run_calibrate("grey", folder, tmp_path / "no.safetensors", task="hsi")
    figures = run_calibrate(
        str(model), folder, tmp_path / "c.safetensors", task="hsi", steps=[1], count=4, side=32
    )
    assert figures["samples"] > 0
    denoiser = Denoiser.from_pretrained(model)
    library = SpectralLibrary.read(folder / "spectral_library.npz")
    noisy = add_noise(simulate_cube(library, picture(32), bands_of("vnir"), 7), "iid", 5, 0.1)
    exact = HyperspectralTask(denoiser, symmetries=1)(noisy).rows()
    denoiser.network = quantize(
        denoiser.network, CalibrationSet.load(tmp_path / "c.safetensors", denoiser.network)
    )
    coded = HyperspectralTask(denoiser, symmetries=1)(noisy).rows()
    change = np.linalg.norm(coded - exact) / np.linalg.norm(exact)
    assert 0 < change < 0.01
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.long
def test_training_lowers_the_loss(folder, tmp_path):
    losses = []
    longer = recipe(tmp_path).model_copy(update={"steps": 60, "batch_size": 4})
    longer = longer.model_copy(
        update={
            "optimizer": longer.optimizer.model_copy(update={"warmup": 5, "learning_rate": 3e-3})
        }
    )
    train(longer, folder, tmp_path / "m", progress=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-15:]) < 0.95 * np.mean(losses[:10])


def test_batches_hold_what_the_subspace_left(folder, tmp_path):
    r = recipe(tmp_path)
    examples = LatentExamples(r, folder)
    clean, measured, variance, std, t, _ = next(batches(r, examples, 0, 0, "cpu"))
    assert clean.shape == measured.shape == variance.shape == (2, CHANNELS, 32, 32)
    process = VP.cosine()
    at_measured = [process.kappa(float(v)) for v in t]
    assert all(0.05 - 1e-3 <= kappa <= 30.1 for kappa in at_measured)
    for k in range(2):
        real = std[k] > 0.2
        noise = (measured - clean)[k, real] / variance[k, real].sqrt()
        assert 0.7 < float(noise.std()) < 1.5


def test_a_folder_without_spectra_is_refused(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "picture.png").write_bytes((folder / "picture.png").read_bytes())
    with pytest.raises(ValueError, match=r"no spectral_library\.npz"):
        train(recipe(tmp_path), tmp_path / "data", tmp_path / "m")
