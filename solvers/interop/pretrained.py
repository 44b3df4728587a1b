"""Model folders: a diffusers U-Net with the description of its denoiser beside it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solvers.files import replace_file
from solvers.inputs.errors import ModelError, reading
from solvers.inputs.memory import check_bytes
from solvers.inputs.strict_json import read_object
from solvers.interop.description import describe, from_description
from solvers.prediction import HEADS
from solvers.processes.process import VP, Process

Network = Any

MOST_CHANNELS, MOST_LAYERS = 65_536, 64


def read_model(root: Path) -> dict[str, Any]:
    """The arguments of the :class:`solvers.Denoiser` that a folder holds; see
    :meth:`solvers.Denoiser.from_pretrained`, also for its errors.
    """
    import diffusers

    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give a diffusers model folder")
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    weights = unet / "diffusion_pytorch_model.safetensors"
    if not (unet / "config.json").is_file() or not weights.is_file():
        raise ModelError(
            f"{root} is no model folder: it needs config.json and {weights.name} (in it or in"
            " unet/)"
        )
    config = read_object(unet / "config.json", ModelError)
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ModelError(
            f"{unet / 'config.json'} describes {kind!r}; UNet2DModel and UNet2DConditionModel"
            " are accepted"
        )
    _check_network(kind, config, unet / "config.json", weights)
    with reading(unet, f"a {kind}", ModelError):
        network, report = getattr(diffusers, kind).from_pretrained(
            unet,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):  # diffusers would leave them random
        raise ModelError(
            f"{weights} lacks {len(missing)} of the network's tensors, such as {missing[0]}"
        )
    for weight in (
        network.parameters()
    ):  # those of a mapped file lie at its odd addresses, where some processors round otherwise
        weight.data = weight.data.clone()
    if kind == "UNet2DConditionModel":
        _show_text(network, root / "encoder_hidden_states.safetensors")
    places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    schedule = next((read_object(p, ModelError) for p in places if p.is_file()), {})
    described = root / "denoiser.json"
    extra = read_object(described, ModelError) if described.is_file() else {}
    with reading(described, "the description of a denoiser", ModelError):
        fold, condition_channels = (
            int(extra.get("fold", 1)),
            int(extra.get("condition_channels", 0)),
        )
        low, high = (float(v) for v in extra.get("value_range", (-1.0, 1.0)))
        data_std = float(extra.get("data_std", 1.0))
        unrolled_steps = (
            None if extra.get("unrolled_steps") is None else int(extra["unrolled_steps"])
        )
        shown = None if extra.get("shown") is None else str(extra["shown"])
        process = from_description(extra["process"]) if "process" in extra else None
    if process is None:
        with reading(places[0], "a schedule", ModelError):
            process = VP.from_diffusers(schedule)
    prediction_type = extra.get("prediction_type", schedule.get("prediction_type", "epsilon"))
    if prediction_type not in process.prediction_types:
        raise ModelError(
            f"{root}: prediction_type {prediction_type!r} is unknown; known:"
            f" {', '.join(process.prediction_types)}"
        )
    ins, outs = network.config.in_channels, network.config.out_channels
    # half: a second head, or a learned variance after the prediction
    if ins - fold**2 * condition_channels not in (
        (outs, outs / 2) if HEADS.get(prediction_type, 1) == 1 else (outs / 2,)
    ):
        raise ModelError(
            f"{root}: a network of {ins} input and {outs} output channels can't have fold"
            f" {fold} and {condition_channels} condition channels for {prediction_type!r}; see"
            " denoiser.json"
        )
    return {
        "network": network.eval().requires_grad_(False),
        "process": process,
        "prediction_type": prediction_type,
        "value_range": (low, high),
        "fold": fold,
        "multiple": multiple_of(network),
        "condition_channels": condition_channels,
        "residual": bool(extra.get("residual", False)),
        "data_std": data_std,
        "unrolled_steps": unrolled_steps,
        "shown": shown,
    }


def write_model(
    root: Path,
    network: Network,
    process: Process,
    *,
    prediction_type: str,
    multiple: int,
    settings: dict[str, Any],
) -> None:
    """Write what :func:`read_model` reads; ``settings`` are :attr:`solvers.Denoiser.settings`. See
    :meth:`solvers.Denoiser.save_pretrained`, also for its errors.
    """
    if not hasattr(network, "save_pretrained") or type(network).__name__ != "UNet2DModel":
        raise ValueError(
            "model folders hold a diffusers UNet2DModel; this network is a"
            f" {type(network).__name__}"
        )
    if multiple != multiple_of(network):
        raise ValueError(
            f"a model folder's multiple follows from its network's depth; {multiple} can't be kept"
        )
    content = settings | {"prediction_type": prediction_type, "process": describe(process)}
    (root / "unet").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        network.save_pretrained(temporary, safe_serialization=True)
        for path in Path(temporary).iterdir():
            path.replace(root / "unet" / path.name)
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
        write_json(root / "scheduler" / "scheduler_config.json", schedule | spacing)
    write_json(root / "denoiser.json", content)


def multiple_of(network: Network) -> int:
    """What height and width of the network's input must be multiples of: it halves them between
    two levels.
    """
    return 2 ** (len(network.config.block_out_channels) - 1)


def _check_network(kind: str, config: dict[str, Any], path: Path, weights: Path) -> None:
    """Refuse a description that has no end, or that the weights can't fill, before the network is
    made.
    """
    import diffusers

    numbers = [config]
    while numbers:
        value = numbers.pop()
        if isinstance(value, (dict, list)):
            numbers += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and abs(value) > MOST_CHANNELS:
            raise ModelError(
                f"{path} holds the number {str(value)[:40]}; at most {MOST_CHANNELS} are accepted"
            )
    depths = [config.get(name) for name in ("layers_per_block", "transformer_layers_per_block")]
    for depth in [v for d in depths for v in (d if isinstance(d, list) else [d])]:
        if depth is not None and not (isinstance(depth, int) and 1 <= depth <= MOST_LAYERS):
            raise ModelError(f"{path}: blocks have 1 to {MOST_LAYERS} layers; got {depth!r}")
    with reading(path, f"the description of a {kind}", ModelError), torch.device("meta"):
        network = getattr(diffusers, kind).from_config(config)
    count, most = sum(p.numel() for p in network.parameters()), weights.stat().st_size
    check_bytes(f"{path} describes a network that", 8 * count)
    if count > most:
        raise ModelError(
            f"{path} describes a network of {count} numbers, but {weights.name} has {most} bytes;"
            " it belongs to another network or was cut short"
        )


def _with_text(
    network: Network, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward hook: the stored text embedding for a network that is called without one."""
    x = inputs[0]
    return (
        inputs,
        {"encoder_hidden_states": network.encoder_hidden_states.to(x).expand(x.shape[0], -1, -1)}
        | named,
    )


def _show_text(network: Network, path: Path) -> None:
    """Let ``network(x, t)`` run on the stored text embedding: a buffer, so that it counts as a part
    of the model.
    """
    from safetensors import safe_open

    config = network.config
    if (
        config.class_embed_type
        or config.num_class_embeds
        or config.addition_embed_type
        or config.encoder_hid_dim_type
    ):
        raise ModelError(
            "this UNet2DConditionModel takes class labels, image sizes or pooled embeddings with"
            " every call; only one that takes a text embedding alone is accepted"
        )
    if not path.is_file():
        raise ModelError(
            "a UNet2DConditionModel needs a text embedding: write the prompt's"
            f" encoder_hidden_states (1, L, D) to {path} under the key encoder_hidden_states"
        )
    with (
        reading(path, "a tensor encoder_hidden_states", ModelError),
        safe_open(path, framework="pt") as file,
    ):
        states = file.get_tensor("encoder_hidden_states").float()
    width = config.cross_attention_dim
    if (
        states.ndim != 3
        or states.shape[0] != 1
        or states.shape[2] != width
        or not torch.isfinite(states).all()
    ):
        raise ModelError(
            f"{path}: encoder_hidden_states must be finite and (1, L, {width}), one prompt; got"
            f" {tuple(states.shape)}"
        )
    network.register_buffer("encoder_hidden_states", states)
    network.register_forward_pre_hook(_with_text, with_kwargs=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A file of a model folder, with the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    )
