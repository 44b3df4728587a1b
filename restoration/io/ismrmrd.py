"""ISMRMRD: acquisitions line by line with an XML header (Inati et al. 2017), and such headers in
fastMRI's files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import attributes, dataset
from restoration.io.mri_scan import Scan
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

HEADER = "ismrmrd_header"  # in fastMRI's files
PREFIX = r"(?:[\w.-]+:)?"  # an element's namespace
COMPRESSED = sum(1 << (bit - 1) for bit in (53, 54, 55, 56))
# flags of ISMRMRD lines that are no part of an image, by bit from 1: noise, calibration alone,
# navigator, phase correction, feedback (26, 28), dummy, surface coils, phase stabilisation (30, 31)
NO_IMAGE = sum(1 << (bit - 1) for bit in (19, 20, 23, 24, 26, 27, 28, 29, 30, 31))
REVERSE = 1 << 21
DISCARDED = ("discard_pre", "discard_post")
IMAGES = ("contrast", "phase", "set", "repetition", "slice")  # indices that separate images


def measurement_of(path: Path, file: Any) -> str | None:
    """The group that holds a measurement: ``dataset``, or the only one; None: none does.

    Raises:
        InputError: several of other names.
    """
    import h5py

    own = [n for n in file if isinstance(file.get(n, getlink=True), h5py.HardLink)]
    found = [n for n in own if isinstance(file[n], h5py.Group) and {"data", "xml"} <= {*file[n]}]
    if "dataset" in own:
        return "dataset"
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} measurements ({', '.join(found)}); write the one to be"
            " restored to a file of its own"
        )
    return found[0] if found else None


def read_ismrmrd(path: Path, file: Any, group: str = "dataset") -> Scan:
    """Cartesian acquisitions: lines are put to their place on the encoded matrix.

    Averages and segments of an image are joined. Contrasts, phases, sets and repetitions are
    volumes of their own, one after the other on the axis of slices, and may be sampled differently.
    Lines whose flags say that they are something else (noise, calibration alone, navigators, phase
    correction ...) are left out. Of a partial echo the missing samples are unsampled points of the
    mask, of partial Fourier the missing lines. Samples that their heads say are to be discarded are
    not used. Volumes that are encoded in 3D become slices by a Fourier transform along the second
    phase encoding, which must be sampled in full.

    Args:
        path: names the file in errors.
        file: open, of h5py.
        group: in it, with ``data`` and ``xml``.

    Raises:
        InputError: another trajectory, several encodings, lines that don't fit, a second phase
            encoding that is not sampled in full.
    """
    records = dataset(file, f"{group}/data", path)
    header = text_of(np.ravel(dataset(file, f"{group}/xml", path)[()])[0])
    header = re.sub(r"<!--.*?-->", "", header, flags=re.DOTALL)
    size = _numbers(header, "encodedSpace", "matrixSize")
    trajectory = re.search(rf"{_opening('trajectory')}\s*(\w+)\s*</", header)
    if size is None or trajectory is None:
        raise InputError(f"{path} has a header without encoded matrix size or trajectory")
    if trajectory.group(1).lower() != "cartesian":
        raise InputError(
            f"{path} has a {trajectory.group(1)} trajectory; Cartesian scans are accepted"
        )
    heads = records["head"]
    lines = np.flatnonzero((heads["flags"] & np.uint64(NO_IMAGE)) == 0)
    if not lines.size:
        raise InputError(f"{path} holds no image lines")
    if (heads["flags"][lines] & np.uint64(COMPRESSED)).any():
        raise InputError(f"{path} holds compressed lines; write it again without compression")
    spaces = np.unique(_of(heads, "encoding_space_ref")[lines])
    if len(spaces) > 1 or spaces[0] > 0:
        raise InputError(
            f"{path} holds image lines of the encodings {', '.join(map(str, spaces))}; write those"
            " of one encoding, with its header, into a file of its own"
        )
    matrix = _Matrix.of(header, tuple(int(n) for n in size))
    given = [name for name in IMAGES if name in heads["idx"].dtype.names]
    columns = [heads["idx"][name][lines].astype(np.int64) for name in given]
    keys = np.stack(columns or [np.zeros(len(lines), np.int64)], 1)
    images, place = np.unique(keys, axis=0, return_inverse=True)
    depths, slices = (_of(heads["idx"], n)[lines] for n in ("kspace_encode_step_2", "slice"))
    if matrix.z > 1 and not depths.any() and slices.any():
        matrix = replace(matrix, z=1, centre_z=0)  # slices, whose number stands for z
    channels = heads["active_channels"][lines]
    coils = int(channels.max())
    if (channels != coils).any():
        raise InputError(
            f"{path} has image lines of {int(channels.min())} and of {coils} channels; write those"
            " of one set of coils into a file of its own"
        )
    shape = (len(images), coils, matrix.x, matrix.y, matrix.z)
    check_array(path, shape, 8)
    kspace = np.zeros(shape, np.complex64)
    hits = np.zeros((len(images), *shape[2:]), np.int64)
    for k, image in zip(lines, np.ravel(place), strict=True):  # one at a time, of any length
        first, column, depth, values = _line(path, heads[k], records[int(k)]["data"], matrix)
        end = first + values.shape[1]
        kspace[image, : len(values), first:end, column, depth] += values
        hits[image, first:end, column, depth] += 1
    kspace /= np.maximum(hits, 1)[:, None]
    sampled = hits > 0
    if (sampled.any(-1) != sampled.all(-1)).any():
        found = int(sampled[0].any((0, 1)).sum())
        raise InputError(
            f"{path} is encoded in 3D, and its second phase encoding is not sampled in full"
            f" ({found} of {matrix.z} steps); 3D scans are accepted where only the first one is"
            " undersampled"
        )
    crop, extent, spacing = recon_space(header)
    if matrix.z > 1:
        kspace, thickness = _slices(kspace, header)
        spacing = (thickness, *spacing[1:])
    mask = np.asarray(sampled.all(-1), np.float32)
    mask = mask[0] if (mask == mask[0]).all() else mask.repeat(kspace.shape[-1], 0)
    if mask.ndim == 2 and (mask == mask.max(0)).all():  # whole readouts
        mask = mask[0]
    planes = np.ascontiguousarray(np.moveaxis(kspace, -1, 1)).reshape(-1, *shape[1:4])
    return Scan(
        planes,
        mask=mask,
        header=header,
        crop=crop,
        extent=extent,
        spacing=spacing,
        volumes=_volumes(images[:, :-1] if "slice" in given else images),
    )


def _volumes(indices: np.ndarray) -> int:
    """How many volumes of as many slices there are, by the other indices ``(images, n)`` of the
    images; 1 where they have not as many.
    """
    counts = np.unique(indices, axis=0, return_counts=True)[1]
    return len(counts) if (counts == counts[0]).all() else 1


@dataclass(frozen=True)
class _Matrix:
    """Points of the encoded k-space, and which steps of the phase encodings are central."""

    x: int
    y: int
    z: int
    centre_y: int
    centre_z: int

    @staticmethod
    def of(header: str, size: tuple[int, ...]) -> _Matrix:
        x, y, z = size
        centres = [
            n // 2 if found is None else int(found)
            for n, step in ((y, 1), (z, 2))
            for found in [
                _number(header, "encodingLimits", f"kspace_encoding_step_{step}", "center")
            ]
        ]
        return _Matrix(x, y, z, centres[0], centres[1] if z > 1 else 0)


def _of(records: Any, name: str) -> Any:
    """A field of heads; 0 where the file leaves it out."""
    return records[name] if name in records.dtype.names else np.zeros(records.shape, np.int64)


def _line(
    path: Path, head: Any, data: np.ndarray, matrix: _Matrix
) -> tuple[int, int, int, np.ndarray]:
    """Where a line begins in the matrix, and its values ``(coils, samples)`` turned and cut as its
    head says.
    """
    index = head["idx"]
    step, channels, samples = (
        int(n)
        for n in (index["kspace_encode_step_1"], head["active_channels"], head["number_of_samples"])
    )
    before, after = (int(_of(head, name)) for name in DISCARDED)
    if before + after >= samples:
        raise InputError(f"{path}: line {step} discards all of its {samples} samples")
    whole, samples = samples, samples - before - after
    middle = int(head["center_sample"]) - before
    reverse = bool(int(head["flags"]) & REVERSE)
    middle = samples - 1 - middle if reverse else middle
    column, first = step - matrix.centre_y + matrix.y // 2, matrix.x // 2 - middle
    depth = int(_of(index, "kspace_encode_step_2")) - matrix.centre_z + matrix.z // 2
    depth = 0 if matrix.z == 1 else depth
    # of whole lines the centre is told as before the turn, or not at all
    if samples == matrix.x and ((reverse and first == 1) or int(head["center_sample"]) == 0):
        first = 0
    inside = 0 <= column < matrix.y and 0 <= depth < matrix.z
    if not inside or first < 0 or first + samples > matrix.x or data.size != 2 * channels * whole:
        size = f"{matrix.x} x {matrix.y}" + (f" x {matrix.z}" if matrix.z > 1 else "")
        raise InputError(
            f"{path}: line {step} of {samples} samples with its centre at {middle} does not fit"
            f" the encoded matrix {size} whose central line is {matrix.centre_y}; correct"
            " matrixSize or encodingLimits in the XML header"
        )
    values = (
        np.ascontiguousarray(data, np.float32)
        .view(np.complex64)
        .reshape(channels, whole)[:, before : before + samples]
    )
    return first, column, depth, values[:, ::-1] if reverse else values


def _slices(kspace: np.ndarray, header: str) -> tuple[np.ndarray, float]:
    """K-space ``(..., y, z)`` with its last axis transformed to places, on the matrix that the
    header asks for, and the thickness of a slice in millimetres.
    """
    from restoration.mri.geometry import regrid

    y, z = kspace.shape[-2:]
    moved = np.fft.ifftshift(kspace, -1)
    places = np.fft.fftshift(np.fft.ifft(moved, axis=-1, norm="ortho"), -1).astype(np.complex64)
    wanted, field, encoded = (
        _numbers(header, *names)
        for names in (
            ("reconSpace", "matrixSize"),
            ("reconSpace", "fieldOfView_mm"),
            ("encodedSpace", "fieldOfView_mm"),
        )
    )
    known = field and encoded and min(field[2], encoded[2]) > 0
    count = int(wanted[2]) if wanted is not None and wanted[2] > 1 else z
    if wanted is None or not known or field is None or encoded is None:
        return places, 1.0
    if wanted[2] <= 1:  # the header names one slice, the slab's
        return places, encoded[2] / z
    return regrid(places, (y, count), (1.0, field[2] / encoded[2])), field[2] / count


def header_of(path: Path, file: Any) -> str | None:
    """ISMRMRD's XML in a fastMRI file: text or bytes, alone or in an array, a dataset or an
    attribute.
    """
    if HEADER in file:
        found = dataset(file, HEADER, path)[()]
    elif HEADER in file.attrs:
        found = attributes(file, path)[HEADER]
    else:
        return None
    found = np.asarray(found)
    if found.dtype.kind in "ui":
        return text_of(found.astype(np.uint8).tobytes())
    return text_of(found.ravel()[0]) if found.size else ""


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


def _opening(name: str) -> str:
    """Pattern of an element's opening tag, with whatever attributes."""
    return rf"<{PREFIX}{name}(?:\s[^>]*)?>"


def _number(header: str, *path: str) -> float | None:
    """The first number under a path of element names. No XML parser: a header may be hostile, and
    this knows no entities.
    """
    for name in path[:-1]:
        begin = re.search(_opening(name), header)
        end = begin and re.compile(rf"</{PREFIX}{name}>").search(header, begin.end())
        if begin is None or end is None:
            return None
        header = header[begin.end() : end.start()]
    found = re.search(rf"{_opening(path[-1])}\s*([0-9.eE+-]+)\s*</", header)
    try:
        return None if found is None else float(found.group(1))
    except ValueError:
        return None
