"""Editing of images: by prompts, and by inversion."""
