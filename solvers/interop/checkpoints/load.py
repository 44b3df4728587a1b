"""From a file of weights to a denoiser's parts: which family it is of, and what is assumed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solvers.inputs.errors import ModelError, reading
from solvers.interop.checkpoints import dncnn, drunet, guided, residual, restorer
from solvers.interop.checkpoints.build import Checkpoint
from solvers.interop.checkpoints.container import HOW_TO_FUSE, HOW_TO_WRAP, LORA, read_weights
from solvers.interop.checkpoints.options import Said, flag

FAMILIES = (guided, drunet, residual, dncnn)


def read_checkpoint(path: Path, options: Mapping[str, Any] = {}) -> tuple[Checkpoint, str]:
    """The network in a file, and one line that says what was recognised and assumed.

    Args:
        path: a file of weights (:data:`solvers.interop.checkpoints.container.SUFFIXES`).
        options: what the weights don't tell, by the names in
            :data:`solvers.interop.checkpoints.options.OPTIONS`.

    Raises:
        FileNotFoundError: no such file.
        ModelError: of no known family, damaged, or options that don't fit.
        ResourceError: more than fits into memory.
    """
    said = Said(path, {k: v for k, v in options.items() if k != "class_label"})
    weights = read_weights(path)
    if any(LORA.search(name) for name in weights.tensors):
        raise ModelError(f"{path} holds a LoRA: {HOW_TO_FUSE}")
    if any(name.startswith("control_model.") for name in weights.tensors):
        raise ModelError(
            f"{path} is a ControlNet, which steers another network and denoises nothing by itself:"
            " give that network"
        )
    if {"conv_in.weight", "time_embedding.linear_1.weight"} <= weights.tensors.keys():
        raise ModelError(
            f"{path} holds a diffusers network's weights, whose description is the config.json"
            " beside them: give the folder of both"
        )
    family = next((family for family in FAMILIES if family.recognises(weights)), None)
    found = None
    if family is None and (found := restorer.read(weights)) is None:
        names = ", ".join(list(weights.tensors)[:3])
        raise ModelError(
            f"{path} holds {len(weights.tensors)} tensors ({names} ...) of no network that is known"
            f" here{_missing()}; {HOW_TO_WRAP}"
        )
    if family is not None:
        with reading(path, "a checkpoint of a known family", ModelError):
            found = family.read(weights, said)
    assert found is not None
    said.check_all_used(f"a {found.family} checkpoint")
    assumed = ", ".join(f"{flag(name)} {_word(value)}" for name, value in said.assumed.items())
    details = ", ".join(filter(None, (found.details, weights.taken)))
    line = f"{path.name}: {found.family} ({details})"
    return found, line + (f"; assumed {assumed}" if assumed else "")


def _missing() -> str:
    """That spandrel would know more networks, where it isn't installed."""
    if importlib.util.find_spec("spandrel") is not None:
        return ""
    return (
        " (spandrel, which knows some forty more, is not installed: pip install"
        " 'restobox[spandrel]')"
    )


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
