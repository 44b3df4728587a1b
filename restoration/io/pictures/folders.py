"""Folders of pictures: which files they hold, crops of them, pairs of degraded and clean ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from restoration.io.images import SUFFIXES, read_image
from solvers.inputs.errors import InputError


def find_pictures(folder: str | Path, exclude: Sequence[str] = ()) -> list[Path]:
    """The picture files of a folder and its subfolders, in order, without those named ``exclude``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist")
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name not in exclude
    )
    if not found:
        raise InputError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return found


def visible_files(folder: str | Path) -> list[Path]:
    """The files that lie in a folder itself, in order, without hidden ones."""
    return sorted(p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith("."))


def random_window(
    shape: Sequence[int], size: int | Sequence[int], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random part of ``size`` (a side, or height and width) of an image whose
    last two axes are ``shape``'s; where the image is smaller, all of it.
    """
    height, width = (size, size) if isinstance(size, int) else size
    sides = [min(m, n) for m, n in zip((height, width), shape[-2:], strict=True)]
    starts = [int(rng.integers(n - m + 1)) for n, m in zip(shape[-2:], sides, strict=True)]
    rows, columns = (slice(start, start + m) for start, m in zip(starts, sides, strict=True))
    return rows, columns


def picture_crops(
    folder: Path, count: int, size: int | tuple[int, int], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """``count`` random crops ``(3, h, w)`` of ``size`` of a folder's pictures, each with its file's
    SHA-256.

    Raises:
        FileNotFoundError, ValueError: as :func:`find_pictures`.
    """
    files = find_pictures(folder)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(files))
    for k in range(count):
        path = files[order[k % len(files)]]
        pixels = read_image(path).pixels
        crop = pixels[(slice(None), *random_window(pixels.shape, size, rng))]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield digest, np.ascontiguousarray(np.broadcast_to(crop, (3, *crop.shape[1:])))


def find_pairs(
    folder: str | Path, degraded: str = "degraded", clean: str = "clean", mask: str | None = None
) -> list[tuple[Path, ...]]:
    """``(degraded, clean)`` or ``(degraded, clean, mask)`` files of the folder's subfolders,
    ordered by name.

    Files belong together that have the same name up to the suffix; one clean picture may serve
    several degraded ones whose names go on after an underscore (``1400_4.jpg`` and ``1400.jpg``, as
    in RESIDE).

    Raises:
        FileNotFoundError: no such subfolder.
        ValueError: nothing in it, or a degraded picture without its clean one or mask.
    """
    root = Path(folder)
    for name in (degraded, clean) if mask is None else (degraded, clean, mask):
        if not (root / name).is_dir():
            raise FileNotFoundError(
                f"{root} holds no folder {name!r}; pairs lie in {degraded}/ and {clean}/ (and masks"
                f" in {mask or 'mask'}/)"
            )
    folders = [n for n in (clean, mask) if n is not None]
    names = [
        {p.stem: p for p in sorted((root / n).iterdir()) if p.suffix.lower() in SUFFIXES}
        for n in folders
    ]
    found = []
    for path in sorted(p for p in (root / degraded).iterdir() if p.suffix.lower() in SUFFIXES):
        partners = [known.get(path.stem) or known.get(path.stem.split("_")[0]) for known in names]
        for folder, partner in zip(folders, partners, strict=True):
            if partner is None:
                raise InputError(
                    f"{path} has no partner in {root / folder}: it needs a file of the same name"
                    " there"
                )
        found.append((path, *filter(None, partners)))
    if not found:
        raise InputError(f"{root / degraded} holds no picture ({', '.join(SUFFIXES)})")
    return found


def read_pair(degraded: Path, clean: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures ``(C, H, W)`` in [0, 1].

    Raises:
        ValueError: sizes, or colour and grey, that differ.
    """
    a, b = read_image(degraded).pixels, read_image(clean).pixels
    if a.shape[1:] != b.shape[1:]:
        sizes = " and ".join(f"{v.shape[2]} x {v.shape[1]}" for v in (a, b))
        raise InputError(
            f"{degraded} and {clean} differ in size ({sizes}); a pair shows the same pixels"
        )
    if a.shape[0] != b.shape[0]:
        kinds = " and ".join("grey" if v.shape[0] == 1 else "colour" for v in (a, b))
        raise InputError(f"{degraded} and {clean} are {kinds}; a pair is either")
    return a, b
