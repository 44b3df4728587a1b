"""Measurement operators: linear, separable, non-linear."""
