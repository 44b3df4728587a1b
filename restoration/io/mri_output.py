"""Reconstructed MRI volumes to files: HDF5, NIfTI, PNG."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from restoration.io.containers.hdf5 import created
from restoration.io.images import Photo, check_writable, write_image
from restoration.io.mri import HDF5, NIFTI, suffix
from restoration.io.mri_scan import Scan, need
from solvers.files import replace_file, together
from solvers.inputs.errors import InputError

OUTPUT = (".h5", ".hdf5", *NIFTI, ".png")


def check_output(path: str | Path) -> None:
    """Raise before any work is done if a reconstruction can't be written to ``path``.

    Raises:
        ValueError: an ending that is not one of ``OUTPUT``.
        OSError: the folder is missing or not writable.
    """
    path = Path(path)
    if suffix(path) not in OUTPUT:
        raise InputError(
            f"{path} has no ending that reconstructions are written to; known: {', '.join(OUTPUT)}"
        )
    if suffix(path) in NIFTI:
        need("nibabel", "NIfTI files")
    check_writable(path.with_name("x.png"))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name")


def std_file(path: Path) -> Path:
    """Where the standard deviation goes (HDF5 holds it beside the image)."""
    return (
        path
        if suffix(path) in HDF5
        else path.with_name(f"{path.name[: -len(suffix(path))]}-std{suffix(path)}")
    )


def write_reconstruction(
    path: str | Path, image: np.ndarray, scan: Scan | None = None, std: np.ndarray | None = None
) -> list[Path]:
    """Write ``(slices, H, W)`` complex images; returns the files.

    - ``.h5``: ``reconstruction`` (magnitude float32, fastMRI's name), ``reconstruction_complex``,
      ``std`` if given, the scan's attributes and header.
    - ``.nii``, ``.nii.gz``: magnitude float32 ``(columns, rows, slices)``, with the scan's affine
      matrix or its spacing; ``std`` goes to ``NAME-std.nii.gz``.
    - ``.png``: 16-bit magnitude, white = the 99.9 % quantile of the volume; ``NAME-000.png`` ...
      for several slices. ``std`` at the same scale to ``NAME-std.png``.

    Files appear whole or not at all.
    """
    path, scan, image = Path(path), scan or Scan(), np.asarray(image)
    magnitude = np.abs(image).astype(np.float32)
    ending = suffix(path)
    if ending in HDF5:
        replace_file(path, lambda p: _write_hdf5(p, image, magnitude, std, scan))
        return [path]
    pairs = [(path, magnitude)] + (
        [] if std is None else [(std_file(path), np.asarray(std, np.float32))]
    )
    files = []
    with together():
        for target, values in pairs:
            if ending in NIFTI:
                files.append(target)
                _write_nifti(target, values, scan)
                continue
            top = float(np.quantile(magnitude, 0.999)) or 1.0
            for k, one in enumerate(values):
                name = (
                    target if len(values) == 1 else target.with_name(f"{target.stem}-{k:03d}.png")
                )
                write_image(name, Photo(np.clip(one / top, 0, 1)[None], bits=16))
                files.append(name)
    return files


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
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)

    def write(temporary: Path) -> None:
        opener = gzip.open if suffix(path).endswith(".gz") else open
        with opener(temporary, "wb") as file:
            image.to_stream(file)

    replace_file(path, write)
