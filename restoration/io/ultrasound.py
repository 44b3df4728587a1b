"""Ultrasound clips: pictures, folders of pictures, zea-style HDF5, channel data in ``.mat``, DICOM,
video files. Frames are read one at a time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import created, opened
from restoration.io.containers.packages import need
from restoration.io.images import SUFFIXES, Photo, check_writable, encoded, read_image, write_image
from restoration.io.pictures.derived import save
from restoration.io.pictures.dicom import ENDINGS as DICOM
from restoration.io.pictures.notes import Notes, saving, space_of
from restoration.io.ultrasound_dicom import derived_clip, read_dicom
from restoration.io.ultrasound_signals import (
    MAX_FRAMES,
    SCANNED,
    VALUES,
    Clip,
    grey_frame,
    read_channels,
    read_frames,
    read_hdf5,
)
from restoration.io.video import KINDS as VIDEOS
from restoration.io.video import Frame as VideoFrame
from restoration.io.video import check_video_writable, write_video
from restoration.ultrasound.bmode import DYNAMIC_RANGE
from solvers.files import check_folder, check_marked, replace_file, replace_marked_folder
from solvers.inputs.errors import InputError, reading

HDF5 = (".h5", ".hdf5")
PICTURES = (*SUFFIXES, ".bmp")
DICOM_OUT = ".dcm"
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
      ``data/image_sc`` (the same, scan-converted), else ``data/envelope_data``, else
      ``data/beamformed_data`` (RF, or IQ in two channels); ``(n_frames, H, W)``, also with a last
      axis of 1 or 2 channels. Each is an array, or (zea 0.0.12 and later) a group that holds it as
      ``values``, perhaps in the file's one track;
    - ``.mat`` with channel data ``RF`` or ``RF2`` ``(samples, elements, acquisitions)`` and a
      struct ``param`` or ``param2`` (``fs``, ``pitch``, ``c``, ``t0``; ``TXangle``: the
      acquisitions are compounded into one frame, else each is a frame);
    - DICOM files of one or several frames, or a folder of them (needs pydicom, in the extra
      ``mri``);
    - video files (needs PyAV, in the extra ``video``).

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
        return read_dicom([path], grey)
    if suffix in VIDEOS:
        return read_frames(path, grey)
    accepted = ", ".join((*PICTURES, *HDF5, ".mat", *DICOM, *VIDEOS))
    raise InputError(f"clip {path} is of no known kind; accepted are a folder, {accepted}")


def check_clip_writable(path: str | Path, count: int, like: Clip | None = None) -> None:
    """Raise before any work is done if ``count`` frames can't be written to ``path``: a folder (a
    new one, or one that holds restored frames and nothing else), HDF5, DICOM, a picture for one
    frame, or a video for those of a video.

    Raises:
        ValueError: a picture for several frames, a video for frames without times, or an unknown
            suffix.
        OSError: the place is not writable.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (*HDF5, DICOM_OUT):
        check_folder(path.absolute().parent)
        if suffix == DICOM_OUT:
            need("pydicom", "DICOM files")
        if path.is_dir():
            raise IsADirectoryError(f"output {path} is a folder; give a file name")
    elif suffix == "":
        check_marked(path, FRAMES)
    elif suffix in VIDEOS:
        check_video_writable(path)
        if like is None or like.times is None:
            raise InputError(
                f"output {path} is a video, which frames without times can't make: give a folder or"
                " a file ending in .h5 or .dcm"
            )
    else:
        check_writable(path)
        if count > 1:
            raise InputError(
                f"{count} frames do not go into one picture: give a folder or a file ending in .h5"
                " or .dcm"
            )


def write_clip(
    path: str | Path, frames: Iterator[np.ndarray], count: int, like: Clip | None = None
) -> list[str]:
    """Write frames ``(H, W)`` in [0, 1] as they come: PNG files in a folder, ``data/image`` (8
    bits) of an HDF5 file, a DICOM file, a video, or one picture.

    Args:
        like: the clip that they were made of, whose notes, scan, regions, calibration and times are
            kept where the format can hold them: of pictures in pictures, of zea files in HDF5, of
            DICOM in DICOM, of videos in videos.

    Returns the paths of the files, which appear when all of them are complete.

    Raises:
        ValueError, OSError: as :func:`check_clip_writable`.
    """
    path = Path(path)
    check_clip_writable(path, count, like)
    notes = (like.notes if like is not None else None) or (lambda k: Notes())
    if path.suffix.lower() in HDF5:
        source = None if like is None else like.hdf5
        replace_file(path, lambda temporary: _write_hdf5(temporary, frames, count, source))
        return [str(path)]
    if path.suffix.lower() == DICOM_OUT:
        data = derived_clip(list(frames), [notes(k).origin for k in range(count)])
        replace_file(path, lambda temporary: save(data, temporary))
        return [str(path)]
    if path.suffix.lower() in VIDEOS and like is not None and like.times is not None:
        video, times = like.times
        write_video(path, video, map(_video_frame, frames, times))
        return [str(path)]
    if path.suffix != "":
        pixels = next(iter(frames))[None].astype(np.float32)
        write_image(path, Photo(pixels, notes=grey_notes(notes(0))))
        return [str(path)]
    names: list[str] = []

    def write(place: Path) -> None:
        for k, frame in enumerate(frames):
            names.append(str(path / f"frame_{k:04d}.png"))
            _write_frame(place / f"frame_{k:04d}.png", frame, grey_notes(notes(k)))

    replace_marked_folder(path, write, FRAMES)
    return names


def _video_frame(frame: np.ndarray, at: int | None) -> VideoFrame:
    codes = np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8)
    return VideoFrame(np.broadcast_to(codes, (3, *codes.shape)), at)


def _write_frame(path: Path, frame: np.ndarray, notes: Notes) -> None:
    from PIL import Image

    codes = np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8)
    path.write_bytes(encoded(Image.fromarray(codes), "PNG", **saving(notes, "PNG")))


def grey_notes(notes: Notes) -> Notes:
    """Those of a picture that is grey now, whatever it was."""
    return notes if space_of(notes.icc) == "GRAY" else notes.without_profile()


def _write_hdf5(
    path: Path, frames: Iterator[np.ndarray], count: int, source: tuple[Path, str] | None
) -> None:
    first = next(frames)
    place, room = "data/image", 0
    if source is not None:
        group, _, last = source[1].rpartition("/")
        place = f"data/{last}" if last == SCANNED else place
        if f"/{last}" in VALUES:  # the present layout
            place, room = f"{group.rpartition('/')[0]}/image/values", source[0].stat().st_size
    with created(path, count * first.size + room) as file:
        if source is not None:
            with opened(source[0]) as old:
                _keep(old, file, source[1], place)
        stored = None
        for k, frame in enumerate(itertools.chain([first], frames)):
            if stored is None:
                stored = file.create_dataset(
                    place,
                    (count, *frame.shape),
                    np.uint8,
                    chunks=(1, *frame.shape),
                    compression="gzip",
                )
            stored[k] = np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8)


def _keep(old: Any, new: Any, place: str, target: str) -> None:
    """Of a zea file the attributes, and what it says of probe, scan and patient; where the frames
    were a group, what stands in it beside them (coordinates), but for its range.
    """
    new.attrs.update(old.attrs)
    track = "" if place.startswith("data/") else place.rpartition("/data/")[0] + "/"
    for top in {"", track}:
        for name in _own(old[top or "/"]):
            if name not in ("data", "tracks"):
                new.require_group(top or "/")
                old.copy(old[top + name], new[top or "/"], name)
    if not target.endswith("/values"):
        return
    group = new.require_group(target.rpartition("/")[0])
    inside = old[place.rpartition("/")[0]]
    for name in _own(inside):
        if f"/{name}" not in VALUES and name not in ("min", "max", "unit"):
            inside.copy(inside[name], group, name)


def _own(group: Any) -> list[str]:
    """What lies in a group itself: a link may lead to another file."""
    import h5py

    return [n for n in group if isinstance(group.get(n, getlink=True), h5py.HardLink)]


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
        return read_dicom(dicom, grey)
    raise InputError(
        f"folder {path} holds no frame: pictures ({', '.join(PICTURES)}) and DICOM files are"
        " accepted"
    )


def _pictures(paths: list[Path], grey: bool) -> Clip:
    if len(paths) > MAX_FRAMES:
        raise InputError(
            f"{paths[0].parent} holds {len(paths)} pictures; at most {MAX_FRAMES} are accepted"
        )
    size = grey_frame(read_image(paths[0]).pixels, paths[0], grey).shape
    # asked for frame by frame: what is kept is small
    said: dict[int, Notes] = {}

    def frame(k: int) -> np.ndarray:
        photo = read_image(paths[k])
        said[k] = photo.notes
        pixels = grey_frame(photo.pixels, paths[k], grey)
        if pixels.shape != size:
            raise InputError(
                f"{paths[k]} has {pixels.shape} pixels (H, W) but the clip's first frame has"
                f" {size}; all must be equal"
            )
        return pixels

    def notes(k: int) -> Notes:
        return said[k] if k in said else read_image(paths[k]).notes

    return Clip(len(paths), size, frame, "pictures", notes)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", path.name.lower())
    ]
