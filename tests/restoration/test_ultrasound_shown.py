"""Dehazing by a network that is shown the frame, and the measure of kept structure."""

import numpy as np
import pytest
import torch
from torch import nn

from restoration.ultrasound.clip import restore_clip
from restoration.ultrasound.measures import structure
from restoration.ultrasound.shown import ShownFrameTask
from solvers.denoiser import Denoiser
from solvers.processes.process import VP


class Takes(nn.Module):
    """Takes a tenth of the grey scale off the frame that it is shown, and a hundredth of the state,
    so that samples differ.
    """

    def forward(self, x, t):
        state, shown = x.chunk(2, dim=1)
        return torch.where(shown > -0.9, -0.2, 0.0) + 0.01 * state


def takes(multiple=4):
    process = VP.cosine(zero_terminal_snr=True)
    return Denoiser(
        Takes().eval(), process, "sample", condition_channels=1, residual=True, multiple=multiple
    )


@pytest.fixture
def frame():
    return 0.2 + 0.6 * torch.rand(50, 46, generator=torch.Generator().manual_seed(1))


def test_the_network_sees_the_frame(frame):
    """What it takes off, times the strength; the haze is what was taken at strength 1."""
    for strength in (0.5, 1.0):
        found = ShownFrameTask(takes(), strength)(frame[None])
        assert found.image.shape == frame.shape
        assert found.nfe == 1
        assert float((frame - found.image).mean()) == pytest.approx(0.1 * strength, abs=2e-3)
        torch.testing.assert_close(found.image + strength * found.haze, frame)
    many = ShownFrameTask(takes(), 30.0)(frame)
    assert float(many.image.min()) == 0  # never below black


def test_samples_differ_by_their_seed_alone(frame):
    task = ShownFrameTask(takes(), num_inference_steps=2)
    found = task(frame, num_samples=3, seed=5)
    assert found.samples.shape == (3, 1, 50, 46)
    assert found.nfe == 6
    assert float(found.std.max()) > 0
    assert torch.equal(found.samples[2], task(frame, seed=7).mean)


def test_tiles_give_the_same(frame):
    whole = ShownFrameTask(takes(), tile=64)(frame)
    parts = ShownFrameTask(takes(), tile=16, overlap=2)(frame)
    torch.testing.assert_close(parts.image, whole.image)


def test_clips(frame):
    task = ShownFrameTask(takes())
    results = list(restore_clip(task, [frame, frame, 1 - frame]))
    assert [r.nfe for r in results] == [1, 0, 1]
    assert torch.equal(results[1].image, results[0].image)
    assert torch.equal(results[2].image, task(1 - frame).image)
    for wrong in ({"warm_start": 0.3}, {"stream": True}):
        with pytest.raises(ValueError, match="leave them out"):
            restore_clip(task, [frame], **wrong)


def test_bad_input(frame):
    for strength in (0, float("nan"), -1):
        with pytest.raises(ValueError, match="strength must be a positive number"):
            ShownFrameTask(takes(), strength)
    process = VP.cosine(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="shown one more, the frame"):
        ShownFrameTask(Denoiser(Takes(), process, "sample"))
    with pytest.raises(ValueError, match="3 colours"):
        ShownFrameTask(takes())(torch.rand(3, 40, 40))


# -- the measure -----------------------------------------------------------------------------------


@pytest.fixture
def scene():
    """A wall around a cavity, and a veil over all of it."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    clean = np.where(np.hypot(x, y) < 0.5, 0.02, 0.6)
    return clean, 0.7 * clean + 0.3


def test_what_is_clean_keeps_all(scene):
    clean, hazy = scene
    found = structure(clean, clean, hazy)
    assert found.edges_kept == pytest.approx(1)
    assert (found.edges_invented, found.tissue_lost, found.blood_filled) == (0, 0, 0)


def test_what_is_hazy_invents_nothing(scene):
    clean, hazy = scene
    found = structure(hazy, clean, hazy)
    assert found.edges_kept == pytest.approx(0.7, abs=0.01)  # its contrast
    assert (found.edges_invented, found.tissue_lost) == (0, 0)
    assert found.blood_filled == 1


def test_a_hollowed_organ_is_lost(scene):
    clean, hazy = scene
    hollow = clean.copy()
    hollow[:40, :40] = 0
    found = structure(hollow, clean, hazy)
    tissue = (clean == 0.6).mean()
    assert found.tissue_lost == pytest.approx(40 * 40 / clean.size / tissue, rel=0.2)
    assert found.edges_invented > 0.1


def test_a_mass_is_invented(scene):
    clean, hazy = scene
    mass = clean.copy()
    mass[56:72, 56:72] = 0.5
    found = structure(mass, clean, hazy)
    assert found.edges_invented > 0.1
    assert found.edges_kept == pytest.approx(1, abs=0.01)
    share = 16 * 16 / (clean == 0.02).sum()
    assert share < found.blood_filled < 2.5 * share  # smoothing spreads it


def test_edges_of_the_wrong_direction_are_not_kept(scene):
    clean, hazy = scene
    assert structure(1 - clean, clean, hazy).edges_kept == 0


def test_a_frame_without_edges_is_refused():
    flat = np.full((64, 64), 0.5)
    with pytest.raises(ValueError, match="no edge"):
        structure(flat, flat, flat)
