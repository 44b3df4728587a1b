"""The command ``restobox``."""

from toolbox.cli.main import app, main

__all__ = ["app", "main"]
