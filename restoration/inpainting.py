"""Where :mod:`restoration.photo.inpainting` was up to 0.1."""

from restoration.photo.inpainting import InpaintingTask

__all__ = ["InpaintingTask"]
