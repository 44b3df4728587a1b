"""Haze, and other degradations known by pairs of pictures."""
