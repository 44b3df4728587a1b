"""Calibration on the sampling trajectory and 8-bit quantization."""
