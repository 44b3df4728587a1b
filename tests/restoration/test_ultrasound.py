"""Ultrasound: the joint posterior against its closed form, geometry, companding, patches, metrics,
clips.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import grey_dilation
from torch import nn

from restoration.operators.linear import spectral_filter
from restoration.operators.measurement import Measurement
from restoration.posterior import CORRECTIONS, MMPS, DiffPIR
from restoration.ultrasound.bmode import Sector, amplitude_of, envelope, find_sector, log_compress
from restoration.ultrasound.clip import ask_together, enter, restore_clip, similar
from restoration.ultrasound.companding import a_law, a_law_inverse, mu_law, mu_law_inverse
from restoration.ultrasound.joint import JointDenoiser, Superposition
from restoration.ultrasound.measures import (
    anatomical_regions,
    boxes_mask,
    cnr,
    contrast,
    gcnr,
    ks,
    read_regions,
)
from restoration.ultrasound.patches import cut, stitch
from restoration.ultrasound.phantom import simulate_tissue
from restoration.ultrasound.power_split import power_split
from restoration.ultrasound.simulation import simulate_haze
from restoration.ultrasound.task import UltrasoundTask
from solvers import DDIM, PNDM, VP, GaussianMixture
from solvers.denoiser import Denoiser
from solvers.grid import log_snr
from solvers.loop import solve
from solvers.processes.continuous import ContinuousVP

PROCESS = VP.linear()


def gaussian(mean: float, std: float, process=PROCESS):
    shape = (1, 1, 2, 3)
    return GaussianMixture(torch.ones(1), torch.full(shape, mean), torch.full(shape, std)).denoiser(
        process
    )


class Toy(nn.Module):
    """A network with a little of everything a network does: space, time, non-linearity."""

    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.conv(x)) * (0.3 + t.view(-1, 1, 1, 1) / 1000)


def toy_task(**options):
    process = VP.cosine(zero_terminal_snr=True)
    tissue = Denoiser(Toy(0).eval(), process, "v_prediction", value_range=(-0.5, 1.5), data_std=0.5)
    haze = Denoiser(Toy(1).eval(), process, "v_prediction", value_range=(0.0, 2.0), data_std=0.3)
    return UltrasoundTask(
        tissue, haze, **({"num_inference_steps": 8, "start": "noise", "noisiest": 8.0} | options)
    )


def frames(count: int, height: int = 40, width: int = 36):
    g = torch.Generator().manual_seed(3)
    still = torch.rand(height, width, generator=g)
    return [
        (0.8 * still + 0.2 * torch.rand(height, width, generator=g)).clamp(0, 1)
        for _ in range(count)
    ]


# -- the joint posterior ---------------------------------------------------------------------------


def closed_form(y, strength, sigma, mean_x, std_x, mean_h, std_h):
    """Mean and covariance of [x, h] given y, per pixel."""
    prior = np.diag([std_x**2, std_h**2])
    a = np.array([[1.0, strength]])
    gain = prior @ a.T / (a @ prior @ a.T + sigma**2)
    mean = np.array([mean_x, mean_h]) + gain[:, 0] * (y - mean_x - strength * mean_h)
    return mean, prior - gain @ a @ prior


def run_gaussian(correction, y, strength, sigma, tissue, haze, count=1500, steps=120):
    joint = JointDenoiser(tissue, haze)
    data = torch.full((count, 1, 2, 3), y, dtype=torch.float64)
    corrected = correction(joint, Measurement(Superposition(1.0, strength), data, sigma))
    start = torch.randn(
        count, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = solve(DDIM(), corrected, start, log_snr(joint.process, steps)).x0
    return x.permute(1, 0, 2, 3).reshape(2, -1).numpy()


@pytest.mark.parametrize(("strength", "sigma"), [(1.0, 0.1), (0.5, 0.3), (2.0, 0.02)])
def test_samples_follow_the_closed_form_posterior(strength, sigma):
    """Gaussian priors of different widths: the true VJP gives the exact posterior mean at every
    level, so DDIM ends on the posterior.
    """
    y, x, h = 0.7, (0.2, 0.5), (-0.1, 0.25)
    found = run_gaussian(MMPS, y, strength, sigma, gaussian(*x), gaussian(*h))
    mean, covariance = closed_form(y, strength, sigma, *x, *h)
    spread = math.sqrt(covariance.trace() / found.shape[1])
    np.testing.assert_allclose(found.mean(1), mean, atol=5 * spread + 1e-3)
    np.testing.assert_allclose(np.cov(found), covariance, atol=0.03 * covariance.trace())


def test_without_gradients_the_posterior_is_exact_for_priors_of_one_width():
    y, sigma, std = 0.7, 0.1, 0.4

    def correction(d, m):
        return DiffPIR(d, m, prior_std=std)

    found = run_gaussian(correction, y, 1.5, sigma, gaussian(0.2, std), gaussian(-0.1, std))
    mean, covariance = closed_form(y, 1.5, sigma, 0.2, std, -0.1, std)
    np.testing.assert_allclose(
        found.mean(1), mean, atol=5 * math.sqrt(covariance.trace() / found.shape[1]) + 1e-3
    )
    np.testing.assert_allclose(np.cov(found), covariance, atol=0.03 * covariance.trace())


def test_each_prior_is_asked_at_its_own_level():
    other = ContinuousVP()
    joint = JointDenoiser(gaussian(0.2, 0.5), gaussian(-0.1, 0.25, other))
    same = JointDenoiser(gaussian(0.2, 0.5), gaussian(-0.1, 0.25))
    state = torch.randn(3, 2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (20.0, 400.0, 900.0):
        a, b = joint(state, t), same(state, t)
        torch.testing.assert_close(a.x0, b.x0, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(a.eps, b.eps, atol=1e-6, rtol=1e-6)


@given(st.floats(-2, 2), st.floats(0.1, 3), st.floats(0.05, 20))
def test_superposition_keeps_the_contract(wx, wh, gamma):
    op = Superposition(wx, wh)
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(2, 4, 3, 3, generator=g, dtype=torch.float64),
        torch.randn(2, 2, 3, 3, generator=g, dtype=torch.float64),
    )
    torch.testing.assert_close((op.A(x) * y).sum(), (x * op.A_adjoint(y)).sum())
    torch.testing.assert_close(op.A(op.A_dagger(y)), y)
    p = op.prox_l2(x, y, gamma)
    torch.testing.assert_close(gamma * op.A_adjoint(op.A(p) - y) + p - x, torch.zeros_like(x))
    torch.testing.assert_close(spectral_filter(op, x, lambda s: s**2), op.A_adjoint(op.A(x)))
    torch.testing.assert_close(spectral_filter(op, x, torch.ones_like), x)


def test_superposition_refuses_nothing_measured():
    with pytest.raises(ValueError, match="not both 0"):
        Superposition(0.0, 0.0)


def test_conditional_priors_are_refused():
    d = Denoiser(Toy(0), PROCESS, condition_channels=1)
    with pytest.raises(ValueError, match="haze prior must be unconditional"):
        JointDenoiser(toy_task().tissue, d)


# -- the task --------------------------------------------------------------------------------------


def ceiling(frame):
    """The brightest of 3 x 3 pixels."""
    return torch.from_numpy(grey_dilation(frame.numpy(), (3, 3)))


def test_result_explains_the_frame():
    """Tissue plus strength times haze, as sampled, is the frame, up to the noise that was
    admitted.
    """
    frame = frames(1)[0]
    for strength in (0.5, 1.0, 2.0):
        result = toy_task(strength=strength, sigma=0.0, correction="ddnm")(frame)
        x, h = result.state[0]
        tissue, haze = (x + 0.5) / 2, h / 2
        torch.testing.assert_close(tissue + strength * haze, frame, atol=1e-5, rtol=0)
        below = haze <= ceiling(frame) / strength
        assert below.float().mean() > 0.9
        torch.testing.assert_close(result.haze[below], haze[below])
        assert result.nfe == 8


def test_a_run_starts_from_the_split():
    frame = frames(1)[0]
    task = toy_task(start="split", noisiest=0.5, strength=0.7)
    x, h = task.first_estimate(frame)[0]
    tissue, haze = (x + 0.5) / 2, h / 2
    torch.testing.assert_close(tissue + 0.7 * haze, frame, atol=1e-5, rtol=0)
    np.testing.assert_allclose(tissue, power_split(frame.numpy(), 0.7), atol=1e-6)


def test_split_takes_the_veil_and_leaves_what_stands_out():
    """A bright block in a flat veil: the veil goes, the block stays; without a veil nothing
    happens.
    """
    rng = np.random.default_rng(0)
    veil = 0.35 + 0.02 * rng.standard_normal((160, 160))
    veil[60:100, 60:100] = 0.8
    split = power_split(veil)
    assert split[:50].mean() < 0.05
    assert np.abs(split[66:94, 66:94] - 0.8).max() < 0.01
    assert power_split(veil, 0.3)[:50].mean() > 0.2, "less strength takes less"
    dark = np.where(veil > 0.6, veil, 0.0)
    np.testing.assert_allclose(power_split(dark), dark, atol=1e-4)


def test_samples_depend_on_their_own_seed_alone():
    frame, task = frames(1)[0], toy_task(num_inference_steps=3)
    three = task(frame, num_samples=3, seed=5)
    torch.testing.assert_close(three.samples[2], task(frame, seed=7).mean, atol=0, rtol=0)
    torch.testing.assert_close(three.mean, three.samples.mean(0))
    assert float(three.std.max()) > 0
    assert three.nfe == 9


@pytest.mark.parametrize("stream", [False, True])
def test_neither_part_is_brighter_than_its_surroundings_in_the_frame(stream):
    """Noise of the run does not show where a frame is black; what lies below the frame stays as it
    was sampled.
    """
    frame, task = frames(1)[0], toy_task(num_inference_steps=3, strength=0.8)
    frame[:12, :20] = 0.0
    result = next(iter(restore_clip(task, [frame], stream=True))) if stream else task(frame)
    tissue, haze = ((result.state[0, 0] + 0.5) / 2).clamp(0, 1), result.state[0, 1] / 2
    for sampled, most, image in (
        (tissue, ceiling(frame), result.image),
        (haze, ceiling(frame) / 0.8, result.haze),
    ):
        assert (sampled > most).float().mean() > 0.02, "the run must leave something to take away"
        torch.testing.assert_close(
            image, torch.where(sampled > most, most, sampled), atol=1e-6, rtol=0
        )
        assert image[:11, :19].max() <= 0


def test_large_frames_are_asked_in_tiles():
    """The toy sees 1 pixel around: tiles that overlap by more give what the whole frame gives, away
    from their seams' ramps.
    """
    frame = frames(1, 96, 80)[0]
    whole = toy_task(num_inference_steps=1)(frame)
    tiles = toy_task(num_inference_steps=1, tile=48, overlap=16)(frame)
    inner = (slice(0, 20), slice(0, 12))  # tiles begin at rows 24 and columns 16
    torch.testing.assert_close(tiles.image[inner], whole.image[inner], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (torch.rand(3, 40, 40), "3 colours"),
        (torch.rand(5, 40, 40), "must be"),
        (torch.rand(40, 4), "at least 32"),
        (torch.rand(40, 40) * 255, r"must lie in \[0, 1\]"),
        (torch.full((40, 40), torch.nan), "NaN"),
    ],
)
def test_bad_frames(frame, message):
    with pytest.raises(ValueError, match=message):
        toy_task()(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength must be"),
        ({"correction": "magic"}, "unknown"),
        ({"cleanest": 9.0}, "cleanest must be below"),
        ({"num_inference_steps": 0}, "num_inference_steps must"),
        ({"start": "magic"}, "split or noise"),
        ({"tile": 64, "overlap": 40}, "less than half"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        toy_task(**options)


@pytest.mark.parametrize("name", sorted(set(CORRECTIONS) - {"ddnm"}))
def test_every_correction_serves(name):
    result = toy_task(correction=name, num_inference_steps=3)(frames(1)[0])
    assert torch.isfinite(result.image).all()


def test_gradients_are_refused_on_networks_without():
    task = toy_task(correction="mmps")
    task.haze.network = lambda x, t: torch.zeros_like(x)
    with pytest.raises(TypeError, match="needs the gradient"):
        task(frames(1)[0])


# -- clips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0), PNDM()], ids=["ddim", "ddpm", "pndm"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("correction", ["diffpir", "ddrm"])
def test_stream_batching_equals_one_frame_at_a_time(solver, steps, correction):
    if isinstance(solver, PNDM) and correction == "ddrm":
        pytest.skip("draws noise, which a multi-step solver would combine")
    task = toy_task(solver=solver, num_inference_steps=steps, correction=correction)
    clip = frames(6)
    alone, together = (list(restore_clip(task, clip, stream=stream)) for stream in (False, True))
    assert len(together) == 6
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.image, b.image, atol=1e-5, rtol=0)
        assert a.nfe == b.nfe


def test_stream_batching_shares_its_calls():
    """n frames of k steps take n + k - 1 calls of each network."""
    task, calls = toy_task(num_inference_steps=4), []
    task.tissue.network.register_forward_pre_hook(
        lambda module, inputs: calls.append(len(inputs[0]))
    )
    list(restore_clip(task, frames(6), stream=True))
    assert calls == [1, 2, 3, 4, 4, 4, 3, 2, 1]


def test_frames_come_as_soon_as_they_are_done():
    seen = []

    def source():
        for k, frame in enumerate(frames(5)):
            seen.append(k)
            yield frame

    results = restore_clip(toy_task(num_inference_steps=3), source(), stream=True)
    next(results)
    assert seen == [0, 1, 2]


def test_asking_together_equals_asking_alone():
    d = toy_task().tissue
    states = list(torch.randn(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    times = [999.0, 500.0, 3.5]
    for p, x, t in zip(ask_together(d, states, times), states, times, strict=True):
        torch.testing.assert_close(p.x0, d(x, t).x0, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(p.eps, d(x, t).eps, atol=1e-6, rtol=1e-5)


def test_warm_start_takes_fewer_steps_and_goes_on_from_the_last_frame():
    task = toy_task()
    clip = [frames(1)[0]] * 3
    cold, warm = list(restore_clip(task, clip)), list(restore_clip(task, clip, warm_start=0.3))
    assert [r.nfe for r in cold] == [8, 0, 0]  # equal frames are restored once
    torch.testing.assert_close(cold[2].image, task(clip[2]).image, atol=0, rtol=0)
    assert warm[0].nfe == 8
    assert warm[1].nfe == warm[2].nfe < 8
    torch.testing.assert_close(warm[0].image, cold[0].image, atol=0, rtol=0)
    again = task.sample(
        clip[1], enter(task.nodes(), task, 0.3), torch.Generator().manual_seed(0), warm[0].state
    )
    torch.testing.assert_close(warm[1].state, again.x0, atol=0, rtol=0)


def test_a_cut_starts_afresh():
    a = frames(1)[0]
    assert similar(a, (a + 0.02).clamp(0, 1))
    assert not similar(a, 1 - a)
    assert not similar(torch.zeros(40, 36), a)
    warm = list(restore_clip(toy_task(), [a, 1 - a], warm_start=0.3))
    assert [r.nfe for r in warm] == [8, 8]


def test_bad_clips():
    task = toy_task()
    with pytest.raises(ValueError, match="choose one"):
        restore_clip(task, [], warm_start=0.3, stream=True)
    with pytest.raises(ValueError, match="warm_start must lie"):
        restore_clip(task, [], warm_start=100.0)
    with pytest.raises(ValueError, match="the clip began with"):
        list(restore_clip(task, [torch.rand(40, 40), torch.rand(40, 44)]))
    with pytest.raises(TypeError, match="differentiates"):
        list(restore_clip(toy_task(correction="dps"), frames(2), stream=True))
    with pytest.raises(ValueError, match="draws noise"):
        list(restore_clip(toy_task(correction="ddrm", solver=PNDM()), frames(2), stream=True))
    assert list(restore_clip(task, [], stream=True)) == []


# -- companding, patches ---------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(1, 500))
def test_companding_round_trip(values, strength):
    x = torch.tensor(values, dtype=torch.float64)
    for there, back in ((mu_law, mu_law_inverse), (a_law, a_law_inverse)):
        y = there(x, strength)
        torch.testing.assert_close(back(y, strength), x, atol=1e-9, rtol=0)
        torch.testing.assert_close(there(-x, strength), -y)
        assert bool((y.abs() <= 1 + 1e-12).all())
        assert bool((y.abs() >= x.abs() - 1e-12).all()), "small echoes are raised"


def test_companding_clips_and_refuses():
    assert mu_law(torch.tensor(3.0)) == 1
    assert a_law(torch.tensor(-3.0)) == -1
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="mu must be"):
            mu_law(torch.zeros(1), wrong)
    with pytest.raises(ValueError, match="a must be"):
        a_law(torch.zeros(1), 0.5)


@given(st.integers(4, 9), st.integers(4, 9), st.data())
def test_untouched_patches_give_the_picture_back(height, width, data):
    overlap = (data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1)))
    image = torch.randn(
        2, 3, 25, 27, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    patches = cut(image, (height, width), overlap)
    for mode in ("replace", "average", "hann"):
        out = stitch(patches, overlap, mode)
        torch.testing.assert_close(out, image[..., : out.shape[2], : out.shape[3]])


def test_bad_patches():
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="smaller than the patch"):
        cut(image, (4, 4), (4, 0))
    with pytest.raises(ValueError, match="do not fit"):
        cut(image, (9, 4), (0, 0))
    with pytest.raises(ValueError, match="unknown"):
        stitch(cut(image, (4, 4), (0, 0)), (0, 0), "magic")


# -- B-mode geometry -------------------------------------------------------------------------------


def test_envelope_of_a_tone_burst():
    n = np.arange(512)
    bell = np.exp(-(((n - 256) / 60) ** 2))
    rf = (bell * np.cos(0.8 * n + 0.3))[:, None].repeat(2, 1)
    np.testing.assert_allclose(envelope(rf, axis=0), bell[:, None].repeat(2, 1), atol=1e-3)
    np.testing.assert_allclose(envelope(bell * np.exp(0.8j * n), axis=0), bell)


@given(st.floats(20, 100))
def test_log_compression_round_trip(dynamic_range):
    floor = 10 ** (-dynamic_range / 20)
    amplitude = np.geomspace(1.01 * floor, 1, 50)
    image = log_compress(amplitude, dynamic_range)
    np.testing.assert_allclose(amplitude_of(image, dynamic_range), amplitude, rtol=1e-9)
    np.testing.assert_allclose(
        log_compress(np.array([0.0, 1.0]), dynamic_range), [0, 1], atol=1e-12
    )
    assert amplitude_of(np.zeros(1), dynamic_range) == 0


def test_log_compression_halves():
    image = log_compress(np.array([1.0, 0.1, 0.01]), 40)
    np.testing.assert_allclose(image, [1, 0.5, 0])
    with pytest.raises(ValueError, match="dynamic range"):
        log_compress(np.ones(2), 0)
    with pytest.raises(ValueError, match="not negative"):
        log_compress(np.array([-1.0]))


SECTOR = Sector(160, 200, (-20.0, 99.5), (25.0, 175.0), (-0.55, 0.5))


def test_scan_conversion_round_trip():
    """A smooth polar picture survives the way to pixels and back."""
    r, t = np.linspace(0, 1, 200)[:, None], np.linspace(0, 1, 180)
    polar = 0.5 + 0.3 * np.sin(5 * r + 1) * np.cos(4 * t) + 0.1j * r * t
    pixels = SECTOR.to_cartesian(polar)
    assert pixels.dtype == polar.dtype
    assert (pixels[~SECTOR.inside()] == 0).all()
    back = SECTOR.to_polar(pixels, 200, 180)
    inner = (slice(12, -12), slice(25, -25))  # bilinear samples next to the edge mix with black
    assert np.abs(back[inner] - polar[inner]).max() < 2e-3


def test_scan_conversion_maps_a_point_where_it_belongs():
    polar = np.zeros((151, 101))
    polar[100, 30] = 1  # radius 125, angle -0.55 + 0.3 * 1.05
    row, column = np.unravel_index(SECTOR.to_cartesian(polar).argmax(), (160, 200))
    angle = -0.55 + 0.3 * 1.05
    assert abs(row - (-20 + 125 * math.cos(angle))) <= 1
    assert abs(column - (99.5 + 125 * math.sin(angle))) <= 1


def test_finds_the_sector_of_a_picture():
    polar = 0.6 + 0.3 * np.random.default_rng(0).random((200, 180))
    found = find_sector(SECTOR.to_cartesian(polar))
    assert found.angles == pytest.approx(SECTOR.angles, abs=0.03)
    assert found.apex == pytest.approx(SECTOR.apex, abs=8)  # lines that meet at a small angle
    assert find_sector(np.full((64, 64), 0.5)) is None
    assert find_sector(np.zeros((64, 64))) is None


def test_bad_geometry():
    with pytest.raises(ValueError, match="must increase"):
        Sector(10, 10, (0, 0), (5, 2), (-1, 1))
    with pytest.raises(ValueError, match="the picture has"):
        SECTOR.to_polar(np.zeros((10, 10)), 20, 20)
    with pytest.raises(ValueError, match="at least 2 samples"):
        SECTOR.to_polar(np.zeros((160, 200)), 1, 20)


# -- simulators ------------------------------------------------------------------------------------


def test_haze_is_seeded_grows_and_fills_the_dark():
    clean = simulate_tissue(160, 192, 2)
    assert clean.shape == (160, 192)
    np.testing.assert_array_equal(clean, simulate_tissue(160, 192, 2))
    assert np.abs(clean - simulate_tissue(160, 192, 3)).mean() > 0.01
    hazy = [simulate_haze(clean, s, seed=4) for s in (0.0, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(hazy[0], clean, atol=1e-6)
    np.testing.assert_array_equal(hazy[2], simulate_haze(clean, 1.0, seed=4))
    assert not np.array_equal(hazy[2], simulate_haze(clean, 1.0, seed=5))
    regions = anatomical_regions(clean)
    blood = [float(h[regions["blood"]].mean()) for h in hazy]
    assert blood[0] < blood[1] < blood[2] < blood[3]
    change = {k: np.abs(hazy[2] - clean)[mask].mean() for k, mask in regions.items()}
    assert change["blood"] > 3 * change["tissue"]
    contrasts = [gcnr(h[regions["tissue"]], h[regions["blood"]]) for h in hazy]
    assert contrasts == sorted(contrasts, reverse=True)


def test_haze_of_a_linear_array_and_bad_input():
    clean = np.full((64, 64), 0.2)
    assert simulate_haze(clean, 1.0, 0).shape == (64, 64)
    for wrong, strength, message in (
        (np.zeros((3, 8, 8)), 1.0, "one grey picture"),
        (clean * 9, 1.0, "one grey"),
        (clean, -1.0, "strength"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_haze(wrong, strength, 0)


# -- metrics ---------------------------------------------------------------------------------------


def test_metrics_in_closed_form():
    rng = np.random.default_rng(0)
    u = rng.random(200_000)
    assert gcnr(u, u + 2) == 1
    assert gcnr(u, u) == 0
    assert gcnr(u, u + 0.25, bins=50) == pytest.approx(0.25, abs=0.01)
    assert ks(u, u + 0.25)[0] == pytest.approx(0.25, abs=0.01)
    assert ks(u, u) == (0.0, 1.0)
    assert cnr(u, u + 0.5) == pytest.approx(0.5 / math.sqrt(2 / 12), rel=0.01)
    assert cnr([1.0], [1.0]) == 0
    assert cnr([1.0], [2.0]) == math.inf
    assert contrast([10.0], [1.0]) == pytest.approx(20)


@pytest.mark.parametrize("metric", [gcnr, ks, cnr, contrast])
def test_metrics_refuse_empty_regions(metric):
    with pytest.raises(ValueError, match="empty"):
        metric([], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        metric([math.nan], [1.0])


def test_regions_from_a_file(tmp_path):
    path = tmp_path / "regions.json"
    path.write_text(json.dumps({"tissue": [[0, 0, 2, 3], [4, 4, 5, 5]], "blood": [1, 1, 3, 3]}))
    regions = read_regions(path, (6, 6))
    assert regions["tissue"].sum() == 7
    assert regions["blood"].sum() == 4
    assert regions["blood"][1:3, 1:3].all()
    for content in (
        "[]",
        "{",
        '{"tissue": [[0, 0, 9, 9]]}',
        '{"tissue": [[2, 0, 1, 3]]}',
        '{"tissue": [[0, 0.5, 1, 3]]}',
        '{"tissue": []}',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"regions|tissue"):
            read_regions(path, (6, 6))
    with pytest.raises(ValueError, match="leaves the picture"):
        boxes_mask([0, 0, 2, 7], (6, 6))


def test_regions_need_enough_of_both():
    with pytest.raises(ValueError, match="too little"):
        anatomical_regions(np.full((64, 64), 0.5))
