"""The command ``restobox``."""

try:
    from toolbox.cli.main import app, main
except KeyboardInterrupt:  # before there is a command that could end in its own way
    raise SystemExit(130) from None

__all__ = ["app", "main"]
