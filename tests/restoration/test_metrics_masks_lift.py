"""Metrics, generated masks, and the push-pull lift."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration import metrics
from restoration.photo.lift import push_pull
from restoration.photo.masks import KINDS, make_mask, parse_mask

RNG = np.random.default_rng(0)


def test_psnr_closed_form():
    reference = RNG.random((3, 20, 30))
    assert metrics.psnr(reference + 0.1, reference) == pytest.approx(20.0)
    assert metrics.psnr(reference, reference) == float("inf")
    assert metrics.psnr(
        torch.from_numpy(reference) + 0.01, torch.from_numpy(reference)
    ) == pytest.approx(40.0)


def test_ssim_closed_form():
    """For constant images SSIM is its luminance term alone."""
    one, two = np.full((3, 16, 16), 0.6), np.full((3, 16, 16), 0.3)
    c1 = 0.01**2
    assert metrics.ssim(one, two) == pytest.approx(
        (2 * 0.6 * 0.3 + c1) / (0.6**2 + 0.3**2 + c1), rel=1e-9
    )
    image = RNG.random((3, 16, 16))
    assert metrics.ssim(image, image) == pytest.approx(1.0)
    assert metrics.ssim(image, 1 - image) < 0


def test_metric_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(np.zeros((3, 4, 4)), np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(np.zeros((3, 8, 8)), np.zeros((3, 8, 8)))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(metrics.LPIPSUnavailable, match=r"squeezenet.*\.pth"):
        metrics.lpips(np.zeros((3, 64, 64)), np.zeros((3, 64, 64)), backbone="squeeze")
    with pytest.raises(metrics.LPIPSUnavailable, match="at least 32 x 32"):
        metrics.lpips(np.zeros((3, 31, 64)), np.zeros((3, 31, 64)))
    with pytest.raises(ValueError, match="known: alex"):
        metrics.lpips(np.zeros((3, 64, 64)), np.zeros((3, 64, 64)), backbone="resnet")


def photo_and_noisy() -> tuple[np.ndarray, np.ndarray]:
    from skimage.data import chelsea

    truth = chelsea().transpose(2, 0, 1) / 255
    noise = 0.1 * np.random.default_rng(0).standard_normal(truth.shape)
    return truth, np.clip(truth + noise, 0, 1)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_noise_of_photos(name, sigma):
    """As a file holds it, cut off at black and white and rounded: of a photo, and of a dark one."""
    from skimage import data

    photo = getattr(data, name)().transpose(2, 0, 1)[:, :300, :400] / 255
    noise = np.random.default_rng(0).standard_normal(photo.shape) * sigma / 255
    for picture, least, most in ((photo, 0.8, 1.35), (0.5 * photo**2, 0.8, 1.15)):
        stored = np.round(255 * np.clip(picture + noise, 0, 1)) / 255
        assert least < metrics.noise_level(stored) / (sigma / 255) < most


@pytest.mark.parametrize("size", [(9, 200), (40, 64), (128, 200)])
def test_noise_of_nothing_else(size):
    rng = np.random.default_rng(3)
    found = [metrics.noise_level(0.5 + 0.1 * rng.standard_normal((3, *size))) for _ in range(40)]
    assert np.mean(found) == pytest.approx(0.1, rel=0.05)


def test_lpips_ships():
    """No file is looked for, no random number drawn; the distance is the package's own (below)."""
    truth, noisy = photo_and_noisy()
    before = torch.random.get_rng_state()
    assert metrics.lpips(truth, noisy) == pytest.approx(0.788837, abs=2e-5)
    assert metrics.lpips(truth, truth) == 0
    assert 0 < metrics.lpips(truth, 0.9 * truth + 0.1 * noisy) < 0.1
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.long
def test_lpips_is_the_packages():
    """With the same features in the package's network."""
    import lpips as package
    from safetensors.torch import load_file

    from restoration.metrics.perceptual import ALEXNET

    network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = {n: m for part in network.net.children() for n, m in part.named_children()}
    for name, value in load_file(ALEXNET).items():
        _, layer, kind = name.split(".")
        getattr(layers[layer], kind).data.copy_(value)
    for crop in ((slice(0, 300), slice(0, 451)), (slice(10, 43), slice(7, 90))):
        one, other = (v[:, *crop] for v in photo_and_noisy())
        with torch.no_grad():
            pair = (torch.tensor(v, dtype=torch.float32)[None] for v in (one, other))
            theirs = float(network(*pair, normalize=True))
        assert metrics.lpips(one, other) == pytest.approx(theirs, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(16, 80),
    st.integers(16, 80),
    st.floats(0.05, 0.6),
    st.integers(0, 100),
)
def test_masks_miss_about_what_was_asked(kind, height, width, missing, seed):
    mask = make_mask(kind, height, width, missing, seed)
    assert mask.shape == (height, width)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(mask, make_mask(kind, height, width, missing, seed))
    share = 1 - mask.mean()
    if kind in ("strokes", "text"):
        assert (
            missing - 0.01 <= share
        )  # drawn until enough is covered; the last stroke may overshoot
    elif kind == "random":
        assert abs(share - missing) < 6 * (missing * (1 - missing) / mask.size) ** 0.5
    else:
        assert 0 < share < 1


@pytest.mark.parametrize(
    ("kind", "missing", "says"),
    [("dots", 0.5, "known: random"), ("random", 0.0, "0, 1"), ("text", 1.0, "0, 1")],
)
def test_mask_errors(kind, missing, says):
    with pytest.raises(ValueError, match=says):
        make_mask(kind, 16, 16, missing, 0)


def test_parse_mask():
    assert parse_mask("random:0.8") == ("random", 0.8)
    for text in ("nofile.png", "random", "random:lots"):
        with pytest.raises(ValueError, match="KIND:FRACTION"):
            parse_mask(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 1.0), st.integers(0, 5))
def test_lift_keeps_the_known_and_stays_between_extremes(height, width, known, seed):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, height, width, generator=g)
    mask = (torch.rand(2, 1, height, width, generator=g) < known).float()
    mask[..., 0, 0] = 1
    spoiled = torch.where(mask > 0, image, torch.full_like(image, 77.0))
    filled = push_pull(spoiled, mask)
    seen = mask.expand_as(image) > 0
    torch.testing.assert_close(filled[seen], image[seen], rtol=0, atol=0)
    for b in range(2):
        for c in range(3):
            values = image[b, c][mask[b, 0] > 0]
            assert filled[b, c].min() >= values.min() - 1e-5
            assert filled[b, c].max() <= values.max() + 1e-5


def test_lift_edges():
    flat = push_pull(
        torch.full((1, 3, 33, 17), 0.25),
        (torch.rand(1, 1, 33, 17, generator=torch.Generator().manual_seed(0)) > 0.9).float(),
    )
    torch.testing.assert_close(flat, torch.full((1, 3, 33, 17), 0.25))
    nothing = push_pull(torch.rand(1, 3, 12, 12), torch.zeros(1, 1, 12, 12))
    assert (nothing == 0).all()


def test_lift_beats_the_mean_on_a_smooth_image():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    image = (0.5 + 0.4 * torch.sin(5 * x + 3 * y))[None, None]
    mask = (torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    error = (push_pull(image, mask) - image).square().mean().sqrt()
    assert error < 0.1 * (image - image[mask > 0].mean()).square().mean().sqrt()
