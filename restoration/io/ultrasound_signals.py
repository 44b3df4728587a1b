"""Ultrasound that is stored as numbers, not as pictures: zea-style HDF5 and channel data in
``.mat``; or as a video; and what a clip is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import dataset, opened
from restoration.io.containers.matlab import Matlab, is_hdf5
from restoration.io.images import MAX_PIXELS
from restoration.io.pictures.notes import Notes
from restoration.io.video import Video, open_video
from restoration.ultrasound.beamforming import PlaneWaves, beamform
from restoration.ultrasound.bmode import envelope, log_compress
from solvers.inputs.errors import InputError

MAX_FRAMES = 100_000
NEAR = 32  # frames of a video that are kept
SCANNED = "image_sc"  # pictures on the grid of the screen, before version 0.0.12
PICTURES = ("image", SCANNED)
KINDS = (*PICTURES, "envelope_data", "beamformed_data")
VALUES = ("/values", "/pixels")
MINIMUM_SIDE = 32


@dataclass(frozen=True)
class Clip:
    """A clip of B-mode frames.

    Attributes:
        count: number of frames.
        size: ``(H, W)`` in pixels.
        frame: frame k as ``(H, W)`` float32 in [0, 1].
        kind: what the file holds, in words.
        notes: what the file of frame k says beside its pixels; None: nothing.
        hdf5: of a zea file, it and the place of the frames in it, for the file written of them.
        times: of a video, its rate and the times of the frames, for the video written of them.
    """

    count: int
    size: tuple[int, int]
    frame: Callable[[int], np.ndarray]
    kind: str
    notes: Callable[[int], Notes] | None = None
    hdf5: tuple[Path, str] | None = None
    times: tuple[Video, list[int | None]] | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.frame(k) for k in range(self.count))


# -- videos ----------------------------------------------------------------------------------------


def read_frames(path: Path, grey: bool) -> Clip:
    """A video file, which is decoded once to count its frames, and again as they are asked for.

    Raises:
        InputError: as :func:`restoration.io.video.open_video`; frames of several sizes, too many,
            or in colour.
        ImportError: PyAV is missing.
    """
    times: list[int | None] = []
    sizes: set[tuple[int, int]] = set()
    with open_video(path) as video:
        for one in video.frames:
            times.append(one.time)
            height, width = one.codes.shape[1:]
            sizes.add((height, width))
    if len(sizes) > 1 or len(times) > MAX_FRAMES:
        raise InputError(
            f"{path} holds {len(times)} frames of the sizes {sorted(sizes)} (H, W); at most"
            f" {MAX_FRAMES} of one size are accepted"
        )
    return Clip(len(times), sizes.pop(), _Frames(path, grey), "video", times=(video, times))


class _Frames:
    """Grey frames of a video, decoded in their order. The last ones are kept: what is asked for
    again is near.
    """

    def __init__(self, path: Path, grey: bool):
        self.path, self.grey = path, grey
        self.kept: dict[int, np.ndarray] = {}
        self.rest = self._decoded()

    def __call__(self, k: int) -> np.ndarray:
        if k < min(self.kept, default=0):
            self.kept, self.rest = {}, self._decoded()
        while k not in self.kept:
            n, pixels = next(self.rest)
            self.kept[n] = grey_frame(pixels, self.path, self.grey)
            self.kept.pop(n - NEAR, None)
        return self.kept[k]

    def _decoded(self) -> Iterator[tuple[int, np.ndarray]]:
        with open_video(self.path) as video:
            for n, one in enumerate(video.frames):
                yield n, one.codes.astype(np.float32) / 255


def grey_frame(pixels: np.ndarray, path: Path, grey: bool) -> np.ndarray:
    """A picture ``(C, H, W)`` as ``(H, W)``.

    Raises:
        InputError: it is in colour, and ``grey`` doesn't ask for the mean of the channels.
    """
    if (
        not grey and np.abs(pixels - pixels[:1]).max() > 8 / 255
    ):  # JPEG moves the channels of a grey picture apart a little
        raise InputError(
            f"{path} is in colour; ultrasound frames are grey. To average the channels, pass"
            " grey=True (--grey)"
        )
    return pixels.mean(0, dtype=np.float32)


# -- HDF5 ------------------------------------------------------------------------------------------


def read_hdf5(path: Path, dynamic_range: float) -> Clip:
    """A file of pictures, envelopes or beamformed signals.

    Args:
        dynamic_range: dB below the brightest that are shown.

    Raises:
        InputError: none of them, or other shapes or numbers.
    """
    with opened(path) as file:
        found = _frames(path, file)
        stored = dataset(file, found, path, whole=False)
        shape, kind = stored.shape, stored.dtype
    name = next(name for name in KINDS if f"/data/{name}/" in f"/{found}/")
    channels = shape[3] if len(shape) == 4 else 1
    most = 2 if name == "beamformed_data" else 1
    if len(shape) not in (3, 4) or channels > most:
        raise InputError(
            f"{path}: {found} must be (n_frames, H,"
            f" W){' or (n_frames, H, W, 1 or 2)' if most == 2 else ''}; got {shape}"
        )
    count, height, width = shape[:3]
    if count == 0:
        raise InputError(f"{path}: the clip is empty ({found} has shape {shape})")
    if min(height, width) < MINIMUM_SIDE:
        raise InputError(
            f"{path}: {found} has shape {shape}, which would be frames of {height} x {width}"
            " pixels; its axes must be (n_frames, H, W)"
        )
    if height * width * channels > MAX_PIXELS or count > MAX_FRAMES:
        raise InputError(
            f"{path}: {found} of shape {shape} is too large; at most {MAX_PIXELS} pixels a frame"
            f" and {MAX_FRAMES} frames"
        )
    if kind.kind not in "uifc":
        raise InputError(f"{path}: {found} holds {kind}; numbers are needed")

    def load(k: int) -> np.ndarray:
        with opened(path) as file:
            values = np.asarray(dataset(file, found, path, whole=False)[k])
        if name in PICTURES and values.dtype.kind == "f":  # no echo at all, in dB
            values = np.where(np.isneginf(values), np.finfo(np.float32).min, values)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: frame {k} holds NaN or infinite values")
        return values

    # one scale for the whole clip, or its brightness would flicker: from up to eight frames
    some = [load(k) for k in sorted({round(i) for i in np.linspace(0, count - 1, min(count, 8))})]
    if name in PICTURES:
        low, span = _grey_scale(some, path, dynamic_range)

        def scaled(k: int) -> np.ndarray:
            frame = (load(k).reshape(height, width) - low) / span
            return np.clip(frame, 0, 1).astype(np.float32)

        return Clip(count, (height, width), scaled, "HDF5 pictures", hdf5=(path, found))
    reference = max(float(_amplitude(values).max()) for values in some)
    return Clip(
        count,
        (height, width),
        lambda k: log_compress(_amplitude(load(k)), dynamic_range, reference).astype(np.float32),
        f"HDF5 {name}",
        hdf5=(path, found),
    )


def _frames(path: Path, file: Any) -> str:
    """Where a zea file keeps its frames: an array ``data/image``, else ``data/image_sc``, or since
    version 0.0.12 the ``values`` of a group ``image``, at the top or in a track.
    """
    tracks = file.get("tracks")
    tops = ["", *(f"tracks/{name}/" for name in tracks or ())]
    found = []
    for top in tops:
        places = [f"{top}data/{kind}{inner}" for kind in KINDS for inner in ("", *VALUES)]
        held = [p for p in places if _is_array(file, p)]
        found += held[:1]
    if len(found) > 1:
        raise InputError(
            f"{path} holds several tracks with frames ({', '.join(found)}); write the one to be"
            " restored to a file of its own"
        )
    if not found:
        raw = [t for t in tops if f"{t}data/raw_data" in file]
        hint = f" (it holds {raw[0]}data/raw_data: beamform it first)" if raw else ""
        known = ", ".join(f"data/{kind}" for kind in KINDS)
        raise InputError(f"{path} holds none of {known}, neither as arrays nor as groups{hint}")
    return found[0]


def _is_array(file: Any, place: str) -> bool:
    """Whether something lies there that is no group; links are refused where it is read."""
    parent, _, name = place.rpartition("/")
    try:
        if parent not in file or file.get(parent).get(name, getlink=True) is None:
            return False
        return not hasattr(file.get(place), "keys")
    except (AttributeError, KeyError, OSError):  # an array has no members
        return False


def _amplitude(values: np.ndarray) -> np.ndarray:
    """Envelope of one frame ``(H, W)``, ``(H, W, 1)`` (RF along H, or an envelope, which has no
    negative value) or ``(H, W, 2)`` (IQ).
    """
    if values.ndim == 3 and values.shape[2] == 2:
        return np.hypot(values[..., 0].astype(np.float64), values[..., 1])
    values = values.reshape(values.shape[:2])
    if np.iscomplexobj(values) or (values < 0).any():
        return envelope(values, axis=0)
    return values.astype(np.float64)


def _grey_scale(frames: list[np.ndarray], path: Path, dynamic_range: float) -> tuple[float, float]:
    """Value of black, and how far above it white is."""
    if frames[0].dtype.kind == "u":
        return 0.0, float(np.iinfo(frames[0].dtype).max)
    low, high = min(float(v.min()) for v in frames), max(float(v.max()) for v in frames)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if high <= 0:  # dB below the brightest
        return -dynamic_range, dynamic_range
    if low >= 0 and high <= 255:
        return 0.0, 255.0
    raise InputError(
        f"{path}: grey values from {low:.4g} to {high:.4g} are neither in [0, 1], in [0, 255] nor"
        " in dB (at most 0)"
    )


# -- channel data ----------------------------------------------------------------------------------


def read_channels(path: Path, dynamic_range: float, sampling_rate: float | None) -> Clip:
    """Plane-wave channel data, beamformed.

    Args:
        dynamic_range: as of :func:`read_hdf5`.
        sampling_rate: Hz; None: as the file says.

    Raises:
        InputError: what is needed is missing or is of another kind.
    """
    if is_hdf5(path):
        raise InputError(f"{path} is a MATLAB 7.3 file; save it with -v7")
    content = Matlab(path)
    key = next((k for k in ("RF2", "RF") if k in content.shapes), None)
    if key is None:
        raise InputError(
            f"{path} holds no channel data: RF or RF2 (samples, elements, acquisitions) is needed;"
            f" found {list(content.shapes)}"
        )
    names = [n for n in (key.replace("RF", "param"), "param", "params") if n in content.shapes]
    rf = np.asarray(content.read(key))
    rf = rf[..., None] if rf.ndim == 2 else rf
    fields = content.read(names[0]) if names else {}
    if not isinstance(fields, dict):
        raise InputError(f"{path}: {names[0]} must be a struct (fs, pitch, c, t0 ...)")

    def value(name: str, default: Any = None) -> Any:
        found = next((v for k, v in fields.items() if k.lower() == name.lower()), None)
        if found is None:
            return default
        if np.iscomplexobj(found) or not np.isfinite(found).all():
            raise InputError(f"{path}: {name} of {names[0]} must be finite and real")
        return np.asarray(found, np.float64).squeeze()

    rate = sampling_rate or value("fs")
    if rate is None:
        raise InputError(
            f"{path} does not say its sampling rate (field fs of param): give sampling_rate"
            " (--sampling-rate) in Hz"
        )
    pitch = value("pitch")
    if pitch is None:
        raise InputError(
            f"{path} does not say the distance of its elements (field pitch of param, in m)"
        )
    if rf.ndim != 3 or rf.dtype.kind not in "uif" or not rf.shape[0] >= rf.shape[1] >= 8:
        raise InputError(
            f"{path}: {key} must be (samples, elements, acquisitions), real, with more samples than"
            f" elements; got {rf.shape}"
        )
    angles = value("TXangle")
    compounded = angles is not None and angles.size == rf.shape[2]
    waves = PlaneWaves(
        float(rate),
        float(pitch),
        float(value("c", 1540.0)),
        float(value("t0", 0.0)),
        tuple(map(float, angles.ravel())) if compounded else (0.0,),
    )
    frames = [rf] if compounded else [rf[..., k : k + 1] for k in range(rf.shape[2])]
    first, last = waves.depths(rf.shape[0])
    width = min(1024, max(MINIMUM_SIDE, 2 * rf.shape[1]))
    # square pixels
    height = int(
        np.clip(
            round((last - first) / (waves.pitch * (rf.shape[1] - 1)) * width), MINIMUM_SIDE, 4096
        )
    )

    references: list[float] = []

    def frame(k: int) -> np.ndarray:
        amplitude = np.abs(beamform(frames[k].astype(np.float64), waves, height, width))
        if not references:  # one reference for the whole clip: the first frame that is asked for
            references.append(float(amplitude.max()))
        return log_compress(amplitude, dynamic_range, references[0]).astype(np.float32)

    return Clip(len(frames), (height, width), frame, "channel data")
