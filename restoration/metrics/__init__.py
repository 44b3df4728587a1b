"""What is measured of pictures: closeness to a truth, and the noise they hold."""

from restoration.metrics.fidelity import psnr, ssim
from restoration.metrics.intervals import conformal_factor, gap, interval_std, shrunk
from restoration.metrics.noise import noise_level
from restoration.metrics.perceptual import LPIPSUnavailable, lpips

__all__ = [
    "LPIPSUnavailable",
    "conformal_factor",
    "gap",
    "interval_std",
    "lpips",
    "noise_level",
    "psnr",
    "shrunk",
    "ssim",
]
