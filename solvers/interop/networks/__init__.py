"""Networks that diffusers doesn't have, in its manner: ``config``, ``save_pretrained`` and
``from_pretrained``, time layers by the names that a temporal table looks for.
"""

from __future__ import annotations

from typing import Any

DIFFUSERS = ("UNet2DModel", "UNet2DConditionModel")
OURS = {
    "GuidedUNet": "solvers.interop.networks.guided",
    "ResidualUNet": "solvers.interop.networks.residual",
    "DRUNet": "solvers.interop.networks.drunet",
    "DnCNN": "solvers.interop.networks.dncnn",
    "FFDNet": "solvers.interop.networks.dncnn",
    "SpandrelRestorer": "solvers.interop.networks.restorer",
}
KNOWN = (*DIFFUSERS, *OURS)


def network_class(name: str) -> Any:
    """The class of this name in :data:`KNOWN`."""
    import importlib

    return getattr(importlib.import_module(OURS.get(name, "diffusers")), name)
