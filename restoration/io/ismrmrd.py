"""ISMRMRD: acquisitions line by line with an XML header (Inati et al. 2017), and such headers in
fastMRI's files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import dataset
from restoration.io.mri_scan import Scan
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

PREFIX = r"(?:[\w.-]+:)?"  # an element's namespace
# flags of ISMRMRD lines that are no part of an image, by bit from 1: noise, calibration alone,
# navigator, phase correction, feedback (26, 28), dummy, surface coils, phase stabilisation (30, 31)
NO_IMAGE = sum(1 << (bit - 1) for bit in (19, 20, 23, 24, 26, 27, 28, 29, 30, 31))
REVERSE = 1 << 21
DISCARDED = ("discard_pre", "discard_post")
IMAGES = ("contrast", "phase", "set", "repetition", "slice")  # indices that separate images


def read_ismrmrd(path: Path, file: Any) -> Scan:
    """Cartesian 2D acquisitions: lines are put to their place on the encoded matrix.

    Averages and segments of an image are joined. Contrasts, phases, sets and repetitions are images
    of their own, one after the other on the axis of slices. Lines whose flags say that they are
    something else (noise, calibration alone, navigators, phase correction ...) are left out. Of a
    partial echo the missing samples are unsampled points of the mask, of partial Fourier the
    missing lines. Samples that their heads say are to be discarded are not used.

    Args:
        path: names the file in errors.
        file: open, of h5py.

    Raises:
        InputError: another trajectory, 3D, lines that don't fit, images sampled differently.
    """
    records = dataset(file, "dataset/data", path)
    header = text_of(np.ravel(dataset(file, "dataset/xml", path)[()])[0])
    size = _numbers(header, "encodedSpace", "matrixSize")
    trajectory = re.search(rf"<{PREFIX}trajectory>\s*(\w+)\s*</", header)
    if size is None or trajectory is None:
        raise InputError(f"{path} has a header without encoded matrix size or trajectory")
    if trajectory.group(1).lower() != "cartesian":
        raise InputError(
            f"{path} has a {trajectory.group(1)} trajectory; Cartesian scans are accepted"
        )
    x, y, z = (int(n) for n in size)
    if z > 1:
        raise InputError(
            f"{path} is encoded in 3D ({z} partitions); 2D scans are accepted: transform the third"
            " axis first"
        )
    centre = _number(header, "encodingLimits", "kspace_encoding_step_1", "center")
    centre = y // 2 if centre is None else int(centre)
    heads = records["head"]
    lines = np.flatnonzero((heads["flags"] & np.uint64(NO_IMAGE)) == 0)
    if not lines.size:
        raise InputError(f"{path} holds no image lines")
    given = [name for name in IMAGES if name in heads["idx"].dtype.names]
    columns = [heads["idx"][name][lines].astype(np.int64) for name in given]
    keys = np.stack(columns or [np.zeros(len(lines), np.int64)], 1)
    images, place = np.unique(keys, axis=0, return_inverse=True)
    coils = int(heads["active_channels"][lines].max())
    check_array(path, (len(images), coils, x, y), 8)
    kspace = np.zeros((len(images), coils, x, y), np.complex64)
    hits = np.zeros((len(images), x, y), np.int64)
    for k, image in zip(lines, np.ravel(place), strict=True):  # one at a time, of any length
        head, data = heads[k], records[int(k)]["data"]
        step, channels, samples = (
            int(n)
            for n in (
                head["idx"]["kspace_encode_step_1"],
                head["active_channels"],
                head["number_of_samples"],
            )
        )
        before, after = (int(head[n]) if n in head.dtype.names else 0 for n in DISCARDED)
        if before + after >= samples:
            raise InputError(f"{path}: line {step} discards all of its {samples} samples")
        whole, samples = samples, samples - before - after
        middle = int(head["center_sample"]) - before
        reverse = bool(int(head["flags"]) & REVERSE)
        middle = samples - 1 - middle if reverse else middle
        column, first = step - centre + y // 2, x // 2 - middle
        if reverse and samples == x and first == 1:  # its centre is told as before the turn
            first = 0
        if (
            not 0 <= column < y
            or first < 0
            or first + samples > x
            or data.size != 2 * channels * whole
        ):
            raise InputError(
                f"{path}: line {step} of {samples} samples with its centre at {middle} does not fit"
                f" the encoded matrix {x} x {y} whose central line is {centre}; correct matrixSize"
                " or encodingLimits in the XML header"
            )
        values = (
            np.ascontiguousarray(data, np.float32)
            .view(np.complex64)
            .reshape(channels, whole)[:, before : before + samples]
        )
        values = values[:, ::-1] if reverse else values
        kspace[image, :channels, first : first + samples, column] += values
        hits[image, first : first + samples, column] += 1
    kspace /= np.maximum(hits, 1)[:, None]
    sampled = hits > 0
    if (sampled != sampled[0]).any():
        raise InputError(
            f"{path} holds {len(images)} images ({', '.join(given)}) that are sampled at different"
            " places; write each of them into a file of its own"
        )
    crop, extent, spacing = recon_space(header)
    mask = sampled[0].astype(np.float32)
    if (mask == mask.max(0)).all():  # whole readouts
        mask = mask[0]
    return Scan(kspace, mask=mask, header=header, crop=crop, extent=extent, spacing=spacing)


def text_of(value: Any) -> str:
    """Text of what h5py reads: bytes or a string."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def recon_space(
    header: str,
) -> tuple[tuple[int, int] | None, tuple[float, float] | None, tuple[float, float, float]]:
    """Size ``(h, w)`` of the reconstructed image by an ISMRMRD header, its share of the encoded
    field of view (None where the header doesn't tell), and its spacing: x is along the readout,
    fastMRI's rows.
    """
    size = _numbers(header, "reconSpace", "matrixSize")
    if size is None or min(size) < 1:
        return None, None, (1.0, 1.0, 1.0)
    wanted = _numbers(header, "reconSpace", "fieldOfView_mm")
    encoded = _numbers(header, "encodedSpace", "fieldOfView_mm")
    known = wanted is not None and min(wanted) > 0
    spacing = [v / n for v, n in zip(wanted, size, strict=True)] if wanted and known else [1.0] * 3
    extent = None
    if wanted and encoded and known and min(encoded) > 0:
        extent = (wanted[0] / encoded[0], wanted[1] / encoded[1])
    return (int(size[0]), int(size[1])), extent, (spacing[2], spacing[0], spacing[1])


def _numbers(header: str, *path: str) -> list[float] | None:
    """x, y and z under a path of element names; None if one is missing."""
    found = [n for axis in "xyz" if (n := _number(header, *path, axis)) is not None]
    return found if len(found) == 3 else None


def _number(header: str, *path: str) -> float | None:
    """The first number under a path of element names. No XML parser: a header may be hostile, and
    this knows no entities.
    """
    for name in path[:-1]:
        begin = re.search(rf"<{PREFIX}{name}>", header)
        end = begin and re.compile(rf"</{PREFIX}{name}>").search(header, begin.end())
        if begin is None or end is None:
            return None
        header = header[begin.end() : end.start()]
    found = re.search(rf"<{PREFIX}{path[-1]}>\s*([0-9.eE+-]+)\s*</", header)
    try:
        return None if found is None else float(found.group(1))
    except ValueError:
        return None
