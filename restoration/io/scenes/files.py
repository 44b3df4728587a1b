"""The files that hold scenes: Zarr and OME-Zarr, TIFF, ENVI, NIfTI. What is written is of the same
kind, shape and type as what was read.
"""

from __future__ import annotations

import gzip
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.containers.validity import refuse, sidecar
from restoration.io.images import MAX_PIXELS
from restoration.io.scenes.scene import Scene
from restoration.io.scenes.tiff import TIFF, open_tiff, pixels_of, write_tiff
from restoration.io.scenes.zarrs import is_zarr, open_zarr, write_zarr
from solvers.files import (
    check_file,
    check_marked,
    check_outputs,
    replace_file,
    replace_marked_folder,
    together,
)
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

ENVI, NIFTI, ZARR = ".hdr", ".nii", ".zarr"
NIFTI_PACKED = ".nii.gz"
KIND = "restored scene"
Fill = Callable[[Any], object]  # puts the values into an array


def is_scene(path: str | Path) -> bool:
    """Whether a file or folder is restored by parts: a Zarr folder, an ENVI header, NIfTI, and a
    TIFF file of more pixels than pictures may have.
    """
    path = Path(path)
    if path.is_dir():
        return is_zarr(path)
    if path.suffix.lower() in TIFF and path.is_file():
        return pixels_of(path) > MAX_PIXELS
    return path.suffix.lower() in (ENVI, NIFTI) or path.name.lower().endswith(NIFTI_PACKED)


def open_scene(path: str | Path) -> Scene:
    """A scene of a file; only its head is read, and where black and white are not known its values
    once, by parts.

    TIFF has the black and white of pictures. Elsewhere they are the least and the largest value,
    but for 8 bits and for floats in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        InputError: another kind of file, a damaged one, or values of a type that is not accepted.
        ImportError: the package that reads it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"scene {path} does not exist")
    with reading(path, "a scene"):
        if path.is_dir():
            found = open_zarr(path)
        elif path.suffix.lower() in TIFF:
            found = open_tiff(path)
        elif path.suffix.lower() == ENVI:
            found = _open_envi(path)
        else:
            found = _open_nifti(path)
        if sidecar(found.head[0] if found.kind == "envi" else path) is not None:
            refuse(path)
        if np.dtype(found.array.dtype).kind not in "iuf":
            raise InputError(
                f"{path} holds values of type {found.array.dtype}; integers and real numbers are"
                " accepted"
            )
        return found if found.kind == "tiff" else found.ranged()


def check_scene_writable(out: str | Path, scene: Scene) -> None:
    """Raise before any work is done if a restored scene can't be written to ``out``.

    Raises:
        InputError: a name of another kind of file, or of the scene's own files.
        OSError: the place is not writable, or not free.
    """
    out = Path(out)
    nifti = NIFTI_PACKED if _packed(scene.path) else NIFTI
    endings = {"zarr": (ZARR,), "tiff": TIFF, "envi": (ENVI,), "nifti": (nifti,)}[scene.kind]
    if not out.name.lower().endswith(endings):
        raise InputError(
            f"{scene.path} is restored to a file of its own kind; output {out} must end in"
            f" {' or '.join(endings)}"
        )
    if scene.kind == "zarr":
        check_marked(out, KIND)
    elif scene.kind == "envi":
        raw = out.with_suffix(".raw")
        check_outputs([out, raw], [scene.path, scene.head[0]])
        check_file(out)
        check_file(raw)
    else:
        check_file(out)


def write_scene(out: str | Path, scene: Scene, fill: Fill) -> None:
    """Write a scene like another one; ``fill`` is called with the array to put values in.

    Raises:
        InputError, OSError: as :func:`check_scene_writable`.
        FullDiskError: the disk is full.
    """
    out = Path(out)
    check_scene_writable(out, scene)
    if scene.kind == "zarr":
        replace_marked_folder(out, lambda place: write_zarr(place, scene, fill), KIND)
    elif scene.kind == "tiff":
        replace_file(out, lambda place: write_tiff(place, scene, fill))
    elif scene.kind == "envi":
        raw: Path = scene.head[0]
        with together():
            replace_file(out.with_suffix(".raw"), lambda place: _like(place, raw, scene, fill))
            replace_file(out, lambda place: shutil.copyfile(scene.path, place))
    elif _packed(scene.path):
        replace_file(out, lambda place: _write_packed(place, scene, fill))
    else:
        replace_file(out, lambda place: _like(place, scene.path, scene, fill))


def _like(place: Path, source: Path, scene: Scene, fill: Fill) -> None:
    """A file with the bytes of ``source``, whose values are then replaced."""
    shutil.copyfile(source, place)
    base = scene.array
    while isinstance(base.base, np.memmap):
        base = base.base
    layout: Any = (base.offset, base.shape, "F" if scene.kind == "nifti" else "C")
    values: Any = np.memmap(place, base.dtype, "r+", *layout)
    fill(values.transpose(scene.head[1]) if scene.kind == "envi" else values)
    values.flush()


def _open_envi(path: Path) -> Scene:
    from restoration.io.cubes.cube import numbers
    from restoration.io.cubes.envi import (
        ORDERS,
        interleave_of,
        left_over,
        open_raw,
        raw_file,
        read_header,
    )

    header = read_header(path)
    values = open_raw(path, header)
    text = header.get("data ignore value")
    axes = "cyx" if values.shape[0] == 3 else "byx"
    no_data = float(numbers(path, "data ignore value", text)[0]) if text else None
    head = raw_file(path), ORDERS[interleave_of(path, header)]
    note = left_over(path, header, values)
    return Scene(path, values, axes, no_data=no_data, kind="envi", head=head, note=note)


def _open_nifti(path: Path) -> Scene:
    """Planes along the third axis, and those after it. Compressed files are held in memory."""
    need("nibabel", "NIfTI files")
    import nibabel

    image: Any = nibabel.load(path)
    stored = image.dataobj
    shape = tuple(int(n) for n in stored.shape)
    if not 2 <= len(shape) <= 5:
        raise InputError(f"{path} has {len(shape)} axes; two to five are accepted")
    offset, axes = int(stored.offset), "xyztu"[: len(shape)]
    if not _packed(path):
        values: Any = np.memmap(path, stored.dtype, "r", offset, shape, "F")
        return Scene(path, values, axes, kind="nifti")
    check_array(path, shape, 3 * stored.dtype.itemsize)  # and the result, and its bytes
    with gzip.open(path) as file:
        head = file.read(offset)
        content = bytearray(math.prod(shape) * stored.dtype.itemsize)
        found = file.readinto(content)
    if found < len(content):
        raise InputError(f"{path} was cut short: its values end after {found} bytes")
    values = np.frombuffer(content, stored.dtype).reshape(shape, order="F")
    return Scene(path, values, axes, kind="nifti", head=head)


def _packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _write_packed(place: Path, scene: Scene, fill: Fill) -> None:
    """The head as it was, and the values; neither time nor name, so that bytes repeat."""
    values = np.array(scene.array, order="F")
    fill(values)
    with place.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(scene.head)
        packed.write(values.T.data)
