"""Video files, frame by frame (needs PyAV: the extra ``video``)."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from solvers.files import check_file, replace_file
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

# the container of each ending, the codec of results, and how pixels are kept in it
KINDS = {
    ".mp4": ("mp4", "libx264", "yuv420p"),
    ".m4v": ("mp4", "libx264", "yuv420p"),
    ".mov": ("mov", "libx264", "yuv420p"),
    ".mkv": ("matroska", "ffv1", "bgr0"),
    ".avi": ("avi", "ffv1", "bgr0"),
    ".webm": ("webm", "libvpx-vp9", "yuv420p"),
}
# of what FFmpeg knows, only these containers, and nothing that they might point to
OPENED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "none",
    "err_detect": "explode",
}
BT709 = 1  # the colours of HD video, in FFmpeg's numbers
LACKING = 0.75  # of a frame may be missing at the end, by what the file tells of its length


@dataclass(frozen=True)
class Frame:
    """A picture ``(3, H, W)`` of 8-bit codes, upright, and its time in units of the clip's."""

    codes: np.ndarray
    time: int | None


@dataclass(frozen=True)
class Video:
    """A clip that is being read.

    Attributes:
        rate: frames a second, on average.
        unit: of the frames' times, seconds.
        count: of frames, where the file tells it; else 0.
        silent: whether it has no sound.
        frames: in their order; each once.
    """

    rate: Fraction
    unit: Fraction
    count: int
    silent: bool
    frames: Iterator[Frame]


def is_video(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in KINDS


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """The first clip of a file; sizes are checked before anything is decoded.

    Raises:
        FileNotFoundError: no such file.
        InputError: no video, or a damaged one: frames raise it too, and also where the file ends
            before the length that it tells.
        ResourceError: its frames are too large for the memory.
        ImportError: PyAV is missing.
    """
    av = need("av", "video files", "video")
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    with path.open("rb") as file, contextlib.ExitStack() as held:
        with reading(path, "a video"):
            container = held.enter_context(av.open(file, options=OPENED))
            if not container.streams.video:
                raise InputError(f"{path} holds no moving pictures")
            stream = container.streams.video[0]
            check_array(path, (3, stream.height, stream.width), 4)
            rate, unit = stream.average_rate or Fraction(25), stream.time_base
        silent = not container.streams.audio
        yield Video(rate, unit, stream.frames, silent, _frames(path, container, stream, rate))


def _frames(path: Path, container: Any, stream: Any, rate: Fraction) -> Iterator[Frame]:
    count, end = 0, Fraction(0)
    with reading(path, "a video"):
        for frame in container.decode(stream):
            check_array(path, (3, frame.height, frame.width), 4)
            count += 1
            if frame.pts is not None:
                end = max(end, frame.pts * stream.time_base + 1 / rate)
            codes = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield Frame(np.ascontiguousarray(codes.transpose(2, 0, 1)), frame.pts)
        told = _seconds(stream)
        if not count or count < stream.frames or end < told - LACKING / rate:
            raise InputError(
                f"{path} was cut short or is damaged: it holds {count} frames,"
                f" {float(end):.2f} s, and tells of {float(told):.2f} s; copy it again"
            )


def _seconds(stream: Any) -> Fraction:
    """The length that a file tells; 0 where it doesn't."""
    if stream.duration is not None:
        return Fraction(((stream.start_time or 0) + stream.duration) * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d{1,9})", stream.metadata.get("DURATION", ""))
    if found is None:
        return Fraction(0)
    hours, minutes, seconds = map(Fraction, found.groups())
    return hours * 3600 + minutes * 60 + seconds


def check_video_writable(path: Path) -> None:
    """Raise before any work is done if a video can't be written to ``path``.

    Raises:
        InputError: another ending.
        OSError: the place is not writable.
        ImportError: PyAV is missing.
    """
    need("av", "video files", "video")
    if not is_video(path):
        raise InputError(
            f"the result of a video is a video: {', '.join(KINDS)} (.mkv and .avi keep every"
            f" pixel); got {path}"
        )
    check_file(path)


def write_video(path: Path, like: Video, frames: Iterator[Frame], quality: int = 95) -> None:
    """Write frames of one size as they come, at their times; the file appears whole.

    Args:
        quality: of .mp4, .m4v, .mov and .webm, 1 to 100; .mkv and .avi keep every pixel.

    Raises:
        FullDiskError: no room.
    """
    import av

    form, codec, pixels = KINDS[path.suffix.lower()]

    def write(place: Path) -> None:
        first = next(frames)
        height, width = first.codes.shape[1:]
        with av.open(str(place), "w", format=form) as container:
            stream: Any = container.add_stream(codec, rate=like.rate)
            stream.width, stream.height = width, height
            odd = pixels == "yuv420p" and (height % 2 or width % 2)
            stream.pix_fmt = "yuv444p" if odd else pixels
            if codec != "ffv1":
                stream.options = {"crf": str(round(51 - 0.41 * quality)), "b": "0"}
                for name in ("colorspace", "color_primaries", "color_trc"):
                    setattr(stream.codec_context, name, BT709)
            timed = form != "avi"  # which has no times, only a rate
            if timed:
                stream.codec_context.time_base = like.unit
            for k, one in enumerate(itertools.chain([first], frames)):
                codes = np.ascontiguousarray(one.codes.transpose(1, 2, 0))
                frame = av.VideoFrame.from_ndarray(codes, format="rgb24")
                if codec != "ffv1":
                    frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=BT709)
                frame.pts = one.time if timed else k
                frame.time_base = like.unit if timed else 1 / like.rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    replace_file(path, write)
