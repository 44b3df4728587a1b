"""The tasks of the command line, an object each: the user's files in, results out, and everything
else that is special about a task. :func:`task_by_name` gives one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolbox.tasks.base import Task

# imported when asked for: the command line opens at once
TASKS = {
    "inpaint": "inpainting.Inpaint",
    "denoise": "photo.denoise.Denoise",
    "superresolve": "photo.superresolve.Superresolve",
    "deblur": "photo.deblur.Deblur",
    "dehaze": "paired.Dehaze",
    "paired": "paired.Paired",
    "ultrasound": "ultrasound.Ultrasound",
    "mri": "mri.task.MRI",
    "hsi": "hyperspectral.Hyperspectral",
    "generate": "generate.Generate",
    "decode": "generate.Decode",
}


def task_by_name(name: str) -> Task:
    """The task's object.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; known: {', '.join(TASKS)}")
    module, _, kind = TASKS[name].rpartition(".")
    return getattr(import_module(f"toolbox.tasks.{module}"), kind)()
