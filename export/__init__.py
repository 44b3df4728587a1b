"""ONNX graphs, bundles and sessions.

ONNX Runtime's wheels collect telemetry from 1.29 on, and begin with it when they are imported. It
is switched off here, before that: nothing of the user's leaves the machine.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
