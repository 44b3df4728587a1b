"""MRI files: k-space from fastMRI HDF5, ISMRMRD, .npz and .mat; magnitudes from NIfTI and DICOM.

Sizes and types are checked from headers before anything is decoded; HDF5 links that leave the file
are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from restoration.io.containers.arrays import arrays_of, read_array
from restoration.io.containers.hdf5 import attributes, dataset, opened
from restoration.io.containers.matlab import Matlab, is_hdf5
from restoration.io.containers.packages import need
from restoration.io.ismrmrd import HEADER, header_of, measurement_of, read_ismrmrd, recon_space
from restoration.io.mri_scan import (
    Scan,
    Stored,
    check_image_axes,
    complex_array,
    flat,
    magnitude_array,
    mask_array,
    pairs,
    real_array,
)
from restoration.io.pictures.dicom import Frame, Origin, count_of, frames_of, head_of
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

T = TypeVar("T")

HDF5 = (".h5", ".hdf5", ".mrd")
NIFTI = (".nii", ".nii.gz")
PAIRS = (".hdr", ".img")  # NIfTI and Analyze in two files
# what makes a known file of a scanner's raw data
HELPS = {".dat": "siemens_to_ismrmrd", ".7": "ge_to_ismrmrd", ".lab": "philips_to_ismrmrd"}
MILLIMETRES = {"meter": 1e3, "micron": 1e-3}


def suffix(path: Path) -> str:
    """The ending that tells the format: ``.nii.gz`` counts as one."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def read_scan(path: str | Path) -> Scan:
    """Read k-space or magnitude images; the ending tells the format, a folder is a DICOM series.

    HDF5 follows fastMRI: ``kspace (slices, coils, H, W)`` or single-coil ``(slices, H, W)``. In
    ``.npz`` and ``.mat`` files ``kspace`` is ``(coils, H, W)`` or ``(slices, coils, H, W)``. One
    axis more before these (averages, repetitions, contrasts) are volumes;
    ``mask`` and ``maps`` (or ``smaps``) may stand beside it. Values are complex64, complex128, or
    real pairs in a last axis of length 2. An ``.npz`` without ``kspace`` but with ``image (slices,
    H, W)`` holds magnitudes.

    Raises:
        FileNotFoundError: no such file.
        InputError: another format, a damaged file, a wrong shape or type, a link out of the file.
        ResourceError: too large for the memory (:mod:`solvers.inputs.memory`).
        ImportError: the format needs the extra ``mri``.
    """
    path = Path(path)
    if path.is_dir():
        with reading(path, "a DICOM series"):
            return _read_dicom(path)
    if not path.is_file():
        raise FileNotFoundError(f"scan {path} does not exist")
    ending = suffix(path)
    readers = dict.fromkeys(HDF5, _read_hdf5) | {
        ".npz": _read_npz,
        ".mat": _read_mat,
        ".dcm": _read_dicom,
    }
    readers |= dict.fromkeys((*NIFTI, *PAIRS), _read_nifti)
    if ending not in readers:
        helps = f"; {HELPS[ending]} converts it" if ending in HELPS else ""
        raise InputError(
            f"{path} has no known ending; known: {', '.join(readers)}, or a folder of DICOM"
            f" files{helps}"
        )
    with reading(path, "a scan"):
        return readers[ending](path)


# -- k-space ---------------------------------------------------------------------------------------


def _read_hdf5(path: Path) -> Scan:
    with opened(path) as file:
        if "kspace" not in file and (group := measurement_of(path, file)) is not None:
            return read_ismrmrd(path, file, group)
        kspace = complex_array(dataset(file, "kspace", path), path, ranks=(3, 4, 5))
        kspace, volumes = flat(kspace[:, None] if kspace.ndim == 3 else kspace, path)
        header = header_of(path, file)
        key = next((k for k in ("reconstruction_rss", "reconstruction_esc") if k in file), None)
        target = None if key is None else real_array(dataset(file, key, path), path)
        mask = None
        if "mask" in file:
            mask = mask_array(dataset(file, "mask", path), kspace.shape, path, volumes)
        says = {
            name: value.item() if hasattr(value, "item") else value
            for name, value in attributes(file, path).items()
            if np.size(value) == 1 and name != HEADER
        }
    crop, extent, spacing = recon_space(header or "")
    if crop is None and target is not None:  # fastMRI's images are the middle ones
        crop = target.shape[1], target.shape[2]
    return Scan(
        kspace,
        mask=mask,
        target=target,
        attributes=says,
        header=header,
        crop=crop,
        extent=extent,
        spacing=spacing,
        volumes=volumes,
    )


def volume_shape(path: str | Path) -> tuple[int, int, int, int]:
    """``(slices, coils, H, W)`` of the ``kspace`` in a fastMRI HDF5 file, from its header: no value
    is read.

    Raises:
        FileNotFoundError, InputError: no such file, no HDF5, one of a single coil or of another
            shape, a link out of the file.
    """
    slices, coils, height, width = _volume(Path(path), lambda kspace, shape: shape)
    return slices, coils, height, width


def read_slice(path: str | Path, index: int) -> np.ndarray:
    """One slice ``(coils, H, W)``, complex64, of a fastMRI HDF5 file; the others are not read.

    Raises:
        FileNotFoundError, InputError: as for :func:`volume_shape`, or no such slice.
    """
    path = Path(path)

    def read(kspace: Stored, shape: tuple[int, ...]) -> np.ndarray:
        if not 0 <= index < shape[0]:
            raise InputError(f"{path} has slices 0 to {shape[0] - 1}; there is no slice {index}")
        return complex_array(kspace[index], path, ranks=(3,))

    return _volume(path, read)


def _volume(path: Path, use: Callable[[Stored, tuple[int, ...]], T]) -> T:
    if not path.is_file():
        raise FileNotFoundError(f"scan {path} does not exist")
    with opened(path) as file:
        kspace = dataset(file, "kspace", path, whole=False)
        records = kspace.dtype.names and set(kspace.dtype.names) == {"real", "imag"}
        paired = kspace.dtype.kind == "f" and kspace.ndim == 5 and kspace.shape[-1] == 2
        if (
            not (paired or ((kspace.dtype.kind == "c" or records) and kspace.ndim == 4))
            or kspace.shape[1] < 2
        ):
            raise InputError(
                f"{path} has k-space of shape {kspace.shape} and type {kspace.dtype}; complex"
                " (slices, coils, H, W) with several coils is accepted"
            )
        return use(kspace, tuple(kspace.shape[:4]))


def _read_npz(path: Path) -> Scan:
    wanted = ("kspace", "mask", "maps", "smaps", "smaps_espirit", "image")
    with arrays_of(path) as file:
        arrays = {key: file.read(key) for key in wanted if key in file.shapes}
        return _from_arrays(path, arrays, ", ".join(file.shapes))


def _read_mat(path: Path) -> Scan:
    wanted = ("kspace", "mask", "maps", "smaps", "image")
    if is_hdf5(path):  # with axes in Fortran's order
        with opened(path) as file:
            arrays = {key: pairs(dataset(file, key, path)[()]).T for key in wanted if key in file}
            found = ", ".join(file)
    else:
        content = Matlab(path)
        arrays = {key: content.read(key) for key in wanted if key in content.shapes}
        found = ", ".join(content.shapes)
    if "mask" in arrays and 1 in arrays["mask"].shape and arrays["mask"].ndim == 2:
        arrays["mask"] = arrays["mask"].ravel()  # MATLAB knows no vectors
    return _from_arrays(path, arrays, found)


def _from_arrays(path: Path, arrays: dict[str, np.ndarray], found: str) -> Scan:
    if "kspace" not in arrays:
        if "image" not in arrays:
            raise InputError(
                f"{path} holds neither kspace nor image; it holds {found or 'nothing'}"
            )
        check_image_axes(arrays["image"].shape, path)
        return Scan(magnitude=magnitude_array(arrays["image"], path))
    kspace = complex_array(arrays["kspace"], path, ranks=(3, 4, 5))
    kspace, volumes = flat(kspace[None] if kspace.ndim == 3 else kspace, path)
    maps = next((arrays[key] for key in ("maps", "smaps", "smaps_espirit") if key in arrays), None)
    maps = None if maps is None else complex_array(maps, path, ranks=(3, 4))
    mask = None
    if "mask" in arrays:
        mask = mask_array(arrays["mask"], kspace.shape, path, volumes)
    return Scan(kspace, mask=mask, maps=maps, volumes=volumes)


def read_maps(path: str | Path) -> np.ndarray:
    """Coil sensitivities complex64 ``(coils, H, W)`` or ``(slices, coils, H, W)``: ``maps``,
    ``smaps``, or the only array of an ``.npz``.

    Raises:
        FileNotFoundError, InputError: no such file, or one without such an array.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"coil maps {path} do not exist")
    with arrays_of(path) as file:
        known = ("maps", "smaps", "smaps_espirit")
        keys = [k for k in known if k in file.shapes] or list(file.shapes)
        if len(keys) != 1:
            raise InputError(
                f"{path} should hold one array maps; it holds {', '.join(file.shapes)}"
            )
        maps = file.read(keys[0])
    return complex_array(maps, path, ranks=(3, 4))


def read_sampling(path: str | Path, size: tuple[int, ...]) -> np.ndarray:
    """A sampling mask ``(H, W)`` or ``(W,)`` from an ``.npy`` file, or from an ``.npz`` file with
    one array or one named ``mask``.

    Raises:
        FileNotFoundError, InputError: no such file, not a mask, or of another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"mask {path} does not exist")
    return mask_array(read_array(path, "mask"), (1, 1, *size), path)


# -- magnitudes ------------------------------------------------------------------------------------


def _read_nifti(path: Path) -> Scan:
    """Slices along the third axis; rows and columns are the second and the first; further axes are
    volumes. Of complex images the phase is kept.
    """
    nibabel = need("nibabel", "NIfTI files")
    with reading(path, "NIfTI"):
        image = nibabel.load(path)
        shape = tuple(image.shape)
        if len(shape) < 2 or 0 in shape:
            raise InputError(
                f"{path} has shape {shape}; images (x, y[, z[, volumes]]) are accepted"
            )
        dtype = image.get_data_dtype()
        if dtype.kind not in "uifc":
            raise InputError(
                f"{path} holds values of type {dtype}; real and complex numbers are accepted"
            )
        check_array(path, shape, 16)
        kind = np.complex64 if dtype.kind == "c" else np.float32
        data = np.asarray(image.dataobj, dtype=kind).reshape(*shape[:2], -1, order="F")
        zooms = (*(float(z) for z in image.header.get_zooms()[:3]), 1.0)[:3]
        place = np.array(image.affine, float)
        affine: np.ndarray | None = place
        if hasattr(image.header, "get_xyzt_units"):
            unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
            zooms = tuple(z * unit for z in zooms)
            place[:3] *= unit
        elif isinstance(image, nibabel.AnalyzeImage):  # which names no place
            affine = None
    data = data.transpose(2, 1, 0)
    phase = np.angle(data).astype(np.float32) if dtype.kind == "c" else None
    return Scan(
        magnitude=magnitude_array(np.abs(data) if dtype.kind == "c" else data, path),
        phase=phase,
        spacing=(zooms[2], zooms[1], zooms[0]),
        affine=affine,
        volumes=math.prod(shape[3:]),
    )


def _read_dicom(path: Path) -> Scan:
    """One file, or a folder: its slices in order of position along the slice normal (instance
    number where that is missing).
    """
    files = (
        sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if path.is_dir()
        else [path]
    )
    found: list[tuple[Frame, Origin]] = []
    series: dict[str, str] = {}
    for file in files:
        with reading(file, "DICOM"):
            try:
                head = head_of(file)
            except InputError:
                if path.is_dir():
                    continue
                raise
            if head is None:
                continue
            if "MOSAIC" in (head.get("ImageType") or ()):
                raise InputError(
                    f"{file} is a mosaic, whose tiles are slices; convert it to NIfTI (dcm2niix)"
                )
            size = (int(head.Rows), int(head.Columns))
            check_array(file, (len(files), count_of(head), *size), 8)
            for k, frame in enumerate(frames_of(file)):
                ends = frame.black, frame.white
                found.append((frame, Origin(head, k, *ends, *ends, frame.padding)))
            if found[-1][0].pixels.ndim == 3:
                raise InputError(f"{file} is a colour image; grey magnitudes are accepted")
            known = str(head.get("SeriesInstanceUID", "") or "")
            series.setdefault(known, str(head.get("SeriesDescription", "") or "") or file.name)
    if not found:
        raise InputError(f"{path} holds no DICOM image")
    if len(series) > 1:
        raise InputError(
            f"{path} holds {len(series)} series ({', '.join(series.values())}); give a folder with"
            " one of them"
        )
    if len({frame.pixels.shape for frame, _ in found}) > 1:
        raise InputError(f"{path} holds images of several sizes; give a folder with one series")
    found, volumes = _in_order(found)
    frames = [frame for frame, _ in found]
    spacing, affine = _geometry(frames[: len(frames) // volumes])
    return Scan(
        magnitude=magnitude_array(np.stack([frame.pixels for frame in frames]), path),
        spacing=spacing,
        affine=affine,
        origins=tuple(origin for _, origin in found),
        volumes=volumes,
    )


def _in_order(found: list[tuple[Frame, Origin]]) -> tuple[list[tuple[Frame, Origin]], int]:
    """Slices by their places; where each place comes several times (echoes, moments), volume after
    volume in the order of these, else of the instances. And how many volumes there are.
    """

    def number(pair: tuple[Frame, Origin]) -> tuple[int, int]:
        said = pair[1].head.get("InstanceNumber")
        return int(said) if str(said or "").lstrip("-").isdigit() else 0, pair[1].frame

    found = sorted(found, key=lambda p: (round(p[0].place, 3), p[0].moment, number(p)))
    times = Counter(round(pair[0].place, 3) for pair in found)
    volumes = next(iter(times.values()))
    if volumes == 1 or set(times.values()) != {volumes} or found[0][0].corner is None:
        return found, 1
    return [pair for k in range(volumes) for pair in found[k::volumes]], volumes


def _geometry(frames: list[Frame]) -> tuple[tuple[float, float, float], np.ndarray | None]:
    """Spacing, with the distance that the slices really have, and NIfTI's matrix, whose first two
    axes point the other way; None where the files don't tell, or slices aren't parallel and evenly
    spaced.
    """
    first, depth = frames[0], frames[0].spacing[0]
    if first.corner is None or first.axes is None:
        return first.spacing, None
    corners = [frame.corner for frame in frames]
    turned = any(
        frame.axes is None or not np.allclose(frame.axes, first.axes, atol=1e-3) for frame in frames
    )
    step = depth * np.cross(*first.axes)
    if len(frames) > 1 and not turned:
        steps = np.diff(np.array(corners, float), axis=0)
        step = steps.mean(0)
        turned = bool(np.abs(steps - step).max() > 0.01 * max(float(np.linalg.norm(step)), 0.1))
        depth = float(np.linalg.norm(step))
    if turned or depth == 0:
        return first.spacing, None
    _, row, column = first.spacing
    affine = np.eye(4)
    affine[:3] = np.stack([first.axes[0] * column, first.axes[1] * row, step, first.corner], 1)
    affine[:2] *= -1
    return (round(depth, 6), row, column), affine
