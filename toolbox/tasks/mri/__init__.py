"""Accelerated MRI: a scan's file in, images out."""
