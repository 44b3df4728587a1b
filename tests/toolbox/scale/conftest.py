"""A tiny denoiser of planes, and pictures for it."""

import json

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture
from helpers.networks import shallow_unet

from restoration.io.images import Photo, write_image
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from toolbox.tasks.scale.manifest import NAME

NAMES = ("a.png", "b.jpg", "sub/c.png")


@pytest.fixture(scope="session")
def planes(tmp_path_factory):
    place = tmp_path_factory.mktemp("planes") / "model"
    process = VP.cosine(100, zero_terminal_snr=True)
    Denoiser(shallow_unet(1, 1), process, "v_prediction").save_pretrained(place)
    return place


@pytest.fixture
def scans(tmp_path):
    """A folder with three pictures in two depths, and a text."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(NAMES):
        noise = 0.1 * np.random.default_rng(k).standard_normal((3, 24, 20 + k))
        pixels = (smooth_picture(24, 20 + k) + noise).clip(0, 1).astype(np.float32)
        write_image(folder / name, Photo(pixels, bits=16 if k == 2 else 8))
    (folder / "readme.txt").write_text("what was scanned")
    return folder


@pytest.fixture
def denoise(planes):
    def run(*arguments):
        return restobox("restore", "denoise", *arguments, "--model", planes, "--sigma", "0.1")

    return run


@pytest.fixture
def everything():
    """The files of a folder but the manifest."""

    def read(folder):
        files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != NAME)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

    return read


@pytest.fixture
def records():
    """Of a manifest, by item."""

    def read(folder, status="done"):
        lines = (folder / NAME).read_text().splitlines()[1:]
        return {r["item"]: r for r in map(json.loads, lines) if r["status"] == status}

    return read
