"""Benchmarks on several workers: the rows of one process, in their order."""

import json

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture
from helpers.scans import disc

from restoration.io.images import Photo, write_image
from toolbox.bench.shares import shared

TIMES = ("seconds", "seconds_per_slice")


def squares(items):
    for item in items:
        yield item, item**2


def test_one_process_takes_items_one_by_one():
    taken = []

    def watched(items):
        for item in items:
            taken.append(item)
            yield item

    found = shared(watched, range(5), None)
    assert next(found) == 0
    assert taken == [0]  # progress can be shown
    assert list(found) == [1, 2, 3, 4]


def test_workers_take_turns(threads_as_workers):
    for count in (0, 1, 7):
        assert list(shared(squares, range(count), 3)) == [(k, k * k) for k in range(count)]


def without_times(found):
    if isinstance(found, list):
        return [without_times(one) for one in found]
    if isinstance(found, dict):
        return {key: without_times(one) for key, one in found.items() if key not in TIMES}
    return found


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "scan.npz", image=np.stack([disc((32, 32)), disc((32, 32), 0.5)]))
    frames = tmp_path / "frames"
    frames.mkdir()
    cone = np.hypot(*np.mgrid[-1:1:96j, -1:1:96j])
    for k in range(3):
        frame = np.where(cone < 0.4 + 0.05 * k, 0.05, 0.6).astype(np.float32)
        write_image(frames / f"{k}.png", Photo(frame[None]))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(3):
        write_image(pictures / f"{k}.png", Photo(smooth_picture(40 + 8 * k, 48)))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ("mri", "scan.npz", "--model", "zero-filled", "--model", "cg-sense", "-m", "poisson"),
        ("hsi", "simulated", "--method", "noisy", "--method", "subspace", "--case", "50"),
        ("ultrasound", "frames", "--method", "hazy", "--method", "nlm", "--strength", "1"),
        (
            "coverage",
            "denoise",
            "pictures",
            "pictures",
            "--model",
            "grey",
            "--side",
            "32",
            "--calibration-limit",
            "9",
            "--limit",
            "2",
            "-n",
            "2",
            "--solver",
            "ddpm",
        ),
    ],
)
def test_workers_measure_the_same(data, words, threads_as_workers):
    found = []
    for workers in ((), ("--workers", "2")):
        done = restobox("bench", *words, *workers, "--json", cwd=data)
        assert done.returncode == 0, done.stderr
        found.append(without_times(json.loads(done.stdout)))
    assert found[0] == found[1]
    assert found[0]
