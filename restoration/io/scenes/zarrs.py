"""Zarr arrays, and the full resolution of OME-Zarr images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from restoration.io.containers.packages import need
from restoration.io.scenes.scene import Scene
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

MARKS = ("zarr.json", ".zgroup", ".zarray")
FEW, SHARE = 10_000, 1000  # chunks that may all be missing; of more, one in so many is stored


def is_zarr(folder: Path) -> bool:
    """Whether a folder is an array or a group of Zarr's."""
    return any((folder / mark).is_file() for mark in MARKS)


def open_zarr(path: Path) -> Scene:
    """An array ``(H, W)``, ``(H, W, 3)``, ``(3, H, W)`` or of planes ``(..., H, W)``; or an image
    of OME-Zarr, whose channels are planes of their own.

    Raises:
        InputError: a group that is no such image, or axes without ``y`` and ``x``.
        ImportError: Zarr is missing.
    """
    need("zarr", "Zarr folders", "scale")
    import zarr

    found: Any = zarr.open(str(path), mode="r")
    if isinstance(found, zarr.Array):
        shape = found.shape
        _check_chunks(path, found)
        if len(shape) < 2 or len(shape) > 6:
            raise InputError(
                f"{path} is an array of shape {shape}; planes (..., H, W) are accepted"
            )
        axes = "abde"[: len(shape) - 2] + "yx"
        if len(shape) == 3 and 3 in (shape[0], shape[2]):
            axes = "yxc" if shape[2] == 3 else "cyx"
        return Scene(path, found, axes, kind="zarr")
    image = _image(dict(found.attrs))
    if image is None:
        raise InputError(
            f"{path} is a group without OME-Zarr's multiscales; give one of its arrays"
        )
    names = [a["name"] if isinstance(a, dict) else a for a in image.get("axes", "tczyx")]
    name = image["datasets"][0]["path"]
    array = found[name]
    _check_chunks(path, array)
    if {"y", "x"} - set(names) or len(names) != array.ndim:
        raise InputError(f"{path} has axes {', '.join(names)}; y and x must be among them")
    axes = "".join("k" if name == "c" else name[0] for name in names)
    if len(set(axes)) < len(axes):
        raise InputError(f"{path} has axes {', '.join(names)}, of which two begin alike")
    return Scene(path, array, axes, kind="zarr", head=(name, dict(found.attrs)))


def _check_chunks(path: Path, array: Any) -> None:
    """A chunk is read as a whole, so it must fit into the memory. Chunks that are not stored are
    blank: a file of some bytes could ask for years of work.
    """
    check_array(path, array.chunks, array.dtype.itemsize)
    files = array.shards or array.chunks  # one for each shard, where chunks are kept in shards
    count = math.prod(-(-n // size) for n, size in zip(array.shape, files, strict=True))
    if count <= FEW:
        return
    # by the files that are there: zarr's own count looks for every chunk that could be
    found = (names for _, _, names in os.walk(path / array.path))
    stored = sum(not n.startswith(".") and n != "zarr.json" for names in found for n in names)
    if stored * SHARE < count:
        raise InputError(
            f"{path} has the shape {array.shape}, {count} chunks, of which {stored} are stored; at"
            f" least one of {SHARE} must be: its shape may be damaged"
        )


def _image(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """The description of an image: version 0.5 has it under ``ome``."""
    found = attributes.get("ome", attributes).get("multiscales")
    return found[0] if found else None


def write_zarr(place: Path, scene: Scene, fill: Callable[[Any], object]) -> None:
    """An array stored like the scene's: chunks, shards, compression, names of its axes, attributes.
    Of an OME-Zarr image the full resolution, with all that is said of it: axes, units, scales,
    channels and their names.
    """
    import zarr

    like, name = scene.array, None
    if scene.head is not None:
        name, attributes = scene.head
        attributes = deepcopy(attributes)
        within = attributes.get("ome", attributes)
        within["multiscales"] = within["multiscales"][:1]
        within["multiscales"][0]["datasets"] = within["multiscales"][0]["datasets"][:1]
        group = zarr.open_group(str(place), mode="w", zarr_format=like.metadata.zarr_format)
        group.attrs.update(attributes)
    array: Any = zarr.from_array(
        str(place),
        data=like,
        write_data=False,
        name=name,
        fill_value=like.fill_value,
        attributes=dict(like.attrs),
        overwrite=name is None,
    )
    fill(array)
