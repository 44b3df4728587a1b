"""``python -m toolbox`` is the command ``restobox``."""

import sys

from toolbox.cli import main

sys.exit(main())
