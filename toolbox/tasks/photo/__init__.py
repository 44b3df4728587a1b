"""Photographs: denoise, enlarge, sharpen."""
