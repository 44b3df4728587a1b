"""Posterior corrections: each turns a denoiser and a measurement into a denoiser."""

from restoration.posterior.correction import Correction
from restoration.posterior.ddnm import DDNM
from restoration.posterior.diffpir import DiffPIR

CORRECTIONS = {"ddnm": DDNM, "diffpir": DiffPIR}

__all__ = ["CORRECTIONS", "DDNM", "Correction", "DiffPIR"]
