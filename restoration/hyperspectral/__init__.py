"""Hyperspectral cubes."""
