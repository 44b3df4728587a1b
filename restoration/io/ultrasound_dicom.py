"""Ultrasound clips in DICOM: one file of many frames, or files of one; and what is made of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.pictures.derived import Codes, Series, codes_like, derived
from restoration.io.pictures.dicom import Frame, Origin, bits_of, count_of, frames_of, head_of
from restoration.io.pictures.notes import Notes
from restoration.io.ultrasound_signals import MAX_FRAMES, Clip, grey_frame
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array


def read_dicom(paths: list[Path], grey: bool) -> Clip:
    """A clip of all frames of some files, one after the other.

    Raises:
        InputError: no DICOM image among them, too many frames, or frames of several sizes.
        ResourceError: a file is too large.
    """
    places: list[tuple[Path, int, Any]] = []
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
        places += [(path, k, head) for k in range(count)]
    if not places:
        raise InputError(f"{paths[0]} holds no DICOM image")
    if len(sizes) > 1:
        raise InputError(f"{paths[0].parent} holds DICOM frames of several sizes: {sorted(sizes)}")
    files = tuple(dict.fromkeys(path for path, _, _ in places))
    kept: dict[Path, list[Frame]] = {}

    def load(path: Path) -> list[Frame]:
        if path not in kept:
            kept.clear()  # one file at a time
            kept[path] = list(frames_of(path))
        return kept[path]

    @cache
    def ends() -> tuple[float, float] | None:
        """Of greys of more than 8 bits, which clips never use to their ends, black and white are
        the least and the largest value of the clip; None: the ends of what can be stored.
        """
        if all(bits_of(head) <= 8 for _, _, head in places) or load(files[0])[0].pixels.ndim == 3:
            return None
        found = [(f.pixels.min(), f.pixels.max()) for path in files for f in load(path)]
        return float(min(low for low, _ in found)), float(max(high for _, high in found))

    def known(k: int) -> tuple[Frame, Origin]:
        path, index, head = places[k]
        frame = load(path)[index]
        zero, one = ends() or sorted((frame.black, frame.white))
        if not zero < one:
            raise InputError(f"{path} shows nothing: all its pixels hold {zero:g}")
        return frame, Origin(head, index, frame.black, frame.white, zero, one, frame.padding)

    def frame(k: int) -> np.ndarray:
        one, origin = known(k)
        values = (one.pixels - origin.zero) / (origin.one - origin.zero)
        values = np.clip(values, 0, 1).astype(np.float32)
        planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        return grey_frame(planes, places[k][0], grey)

    return Clip(len(places), sizes.pop(), frame, "DICOM", lambda k: Notes(origin=known(k)[1]))


def derived_clip(frames: list[np.ndarray], origins: list[Origin | None]) -> Any:
    """One DICOM file of all frames, with the head of the first's source."""
    origin = origins[0]
    if origin is None:
        codes = np.rint(255 * np.clip(np.stack(frames), 0, 1)).astype(np.uint8)
        values = codes if len(frames) > 1 else codes[0]
        data = derived(None, Codes(values, 8), Series())
        data.Modality = "US"
        return data
    stack = np.stack(frames) if len(frames) > 1 else frames[0]
    units = stack.astype(np.float64) * (origin.one - origin.zero) + origin.zero
    hidden = [None if o is None else o.padding for o in origins]
    padding = None
    if any(one is not None for one in hidden):
        empty = np.zeros(stack.shape[-2:], bool)
        padding = np.stack([empty if one is None else one for one in hidden]).reshape(stack.shape)
    codes_ = codes_like(origin.head, units, origin.low, origin.high, padding)
    return derived(origin.head, codes_, Series(), frame=origin.frame)
