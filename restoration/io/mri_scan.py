"""What an MRI file must hold: checks that every reader of :mod:`restoration.io.mri` shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.pictures.dicom import Origin
from solvers.inputs.errors import InputError

NEGATIVE = 0.05  # share of the largest magnitude that interpolation may fall below 0
# an array, or a dataset of h5py, whose values are read on demand
Stored = Any


@dataclass(frozen=True)
class Scan:
    """What a file holds.

    Attributes:
        kspace: complex64 ``(slices, coils, H, W)``, zero frequency in the centre; None for
            magnitudes.
        magnitude: float32 ``(slices, H, W)`` for files of images; None for k-space.
        phase: of complex images, float32 like ``magnitude``, in radians; None where it isn't known.
        mask: ``(H, W)`` or ``(W,)`` float32 that the file brings, ``(slices, H, W)`` where slices
            are sampled differently, or None.
        maps: complex64 ``(coils, H, W)`` or ``(slices, coils, H, W)`` that the file brings, or
            None.
        target: float32 ``(slices, h, w)``: the fully sampled reconstruction of fastMRI files, or
            None.
        attributes: fastMRI's (``max``, ``norm``, ``acquisition``, ``patient_id`` ...), as plain
            values.
        header: the ISMRMRD XML header, or None.
        crop: ``(h, w)`` of the reconstructed image by the header, or None.
        extent: its share of the encoded field of view along rows and columns, or None: pixels keep
            their size.
        spacing: millimetres per voxel ``(slice, row, column)``, 1 where unknown.
        affine: NIfTI's 4 x 4 voxel-to-world matrix of (column, row, slice), or None.
        origins: of DICOM files, where each slice comes from; else empty.
        volumes: how many volumes (contrasts, moments, repetitions) of as many slices each follow
            one another on the axis of slices.
    """

    kspace: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    phase: np.ndarray | None = None
    mask: np.ndarray | None = None
    maps: np.ndarray | None = None
    target: np.ndarray | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    header: str | None = None
    crop: tuple[int, int] | None = None
    extent: tuple[float, float] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    affine: np.ndarray | None = None
    origins: tuple[Origin, ...] = ()
    volumes: int = 1

    def volume(self, k: int, path: Path) -> Scan:
        """The one that is counted ``k`` from 0, alone.

        Raises:
            InputError: there is no such volume.
        """
        if not 0 <= k < self.volumes:
            held = f"volumes 0 to {self.volumes - 1}" if self.volumes > 1 else "one volume, 0"
            raise InputError(f"{path} holds {held}; there is no volume {k}")
        values: Any = self.magnitude if self.kspace is None else self.kspace
        slices = len(values)
        count = slices // self.volumes
        part = slice(k * count, (k + 1) * count)

        def cut(array: np.ndarray | None, rank: int) -> np.ndarray | None:
            each = array is not None and array.ndim == rank and len(array) == slices
            return array[part] if array is not None and each else array

        return replace(
            self,
            kspace=cut(self.kspace, 4),
            magnitude=cut(self.magnitude, 3),
            phase=cut(self.phase, 3),
            mask=cut(self.mask, 3),
            maps=cut(self.maps, 4),
            target=cut(self.target, 3),
            origins=self.origins[part],
            volumes=1,
        )


def pairs(array: np.ndarray) -> np.ndarray:
    """MATLAB's (real, imag) records as complex numbers."""
    if array.dtype.names and set(array.dtype.names) == {"real", "imag"}:
        return array["real"] + 1j * array["imag"]
    return array


def complex_array(array: Stored, path: Path, ranks: tuple[int, ...]) -> np.ndarray:
    """complex64 from complex numbers of any width or real pairs in a last axis of length 2; the
    type is checked before reading.
    """
    records = array.dtype.names and set(array.dtype.names) == {"real", "imag"}
    paired = array.dtype.kind == "f" and array.ndim - 1 in ranks and array.shape[-1] == 2
    if not (array.dtype.kind == "c" or records or paired) or (
        not paired and array.ndim not in ranks
    ):
        raise InputError(
            f"{path} has k-space or maps of shape {tuple(array.shape)} and type {array.dtype};"
            f" complex arrays with {' or '.join(map(str, ranks))} axes are accepted, or real ones"
            " with (real, imaginary) pairs in a last axis of length 2"
        )
    values = pairs(np.asarray(array[()]))
    values = values[..., 0] + 1j * values[..., 1] if paired else values
    return np.ascontiguousarray(values.astype(np.complex64))


def flat(kspace: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """K-space ``(slices, coils, H, W)`` of what may have one axis more before it (averages,
    repetitions, contrasts), and how many volumes it holds.

    Raises:
        InputError: axes in another order.
    """
    volumes = len(kspace) if kspace.ndim == 5 else 1
    if kspace.ndim == 5 and min(kspace.shape[:2]) > max(kspace.shape[-2:]):
        raise InputError(
            f"{path} has k-space of shape {kspace.shape}, which would be {volumes} volumes of"
            f" {kspace.shape[1]} small slices; the axes must be (volumes, slices, coils, H, W):"
            " permute them"
        )
    kspace = kspace.reshape(-1, *kspace.shape[-3:])
    check_kspace_axes(kspace.shape, path)
    return kspace, volumes


def check_kspace_axes(shape: tuple[int, ...], path: Path) -> None:
    """Refuse axes in another order, as MATLAB's programs have them: no scanner has more coils than
    an image has rows or columns.
    """
    coils, side = shape[1], min(shape[2:])
    if coils > max(side, 1):
        raise InputError(
            f"{path} has k-space of shape {shape}, which would be {coils} coils of {shape[2]} x"
            f" {shape[3]} points; the axes must be (slices, coils, H, W): permute them"
        )


def check_image_axes(shape: tuple[int, ...], path: Path) -> None:
    """The same of magnitudes: slices are not narrow strips."""
    if len(shape) == 3 and shape[0] > shape[2] and shape[1] > 2 * shape[2]:
        raise InputError(
            f"{path} has images of shape {shape}, which would be {shape[0]} slices of {shape[1]} x"
            f" {shape[2]} pixels; the axes must be (slices, H, W): permute them"
        )


def real_array(array: Stored, path: Path) -> np.ndarray:
    """A reconstruction ``(slices, H, W)`` of real numbers; of several volumes one after the
    other.
    """
    if array.ndim not in (3, 4) or array.dtype.kind != "f":
        raise InputError(
            f"{path} has a reconstruction of shape {tuple(array.shape)} and type {array.dtype};"
            " (slices, H, W) is accepted"
        )
    return np.asarray(array[()], dtype=np.float32).reshape(-1, *array.shape[-2:])


def magnitude_array(array: np.ndarray, path: Path) -> np.ndarray:
    """Magnitudes ``(slices, H, W)``; one slice may come without its axis."""
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "uif":
        raise InputError(
            f"{path} has images of shape {array.shape} and type {array.dtype}; real (slices, H, W)"
            " is accepted"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds NaN or infinite values")
    if float(array.min()) < -NEGATIVE * float(array.max()):
        raise InputError(
            f"{path} holds numbers down to {array.min():g}, which are no magnitudes but real parts,"
            " phases, units of CT or signed numbers whose black is the largest (MONOCHROME1); give"
            " magnitudes, or complex numbers in one NIfTI file"
        )
    return array


def mask_array(array: Stored, shape: Sequence[int], path: Path, volumes: int = 1) -> np.ndarray:
    """The mask ``(H, W)`` of k-space ``(slices, coils, H, W)``; columns stand for all their points.
    It may have k-space's other axes too (volumes, slices, coils, at the end real and imaginary
    parts): along slices it may differ, which gives ``(slices, H, W)``.
    """
    mask = np.asarray(array[()])
    slices, (height, width) = shape[0], shape[-2:]
    if mask.ndim > 2 and mask.shape[-2:] == (width, 1):
        mask = mask[..., 0]
    while mask.ndim > 2 and (mask == mask[:1]).all():
        mask = mask[0]
    mask = mask[0] if mask.shape == (1, width) else mask
    if mask.ndim == 5 and mask.shape[0] == volumes:
        each = (volumes, slices // volumes, *mask.shape[2:])
        mask = np.broadcast_to(mask, each).reshape(-1, *mask.shape[2:])
    if mask.ndim == 4 and (mask == mask[:, :1]).all():  # the same in all coils
        mask = mask[:, 0]
    if mask.ndim == 3 and mask.shape == (slices, 1, width):
        mask = np.broadcast_to(mask, (slices, height, width))
    if mask.shape not in ((width,), (height, width), (slices, height, width)):
        raise InputError(
            f"{path} has a mask of shape {mask.shape}; (slices, H, W) ="
            f" {(slices, height, width)}, (H, W) or (W,) is accepted"
        )
    if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path} has a mask with values other than 0 and 1")
    if not mask.any():
        raise InputError(f"{path} has a mask that samples nothing")
    return mask.astype(np.float32)
