"""restobox in Python: a function for each task, models by name or folder, pictures in any form.

    import restobox

    restore = restobox.inpaint("photo-int8")
    result = restore(image, mask, num_samples=4)   # PIL, NumPy, torch or a path
    result.to_pil().save("restored.png")
    result.std                                     # where the samples disagree

The packages underneath (``solvers``, ``restoration``, ``quant``, ``export``, ``toolbox``) are there
for whoever wants more.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restobox.foreign import from_deepinv, to_deepinv
    from restobox.many import map
    from restobox.measurements import hsi, mri, ultrasound
    from restobox.pictures import RestoredPicture
    from restobox.tasks import deblur, dehaze, denoise, inpaint, paired, superresolve
    from toolbox.api import ModelInfo, load, models

PACKAGES = ("solvers", "restoration", "quant", "export", "toolbox")


def _check_packages() -> None:
    """Raise where another module of the same name hides one of the packages.

    Raises:
        ImportError: says which file hides which package, and what to do.
    """
    here = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is None:
            raise ImportError(
                f"restobox's package {name!r} is missing beside {here}: install it again"
            )
        places = [found.origin] if found.origin else [*(found.submodule_search_locations or ())]
        place = Path(places[0] if places else ".").resolve()
        if here not in place.parents:
            raise ImportError(
                f"{place} hides restobox's package {name!r} ({here / name}): rename that file or"
                " folder, run from another folder, or uninstall what it belongs to"
            )


_check_packages()

try:
    __version__ = version("restobox")
except PackageNotFoundError:  # used from a source folder that isn't installed
    __version__ = "0.1.0"

_WHERE = {
    "RestoredPicture": "restobox.pictures",
    "hsi": "restobox.measurements",
    "mri": "restobox.measurements",
    "ultrasound": "restobox.measurements",
    "from_deepinv": "restobox.foreign",
    "to_deepinv": "restobox.foreign",
    "map": "restobox.many",
    "ModelInfo": "toolbox.api",
    "load": "toolbox.api",
    "models": "toolbox.api",
}
_TASKS = ("deblur", "dehaze", "denoise", "inpaint", "paired", "superresolve")


def __getattr__(name: str) -> object:
    # imported on first use: torch takes a second or two
    module = _WHERE.get(name, "restobox.tasks" if name in _TASKS else None)
    if module is None:
        raise AttributeError(f"module 'restobox' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "ModelInfo",
    "RestoredPicture",
    "__version__",
    "deblur",
    "dehaze",
    "denoise",
    "from_deepinv",
    "hsi",
    "inpaint",
    "load",
    "map",
    "models",
    "mri",
    "paired",
    "superresolve",
    "to_deepinv",
    "ultrasound",
]
