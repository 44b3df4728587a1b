"""MRI: physics against closed forms, fastMRI's masks, ESPIRiT, the task's promises, evaluation, bad
input.
"""

import math

import numpy as np
import pytest
import torch
from helpers.scans import disc, scan
from hypothesis import given
from hypothesis import strategies as st

from restoration.mri import (
    MRITask,
    Sense,
    SingleCoil,
    calibration_region,
    column_mask,
    coverage,
    espirit,
    fft2c,
    ifft2c,
    mvue,
    normalise_maps,
    poisson_mask,
    rss,
    slice_quality,
    to_channels,
    volume_quality,
    volume_seed,
)
from restoration.mri.consistency import agree
from restoration.mri.estimate import condition, noise_level
from restoration.mri.sampling import MASKS
from restoration.mri.simulation import resize_maps, ring_maps, simulate_kspace
from restoration.mri.task import check_kspace
from restoration.operators.measurement import Measurement
from solvers import DDIM, VP, Denoiser, solver_by_name

# -- physics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 9)])
def test_centred_orthonormal_transform(size):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size, dtype=torch.complex128, generator=g)
    k = fft2c(x)
    torch.testing.assert_close(ifft2c(k), x)
    assert float(k.norm()) == pytest.approx(float(x.norm()))
    # by the definition: zero frequency and zero position at n // 2
    h, w = size

    def dft(n):
        i = torch.arange(n) - n // 2
        return torch.exp(-2j * math.pi * torch.outer(i, i).double() / n) / n**0.5

    torch.testing.assert_close(k, dft(h) @ x @ dft(w).T)


def test_sense_is_mask_times_transform_of_coil_images():
    image, maps, op, kspace = scan(mask=column_mask("random", 36, 3, 0.1, 0))
    torch.testing.assert_close(kspace, op.mask * fft2c(maps * image), rtol=1e-5, atol=1e-6)


def test_pseudo_inverse_of_full_data_is_the_variance_optimal_combination():
    image, maps, op, kspace = scan(sigma=0.05)
    y = to_channels(kspace[None])
    x = op.A_dagger(y)
    torch.testing.assert_close(x, to_channels(mvue(kspace, maps)[None, None]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mvue(fft2c(maps * image), maps), image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rss(maps * image), image.abs(), rtol=1e-4, atol=1e-5)


def test_single_coil_agrees_with_one_map_of_ones():
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(9, 8, generator=g) < 0.5).float()
    one, many = SingleCoil(mask), Sense(mask, torch.ones(1, 9, 8, dtype=torch.complex128))
    x, y = torch.randn(2, 1, 2, 9, 8, generator=g, dtype=torch.float64)
    for f in (
        lambda o: o.A(x),
        lambda o: o.A_adjoint(y),
        lambda o: o.A_dagger(o.A(x)),
        lambda o: o.prox_l2(x, y, 3.0),
    ):
        torch.testing.assert_close(f(one), f(many), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.sense(y, 0.5, 20), many.sense(y, 0.5, 20), rtol=1e-9, atol=1e-9)


# -- masks -----------------------------------------------------------------------------------------


def reference_mask(kind, width, acceleration, fraction, seed):
    """fastMRI's rules, written down a second time, in terms of sets of columns."""
    rng = np.random.RandomState(seed)
    low = round(width * fraction)
    centre = set(range((width - low + 1) // 2, (width - low + 1) // 2 + low))
    if kind == "random":
        p = (width / acceleration - low) / (width - low)
        outer = {c for c, u in enumerate(rng.uniform(size=width)) if u < p}
    elif kind == "equispaced":
        outer = set(range(rng.randint(0, round(acceleration)), width, acceleration))
    else:
        step = (acceleration * (low - width)) / (low * acceleration - width)
        start = rng.randint(0, round(step))
        outer = {round(float(c)) for c in np.arange(start, width - 1, step)}
    return sorted(centre | outer)


@pytest.mark.parametrize("kind", MASKS[:3])
@pytest.mark.parametrize(
    ("width", "acceleration", "fraction"),
    [(368, 4, 0.08), (320, 8, 0.04), (45, 4, 0.08), (64, 6, 0.06)],
)
def test_column_masks_are_fastmris(kind, width, acceleration, fraction):
    for name in ("file1000000.h5", "file_brain_AXT2_200.h5"):
        seed = volume_seed(name)
        mask = column_mask(kind, width, acceleration, fraction, seed)
        assert torch.nonzero(mask)[:, 0].tolist() == reference_mask(
            kind, width, acceleration, fraction, seed
        )


def test_volume_seed_and_known_centre():
    assert volume_seed("ab1") == (97, 98, 49)
    mask = column_mask("equispaced", 368, 4, 0.08, 0)
    assert mask[170:199].all()  # 29 lines from (368 - 29 + 1) // 2
    assert round(368 * 0.08) == 29


@given(st.integers(20, 300), st.floats(2, 8), st.integers(0, 10**6))
def test_fraction_masks_reach_their_acceleration(width, acceleration, seed):
    mask = column_mask("equispaced-fraction", width, acceleration, 0.2 / acceleration, seed)
    step = (
        acceleration
        * (round(width * 0.2 / acceleration) - width)
        / (round(width * 0.2 / acceleration) * acceleration - width)
    )
    # offset and rounding cost or gain a column or two; a centre line may be hit twice
    assert (
        abs(float(mask.sum()) - width / acceleration)
        <= 2 + round(width * 0.2 / acceleration) / step + 1
    )


def test_poisson_mask():
    mask = poisson_mask(64, 48, 6, 12, 0)
    assert mask[26:38, 18:30].all()
    assert 64 * 48 / float(mask.sum()) == pytest.approx(6, rel=0.03)
    assert torch.equal(mask, poisson_mask(64, 48, 6, 12, 0))
    assert not torch.equal(mask, poisson_mask(64, 48, 6, 12, 1))
    # denser inside, and no two neighbours far out
    y, x = np.mgrid[:64, :48]
    r = np.hypot((y - 32) / 32, (x - 24) / 24)
    inner, outer = (
        float(mask.numpy()[(r > a) & (r < b)].mean()) for a, b in ((0.35, 0.55), (0.75, 1))
    )
    assert inner > outer
    far = mask.numpy() * (r > 0.8)
    assert not (far[:, 1:] * far[:, :-1]).any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: column_mask("radial", 64, 4, 0.1, 0), "unknown"),
        (lambda: column_mask("random", 64, 0.5, 0.1, 0), "at least 1"),
        (lambda: column_mask("random", 64, 8, 0.5, 0), "centre alone"),
        (lambda: poisson_mask(64, 64, 8, 40, 0), "calibration"),
        (
            lambda: Sense(torch.zeros(8, 8), torch.ones(2, 8, 8, dtype=torch.complex64)),
            "samples nothing",
        ),
        (lambda: Sense(torch.ones(7), torch.ones(2, 8, 8, dtype=torch.complex64)), "must be"),
        (
            lambda: Sense(torch.full((8, 8), 0.5), torch.ones(2, 8, 8, dtype=torch.complex64)),
            "0 and 1",
        ),
        (lambda: Sense(torch.ones(8, 8), torch.ones(2, 8, 8)), "complex"),
        (lambda: SingleCoil(torch.ones(8, 8)).A(torch.ones(1, 3, 8, 8)), "real and imaginary"),
    ],
)
def test_bad_physics(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# -- sensitivities ---------------------------------------------------------------------------------


def test_calibration_region():
    columns = column_mask("equispaced", 40, 4, 0.2, 1).expand(30, 40)
    rows, found = calibration_region(columns)
    assert (rows.start, rows.stop) == (0, 30)
    assert found.start <= 16
    assert found.stop >= 24
    assert columns[:, found].all()
    rows, found = calibration_region(poisson_mask(50, 44, 5, 12, 0))
    assert found.stop - found.start >= 12
    assert rows.stop - rows.start >= 12
    empty = torch.ones(8, 8)
    empty[4, 4] = 0
    rows, found = calibration_region(empty)
    assert rows.stop == rows.start
    assert found.stop == found.start


def test_espirit_finds_the_maps():
    mask = column_mask("equispaced-fraction", 48, 3, 0.3, 0)
    image, maps, _, kspace = scan((56, 48), 6, mask, sigma=1e-3)
    found = espirit(kspace, mask.expand(56, 48))
    inside = (image.abs() > 0.1) & (found.abs().sum(0) > 0)
    assert inside.sum() > 0.97 * (image.abs() > 0.1).sum()
    power = found.abs().square().sum(0)
    torch.testing.assert_close(
        power[power > 0], torch.ones_like(power[power > 0]), rtol=1e-4, atol=1e-4
    )
    match = (found.conj() * maps).sum(0).abs()[inside]
    assert match.min() > 0.99
    assert match.mean() > 0.999
    # the free phase is smooth where there is signal
    z = (found.conj() * maps).sum(0) * inside
    step = torch.angle(z[:, 1:] * z[:, :-1].conj())[inside[:, 1:] & inside[:, :-1]]
    assert step.abs().max() < 0.5


def test_espirit_agrees_with_sigpy():
    app = pytest.importorskip("sigpy.mri.app")
    mask = poisson_mask(44, 40, 2.5, 20, 0)
    _, _, _, kspace = scan((44, 40), 5, mask, sigma=2e-3)
    want = app.EspiritCalib(kspace.numpy(), calib_width=20, show_pbar=False).run()
    want = torch.from_numpy(want)
    got = espirit(kspace, mask, calibration_width=20)
    both = (got.abs().sum(0) > 0) & (want.abs().sum(0) > 0)
    assert ((got.abs().sum(0) > 0) == (want.abs().sum(0) > 0)).float().mean() > 0.995
    torch.testing.assert_close(got.abs()[:, both], want.abs()[:, both], rtol=1e-2, atol=2e-3)
    assert (got.conj() * want).sum(0).abs()[both].min() > 0.9999


def test_resized_maps_stay_normalised():
    maps = resize_maps(ring_maps(4, (16, 16), np.random.default_rng(0)), (40, 30))
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(40, 30), rtol=1e-5, atol=1e-5)
    assert normalise_maps(torch.zeros(2, 3, 3, dtype=torch.complex64)).abs().sum() == 0


def test_the_scale_of_given_maps_does_not_matter():
    """Nor does its shading; without coil sensitivity (a thousandth of the maximum) there is no
    image.
    """
    _, maps, _, kspace = scan()
    shading = torch.linspace(0.5, 20, maps.shape[2])[None, None]
    uneven = torch.where(shading < 1, 1e-4, shading) * maps
    scaled = normalise_maps(uneven)
    assert scaled.abs().square().sum(0)[:, shading[0, 0] < 1].abs().max() == 0
    torch.testing.assert_close(scaled[..., 2:], maps[..., 2:], rtol=1e-5, atol=1e-6)
    assert normalise_maps(maps) is maps
    task = MRITask(
        Denoiser(lambda x, t: torch.zeros_like(x), VP.from_diffusers({}), "sample"),
        num_inference_steps=1,
    )
    mask = column_mask("equispaced", 36, 2, 0.2, 0)
    want, got = (task(kspace, mask, m, sigma=0.01).mean for m in (maps, shading * maps))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="finite"):
        task(kspace, mask, maps / 0, sigma=0.01)


# -- the task --------------------------------------------------------------------------------------


class Prior:
    """The exact denoiser of a broad Gaussian around zero, for complex images: enough to test
    everything but image quality.
    """

    def __init__(self, process=None, std=0.5):
        self.process = process or VP.from_diffusers(
            {"num_train_timesteps": 100, "beta_schedule": "scaled_linear"}
        )
        self.std = self.data_std = std
        self.device = torch.device("cpu")
        self.condition_channels = 0

    def __call__(self, x, t):
        from solvers.prediction import Prediction

        a, b = self.process.a(t), self.process.b(t)
        x0 = a * self.std**2 * x / (a**2 * self.std**2 + b**2)
        return Prediction(x0, (x - a * x0) / b if b > 0 else torch.zeros_like(x))


def test_full_noiseless_data_give_the_sense_image():
    image, maps, _, kspace = scan()
    result = MRITask(Prior(), num_inference_steps=8)(kspace, maps=maps, sigma=0.0, num_samples=2)
    torch.testing.assert_close(result.mean, image, rtol=0, atol=1e-4)
    assert result.std.max() < 1e-4
    assert result.residual < 1e-4
    assert result.nfe == 16
    one = torch.ones(1, 40, 36, dtype=torch.complex64)
    result = MRITask(Prior())(fft2c(image)[None], maps=one, sigma=0.0)
    torch.testing.assert_close(result.mean, image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("correction", [None, "none", "diffpir", "red-diff"])
def test_scale_of_the_data_is_undone(correction):
    mask = column_mask("equispaced-fraction", 36, 3, 0.2, 0)
    _, maps, _, kspace = scan(mask=mask, sigma=0.01)
    task = MRITask(Prior(), correction=correction, num_inference_steps=4)
    one, other = (task(c * kspace, mask, maps, sigma=0.01 * c) for c in (1.0, 2e4))
    torch.testing.assert_close(2e4 * one.mean, other.mean, rtol=1e-3, atol=20)


def test_residual_does_not_exceed_the_noise():
    mask = column_mask("equispaced-fraction", 36, 3, 0.2, 0)
    for sigma in (0.003, 0.03):
        _, maps, _, kspace = scan(mask=mask, sigma=sigma)
        result = MRITask(Prior(std=0.1), num_inference_steps=4)(
            kspace, mask, maps, sigma=sigma, num_samples=2
        )
        assert result.residual <= sigma
        assert (result.samples[0] - result.samples[1]).abs().max() > 0


def test_a_prior_that_says_nothing_is_the_limit_of_a_wide_one():
    """Zero terminal SNR: the first estimate may be off by anything, noisy data or not."""
    process = VP.from_diffusers({"num_train_timesteps": 100, "rescale_betas_zero_snr": True})
    mask = column_mask("equispaced-fraction", 36, 3, 0.2, 0)
    _, maps, _, kspace = scan(mask=mask, sigma=0.05)
    for sigma in (0.0, 0.05):
        wide, says_nothing = (
            MRITask(Prior(process), num_inference_steps=4, prior_std=std)(
                kspace, mask, maps, sigma=sigma
            ).mean
            for std in (1e3, math.inf)
        )
        torch.testing.assert_close(says_nothing, wide, rtol=0, atol=1e-3 * float(wide.abs().max()))


def test_agreement_moves_no_image_that_agrees_already():
    image, _, op, kspace = scan(sigma=0.02)
    y = to_channels(kspace[None])
    x = torch.view_as_real(image).permute(2, 0, 1)[None]
    torch.testing.assert_close(agree(x, Measurement(op, y, 0.03)), x, rtol=0, atol=0)
    moved = agree(torch.zeros_like(x), Measurement(op, y, 0.02))
    error = (y - op.A(moved)).square().mean().sqrt()
    assert error <= 0.02


def test_no_agreement_is_forced_where_the_maps_are_wrong():
    """Data that no image explains: the move stops where more weight takes hardly more off the
    residual, and does less harm.
    """
    image, maps, op, kspace = scan(mask=column_mask("equispaced", 36, 3, 0.2, 0), sigma=0.01)
    wrong = Sense(
        op.mask,
        maps + 0.1 * ring_maps(len(maps), maps.shape[1:], np.random.default_rng(5), width=0.5),
    )
    x, m = to_channels(image[None, None]), Measurement(wrong, to_channels(kspace[None]), 0.01)
    hardest = wrong.prox_l2(x, m.y, 2.0**9)
    assert m.residual(hardest).square().mean().sqrt() > 0.01 * (2 * op.mask.mean()) ** 0.5
    ours, forced = ((v - x).square().mean() for v in (agree(x, m), hardest))
    assert 0 < ours < forced


def test_posterior_mean_of_a_gaussian_prior():
    """One coil, every frequency for itself: the posterior of white signal in white noise is
    Wiener's, at every step and in the end.
    """
    size, sigma, std = (24, 20), 0.3, 1.0
    g = torch.Generator().manual_seed(0)
    image = std * torch.randn(size, generator=g, dtype=torch.complex64) * 2**0.5
    mask = (torch.rand(size, generator=g) < 0.6).float()
    noise = sigma * 2**0.5 * torch.randn(size, generator=g, dtype=torch.complex64)
    kspace = (mask * (fft2c(image) + noise))[None]
    task = MRITask(Prior(std=std), prior_std=std, num_inference_steps=100)
    # the prior is given in units of the scaled image
    scale = float(torch.quantile(ifft2c(kspace[0]).abs(), 0.99))
    task = MRITask(Prior(std=std / scale), prior_std=std / scale, num_inference_steps=100)
    result = task(kspace, mask, sigma=sigma, num_samples=24)
    wiener = ifft2c(kspace[0] * std**2 / (std**2 + sigma**2))
    measured = fft2c(result.mean - wiener)[mask > 0].abs().square().mean().sqrt()
    assert measured < 0.25 * sigma * 2**0.5


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0)])
def test_volume_is_slice_by_slice(solver):
    slices = [scan(seed=s, sigma=0.01)[3] for s in range(2)]
    task, seen = MRITask(Prior(), solver, 3), []
    maps = scan()[1]
    whole = task.volume(
        torch.stack(slices),
        None,
        maps,
        seed=5,
        num_samples=2,
        progress=lambda d, t: seen.append((d, t)),
    )
    assert seen == [(1, 2), (2, 2)]
    assert whole.samples.shape == (2, 2, 40, 36)
    alone = task(slices[1], maps=maps, seed=7, num_samples=2)
    torch.testing.assert_close(whole.mean[1], alone.mean, rtol=0, atol=0)
    assert whole.nfe == 12


def test_conditional_network_is_shown_the_condition():
    seen = []

    def network(x, t):
        seen.append(x)
        return torch.zeros_like(x[:, :2])

    d = Denoiser(
        network,
        VP.from_diffusers({}),
        "v_prediction",
        condition_channels=7,
        residual=True,
        data_std=0.03,
        multiple=4,
    )
    mask = column_mask("equispaced-fraction", 35, 3, 0.2, 0)
    _, maps, op, kspace = scan((41, 35), mask=mask, sigma=0.02)
    result = MRITask(d, num_inference_steps=2)(kspace, mask, maps, sigma=0.02)
    assert result.mean.shape == (41, 35)
    shown, scale = condition(op, to_channels(kspace[None]), 0.02)
    torch.testing.assert_close(seen[0][:, 2:, :41, :35], shown, rtol=1e-4, atol=1e-5)
    assert float(shown[0, 6, 0, 0].sinh()) == pytest.approx(0.02 / scale / 0.01, rel=1e-5)
    y = to_channels(kspace[None])
    torch.testing.assert_close(
        0.03 * shown[:, 4:6].sinh() + shown[:, :2], op.A_adjoint(y) / scale, rtol=1e-4, atol=1e-4
    )
    wrong = Denoiser(network, VP.from_diffusers({}), condition_channels=4)
    with pytest.raises(ValueError, match="4 channels"):
        MRITask(wrong)(kspace, mask, maps)


def test_noise_level_is_found():
    """Of a smooth object; edges reach to the border of k-space and are mistaken for noise, but
    never below it.
    """
    size = (96, 96)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    smooth = torch.exp(-8 * (x**2 + y**2)).to(torch.complex64)
    maps, g = ring_maps(6, size, np.random.default_rng(0)), torch.Generator().manual_seed(0)
    for sigma in (0.002, 0.05):
        for mask in (
            torch.ones(size),
            column_mask("equispaced", 96, 3, 0.1, 0).expand(size),
            poisson_mask(96, 96, 4, 16, 0),
        ):
            _, noisy = simulate_kspace(smooth, maps, mask, sigma, g)
            assert noise_level(torch.complex(*noisy[0].chunk(2)), mask) == pytest.approx(
                sigma, rel=0.1
            )
            _, noisy = simulate_kspace(disc(size).to(torch.complex64), maps, mask, sigma, g)
            assert noise_level(torch.complex(*noisy[0].chunk(2)), mask) > 0.9 * sigma
    with pytest.raises(ValueError, match="too few"):
        noise_level(torch.ones(1, 8, 8, dtype=torch.complex64), torch.eye(8))


def test_bad_scans():
    _, maps, _, kspace = scan()
    task = MRITask(Prior())
    empty = kspace.clone()
    empty[:, 18:22, 16:20] = 0
    broken = kspace.clone()
    broken[2, :, 7] = float("nan")
    cases = [
        (lambda: task(kspace.real), "complex"),
        (lambda: task(kspace[None]), "coils, H, W"),
        (lambda: task(kspace, torch.zeros(40, 36)), "samples nothing"),
        (lambda: task(kspace, torch.ones(40)), "must be"),
        (lambda: task(kspace, maps=maps[:3]), "same coils"),
        (lambda: task(empty), "no calibration region"),
        (lambda: task(broken), r"NaN or infinite values in 1 columns \(first 7\)"),
        (lambda: task(torch.zeros_like(kspace), torch.ones(36)), "only zeros"),
        (lambda: task(kspace, sigma=-1.0), "sigma"),
        (lambda: task(kspace, num_samples=0), "num_samples"),
        (lambda: task.volume(kspace), "volume"),
        (lambda: task.volume(torch.stack([kspace, broken])), "slice 1"),
        (lambda: MRITask(Prior(), grid="none"), "grid"),
        (lambda: MRITask(Prior(), correction="magic"), "correction"),
        (lambda: MRITask(Prior(), prior_std=0.0), "prior_std"),
    ]
    for run, says in cases:
        with pytest.raises(ValueError, match=says):
            run()
    # what the mask leaves out may hold anything
    mask = torch.ones(36)
    mask[7] = 0
    kept, _ = check_kspace(broken, mask)
    assert torch.isfinite(kept).all()


# -- evaluation ------------------------------------------------------------------------------------


def test_volume_quality_is_fastmris():
    rng = np.random.default_rng(0)
    truth = rng.random((3, 20, 12))
    found = truth + 0.1 * rng.standard_normal(truth.shape)
    # by the definition: centred square of the truth's width, maximum of the cropped volume
    a, b = found[:, 4:16], truth[:, 4:16]
    got = volume_quality(found, truth)
    assert got.nmse == pytest.approx(np.linalg.norm(a - b) ** 2 / np.linalg.norm(b) ** 2)
    assert got.psnr == pytest.approx(20 * np.log10(b.max()) - 10 * np.log10(np.mean((a - b) ** 2)))
    # SSIM of one slice, window by window
    c1, c2 = (0.01 * b.max()) ** 2, (0.03 * b.max()) ** 2
    values = []
    for x, y in zip(a, b, strict=True):
        for i in range(12 - 6):
            for j in range(12 - 6):
                u, v = x[i : i + 7, j : j + 7].ravel(), y[i : i + 7, j : j + 7].ravel()
                s = np.cov(u, v)
                top = (2 * u.mean() * v.mean() + c1) * (2 * s[0, 1] + c2)
                values.append(
                    top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (s[0, 0] + s[1, 1] + c2))
                )
    assert got.ssim == pytest.approx(np.mean(values))
    alone = slice_quality(found, truth)
    assert len(alone) == 3
    assert alone[0].psnr == pytest.approx(
        20 * np.log10(truth[0].max()) - 10 * np.log10(np.mean((found[0] - truth[0]) ** 2))
    )
    assert volume_quality(truth, truth).psnr == math.inf


def test_coverage_of_gaussian_errors():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.5, 2, 40000)
    truth = spread * rng.standard_normal(40000)
    assert coverage(np.zeros(40000), spread, truth, 0.9) == pytest.approx(0.9, abs=0.01)
    assert coverage(np.zeros(40000), spread, truth, 0.5, where=spread > 1) == pytest.approx(
        0.5, abs=0.02
    )


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.ones((1, 8, 8)), np.ones((1, 8, 9)), "one shape"),
        (np.ones((1, 5, 5)), np.ones((1, 5, 5)), "7 x 7"),
        (np.ones((1, 8, 8)), np.zeros((1, 8, 8)), "no signal"),
        (np.full((1, 8, 8), np.nan), np.ones((1, 8, 8)), "NaN"),
    ],
)
def test_bad_volumes(x, y, says):
    with pytest.raises(ValueError, match=says):
        volume_quality(x, y)


# -- every solver, every correction ----------------------------------------------------------------


@pytest.mark.parametrize("correction", [None, "ddnm", "pigdm", "red-diff"])
@pytest.mark.parametrize("name", ["ddim", "pndm", "plms", "evodiff"])
def test_solvers_and_corrections_explain_the_data(name, correction):
    mask = column_mask("equispaced-fraction", 36, 3, 0.2, 0)
    sigma = 0.0 if correction == "ddnm" else 0.02
    _, maps, _, kspace = scan(mask=mask, sigma=sigma)
    task = MRITask(Prior(std=0.3), solver_by_name(name), 12, correction=correction)
    result = task(kspace, mask, maps, sigma=sigma)
    size = (kspace.abs().square().sum() / (2 * len(kspace) * 40 * mask.sum())).sqrt()
    assert result.residual <= (sigma or 1e-3 * float(size))
    assert result.nfe <= 13


def test_unknown_frequencies_are_the_networks():
    """Noiseless data of one coil: measured frequencies are the data's, the others the network's, to
    rounding.
    """
    mask = column_mask("random", 36, 2, 0.2, 0).expand(40, 36)
    image, *_ = scan()
    kspace = (mask * fft2c(image))[None]
    free = MRITask(Prior(), correction="none", num_inference_steps=1)(kspace, mask, sigma=0.0)
    result = MRITask(Prior(), num_inference_steps=1)(kspace, mask, sigma=0.0)
    k = fft2c(result.mean)
    torch.testing.assert_close(k * mask, kspace[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(k * (1 - mask), fft2c(free.mean) * (1 - mask), rtol=0, atol=1e-5)
