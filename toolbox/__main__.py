"""``python -m toolbox`` is the command ``restobox``."""

from toolbox.cli import main

main()
