"""Image quality against a reference. PSNR and SSIM are scikit-image's, with the settings of the
SSIM paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

# (C, H, W)
Image = Tensor | np.ndarray


def _pair(image: Image, reference: Image) -> tuple[np.ndarray, np.ndarray]:
    image, reference = (
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, dtype=np.float64)
        for v in (image, reference)
    )
    if image.shape != reference.shape or image.ndim != 3:
        raise ValueError(
            f"both images must be (C, H, W) of one shape; got {image.shape} and {reference.shape}"
        )
    return image, reference


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB of ``(C, H, W)`` images in [0, 1] (peak 1); infinite for
    equal images.
    """
    from skimage.metrics import peak_signal_noise_ratio

    image, reference = _pair(image, reference)
    if np.array_equal(image, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, image, data_range=1.0))


def ssim(image: Image, reference: Image) -> float:
    """Structural similarity in [-1, 1] of ``(C, H, W)`` images in [0, 1], mean over channels (Wang
    et al. 2004: Gaussian window, 1.5).

    Raises:
        ValueError: an image smaller than the 11 x 11 window.
    """
    from skimage.metrics import structural_similarity

    image, reference = _pair(image, reference)
    if min(image.shape[1:]) < 11:
        raise ValueError(
            f"SSIM needs at least 11 x 11 pixels; got {image.shape[2]} x {image.shape[1]}"
        )
    return float(
        structural_similarity(
            reference,
            image,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


class LPIPSUnavailable(RuntimeError):
    """LPIPS can't be computed because its backbone's weights are not on this machine."""


def lpips(image: Image, reference: Image, backbone: str = "alex") -> float:
    """LPIPS distance (Zhang et al. 2018) of ``(3, H, W)`` images in [0, 1]; lower is closer.

    Raises:
        LPIPSUnavailable: the torchvision backbone is not in torch's hub folder; the message says
            which file to put where. Nothing is downloaded.
    """
    import torch

    files = {
        "alex": "alexnet-owt-7be5be79.pth",
        "vgg": "vgg16-397923af.pth",
        "squeeze": "squeezenet1_1-b8a52dc0.pth",
    }
    if backbone not in files:
        raise ValueError(f"LPIPS backbone {backbone!r} is unknown; known: {', '.join(files)}")
    place = Path(torch.hub.get_dir()) / "checkpoints" / files[backbone]
    if not place.is_file():
        raise LPIPSUnavailable(
            f"LPIPS needs the {backbone} backbone: put torchvision's {place.name} into"
            f" {place.parent}"
        )
    import lpips as package

    image, reference = (
        torch.as_tensor(v, dtype=torch.float32)[None] for v in _pair(image, reference)
    )
    model = package.LPIPS(net=backbone, verbose=False)
    with torch.no_grad():
        return float(model(image, reference, normalize=True))


def noise_level(image: Image) -> float:
    """Standard deviation of the white noise on ``(C, H, W)``, from the median of the finest
    diagonal Haar coefficients (Donoho & Johnstone 1994); fine texture counts as noise.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    image = np.asarray(
        image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64
    )
    if image.ndim != 3 or min(image.shape[1:]) < 4:
        raise ValueError(
            f"the noise of (C, H, W) with at least 4 x 4 pixels can be estimated; got {image.shape}"
        )
    height, width = (n // 2 * 2 for n in image.shape[1:])
    a, b, c, d = (image[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    # a median of each channel's magnitudes, over that of a normal distribution
    return float(
        np.mean(np.median(np.abs(a - b - c + d).reshape(len(image), -1), axis=1))
        / 2
        / 0.6744897501960817
    )
