"""Model folders, a U-Net with the description of its denoiser beside it; and files of weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.strict_json import read_object
from solvers.interop.autoencoder import Autoencoder, read_autoencoder
from solvers.interop.checkpoints.container import HOW_TO_FUSE, HOW_TO_WRAP
from solvers.interop.checkpoints.load import read_checkpoint
from solvers.interop.checkpoints.options import flag
from solvers.interop.description import from_description
from solvers.interop.folders import (
    WEIGHTS,
    check_network,
    left_out_of,
    multiple_of,
    said_of,
    weights_in,
)
from solvers.interop.networks import KNOWN, network_class
from solvers.interop.networks.altered import choose_class, negate, without_variance
from solvers.interop.networks.clock import NOTED, adapt
from solvers.interop.schedules import schedule_of
from solvers.interop.text import OPTIONS as TEXT_OPTIONS
from solvers.interop.text import show_text
from solvers.prediction import HEADS
from solvers.processes.process import VP

Network = Any


def read_model(root: Path, options: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The arguments of the :class:`solvers.Denoiser` that a folder or a file of weights holds; see
    :meth:`solvers.Denoiser.from_pretrained`, also for its errors.
    """
    found = read_parts(root, options)
    network = found["network"].float()
    return found | {"network": choose_class(network, options.get("class_label"), root)}


def read_parts(root: Path, options: Mapping[str, Any] = {}) -> dict[str, Any]:
    """As :func:`read_model`, but a class-conditional network keeps its classes, and weights of half
    precision theirs.
    """
    read = _read_file if root.suffix and not root.is_dir() else _read_folder
    found = read(root, options)
    return found | {"network": found["network"].eval().requires_grad_(False)}


def _read_file(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's, after the line that says what was assumed of it."""
    found, line = read_checkpoint(path, options)
    print(f"restobox: {line}", file=sys.stderr)
    return {
        "network": found.network,
        "process": found.process,
        "prediction_type": found.prediction_type,
        "multiple": multiple_of(found.network),
        **found.settings,
    }


def _read_folder(root: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give a diffusers model folder")
    free = ("class_label", "vae", *TEXT_OPTIONS)
    if given := [flag(n) for n, v in options.items() if v is not None and n not in free]:
        raise ModelError(
            f"{root} is a model folder, which says itself what it is: leave out {', '.join(given)}"
        )
    if _kind_of(root) == "AutoencoderKL":
        return _read_decoder(root, options)
    network = _read_network(root)
    _tell_left_out(root)
    if type(network).__name__ == "UNet2DConditionModel":
        if said := show_text(network, root, options):
            print(f"restobox: {root.name}: assumed {said}", file=sys.stderr)
    elif given := [flag(name) for name in TEXT_OPTIONS if options.get(name) is not None]:
        raise ModelError(f"{root} is a network without text: leave out {', '.join(given)}")
    places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    place = next((p for p in places if p.is_file()), places[0])
    described = root / "denoiser.json"
    extra = read_object(described, ModelError) if described.is_file() else {}
    if unknown := [name for name in extra if name not in DESCRIBED]:
        raise ModelError(
            f"{described} holds {', '.join(repr(name)[:60] for name in unknown)}, which says"
            f" nothing here; known: {', '.join(DESCRIBED)}"
        )
    schedule = None
    with reading(described, "the description of a denoiser", ModelError):
        process = from_description(extra["process"]) if "process" in extra else None
    if process is None:
        with reading(place, "a schedule", ModelError):
            config = read_object(place, ModelError, infinities=True) if place.is_file() else {}
            schedule = schedule_of(place, config)
            process = schedule.process
            if config.get("variance_type") == "learned":
                without_variance(network, root)  # not said as a share of a range
            if schedule.adapted:
                adapt(network, **schedule.adapted)
        if schedule.negated:
            negate(network, root)
    elif "network" in extra:
        with reading(described, "the description of a denoiser", ModelError):
            noted = {name: kind(extra["network"][name]) for name, kind in NOTED.items()}
            adapt(network, **noted)
    with reading(described, "the description of a denoiser", ModelError):
        settings = _settings(({} if schedule is None else schedule.settings) | extra)
    said = "epsilon" if schedule is None else schedule.prediction_type
    prediction_type = extra.get("prediction_type", said)
    if prediction_type not in process.prediction_types:
        raise ModelError(
            f"{root}: prediction_type {prediction_type!r} is unknown; known:"
            f" {', '.join(process.prediction_types)}"
        )
    ins, outs = network.config.in_channels, network.config.out_channels
    fold, condition_channels = settings["fold"], settings["condition_channels"]
    autoencoder = _autoencoder_of(root, options)
    if autoencoder is not None:
        latents = autoencoder.channels
        # Stable Diffusion's inpainting: a mask and the latents of what it leaves, beside the state
        if (ins, outs) == (2 * latents + 1, latents) and not condition_channels:
            condition_channels = latents + 1
            settings |= {"condition_channels": condition_channels, "shown": "masked-latents"}
        _check_beside(root, ins - condition_channels, latents)
        autoencoder.fitting(ins - condition_channels, f"the network at {root}")
    # half: a second head, or a learned variance after the prediction
    if ins - fold**2 * condition_channels not in (
        (outs, outs / 2) if HEADS.get(prediction_type, 1) == 1 else (outs / 2,)
    ):
        raise ModelError(
            f"{root}: a network of {ins} input and {outs} output channels can't have fold"
            f" {fold} and {condition_channels} condition channels for {prediction_type!r}; see"
            " denoiser.json"
        )
    return settings | {
        "network": network,
        "process": process,
        "prediction_type": prediction_type,
        "multiple": multiple_of(network),
        "autoencoder": autoencoder,
    }


def _check_beside(root: Path, channels: int, latents: int) -> None:
    """Refuse a network that is shown more beside its latents than a mask and masked latents."""
    if channels > latents:
        named = {3: "a small picture", latents: "latents of a picture or a map", 1: "a map"}
        what = named.get(channels - latents, "something")
        raise ModelError(
            f"{root} is shown {what} beside its latents ({channels} input channels: upscalers,"
            " InstructPix2Pix, depth and others); of networks of latents those of"
            f" {latents} and, for inpainting, {2 * latents + 1} channels are read: {HOW_TO_WRAP}"
        )


# what steers a pipeline's network from outside, or would be its average
STEERING = ("controlnet", "adapter", "image_encoder", "unet_ema")
LORA_FILE = "pytorch_lora_weights.safetensors"


def _tell_left_out(root: Path) -> None:
    """One line on stderr, where a pipeline's folder holds more that its network goes by."""
    found = [f"{name}/" for name in STEERING if (root / name).is_dir()]
    found += [LORA_FILE] * (root / LORA_FILE).is_file()
    if found:
        print(f"restobox: {root.name}: left out {', '.join(found)}", file=sys.stderr)


def _autoencoder_of(root: Path, options: Mapping[str, Any]) -> Autoencoder | None:
    """That which is named, else the one in the folder."""
    if options.get("vae") is not None:
        return read_autoencoder(Path(options["vae"]))
    if (root / "vae").is_dir():
        return read_autoencoder(root / "vae")
    for place in sorted(root.glob("*/config.json")):  # latent diffusion's older folders: vqvae/
        kind = str(read_object(place, ModelError).get("_class_name"))
        if "VQ" in kind or "Autoencoder" in kind:
            raise ModelError(
                f"{root} works on the latents of a {kind} ({place.parent.name}/); of autoencoders"
                f" AutoencoderKL in vae/ is read: {HOW_TO_WRAP}"
            )
    return None


def _read_decoder(root: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """An autoencoder's folder as a model: its decoder, to be calibrated and exported."""
    if given := [flag(name) for name, value in options.items() if value is not None]:
        raise ModelError(f"{root} is an autoencoder: leave out {', '.join(given)}")
    autoencoder = read_autoencoder(root)
    return _settings({"shown": "latents"}) | {
        "network": autoencoder.decoder,
        "process": VP.linear(),
        "prediction_type": "sample",
        "multiple": autoencoder.decoder.multiple,
        "autoencoder": autoencoder,
    }


# what ``denoiser.json`` may hold
DESCRIBED = (
    "value_range",
    "fold",
    "condition_channels",
    "residual",
    "data_std",
    "unrolled_steps",
    "shown",
    "scaled",
    "padding",
    "least",
    "prediction_type",
    "process",
    "network",
)


def _kind_of(folder: Path) -> object:
    """The class that a network's description names; None where there is none."""
    path = folder / "config.json"
    return read_object(path, ModelError).get("_class_name") if path.is_file() else None


def _settings(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a description may say beside process and prediction."""
    low, high = (float(v) for v in extra.get("value_range", (-1.0, 1.0)))
    optional = {"unrolled_steps": int, "shown": str, "scaled": bool}
    optional |= {n: kind for n, kind in (("padding", str), ("least", int)) if n in extra}
    return {
        "value_range": (low, high),
        "fold": int(extra.get("fold", 1)),
        "condition_channels": int(extra.get("condition_channels", 0)),
        "residual": bool(extra.get("residual", False)),
        "data_std": float(extra.get("data_std", 1.0)),
    } | {
        name: None if extra.get(name) is None else kind(extra[name])
        for name, kind in optional.items()
    }


def _read_network(root: Path) -> Network:
    """The network of a folder, or of ``unet/`` in it."""
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    weights = weights_in(unet)
    if (root / "transformer" / "config.json").is_file() and unet is root:
        inner = read_object(root / "transformer" / "config.json", ModelError).get("_class_name")
        raise ModelError(
            f"{root} holds a transformer ({inner}), and only U-Nets are read: {HOW_TO_WRAP}"
        )
    if (root / LORA_FILE).is_file() and weights is None:
        raise ModelError(f"{root / LORA_FILE} is a LoRA: {HOW_TO_FUSE}")
    index = root / "model_index.json"
    if index.is_file() and unet is root and not (root / "config.json").is_file():
        kind = read_object(index, ModelError).get("_class_name")
        raise ModelError(
            f"{root} is a {kind} without a network in unet/, which alone is read: {HOW_TO_WRAP}"
        )
    if not (unet / "config.json").is_file() or weights is None:
        others = sorted(p.name for p in unet.glob("diffusion_*"))[:3]
        held = f"; it holds {', '.join(others)}" if others and weights is None else ""
        whole = (
            "; write several parts as one: save_pretrained(FOLDER, max_shard_size='100GB')"
            if any("-of-" in name for name in others)
            else ""
        )
        raise ModelError(
            f"{root} is no model folder: it needs config.json and {WEIGHTS[0]} (in it or in"
            f" unet/){held}{whole}; {HOW_TO_WRAP}"
        )
    config = read_object(unet / "config.json", ModelError)
    kind = config.get("_class_name")
    if kind not in KNOWN:
        raise ModelError(
            f"{unet / 'config.json'} describes {kind!r}; {', '.join(KNOWN[:-1])} and {KNOWN[-1]}"
            f" are accepted: {HOW_TO_WRAP}"
        )
    if kind == "SpandrelRestorer":
        with reading(unet, f"a {config.get('architecture')}", ModelError):
            return network_class(kind).read(weights)
    check_network(kind, network_class(kind).from_config, config, weights)
    if unknown := left_out_of(network_class(kind), config):
        # older and newer releases of diffusers know others; that leaves them out too
        print(f"restobox: {unet / 'config.json'}: left out {unknown}", file=sys.stderr)
    with reading(unet, f"a {kind}", ModelError):
        network, report = network_class(kind).from_pretrained(
            unet,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
            **said_of(weights),
        )
    if config.get("time_embedding_type") == "learned":
        raise ModelError(
            f"{unet / 'config.json'}: time_embedding_type 'learned' knows whole times alone, and"
            f" solvers ask between them; {HOW_TO_WRAP}"
        )
    if missing := sorted(report["missing_keys"]):  # diffusers would leave them random
        raise ModelError(
            f"{weights} lacks {len(missing)} of the network's tensors, such as {missing[0]}"
        )
    for weight in (
        network.parameters()
    ):  # those of a mapped file lie at its odd addresses, where some processors round otherwise
        weight.data = weight.data.clone()
    return network
