"""Videos: what is written is read again, stills are not restored, what is cut is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture

from restoration.io.images import Photo, read_image, write_image
from restoration.io.video import KINDS, Frame, Video, open_video, write_video
from solvers.inputs.errors import InputError, ResourceError

BASE = np.rint(255 * smooth_picture(32, 48)).astype(np.uint8)
EXACT = (".mkv", ".avi")


def moving(count, still=()):
    """Frames that move by a pixel, but for those that repeat the one before."""
    at = np.cumsum([k not in still for k in range(count)])
    return [Frame(np.roll(BASE, int(n), 2), k) for k, n in enumerate(at)]


def make(path, frames, rate=Fraction(30000, 1001)):
    write_video(path, Video(rate, 1 / rate, len(frames), True, iter(())), iter(frames))


def read(path):
    with open_video(path) as video:
        return list(video.frames), video


@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_written_is_read_again(tmp_path, suffix):
    frames = moving(5)
    make(tmp_path / f"a{suffix}", frames)
    found, video = read(tmp_path / f"a{suffix}")
    assert len(found) == 5
    assert float(video.rate) == pytest.approx(29.97, abs=0.01)
    times = [float(frame.time * video.unit) for frame in found]
    np.testing.assert_allclose(times, np.arange(5) / 29.97, atol=1e-3)
    for one, other in zip(found, frames, strict=True):
        if suffix in EXACT:
            np.testing.assert_array_equal(one.codes, other.codes)
        else:  # colours of half the resolution: a picture of one's own is nearer than a shifted one
            apart = np.abs(one.codes.astype(int) - other.codes).mean()
            assert apart < 4 < np.abs(np.roll(one.codes, 4, 2).astype(int) - other.codes).mean()


def test_odd_sizes_and_orientation(tmp_path):
    write_video(
        tmp_path / "a.mp4",
        Video(Fraction(25), Fraction(1, 25), 1, True, iter(())),
        iter([Frame(BASE[:, :31, :45], 0)]),
    )
    assert read(tmp_path / "a.mp4")[0][0].codes.shape == (3, 31, 45)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_what_was_cut_is_refused(tmp_path, suffix):
    make(tmp_path / f"a{suffix}", moving(8))
    content = (tmp_path / f"a{suffix}").read_bytes()
    for share in (0.3, 0.6, 0.8):
        (tmp_path / f"b{suffix}").write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=f"b{suffix}"):
            read(tmp_path / f"b{suffix}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",  # lists of other files and addresses
        b"ffconcat version 1.0\nfile a.mkv\n",
    ],
)
def test_other_files_are_refused(tmp_path, content):
    make(tmp_path / "a.mkv", moving(2))
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.mp4 can't be read as a video"):
        read(tmp_path / "b.mp4")


def test_frames_within_the_budget(tmp_path, monkeypatch):
    make(tmp_path / "a.mkv", moving(2))
    monkeypatch.setenv("RESTOBOX_MAX_BYTES", "1000")
    with pytest.raises(ResourceError, match="RESTOBOX_MAX_BYTES"):
        read(tmp_path / "a.mkv")


def test_a_video_is_its_frames_restored(tmp_path, denoise):
    """The frames are those that `--clip` gives of the same pictures; stills are not restored."""
    frames = moving(6, still=(2, 3, 5))
    make(tmp_path / "a.mkv", frames)
    done = denoise(tmp_path / "a.mkv", "-o", tmp_path / "o.mkv", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["frames"], told["stills"], told["nfe"]) == (6, 3, 3)
    assert told["flicker"] > 0
    found, video = read(tmp_path / "o.mkv")
    assert video.rate == read(tmp_path / "a.mkv")[1].rate
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(frames):
        write_image(tmp_path / "in" / f"{k}.png", Photo(frame.codes.astype(np.float32) / 255))
    assert denoise(tmp_path / "in", "-o", tmp_path / "out", "--clip").returncode == 0
    for k, frame in enumerate(found):
        pixels = read_image(tmp_path / "out" / f"{k}.png").pixels
        np.testing.assert_array_equal(frame.codes, np.rint(255 * pixels))
    np.testing.assert_array_equal(found[1].codes, found[2].codes)
    done = denoise(tmp_path / "a.mkv", "-o", tmp_path / "o.mkv", "--refresh", "0", "--json")
    assert json.loads(done.stdout)["nfe"] == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "in", "o.mkv", "out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "o.png"), "the result of a video is a video"),
        (("-o", "a.mkv"), "would be lost"),
        (("-o", "o.mkv", "--std", "-n", "2"), "a video has no --std"),
        (("-o", "o.mkv", "--workers", "2"), "--workers has no effect on a video"),
        (("-o", "o.mkv", "--correction", "none-such"), "frame 0 of a.mkv"),
        (("-o", "out/"), "a video; restore denoise takes one at a time"),
    ],
)
def test_bad_calls_write_nothing(tmp_path, denoise, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.mkv", moving(2))
    before = (tmp_path / "a.mkv").read_bytes()
    done = denoise("a.mkv", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert (tmp_path / "a.mkv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


def test_tasks_of_other_files_take_none(tmp_path):
    make(tmp_path / "a.mkv", moving(2))
    done = restobox("restore", "mri", tmp_path / "a.mkv", "-o", tmp_path / "o.mkv")
    assert done.returncode == 2
    assert "mri takes no video" in done.stderr
