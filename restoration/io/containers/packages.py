"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, what: str, extra: str = "mri") -> Any:
    """Import an optional package; the ImportError says that ``what`` (a plural) need it, and the
    pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} need the package {module.partition('.')[0]}: pip install 'restobox[{extra}]'"
        ) from error
