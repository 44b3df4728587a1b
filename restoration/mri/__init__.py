"""Accelerated Cartesian MRI: physics, sampling masks, sensitivities, the task, and fastMRI's
evaluation.
"""

from restoration.mri.consistency import Consistency
from restoration.mri.espirit import calibration_region, espirit, mvue, rss
from restoration.mri.evaluation import Quality, coverage, slice_quality, volume_quality
from restoration.mri.sampling import MASKS, column_mask, poisson_mask, volume_seed
from restoration.mri.sense import (
    Sense,
    SingleCoil,
    cartesian,
    fft2c,
    ifft2c,
    normalise_maps,
    to_channels,
    to_complex,
)
from restoration.mri.task import MRITask, RestoredScan

__all__ = [
    "MASKS",
    "Consistency",
    "MRITask",
    "Quality",
    "RestoredScan",
    "Sense",
    "SingleCoil",
    "calibration_region",
    "cartesian",
    "column_mask",
    "coverage",
    "espirit",
    "fft2c",
    "ifft2c",
    "mvue",
    "normalise_maps",
    "poisson_mask",
    "rss",
    "slice_quality",
    "to_channels",
    "to_complex",
    "volume_quality",
    "volume_seed",
]
