"""Where :mod:`export.runtime.session` was up to 0.1; model cards of that time name it."""

from export.runtime.session import Restorer, Session

__all__ = ["Restorer", "Session"]
