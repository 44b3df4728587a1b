"""Frames of a clip: one draw for all, and nothing is restored twice that did not change."""

import json

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture

from restoration.io.images import Photo, read_image, write_image


@pytest.fixture
def clip(tmp_path):
    """Five frames: the second and the third are the first, of the fourth one pixel differs."""
    (tmp_path / "clip").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((3, 24, 20))
    first = (smooth_picture(24, 20) + noise).clip(0, 0.9).astype(np.float32)
    fourth = first.copy()
    fourth[:, 5, 5] += 4 / 255
    frames = {"f2": first, "f9": first, "f10": first, "f11": fourth, "f100": first[:, ::-1]}
    for name, pixels in frames.items():
        write_image(tmp_path / "clip" / f"{name}.png", Photo(np.ascontiguousarray(pixels)))
    return tmp_path / "clip"


@pytest.fixture
def fill(clip, tmp_path, planes, records):
    """Records in order, and results by name."""

    def run(out, *options):
        own = ("--mask", "random:0.5", "--steps", 2, "--seed", 3, "--model", planes, *options)
        found = restobox("restore", "inpaint", clip, "-o", tmp_path / out, "--json", *own)
        assert found.returncode == 0, found.stderr
        pixels = {p.stem: read_image(p).pixels for p in (tmp_path / out).glob("*.png")}
        return json.loads(found.stdout), records(tmp_path / out), pixels

    return run


def test_frames_that_do_not_change_are_restored_once(fill):
    told, done, results = fill("clip-out", "--clip")
    assert list(done) == [f"f{k}.png" for k in (2, 9, 10, 11, 100)]
    assert [r["nfe"] for r in done.values()] == [2, 0, 0, 2, 2]
    assert [r.get("same_as") for r in done.values()] == [None, "f2.png", "f2.png", None, None]
    assert {r["seed"] for r in done.values()} == {3}
    assert (results["f2"] == results["f10"]).all()
    assert told["nfe"] == 6
    changes = [r["metrics"].get("flicker") for r in done.values()]
    assert changes[0] is None
    assert changes[1:3] == [0, 0]
    assert 0 < changes[3] < changes[4]
    # the same as if each of them had been restored
    every, again, same = fill("every", "--clip", "--refresh", 0)
    assert every["nfe"] == 10
    assert all((same[name] == results[name]).all() for name in results)
    assert {r["out_sha256"][n] for n, r in again.items()} == {
        r["out_sha256"][n] for n, r in done.items()
    }


@pytest.mark.long
def test_small_changes_may_pass_for_none_until_the_next_refresh(fill):
    _, done, results = fill("still", "--clip", "--still", 0.02, "--refresh", 2)
    assert [r["nfe"] for r in done.values()] == [2, 0, 0, 2, 2]  # the refresh came first
    _, done, results = fill("longer", "--clip", "--still", 0.02)
    assert [r["nfe"] for r in done.values()] == [2, 0, 0, 0, 2]
    assert (results["f11"] == results["f2"]).all()
    _, done, other = fill("apart")  # items of their own draw each their own
    assert not (other["f2"] == other["f10"]).all()


def test_what_is_no_clip_is_refused(clip, tmp_path, planes):
    for task, options, said in (
        ("denoise", ("--clip", "--workers", 2), "leave --workers out"),
        ("denoise", ("--refresh", 3), "add --clip"),
        ("hsi", ("--clip",), "a clip of hsi is one measurement"),
    ):
        inputs = [clip / "f2.png", clip / "f9.png"] if task == "denoise" else ["a.hdr", "b.hdr"]
        for name in inputs[:2] if task == "hsi" else ():
            (tmp_path / name).touch()
        found = restobox(
            "restore",
            task,
            *inputs,
            "-o",
            tmp_path / "o/",
            "--model",
            planes,
            *options,
            cwd=tmp_path,
        )
        assert found.returncode == 2
        assert said in found.stderr
    assert not (tmp_path / "o").exists()
