"""Measured figures, each next to the classical methods."""
