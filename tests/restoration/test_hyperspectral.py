"""The subspace finds what was put in; the task is indifferent to units, order of bands and blocks,
and refuses what it can't restore.
"""

import tracemalloc

import numpy as np
import pytest
import torch

from restoration.hyperspectral.eigen_images import Statistics
from restoration.hyperspectral.garbage import garbage_bands
from restoration.hyperspectral.noise import add_noise
from restoration.hyperspectral.quality import mpsnr, sam
from restoration.hyperspectral.subspace import (
    data_mask,
    fit_subspace,
    learn_bands,
    noise_edge,
    weighted_coefficients,
)
from restoration.hyperspectral.task import HyperspectralTask, fit_rows
from restoration.io.cubes import Cube, read_cube, write_cube
from solvers.methods.ddim import DDIM
from solvers.prediction import Prediction
from solvers.processes.process import VP


class Smooth:
    """The posterior mean for pictures whose Fourier coefficients are independent Gaussians of
    variance s^2 / (1 + |f/f0|^2)^2: exact, and an image prior worth the name."""

    fold = multiple = 1
    value_range = (-1.0, 1.0)
    device = "cpu"
    condition_channels = 0

    def __init__(self):
        self.process = VP.cosine()
        self.network = None

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        fy, fx = (torch.fft.fftfreq(n, dtype=x.dtype) for n in x.shape[-2:])
        power = 25 / (1 + (fy[:, None] ** 2 + fx**2) / 0.03**2) ** 2
        x0 = torch.fft.ifft2(torch.fft.fft2(x) * (a * power / (a**2 * power + b**2))).real
        return Prediction(x0, (x - a * x0) / b)


def scene(bands=40, height=48, width=40, rank=3, seed=0):
    """``(B, H, W)`` in about [0, 1]: ``rank`` smooth spectra with smooth abundances."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    maps = np.stack(
        [
            0.5 + 0.5 * np.sin(2 * np.pi * (p[0] * x + p[1] * y) + p[2])
            for p in rng.uniform(0.3, 1.5, (rank, 3))
        ]
    )
    band = np.linspace(0, 1, bands)
    spectra = np.stack(
        [0.2 + 0.8 * np.exp(-0.5 * ((band - c) / 0.25) ** 2) for c in np.linspace(0.1, 0.9, rank)]
    )
    return np.tensordot(spectra.T, maps, 1) / rank


TASK = HyperspectralTask(Smooth(), symmetries=1)


def test_weighted_coefficients_are_least_squares():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 3)))[0]
    z, used = rng.normal(size=(12, 4, 5)), rng.random((12, 4, 5)) < 0.7
    used[:, 0] = True
    a, variance = weighted_coefficients(basis, z, used, ridge=0.0)
    for i, j in np.ndindex(4, 5):
        e = basis[used[:, i, j]]
        np.testing.assert_allclose(
            a[:, i, j], np.linalg.lstsq(e, z[used[:, i, j], i, j], rcond=None)[0], atol=1e-9
        )
        np.testing.assert_allclose(variance[:, i, j], np.diag(np.linalg.inv(e.T @ e)), rtol=1e-9)


def test_subspace_finds_rank_levels_and_spectra():
    clean = scene()
    noisy = add_noise(clean, "non-iid", 0) * 300 + 20
    model = fit_subspace(noisy, np.ones(noisy.shape, bool))
    assert model.rank == 3
    np.testing.assert_allclose(model.sigma, (noisy - 300 * clean - 20).std((1, 2)), rtol=0.08)
    truth = (300 * clean + 20) / model.sigma[:, None, None]
    truth = (truth - truth.mean((1, 2), keepdims=True)).reshape(40, -1)
    missed = truth - model.basis @ (model.basis.T @ truth)
    assert (missed**2).sum() < 0.02 * (truth**2).sum()
    assert not model.stripes.any() or (model.stripes != 0).mean() < 0.005


def test_stripes_are_found_and_removed():
    clean = scene()
    rng = np.random.default_rng(1)
    offsets = np.zeros((40, 40))
    for band in range(0, 40, 3):
        offsets[band, rng.choice(40, 5, replace=False)] = rng.choice([-1, 1], 5) * rng.uniform(
            0.1, 0.25, 5
        )
    noisy = add_noise(clean, "iid", 1, 0.05) + offsets[:, None, :]
    model = fit_subspace(noisy, np.ones(noisy.shape, bool))
    assert model.rank == 3
    found = model.stripes * model.sigma[:, None]
    assert ((found != 0) == (offsets != 0)).mean() > 0.995
    assert np.abs(found - offsets).max() < 5 * 0.05 * 1.2533 / np.sqrt(48)


@pytest.mark.parametrize("axes", [(2,), (1, 2)])
def test_stripes_of_rows_and_columns_are_found_and_removed(axes):
    clean = scene()
    rng = np.random.default_rng(2)
    offsets = np.zeros(clean.shape)
    for band in range(0, 40, 3):
        for axis in axes:
            lines = rng.choice(40, 5, replace=False)
            size = rng.choice([-1, 1], 5) * rng.uniform(0.1, 0.25, 5)
            if axis == 2:
                offsets[band, lines] += size[:, None]
            else:
                offsets[band][:, lines] += size
    noisy = add_noise(clean, "iid", 1, 0.05)
    plain, striped = TASK(noisy), TASK(noisy + offsets)
    assert striped.model.rank == 3
    assert striped.striped_rows == pytest.approx(70, abs=6)
    assert plain.striped_rows < 6
    # nothing of the stripes is left: the result is the one without them, but for what little the
    # offsets' own estimates cost
    assert mpsnr(striped.rows(), clean) > mpsnr(plain.rows(), clean) - 0.3
    truth = offsets - offsets.mean((1, 2), keepdims=True)
    left = striped.rows() - plain.rows()
    assert abs((left * truth).sum()) < 0.01 * (truth**2).sum()


def test_a_weak_spectrum_in_whole_columns_is_no_stripe():
    rng = np.random.default_rng(4)
    bands, height, width = 60, 48, 48
    strong = np.linspace(1, 2, bands)[:, None, None] * (0.5 + 0.5 * np.sin(np.arange(width) / 9))
    # mostly seen by a third of the bands
    shape = np.where(np.arange(bands) < 40, 0.1, 1.0)[:, None, None]
    place = np.zeros((height, width))
    place[:, -3:] = place[8:32, :26] = 1
    weak = 1.3 * shape * place
    clean = 5 * strong + weak
    model = fit_subspace(clean + rng.standard_normal(clean.shape), np.ones(clean.shape, bool))
    assert model.rank == 2
    assert (model.stripes != 0)[:, -3:].mean() < 0.02


def test_axes_are_principal_about_zero_light():
    clean = scene() + 0.2
    noisy = add_noise(clean, "iid", 3, 0.02)
    model = fit_subspace(noisy, np.ones(noisy.shape, bool))
    a = (
        model.project(noisy, np.ones(noisy.shape, bool))[0]
        + (model.basis.T @ model.mean)[:, None, None]
    )
    moment = np.tensordot(a, a, ((1, 2), (1, 2))) / a[0].size
    assert (np.diff(np.diag(moment)) < 0).all()
    size = np.sqrt(np.diag(moment))
    np.testing.assert_allclose(moment / np.outer(size, size), np.eye(model.rank), atol=0.01)
    np.testing.assert_allclose(model.basis.T @ model.basis, np.eye(model.rank), atol=1e-9)


def test_light_gathers_in_one_eigen_image():
    """One spectrum under light of fine structure, another with broad fields: only one eigen-image
    is left to be fine.
    """
    rng = np.random.default_rng(0)
    band = np.linspace(0, 1, 40)[:, None, None]
    broad = 1 / (1 + np.exp(-(np.arange(48) - 24) / 3))
    light = 1 + 0.2 * rng.standard_normal((48, 48))
    clean = (1 + band + 0.5 * np.sin(4 * band) * broad) * light
    noisy = add_noise(clean, "iid", 0, 0.1)
    model = fit_subspace(noisy, np.ones(noisy.shape, bool))
    assert model.rank == 2
    truth = np.tensordot(model.basis.T, clean / model.sigma[:, None, None], 1)
    # of neighbours in a column, where the field is constant
    fine = [np.diff(image, axis=0).var() / 2 for image in truth]
    assert fine[1] < 0.1 * fine[0]


def test_statistics_turn_with_the_axes():
    rng = np.random.default_rng(1)
    images = (
        np.linalg.qr(rng.standard_normal((3, 3)))[0]
        @ (np.array([9, 3, 1])[:, None] * rng.standard_normal((3, 400)))
        + 2
    )
    like = Statistics.of(images.reshape(3, 20, 20), np.ones((3, 20, 20)))
    axes = like.axes()
    turned = like.along(axes)
    np.testing.assert_allclose(
        np.cov(turned.images.flatten(1).numpy()),
        np.diag(turned.images.flatten(1).var(1)),
        atol=1e-3,
    )
    np.testing.assert_allclose(turned.level, 1, rtol=1e-5)
    np.testing.assert_allclose(turned.variance, 1, rtol=1e-5)
    np.testing.assert_allclose(torch.tensordot(axes, turned.images, 1), like.images, atol=1e-4)


@pytest.mark.parametrize(("bands", "pixels"), [(20, 400), (60, 300), (100, 80)])
def test_white_noise_rarely_reaches_the_edge(bands, pixels):
    rng = np.random.default_rng(bands)
    largest = [
        np.linalg.norm(rng.standard_normal((bands, pixels)), 2) ** 2 / pixels for _ in range(200)
    ]
    assert np.mean(np.array(largest) > noise_edge(bands, pixels)) <= 0.03
    assert np.mean(largest) > 0.85 * noise_edge(bands, pixels)  # and no higher than needed


def test_missing_entries_cost_next_to_nothing():
    clean = scene()
    noisy = add_noise(clean, "iid", 2, 0.1)
    holes = noisy.copy()
    rng = np.random.default_rng(2)
    holes[rng.random(noisy.shape) < 0.02] = np.nan  # dead pixels of single bands
    holes[5:9, :, 7] = np.nan
    whole, partial = TASK(noisy), TASK(holes)
    assert mpsnr(partial.rows(), clean) > mpsnr(whole.rows(), clean) - 0.5


def test_outliers_are_left_out():
    clean = scene()
    noisy = add_noise(clean, "iid", 3, 0.05)
    rng = np.random.default_rng(3)
    hit = rng.random(noisy.shape) < 0.01
    spiked = np.where(hit, noisy + rng.choice([-1.0, 1.0], noisy.shape), noisy)
    result = TASK(spiked)
    assert result.outliers == pytest.approx(hit.mean(), rel=0.1)
    assert mpsnr(result.rows(), clean) > mpsnr(TASK(noisy).rows(), clean) - 0.3


def test_bands_of_impulses_are_learned_from_the_others():
    clean = scene()
    noisy = add_noise(clean, "impulse", 4)
    valid, dead = data_mask(noisy, np.ones(noisy.shape, bool))
    model = fit_subspace(noisy, valid)
    lost = ~model.trusted
    assert lost.sum() == 13
    np.testing.assert_array_equal(lost, dead.mean((1, 2)) > 0.05)
    a, _, _ = model.project(noisy, valid)
    learned = learn_bands(model, noisy, np.ones(noisy.shape, bool), a).spectra(a)
    truth = clean[lost].mean((1, 2))
    naive = np.array([band[v].mean() for band, v in zip(noisy[lost], valid[lost], strict=True)])
    bias = np.abs(learned[lost].mean((1, 2)) - truth)
    assert bias.mean() < 0.25 * np.abs(naive - truth).mean()


@pytest.mark.parametrize("case", ["iid", "stripe", "deadline", "impulse", "mixture"])
def test_every_noise_case_is_restored_better_than_the_subspace_alone(case):
    clean = scene()
    noisy = add_noise(clean, case, 6, 50 / 255 if case == "iid" else None)
    result = TASK(noisy)
    assert mpsnr(result.rows(), clean) > mpsnr(result.truncated(), clean) + 1
    assert mpsnr(result.rows(), clean) > mpsnr(noisy, clean) + 12
    assert sam(result.rows(), clean) < 0.35 * sam(noisy, clean)
    assert result.nfe == (2 if result.model.rank > 1 else 1) * result.model.rank


def test_units_and_order_of_bands_do_not_matter():
    noisy = add_noise(scene(), "non-iid", 7)
    plain = TASK(noisy).rows()
    np.testing.assert_allclose(TASK(1000 * noisy).rows(), 1000 * plain, rtol=1e-3, atol=0.5)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(TASK(noisy[order]).rows(), plain[order], atol=2e-3)


def test_blocks_of_rows_give_the_same_cube():
    noisy = add_noise(scene(height=70), "non-iid", 8)
    whole, parts = TASK(noisy), HyperspectralTask(Smooth(), symmetries=1, block=16)(noisy)
    np.testing.assert_allclose(parts.rows(), whole.rows(), atol=1e-6)
    np.testing.assert_array_equal(
        np.concatenate([whole.rows(slice(0, 30)), whole.rows(slice(30, 70))], 1), whole.rows()
    )


def test_large_cubes_are_fitted_to_some_of_their_rows():
    assert len(fit_rows(90, 100, 100)) == 90
    rows = fit_rows(5000, 1000, 80)
    assert len(rows) == 48
    assert rows[0] == 0
    assert rows[-1] == 4999


class Pointwise(Smooth):
    """The posterior mean of white pictures: no pixel knows its neighbours, so strips and tiles
    can't matter.
    """

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        x0 = a * 0.2 / (a**2 * 0.2 + b**2) * x
        return Prediction(x0, (x - a * x0) / b)


def test_strips_are_blended_into_the_same_cube(monkeypatch):
    noisy = add_noise(scene(height=200), "stripe", 8)
    task = HyperspectralTask(Pointwise(), symmetries=1, tile=4096, overlap=16)
    whole = task(noisy)
    monkeypatch.setattr("restoration.hyperspectral.task.STRIP_PIXELS", 64 * 40)
    parts = task(noisy)
    assert parts.nfe == 4 * whole.nfe
    assert (parts.dead, parts.outliers, parts.striped_rows) == (
        whole.dead,
        whole.outliers,
        whole.striped_rows,
    )
    np.testing.assert_allclose(parts.rows(), whole.rows(), atol=1e-5)


@pytest.mark.long
def test_memory_does_not_grow_with_the_cube(monkeypatch, tmp_path):
    for name, size in (
        ("FIT_ENTRIES", 40 * 64 * 32),
        ("BLOCK_ENTRIES", 40 * 64 * 16),
        ("KEPT_ENTRIES", 1000),
        ("STRIP_PIXELS", 64 * 64),
    ):
        monkeypatch.setattr(f"restoration.hyperspectral.task.{name}", size)
    task = HyperspectralTask(Pointwise(), symmetries=1, overlap=16, tile=4096)
    peaks = []
    for height in (256, 1024):
        path, values = tmp_path / f"{height}.hdr", scene(height=height, width=64).astype(np.float32)
        write_cube(
            path,
            Cube(values),
            lambda rows, v=values: add_noise(v[:, rows], "iid", rows.start, 0.05),
        )
        del values
        cube = read_cube(path)
        tracemalloc.start()
        result = task(cube)
        write_cube(tmp_path / "out.hdr", cube, result.rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    clean = scene(height=1024, width=64)
    assert mpsnr(read_cube(tmp_path / "out.hdr").values, clean) > mpsnr(cube.values, clean) + 5


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 4}, {"num_inference_steps": 8, "correction": "diffpir"}]
)
def test_solvers_and_corrections_run_and_repeat(options):
    noisy = add_noise(scene(), "iid", 9, 0.1)
    task = HyperspectralTask(Smooth(), DDIM(), symmetries=1, **options)
    a, b = task(noisy, seed=1), task(noisy, seed=1)
    np.testing.assert_array_equal(a.rows(), b.rows())
    assert a.nfe == 2 * options["num_inference_steps"] * a.model.rank
    assert mpsnr(a.rows(), scene()) > mpsnr(a.truncated(), scene())


def test_symmetries_are_undone():
    noisy = add_noise(scene(), "iid", 10, 0.1)
    # the closed-form prior is the same in all directions: turning and turning back changes nothing
    np.testing.assert_allclose(
        HyperspectralTask(Smooth(), symmetries=8)(noisy).rows(), TASK(noisy).rows(), atol=1e-4
    )


@pytest.mark.parametrize("bands", [1, 2, 5, 500])
def test_any_number_of_bands(bands):
    clean = scene(max(bands, 3), 24, 24)[:bands]
    noisy = add_noise(clean, "iid", 11, 0.1)
    result = TASK(noisy)
    assert result.rows().shape == clean.shape
    assert mpsnr(result.rows(), clean) > mpsnr(noisy, clean) + 3


def test_negative_values_integers_and_missing_values():
    clean = scene()
    noisy = np.rint(4000 * add_noise(clean, "iid", 12, 0.1) - 2000).astype(np.int16)
    noisy[:, 3:6, 3:6] = -9999
    result = TASK(Cube(noisy, no_data=-9999.0))
    inside = np.ones(clean.shape[1:], bool)
    inside[3:6, 3:6] = False
    assert mpsnr((result.rows()[:, inside][:, None] + 2000) / 4000, clean[:, inside][:, None]) > 30
    assert np.isfinite(result.rows()).all()
    flat = noisy.astype(np.float32)
    flat[7] = 5  # a constant band stays what it is
    np.testing.assert_allclose(TASK(np.where(flat == -9999, np.nan, flat)).rows()[7], 5, atol=1e-3)


@pytest.mark.parametrize(
    ("cube", "options", "words"),
    [
        (np.zeros((3, 16, 16)), {}, "constant in every band"),
        (np.full((3, 16, 16), np.nan), {}, "no data"),
        (np.zeros((16, 16)), {}, "must be"),
        (np.zeros((3, 4, 16)), {}, "at least 8 x 8"),
        (np.ones((3, 16, 16), complex), {}, "real numbers"),
        (scene(3, 16, 16), {"rank": 4}, "rank must lie between 1 and the number of bands, 3"),
        (scene(3, 16, 16), {"rank": 0}, "rank"),
        (scene(3, 16, 16), {"sigma": -1.0}, "sigma must be"),
        (scene(3, 16, 16), {"sigma": np.ones(2)}, "one per band"),
        (scene(3, 16, 16), {"dead": np.ones((2, 2), bool)}, "must fit the cube"),
        (scene(3, 16, 16), {"dead": np.ones((3, 16, 16), bool)}, "no data"),
    ],
)
def test_bad_input(cube, options, words):
    with pytest.raises(ValueError, match=words):
        TASK(cube, **options)


def test_bad_settings():
    for options, words in (
        ({"symmetries": 3}, "symmetries"),
        ({"num_inference_steps": 0}, r"at least 1|from 1 to"),
        ({"axes": 3}, "axes must be 1 or 2"),
        ({"correction": "magic"}, "unknown; known"),
        ({"channels": 0}, "channels"),
        ({"caution": -1.0}, "caution"),
        ({"block": 1}, "block"),
    ):
        with pytest.raises(ValueError, match=words):
            HyperspectralTask(Smooth(), **options)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_noise_of_bands_that_hold_a_component_by_themselves(seed):
    """A material that shows in eight bands, of which two are clean and the others noisy, striped or
    full of impulses: the fit rests on the two, follows their noise, and their residual holds less
    of it. An estimate that forgets this shrinks from round to round.
    """
    rng, bands, side = np.random.default_rng(seed), 48, 96
    y, x = np.mgrid[:side, :side] / side
    light = 0.5 + 0.25 * np.sin(9 * x + 4 * y) + 0.15 * np.cos(13 * y - 5 * x)
    material = np.sin(11 * x) * np.cos(7 * y) + 0.3 * np.sin(23 * x * y) > 0.2
    spectrum, dip = (
        0.5 + 0.2 * np.sin(np.arange(bands) / 7),
        np.where(np.arange(bands) < 8, 0.45, 0),
    )
    clean = (light * (spectrum[:, None, None] - material * dip[:, None, None])).clip(0, 1)
    sigma = np.full(bands, 50 / 255)
    sigma[[5, 6]], sigma[3] = 10 / 255, 30 / 255
    noisy = clean + sigma[:, None, None] * rng.standard_normal(clean.shape)
    for band in (1, 6):
        columns = rng.choice(side, 14, replace=False)
        noisy[band][:, columns] -= rng.uniform(-0.25, 0.25, 14)
    for band in (3, 5):
        noisy[band][:, rng.choice(side, 12, replace=False)] = 0
    for band in (0, 2, 4, 7):
        hit = rng.random(noisy[band].shape) < 0.5
        noisy[band] = np.where(hit, rng.random(noisy[band].shape) < 0.5, noisy[band].clip(0, 1))
    model = fit_subspace(noisy, data_mask(noisy, np.isfinite(noisy))[0])
    assert model.rank == 2
    assert np.abs(model.sigma[[5, 6]] / sigma[[5, 6]] - 1).max() < 0.08


@pytest.mark.parametrize("garbage", ["shared", "few", "white"])
@pytest.mark.parametrize("told", [True, False])
def test_bad_bands_cost_good_ones_nothing(garbage, told):
    """The same as if they weren't there, whether the file says so or their numbers do."""
    rng = np.random.default_rng(0)
    clean = scene(40, 48, 40)
    noisy = clean + 0.05 * rng.standard_normal(clean.shape)
    bad = np.zeros(40, bool)
    bad[[3, 4, 5, 17, 18, 30, 39]] = True
    plane = 1e4 * rng.standard_normal((48, 40))
    for b in np.flatnonzero(bad):
        own = 1e4 * rng.standard_normal((48, 40))
        few = np.where(rng.random((48, 40)) < 0.02, own, 0)
        noisy[b] = {"shared": plane, "few": few, "white": own}[garbage]
    alone = TASK(noisy[~bad]).rows()
    found = TASK(Cube(noisy, bad=bad if told else None))
    assert garbage_bands(noisy, np.isfinite(noisy)).tolist() == bad.tolist()
    np.testing.assert_array_equal(found.bad, bad)
    rows = found.rows()
    np.testing.assert_array_equal(rows[bad], noisy[bad].astype(np.float32))  # as they were
    cost = mpsnr(alone, clean[~bad]) - mpsnr(rows[~bad], clean[~bad])
    assert abs(cost) < 0.02  # dB


def test_strong_bands_are_no_garbage():
    """A band of another unit follows the scene; impulses and dark bands of few levels are noise."""
    rng = np.random.default_rng(0)
    clean = scene(40, 48, 40)
    noisy = clean + 0.05 * rng.standard_normal(clean.shape)
    noisy[7] *= 1e4
    noisy[9] = np.where(rng.random((48, 40)) < 0.004, 1e4, noisy[9])
    noisy[11] = np.rint(noisy[11] * 3)
    assert not garbage_bands(noisy, np.isfinite(noisy)).any()
    assert TASK(noisy).bad is None
