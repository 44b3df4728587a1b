"""Ultrasound clips: pictures, folders of pictures, zea-style HDF5, channel data in ``.mat``, DICOM.
Frames are read one at a time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from restoration.io.containers.hdf5 import created
from restoration.io.images import SUFFIXES, Photo, check_writable, read_image, write_image
from restoration.io.pictures.dicom import count_of, frames_of, head_of
from restoration.io.ultrasound_signals import MAX_FRAMES, Clip, read_channels, read_hdf5
from restoration.ultrasound.bmode import DYNAMIC_RANGE
from solvers.files import check_folder, check_marked, replace_file, replace_marked_folder
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

HDF5 = (".h5", ".hdf5")
PICTURES = (*SUFFIXES, ".bmp")
DICOM = (".dcm", ".dicom", ".ima")
FRAMES = "folder of restored frames"


def read_clip(
    path: str | Path,
    *,
    dynamic_range: float = DYNAMIC_RANGE,
    grey: bool = False,
    sampling_rate: float | None = None,
) -> Clip:
    """Open a clip; sizes are checked before anything is decoded.

    Accepted are

    - a picture, or a folder of pictures of one size (in the order of the numbers in their names);
    - HDF5 as zea writes it: ``data/image`` (grey values, or dB below the brightest), else
      ``data/envelope_data``, else ``data/beamformed_data`` (RF, or IQ in two channels);
      ``(n_frames, H, W)``, also with a last axis of 1 or 2 channels;
    - ``.mat`` with channel data ``RF`` or ``RF2`` ``(samples, elements, acquisitions)`` and a
      struct ``param`` or ``param2`` (``fs``, ``pitch``, ``c``, ``t0``; ``TXangle``: the
      acquisitions are compounded into one frame, else each is a frame);
    - DICOM files of one or several frames, or a folder of them (needs pydicom, in the extra
      ``mri``).

    Args:
        dynamic_range: dB that are shown of amplitudes.
        grey: average the channels of coloured pictures, which are refused otherwise.
        sampling_rate: of channel data, Hz, where the file does not say.

    Raises:
        FileNotFoundError: no such file.
        InputError: an unknown kind of file, a damaged one, an empty clip, frames of several sizes,
            colour, axes in another order, or channel data without a sampling rate. Reading a frame
            raises it too.
        ResourceError: a frame, or what is read with it, is too large for the memory.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"clip {path} does not exist")
    with reading(path, "a clip"):
        clip = _open(path, dynamic_range, grey, sampling_rate)

    def frame(k: int) -> np.ndarray:
        with reading(path, "a clip"):
            return clip.frame(k)

    return replace(clip, frame=frame)


def _open(path: Path, dynamic_range: float, grey: bool, sampling_rate: float | None) -> Clip:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path, grey)
    if suffix in PICTURES:
        return _pictures([path], grey)
    if suffix in HDF5:
        return read_hdf5(path, dynamic_range)
    if suffix == ".mat":
        return read_channels(path, dynamic_range, sampling_rate)
    if suffix in DICOM:
        return _dicom([path], grey)
    accepted = ", ".join((*PICTURES, *HDF5, ".mat", *DICOM))
    raise InputError(f"clip {path} is of no known kind; accepted are a folder, {accepted}")


def check_clip_writable(path: str | Path, count: int) -> None:
    """Raise before any work is done if ``count`` frames can't be written to ``path``: a folder (a
    new one, or one that holds restored frames and nothing else), HDF5, or a picture for one frame.

    Raises:
        ValueError: a picture for several frames, or an unknown suffix.
        OSError: the place is not writable.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in HDF5:
        check_folder(path.absolute().parent)
        if path.is_dir():
            raise IsADirectoryError(f"output {path} is a folder; give a file name")
    elif suffix == "":
        check_marked(path, FRAMES)
    else:
        check_writable(path)
        if count > 1:
            raise InputError(
                f"{count} frames do not go into one picture: give a folder or a file ending in .h5"
            )


def write_clip(path: str | Path, frames: Iterator[np.ndarray], count: int) -> list[str]:
    """Write frames ``(H, W)`` in [0, 1] as they come: PNG files in a folder, ``data/image`` (8
    bits) of an HDF5 file, or one picture.

    Returns the paths of the files, which appear when all of them are complete.

    Raises:
        ValueError, OSError: as :func:`check_clip_writable`.
    """
    path = Path(path)
    check_clip_writable(path, count)
    if path.suffix.lower() in HDF5:
        replace_file(path, lambda temporary: _write_hdf5(temporary, frames, count))
        return [str(path)]
    if path.suffix != "":
        write_image(path, Photo(next(iter(frames))[None].astype(np.float32)))
        return [str(path)]
    names: list[str] = []

    def write(place: Path) -> None:
        for k, frame in enumerate(frames):
            names.append(str(path / f"frame_{k:04d}.png"))
            _write_frame(place / f"frame_{k:04d}.png", frame)

    replace_marked_folder(path, write, FRAMES)
    return names


def _write_frame(path: Path, frame: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8)).save(path)


def _write_hdf5(path: Path, frames: Iterator[np.ndarray], count: int) -> None:
    first = next(frames)
    with created(path, count * first.size) as file:
        stored = None
        for k, frame in enumerate(itertools.chain([first], frames)):
            if stored is None:
                stored = file.create_dataset(
                    "data/image",
                    (count, *frame.shape),
                    np.uint8,
                    chunks=(1, *frame.shape),
                    compression="gzip",
                )
            stored[k] = np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8)


# -- pictures --------------------------------------------------------------------------------------


def _folder(path: Path, grey: bool) -> Clip:
    files = sorted(
        (p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), key=_natural
    )
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    if pictures:
        return _pictures(pictures, grey)
    dicom = [p for p in files if p.suffix.lower() in (*DICOM, "")]
    if dicom:
        return _dicom(dicom, grey)
    raise InputError(
        f"folder {path} holds no frame: pictures ({', '.join(PICTURES)}) and DICOM files are"
        " accepted"
    )


def _pictures(paths: list[Path], grey: bool) -> Clip:
    if len(paths) > MAX_FRAMES:
        raise InputError(
            f"{paths[0].parent} holds {len(paths)} pictures; at most {MAX_FRAMES} are accepted"
        )
    size = _grey_frame(read_image(paths[0]).pixels, paths[0], grey).shape

    def frame(k: int) -> np.ndarray:
        pixels = _grey_frame(read_image(paths[k]).pixels, paths[k], grey)
        if pixels.shape != size:
            raise InputError(
                f"{paths[k]} has {pixels.shape} pixels (H, W) but the clip's first frame has"
                f" {size}; all must be equal"
            )
        return pixels

    return Clip(len(paths), size, frame, "pictures")


def _grey_frame(pixels: np.ndarray, path: Path, grey: bool) -> np.ndarray:
    """``(C, H, W)`` to ``(H, W)``."""
    if (
        not grey and np.abs(pixels - pixels[:1]).max() > 8 / 255
    ):  # JPEG moves the channels of a grey picture apart a little
        raise InputError(
            f"{path} is in colour; ultrasound frames are grey. To average the channels, pass"
            " grey=True (--grey)"
        )
    return pixels.mean(0, dtype=np.float32)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", path.name.lower())
    ]


# -- DICOM -----------------------------------------------------------------------------------------


def _dicom(paths: list[Path], grey: bool) -> Clip:
    places: list[tuple[Path, int]] = []
    sizes = set()
    for path in paths:
        try:
            head = head_of(path)
        except InputError:
            if len(paths) > 1 and path.suffix == "":
                continue
            raise
        if head is None:
            continue
        count, size = count_of(head), (int(head.Rows), int(head.Columns))
        check_array(path, (count, *size, int(head.get("SamplesPerPixel", 1) or 1)), 8)
        if count > MAX_FRAMES:
            raise InputError(f"{path} has {count} frames; at most {MAX_FRAMES} are accepted")
        sizes.add(size)
        places += [(path, k) for k in range(count)]
    if not places:
        raise InputError(f"{paths[0]} holds no DICOM image")
    if len(sizes) > 1:
        raise InputError(f"{paths[0].parent} holds DICOM frames of several sizes: {sorted(sizes)}")
    kept: dict[Path, np.ndarray] = {}

    def frame(k: int) -> np.ndarray:
        path, index = places[k]
        if path not in kept:
            kept.clear()  # one file at a time
            kept[path] = _dicom_pixels(path, grey)
        return kept[path][index]

    return Clip(len(places), sizes.pop(), frame, "DICOM")


def _dicom_pixels(path: Path, grey: bool) -> np.ndarray:
    """``(n, H, W)`` in [0, 1]."""
    found = []
    for frame in frames_of(path):
        if frame.white == frame.black:
            raise InputError(f"{path} scales all its pixels by 0")
        values = (frame.pixels - frame.black) / (frame.white - frame.black)
        values = np.clip(values, 0, 1).astype(np.float32)
        planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        found.append(_grey_frame(planes, path, grey))
    return np.stack(found)
