"""Hyperspectral cubes: what one is, its file formats, and what their headers say."""

from restoration.io.cubes.cube import Cube
from restoration.io.cubes.files import check_cube_writable, read_cube, write_cube

__all__ = ["Cube", "check_cube_writable", "read_cube", "write_cube"]
