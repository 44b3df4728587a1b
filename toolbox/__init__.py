"""Front door: command line, shipped models, training.

from toolbox import load, models
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolbox.api import ModelInfo, load, models


import os

# before onnxruntime is imported by whatever comes first (see export/__init__.py)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # imported on first use, so that the command line opens at once
    if name in ("load", "models", "ModelInfo"):
        from toolbox import api

        return getattr(api, name)
    raise AttributeError(f"module 'toolbox' has no attribute {name!r}")


__all__ = ["ModelInfo", "load", "models"]
