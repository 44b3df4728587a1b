"""Model folders are written: all that :mod:`solvers.interop.pretrained` reads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from solvers.files import replace_file, room_for, together
from solvers.interop.autoencoder import Autoencoder
from solvers.interop.description import describe
from solvers.interop.folders import multiple_of
from solvers.interop.networks import KNOWN
from solvers.interop.text import STORED, tensors_of
from solvers.processes.process import VP, Process

Network = Any


def write_model(
    root: Path,
    network: Network,
    process: Process,
    *,
    prediction_type: str,
    multiple: int,
    settings: dict[str, Any],
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write what :func:`solvers.interop.pretrained.read_model` reads, all of it or nothing;
    ``settings`` are :attr:`solvers.Denoiser.settings`. See
    :meth:`solvers.Denoiser.save_pretrained`, also for its errors.
    """
    if not hasattr(network, "save_pretrained") or type(network).__name__ not in KNOWN:
        raise ValueError(
            f"model folders hold one of {', '.join(KNOWN)}; this network is a"
            f" {type(network).__name__}"
        )
    if multiple != multiple_of(network):
        raise ValueError(
            f"a model folder's multiple follows from its network's depth; {multiple} can't be kept"
        )
    content = settings | {"prediction_type": prediction_type, "process": describe(process)}
    if (adapted := getattr(network, "adapted", None)) is not None:
        content["network"] = adapted
    text = tensors_of(network)  # have a file of their own
    for name in text:
        del network._buffers[name]
    (root / "unet").mkdir(parents=True, exist_ok=True)
    with together():
        try:
            with (
                room_for(root),
                tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=root) as temporary,
            ):
                network.save_pretrained(temporary, safe_serialization=True)
                for path in Path(temporary).iterdir():
                    replace_file(root / "unet" / path.name, path.replace)
        finally:
            for name, value in text.items():
                network.register_buffer(name, value)
        if text:
            from safetensors.torch import save_file

            tensors = {name: value.contiguous() for name, value in text.items()}
            replace_file(root / STORED, lambda part: save_file(tensors, part))
        if autoencoder is not None:
            autoencoder.write(root / "vae")
        if type(process) is VP:
            abar = process.alphas_cumprod
            betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
            schedule = {
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": len(abar),
                "trained_betas": betas.tolist(),
            }
            spacing = {
                "prediction_type": prediction_type,
                "timestep_spacing": "trailing",
                "clip_sample": False,
            }
            _write_json(root / "scheduler" / "scheduler_config.json", schedule | spacing)
        _write_json(root / "denoiser.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """A file of a model folder, with the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    )
