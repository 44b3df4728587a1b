"""Files of weights: what PyTorch, Lightning and safetensors store, as tensors by name. Nothing in a
file is run.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.memory import check_bytes

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
# where training code keeps weights, best first: averages, then what was trained
AVERAGES = ("ema", "params_ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model")
STATES = ("state_dict", "params", "model_state_dict", "model", "net", "network", "weights", "netG")
HOW_TO_WRAP = (
    "build it with its own code in Python and wrap it: solvers.Denoiser(network, process), or"
    " solvers.Denoiser.from_sigma(D) for a denoiser D(x, sigma); see docs/networks.md"
)
LORA = re.compile(r"(^|[._])lora([._]|$)", re.IGNORECASE)
HOW_TO_FUSE = (
    "a LoRA changes another network's weights: put it into them with diffusers"
    " (pipeline.load_lora_weights(FILE), fuse_lora(), unload_lora_weights(),"
    " save_pretrained(FOLDER)) and give that folder"
)
# what torch.compile, FSDP and DataParallel put between the names of modules
WRAPPED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module)\.(?:module\.)?|(?<=unet[01]\.)module\."
    r"|(?<=denoising_module\.)module\."
)
MOST_TENSORS = 100_000
AVERAGED = re.compile(r"(^|[._])ema([._]|$)")  # in what stands before names


@dataclass
class Weights:
    """What a file holds.

    Attributes:
        path: the file.
        tensors: by name; whoever uses one takes it out.
        taken: which of several sets of weights these are, in words; empty where there is one.
        notes: plain settings stored beside them (Lightning's ``hyper_parameters``).
    """

    path: Path
    tensors: dict[str, Tensor]
    taken: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def prefix(self, marker: str) -> str | None:
        """What stands before ``marker`` in the names of a network that has such a tensor, of an
        average if there is one beside it; None: there is none.
        """
        found = [
            name.removesuffix(marker)
            for name in self.tensors
            if name == marker or name.endswith(f".{marker}")
        ]
        return min(found, key=lambda p: (not AVERAGED.search(p), len(p))) if found else None

    def noted(self, name: str) -> Tensor | None:
        """A table that training code keeps beside the networks' tensors, such as its ``betas``."""
        prefix = self.prefix(name)
        return None if prefix is None else self.tensors[f"{prefix}{name}"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }


def read_weights(path: Path) -> Weights:
    """The weights in a file; averages are taken before others.

    Raises:
        FileNotFoundError: no such file.
        ModelError: not such a file, damaged, or one that holds code.
        ResourceError: more than fits into memory.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(
            f"{path} is no file of weights by its name: {', '.join(SUFFIXES)} are read. Pickled"
            f" networks (EDM's .pkl) hold code, which is not run here: {HOW_TO_WRAP}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    check_bytes(str(path), path.stat().st_size)
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        with reading(path, "a safetensors file", ModelError):
            return Weights(path, _checked(path, load_file(path)))
    content = _unpickled(path)
    notes = content.get("hyper_parameters") if isinstance(content, dict) else None
    notes = vars(notes) if isinstance(notes, argparse.Namespace) else notes
    tensors, taken = _state(path, content)
    return Weights(
        path, _checked(path, tensors), taken, dict(notes) if isinstance(notes, Mapping) else {}
    )


def _unpickled(path: Path) -> Any:
    """The content of a file of ``torch.save``: tensors, numbers and words alone."""
    if zipfile.is_zipfile(path):
        with reading(path, "a file of torch.save", ModelError), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        check_bytes(str(path), sum(member.file_size for member in members))
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise ModelError(f"{path} is a TorchScript archive, which holds code: {HOW_TO_WRAP}")
    try:
        with (
            reading(path, "a file of torch.save", ModelError),
            torch.serialization.safe_globals(_plain()),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError as error:
        cause = str(error.__cause__)
        if found := re.search(r"GLOBAL (\S+)|class (\S+) was not", cause):
            raise ModelError(
                f"{path} holds Python objects beside its numbers, which are not run here"
                f" ({found[1] or found[2]}): load it where you trust it and save the weights alone,"
                f" torch.save(network.state_dict(), FILE), or {HOW_TO_WRAP}"
            ) from None
        if "weights_only" in cause:  # PyTorch's advice is to run what the file holds
            raise ModelError(
                f"{path} can't be read as a file of torch.save; it may be damaged, cut short or of"
                " another kind: copy or make it again"
            ) from None
        raise


def _plain() -> list[Any]:
    """Classes of plain values that training code stores beside weights: options, figures, places;
    also by the names of older versions.
    """
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
    made = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [made, (made, "numpy.core.multiarray.scalar"), np.dtype]
    numbers += [type(np.dtype(kind)) for kind in kinds]
    return [*numbers, argparse.Namespace, pathlib.PosixPath]


def _state(path: Path, content: Any) -> tuple[dict[str, Any], str]:
    """The weights among what a training run stored, and which they are."""
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__} where a table of weights is expected;"
            f" {HOW_TO_WRAP}"
        )
    for key in (*AVERAGES, *STATES):
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(
            isinstance(v, (Tensor, Mapping)) for v in inner.values()
        ):
            state, taken = _state(path, inner)
            if key in AVERAGES:
                return state, taken or f"the average ({key})"
            averages = [v for k in AVERAGES if isinstance(v := content.get(k), Mapping)]
            nameless = any("shadow_params" in average for average in averages)
            return state, taken or "as trained: its averages have no names" * nameless
    tensors = {str(name): v for name, v in content.items() if isinstance(v, Tensor)}
    if not tensors:  # a name that nobody agreed on
        held = {k: v for k, v in content.items() if isinstance(v, Mapping) and _holds_tensors(v)}
        if len(held) == 1:
            return _state(path, next(iter(held.values())))
        if held:
            raise ModelError(
                f"{path} holds several sets of weights ({', '.join(map(str, held))}) and doesn't"
                " say which is the network's: save the one of it alone, torch.save(content[NAME],"
                " FILE)"
            )
    tensors |= _of_lightning(tensors)
    if averaged := {n: v for n, v in tensors.items() if n.startswith("ema_model.")}:
        return {n.removeprefix("ema_model."): v for n, v in averaged.items()}, "the average (ema)"
    if not tensors:
        raise ModelError(f"{path} holds no weights: {', '.join(map(str, content))[:200]}")
    return tensors, ""


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(v, Tensor) or (isinstance(v, Mapping) and _holds_tensors(v))
        for v in content.values()
    )


def _of_lightning(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averages of latent diffusion's code, ``model_ema.`` and a name without its dots, by the
    names of what they are averages of.
    """
    marked = {n: f"model_ema.{n.removeprefix('model.').replace('.', '')}" for n in tensors}
    found = {
        n: tensors[ema] for n, ema in marked.items() if n.startswith("model.") and ema in tensors
    }
    return {f"ema_model.{n}": v for n, v in found.items()}


def _checked(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors: dense, none larger than what is stored of it, no more than a network has."""
    if len(tensors) > MOST_TENSORS:
        raise ModelError(f"{path} holds {len(tensors)} tensors; at most {MOST_TENSORS} are read")
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise ModelError(
                f"{path}: tensor {name} is sparse or quantized; give the float weights"
            )
        if value.itemsize == 1 and value.dtype != torch.bool and value.ndim > 1:
            raise ModelError(
                f"{path}: tensor {name} is of 8 bits ({value.dtype}), whose scale nothing tells;"
                " give the float weights"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(f"{path}: tensor {name} is larger than what is stored of it")
    check_bytes(str(path), 4 * sum(v.numel() for v in tensors.values()))
    plain = {WRAPPED.sub("", name): value for name, value in tensors.items()}
    return plain if len(plain) == len(tensors) else dict(tensors)
