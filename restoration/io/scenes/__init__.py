"""Scenes: arrays of any size, read and written by parts."""

from restoration.io.scenes.files import check_scene_writable, is_scene, open_scene, write_scene
from restoration.io.scenes.scene import Scene

__all__ = ["Scene", "check_scene_writable", "is_scene", "open_scene", "write_scene"]
