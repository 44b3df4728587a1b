"""Photographs: inpainting, denoising, super-resolution, deblurring."""
