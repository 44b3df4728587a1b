"""Pictures as people have them (PIL, NumPy, torch, a path), and results in the same form."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.io.images import Photo, check_writable, read_image, write_image
from restoration.io.pictures.masks import missing_of
from restoration.io.pictures.notes import Notes, notes_of
from restoration.io.pictures.values import unmapped
from restoration.photo.lift import enlarge
from restoration.task import Restored

Picture: TypeAlias = "Image.Image | np.ndarray | Tensor | str | os.PathLike[str]"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Form:
    """How a picture came.

    Attributes:
        kind: ``pil``, ``numpy`` or ``torch``.
        white: the value of white: 1 for floating point, 255 or 65535.
        layout: ``HW``, ``HWC`` or ``CHW``.
        dtype: of the array or tensor.
        device: of the tensor.
        alpha: ``(H, W)`` in [0, 1], which is handed on.
        bits: of a file, 32 for floats; None where the white tells.
        notes: what a file or a PIL image says beside its pixels.
    """

    kind: str
    white: float
    layout: str
    dtype: object = None
    device: torch.device | None = None
    alpha: np.ndarray | None = None
    bits: int | None = None
    notes: Notes = field(default_factory=Notes)


def read_picture(picture: Picture) -> tuple[Tensor, Form]:
    """``(C, H, W)`` float32 in [0, 1], C = 1 or 3, and the form it came in.

    - a path: any picture file that the command line reads, upright; the result is PIL.
    - PIL: modes 1, L, LA, RGB, RGBA, P, I;16; not turned, and its orientation is handed on.
    - NumPy and torch: ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``; 8- or 16-bit integers, or
      floating point in [0, 1]. Where both layouts fit, NumPy's is ``(H, W, C)`` and torch's ``(C,
      H, W)``.

    Raises:
        TypeError: none of these.
        ValueError: another shape or type of pixels, or values outside [0, 1].
        FileNotFoundError: no such file.
    """
    if isinstance(picture, (str, os.PathLike)):
        photo = read_image(picture)
        white = float(2**photo.bits - 1)
        form = Form("pil", white, "HWC", alpha=photo.alpha, bits=photo.bits, notes=photo.notes)
        return torch.from_numpy(photo.pixels), form
    if isinstance(picture, Image.Image):
        return _read_pil(picture)
    if isinstance(picture, Tensor):
        values = picture.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
        return _read_array(array, "torch", picture.dtype, picture.device)
    if isinstance(picture, np.ndarray):
        return _read_array(picture, "numpy", picture.dtype, None)
    raise TypeError(
        "a picture is a PIL image, a NumPy array, a torch tensor or a path; got"
        f" {type(picture).__name__}"
    )


def read_mask(mask: Picture, size: tuple[int, int], *, white_is_one: bool = False) -> Tensor:
    """``(H, W)`` of 0 and 1. White (or True, or 1 among integers of 0 and 1) is what is missing, so
    missing pixels are 0; with ``white_is_one`` they are 1.

    Raises:
        ValueError: another size than ``(H, W)``, a photograph, or one that marks nothing, or all.
    """
    if isinstance(mask, (np.ndarray, Tensor)):
        flags = _flags(mask)
        mask = mask if flags is None else flags
    pixels, form = read_picture(mask)
    if tuple(pixels.shape[1:]) != size:
        raise ValueError(
            f"the mask is {pixels.shape[2]} x {pixels.shape[1]} pixels but the picture is"
            f" {size[1]} x {size[0]}"
        )
    name = os.fspath(mask) if isinstance(mask, (str, os.PathLike)) else f"({type(mask).__name__})"
    white = torch.from_numpy(missing_of(name, pixels.numpy(), form.alpha))
    if bool(white.all()) or not bool(white.any()):
        what = "every pixel" if bool(white.all()) else "no pixel"
        raise ValueError(f"mask {name} marks {what}; white (or True) marks what is missing")
    return (white if white_is_one else ~white).float()


def _flags(mask: np.ndarray | Tensor) -> np.ndarray | None:
    """Masks of truth values, and of integers that are all 0 or 1; None of others."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if array.dtype.kind not in "bui" or (array.size and not 0 <= array.min() <= array.max() <= 1):
        return None
    return array.astype(np.uint8) * np.uint8(255)


@dataclass(frozen=True)
class RestoredPicture(Restored):
    """A restored picture.

    Attributes:
        samples, mean, std, nfe, seconds, metrics: as of :class:`restoration.task.Restored`;
            tensors ``(C, H, W)`` in [0, 1].
        given: the picture that came in, ``(C, H, W)`` in [0, 1].
        form: how it came.
    """

    given: Tensor = field(default_factory=lambda: torch.zeros(1, 1, 1), repr=False)
    form: Form = Form("pil", 255.0, "HWC")

    @property
    def image(self) -> Image.Image | np.ndarray | Tensor:
        """The mean, in the form that the picture came in (a path: PIL)."""
        if self.form.kind != "pil":
            return self._array(self.form)
        if self.form.layout == "HW":  # PIL's only pictures of 16 bits are grey
            codes = (self.mean[0].clamp(0, 1) * self.form.white).round().numpy()
            return Image.fromarray(codes.astype(np.uint16))
        return self.to_pil()

    @property
    def alpha(self) -> np.ndarray | None:
        """Transparency ``(H, W)`` in [0, 1] of the picture that came in, enlarged with it."""
        alpha, size = self.form.alpha, tuple(self.mean.shape[1:])
        if alpha is None or alpha.shape == size:
            return alpha
        given = torch.from_numpy(alpha)[None, None].float()
        return enlarge(given, size[0] // alpha.shape[0], size)[0, 0].clamp(0, 1).numpy()

    def to_pil(self) -> Image.Image:
        """The mean as a PIL image of 8 bits, with the transparency, the colour profile, EXIF and
        resolution of the picture that came in.
        """
        parts = [self.mean.numpy()]
        if (alpha := self.alpha) is not None:
            parts.append(alpha[None])
        codes = np.rint(np.clip(np.concatenate(parts), 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(codes[0] if len(codes) == 1 else codes.transpose(1, 2, 0))
        notes = self.form.notes
        said = {"icc_profile": notes.icc, "exif": notes.exif, "dpi": notes.dpi}
        image.info |= {key: value for key, value in said.items() if value is not None}
        return image

    def to_numpy(self) -> np.ndarray:
        """The mean as ``(H, W, C)`` float32 in [0, 1]."""
        return np.ascontiguousarray(self.mean.numpy().transpose(1, 2, 0))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the mean as PNG, JPEG, WebP, TIFF or DICOM, with the bits, the transparency and, of
        a file or a PIL image, the notes of the picture that came in.

        Raises:
            ValueError, OSError: an ending or a place that can't be.
        """
        place = Path(path)
        check_writable(place)
        bits = self.form.bits or (16 if self.form.white > 255 else 8)
        write_image(place, Photo(self.mean.numpy(), self.alpha, bits, self.form.notes))
        return place

    def _array(self, form: Form) -> np.ndarray | Tensor:
        values = self.mean.clamp(0, 1) * form.white
        if form.white > 1:
            values = values.round()
        values = values[0] if form.layout == "HW" else values
        values = values.permute(1, 2, 0) if form.layout == "HWC" else values
        if form.kind == "torch":
            assert isinstance(form.dtype, torch.dtype)
            return values.to(form.device, form.dtype).contiguous()
        return np.ascontiguousarray(values.numpy().astype(form.dtype))  # type: ignore[call-overload]

    def _repr_html_(self) -> str:
        """Before, after and, of several samples, where they disagree; for notebooks."""
        from toolbox.support.sheets import heat

        panels = [("given", self.given.numpy()), ("restored", self.mean.numpy())]
        if len(self.samples) > 1:
            coloured, top = heat(self.std.mean(0).numpy())
            panels.append((f"spread (white = {top:.2f})", coloured))
        cells = "".join(f"<td><img src='{_inline(p)}'><br>{name}</td>" for name, p in panels)
        told = ", ".join(f"{name.upper()} {value:.4g}" for name, value in self.metrics.items())
        line = f"{self.nfe} network calls, {self.seconds:.2f} s" + (f", {told}" if told else "")
        return f"<table><tr>{cells}</tr></table>{line}"


def _inline(pixels: np.ndarray) -> str:
    codes = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(codes[0] if len(codes) == 1 else codes.transpose(1, 2, 0))
    image.thumbnail((480, 480))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _read_pil(image: Image.Image) -> tuple[Tensor, Form]:
    unmapped(image).load()  # then it tells all that stands beside its pixels
    notes = notes_of(image, upright=False)
    if image.mode.startswith("I;16"):
        return torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)[None], Form(
            "pil", 65535.0, "HW", notes=notes
        )
    plain = image.mode
    if plain in ("1", "P", "PA"):
        transparent = plain == "PA" or "transparency" in image.info
        plain = "L" if image.mode == "1" else "RGBA" if transparent else "RGB"
        image = image.convert(plain)
    if plain not in MODES.values():
        raise ValueError(
            f"a PIL image of mode {image.mode} can't be restored; convert it to"
            f" {', '.join(MODES.values())}"
        )
    values = np.asarray(image, np.float32) / 255
    values = values[..., None] if values.ndim == 2 else values
    channels = 1 if values.shape[2] <= 2 else 3
    alpha = values[..., channels] if values.shape[2] > channels else None
    pixels = np.ascontiguousarray(values[..., :channels].transpose(2, 0, 1))
    kept = notes.of_channels(channels)
    return torch.from_numpy(pixels), Form("pil", 255.0, "HWC", alpha=alpha, notes=kept)


def _read_array(
    array: np.ndarray, kind: str, dtype: object, device: torch.device | None
) -> tuple[Tensor, Form]:
    if array.dtype.kind == "f":
        white = 1.0
    elif array.dtype in (np.uint8, np.uint16):
        white = float(np.iinfo(array.dtype).max)
    else:
        raise ValueError(
            f"pixels are 8- or 16-bit unsigned integers, or floating point in [0, 1]; got {dtype}"
        )
    if array.ndim == 2:
        layout = "HW"
    elif array.ndim == 3:
        fits = {"HWC": array.shape[2] in (1, 3), "CHW": array.shape[0] in (1, 3)}
        order: Sequence[str] = ("HWC", "CHW") if kind == "numpy" else ("CHW", "HWC")
        layout = next((name for name in order if fits[name]), "")
    else:
        layout = ""
    if not layout:
        raise ValueError(
            f"a picture is (H, W), (H, W, C) or (C, H, W) with C = 1 or 3; got {array.shape}"
        )
    values = array[None] if layout == "HW" else array
    values = values.transpose(2, 0, 1) if layout == "HWC" else values
    pixels = torch.from_numpy(np.ascontiguousarray(values, np.float32) / np.float32(white))
    if not torch.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        low, high = float(pixels.min()), float(pixels.max())
        raise ValueError(
            f"floating-point pictures lie in [0, 1]; this one holds {low:.4g} to {high:.4g}"
        )
    return pixels, Form(kind, white, layout, dtype, device)
