"""Reconstructed MRI volumes to files: HDF5, NIfTI, DICOM, PNG."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.hdf5 import created
from restoration.io.containers.packages import need
from restoration.io.images import Photo, check_writable, write_image
from restoration.io.mri import HDF5, NIFTI, suffix
from restoration.io.mri_scan import Scan
from restoration.io.pictures.derived import (
    WHAT,
    Series,
    codes_like,
    codes_of,
    decimal,
    derived,
    save,
    set_place,
)
from restoration.io.pictures.dicom import spacing_of, where
from solvers.files import check_marked, replace_file, replace_marked_folder, together
from solvers.inputs.errors import InputError

DICOM = ".dcm"
OUTPUT = (".h5", ".hdf5", *NIFTI, DICOM, ".png")
SPREAD = f"spread of samples, {WHAT}"
SERIES = "folder of a DICOM series"


def check_output(path: str | Path) -> None:
    """Raise before any work is done if a reconstruction can't be written to ``path``.

    Raises:
        ValueError: an ending that is not one of ``OUTPUT``.
        OSError: the folder is missing or not writable.
    """
    path = Path(path)
    if suffix(path) not in (*OUTPUT, ""):
        raise InputError(
            f"{path} has no ending that reconstructions are written to; known: {', '.join(OUTPUT)},"
            " or none: a folder of a DICOM series"
        )
    if suffix(path) in NIFTI:
        need("nibabel", "NIfTI files")
    if suffix(path) in (DICOM, ""):
        need("pydicom", "DICOM files")
    if suffix(path) == "":
        return check_marked(path, SERIES)
    check_writable(path.with_name("x.png"))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name")


def std_file(path: Path) -> Path:
    """Where the standard deviation goes (HDF5 holds it beside the image)."""
    return path if suffix(path) in HDF5 else beside(path, "std")


def beside(path: Path, word: str) -> Path:
    """``NAME-word`` with the ending of a result."""
    ending = suffix(path)
    return path.with_name(f"{path.name[: len(path.name) - len(ending)]}-{word}{ending}")


def write_reconstruction(
    path: str | Path,
    image: np.ndarray,
    scan: Scan | None = None,
    std: np.ndarray | None = None,
    samples: Sequence[tuple[Path, np.ndarray]] = (),
) -> list[Path]:
    """Write ``(slices, H, W)`` complex images; returns the files. Several volumes follow one
    another.

    - ``.h5``: ``reconstruction`` (magnitude float32, fastMRI's name), ``reconstruction_complex``,
      ``std`` if given, the scan's attributes and header.
    - ``.nii``, ``.nii.gz``: magnitude float32 ``(columns, rows, slices[, volumes])``, with the
      scan's affine matrix or its spacing; ``std`` goes to ``NAME-std.nii.gz``.
    - ``.dcm``, or a folder (no ending): the magnitude as a derived DICOM series, one file for each
      slice (``NAME-000.dcm`` ... for several); of a series that was read with its patient, study,
      place and scale, else a secondary capture in which nothing is made up. ``std`` is a series of
      its own.
    - ``.png``: 16-bit magnitude, white = the 99.9 % quantile of the volume; ``NAME-000.png`` ...
      for several slices. ``std`` at the same scale to ``NAME-std.png``.

    Args:
        samples: others of the same kind, and the files that they go to.

    Files appear whole or not at all.
    """
    path, scan, image = Path(path), scan or Scan(), np.asarray(image)
    magnitude = np.abs(image).astype(np.float32)
    ending = suffix(path)
    if ending in HDF5:
        with together():
            replace_file(path, lambda p: _write_hdf5(p, image, magnitude, std, scan))
            for place, one in samples:
                flat = np.abs(one).astype(np.float32)
                replace_file(
                    place, partial(_write_hdf5, image=one, magnitude=flat, std=None, scan=scan)
                )
        return [path, *(place for place, _ in samples)]
    # a target, its values, and what they are
    parts = [(path, magnitude, WHAT)]
    if std is not None:
        parts.append((std_file(path), np.asarray(std, np.float32), SPREAD))
    for k, (place, one) in enumerate(samples):
        parts.append((place, np.abs(one).astype(np.float32), f"sample {k}, {WHAT}"))
    files: list[Path] = []
    study = Series().study if ending in (DICOM, "") else ""
    with together():
        for target, values, what in parts:
            if ending in NIFTI:
                files.append(target)
                _write_nifti(target, values, scan)
                continue
            if ending in (DICOM, ""):
                files += _write_dicom(target, values, scan, Series(study, what=what))
                continue
            top = float(np.quantile(magnitude, 0.999)) or 1.0
            for k, one in enumerate(values):
                name = (
                    target if len(values) == 1 else target.with_name(f"{target.stem}-{k:03d}.png")
                )
                write_image(name, Photo(np.clip(one / top, 0, 1)[None], bits=16))
                files.append(name)
    return files


def _write_dicom(path: Path, volume: np.ndarray, scan: Scan, series: Series) -> list[Path]:
    in_units = series.what != SPREAD  # stored as the source's values are
    top = float(volume.max())
    origins: tuple[Any, ...] = scan.origins or (None,) * len(volume)
    affine = None if scan.affine is None else np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    made = []
    for k, (one, origin) in enumerate(zip(volume, origins, strict=True)):
        if origin is not None and in_units:
            codes = codes_like(origin.head, one, origin.low, origin.high, origin.padding)
        else:
            codes = codes_of(one, top)
        head, frame = (None, 0) if origin is None else (origin.head, origin.frame)
        data = derived(head, codes, series, k + 1, frame)
        if head is None:
            data.Modality = "MR"
        if not in_units or head is None:
            data.WindowCenter, data.WindowWidth = decimal(top / 2), decimal(top or 1.0)
        if origin is not None:
            corner, axes = where(head, frame)
            set_place(data, corner, axes, spacing_of(head, frame))
        elif affine is None:
            set_place(data, None, None, scan.spacing)
        else:
            unit = affine[:3, :2].T / np.linalg.norm(affine[:3, :2], axis=0)[:, None]
            place = k % (len(volume) // scan.volumes)
            set_place(data, affine[:3, 3] + place * affine[:3, 2], unit, scan.spacing)
        made.append(data)
    if suffix(path) == DICOM:
        names = [path] if len(made) == 1 else [beside(path, f"{k:03d}") for k in range(len(made))]
        for name, data in zip(names, made, strict=True):
            replace_file(name, partial(save, data))
        return names
    names = [path / f"slice_{k:04d}.dcm" for k in range(len(made))]

    def write(place: Path) -> None:
        for name, data in zip(names, made, strict=True):
            save(data, place / name.name)

    replace_marked_folder(path, write, SERIES)
    return names


def _write_hdf5(
    path: Path, image: np.ndarray, magnitude: np.ndarray, std: np.ndarray | None, scan: Scan
) -> None:
    with created(path, image.size * (4 + 8 + 4)) as file:
        file["reconstruction"] = magnitude
        file["reconstruction_complex"] = image.astype(np.complex64)
        if std is not None:
            file["std"] = np.asarray(std, np.float32)
        if scan.header is not None:
            file["ismrmrd_header"] = scan.header
        file.attrs.update(scan.attributes)


def _write_nifti(path: Path, volume: np.ndarray, scan: Scan) -> None:
    nibabel = need("nibabel", "NIfTI files")
    affine = np.diag([*scan.spacing[::-1], 1.0]) if scan.affine is None else scan.affine
    volumes = volume.reshape(scan.volumes, -1, *volume.shape[1:]).transpose(3, 2, 1, 0)
    volumes = volumes if scan.volumes > 1 else volumes[..., 0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volumes), affine)
    image.header.set_xyzt_units("mm")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            if not suffix(path).endswith(".gz"):
                image.to_stream(file)
                return
            # neither time nor name inside: the same result is the same bytes
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                image.to_stream(packed)

    replace_file(path, write)
