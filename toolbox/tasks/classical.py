"""The classical methods that tasks are measured beside: no network, settings as their authors or
scikit-image advise.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.photo.lift import push_pull
from restoration.ultrasound.power_split import power_split
from toolbox.tasks.base import Trial

OfPlane = Callable[[np.ndarray, float], np.ndarray]  # a plane (H, W) and its noise

# standard deviation that NLM and BM3D are told of ultrasound haze: its own in a blood pool
HAZE_NOISE = 0.1


def plain(trial: Trial) -> Tensor:
    """The measured picture itself."""
    return trial.inputs["image"].clamp(0, 1)


def push_pull_fill(trial: Trial) -> Tensor:
    """Missing pixels from a pyramid of averages (:func:`restoration.photo.lift.push_pull`)."""
    return push_pull(trial.inputs["image"][None], trial.inputs["mask"][None])[0]


def biharmonic(trial: Trial) -> Tensor:
    """Missing pixels as the smoothest surface through the known ones."""
    from skimage.restoration import inpaint_biharmonic

    image, mask = (trial.inputs[name].numpy() for name in ("image", "mask"))
    found = inpaint_biharmonic((image * mask).transpose(1, 2, 0), mask[0] == 0, channel_axis=-1)
    return torch.from_numpy(found.transpose(2, 0, 1).clip(0, 1)).float()


def by_planes(
    trial: Trial, denoise: Callable[[np.ndarray, float], np.ndarray], sigma: float
) -> Tensor:
    """Each colour denoised by itself."""
    planes = [denoise(plane, sigma) for plane in trial.inputs["image"].double().numpy()]
    return torch.from_numpy(np.stack(planes).clip(0, 1)).float()


def non_local_means(plane: np.ndarray, sigma: float) -> np.ndarray:
    """scikit-image's, of a plane ``(H, W)`` with noise ``sigma``."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        plane, patch_size=7, patch_distance=9, h=0.8 * sigma, sigma=sigma, fast_mode=True
    )


def bm3d(plane: np.ndarray, sigma: float) -> np.ndarray:
    """The package's of its authors, which is not part of restobox.

    Raises:
        ValueError: it isn't installed.
    """
    run = _package("bm3d", "bm3d", "bm3d").bm3d
    found: np.ndarray = run(plane.astype(np.float64), sigma)
    return found


def cbm3d(trial: Trial, sigma: float) -> Tensor:
    """The same in colour: blocks are matched in the luminance; a grey picture by :func:`bm3d`.

    Raises:
        ValueError: the package isn't installed.
    """
    image = trial.inputs["image"].double().numpy()
    if len(image) == 1:
        return by_planes(trial, bm3d, sigma)
    found = _package("bm3d", "cbm3d", "bm3d").bm3d_rgb(image.transpose(1, 2, 0), sigma)
    return torch.from_numpy(found.transpose(2, 0, 1).clip(0, 1)).float()


def telea(trial: Trial) -> Tensor:
    """OpenCV's fast marching (Telea 2004), of 8 bits, radius 3.

    Raises:
        ValueError: OpenCV isn't installed.
    """
    cv2 = _package("cv2", "telea", "opencv-python-headless")
    image, mask = (trial.inputs[name].numpy() for name in ("image", "mask"))
    codes = np.ascontiguousarray(np.rint(255 * image * mask).astype(np.uint8).transpose(1, 2, 0))
    found = cv2.inpaint(codes, (mask[0] == 0).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    found = found.reshape(codes.shape).transpose(2, 0, 1).astype(np.float32) / 255
    return torch.from_numpy(np.where(mask > 0, image, found))


def lanczos(trial: Trial, factor: int) -> Tensor:
    """Pillow's Lanczos interpolation of each colour."""
    planes = trial.inputs["image"].numpy()
    height, width = (factor * n for n in planes.shape[1:])
    large = [
        np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS))
        for p in planes
    ]
    return torch.from_numpy(np.stack(large).clip(0, 1))


def wiener(trial: Trial, kernel: np.ndarray, sigma: float) -> Tensor:
    """scikit-image's Wiener-Hunt deconvolution of each colour, with mirrored borders. The weight of
    its Laplacian is 0.6 sigma, the best one for photos at blurs of 1 to 2.5 pixels and noise of
    0.01.
    """
    from skimage.restoration import wiener as deconvolve

    planes, margin = trial.inputs["image"].double().numpy(), 2 * len(kernel)
    margin = min(margin, min(planes.shape[1:]) - 1)
    weight = max(0.6 * sigma, 1e-4)
    wide = np.pad(planes, ((0, 0), (margin,) * 2, (margin,) * 2), mode="reflect")
    found = [deconvolve(p, np.outer(kernel, kernel), weight, clip=False) for p in wide]
    inner = np.stack(found)[:, margin:-margin, margin:-margin]
    return torch.from_numpy(inner.clip(0, 1)).float()


def of_haze() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What takes haze out of a B-mode frame ``(H, W)``."""
    from skimage import exposure

    return {
        "hazy": lambda hazy: hazy,
        "equalize": lambda hazy: exposure.equalize_hist(hazy, mask=hazy > 0) * (hazy > 0),
        "clahe": lambda hazy: exposure.equalize_adapthist(np.clip(hazy, 0, 1), clip_limit=0.02),
        "gamma": lambda hazy: hazy**2,
        "nlm": lambda hazy: non_local_means(hazy, HAZE_NOISE),
        "bm3d": lambda hazy: bm3d(hazy, HAZE_NOISE),
        "split": power_split,  # what the models' runs start from
    }


def _package(module: str, method: str, name: str) -> Any:
    """The module that a method needs.

    Raises:
        ValueError: it isn't installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the method {method} needs the package {name} (not part of restobox): pip install"
            f" {name}"
        ) from error
