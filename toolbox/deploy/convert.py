"""A checkpoint as a model folder: what ``restobox convert`` does."""

from __future__ import annotations

from pathlib import Path

from solvers.denoiser import Denoiser
from solvers.files import check_free, check_outputs, replace_folder
from solvers.inputs.errors import ModelError, reading
from solvers.interop.networks.altered import choose_class
from solvers.interop.pretrained import read_parts
from toolbox.api import checkpoint_options, place_of

KIND = "model folder"
OURS = ("denoiser.json", "encoder_hidden_states.safetensors", "unet/*", "scheduler/*", "vae/*")


def run_convert(model: str, out: Path) -> dict:
    """Read a checkpoint, a model folder or one of the Hugging Face hub, and write the folder that
    :meth:`Denoiser.from_pretrained` loads. A class-conditional network keeps its classes, unless
    one is chosen.

    Raises:
        ValueError, OSError: what can't be read or written; nothing is written then.
    """
    check_free(out, KIND, _ours)
    path, options = place_of(model), checkpoint_options()
    check_outputs([out], [path])
    with reading(path, "a denoiser", ModelError):
        parts = read_parts(path, options)
        if options.get("class_label") is not None:
            network = parts["network"].float()
            parts["network"] = choose_class(network, options["class_label"], path)
        autoencoder = parts.pop("autoencoder", None)
        denoiser = Denoiser(**parts)
        denoiser.autoencoder = autoencoder
    replace_folder(out, denoiser.save_pretrained, KIND, _ours)
    return {
        "out": str(out),
        "network": type(denoiser.network).__name__,
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
        "process": type(denoiser.process).__name__,
        "prediction": denoiser.prediction_type,
    }


def _ours(folder: Path) -> list[str] | None:
    """The files of a folder that this command wrote; None for any other."""
    if not (folder / "denoiser.json").is_file():
        return None
    return [p.relative_to(folder).as_posix() for pattern in OURS for p in folder.glob(pattern)]
