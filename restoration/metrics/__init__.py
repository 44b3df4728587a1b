"""What is measured of pictures: closeness to a truth, and the noise they hold."""

from restoration.metrics.fidelity import psnr, ssim
from restoration.metrics.noise import noise_level
from restoration.metrics.perceptual import LPIPSUnavailable, lpips

__all__ = ["LPIPSUnavailable", "lpips", "noise_level", "psnr", "ssim"]
