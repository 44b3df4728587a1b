"""Posterior corrections: each turns a denoiser and a measurement into a denoiser."""

from restoration.posterior.by_name import CORRECTIONS, correction_by_name
from restoration.posterior.correction import Correction, GradientCorrection
from restoration.posterior.ddnm import DDNM, DDNMPlus
from restoration.posterior.ddrm import DDRM
from restoration.posterior.diffpir import DiffPIR
from restoration.posterior.dps import DPS
from restoration.posterior.mmps import MMPS
from restoration.posterior.pigdm import PiGDM
from restoration.posterior.repaint import RePaint

__all__ = [
    "CORRECTIONS",
    "DDNM",
    "DDRM",
    "DPS",
    "MMPS",
    "Correction",
    "DDNMPlus",
    "DiffPIR",
    "GradientCorrection",
    "PiGDM",
    "RePaint",
    "correction_by_name",
]
