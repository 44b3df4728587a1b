"""guided-diffusion and improved-diffusion: Dhariwal & Nichol 2021 (arXiv 2105.05233), Nichol &
Dhariwal 2021 (arXiv 2102.09672). Their networks become diffusers' ``UNet2DModel`` where it computes
the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers.inputs.errors import ModelError, reading
from solvers.interop.checkpoints.build import Checkpoint, build
from solvers.interop.checkpoints.container import HOW_TO_WRAP, Weights
from solvers.interop.checkpoints.options import Said
from solvers.processes.process import VP

MARKER = "input_blocks.0.0.weight"
GROUPS = 32
OTHER_SCALING = re.compile(r"(cd|ct|edm)_")  # OpenAI's released consistency and EDM models
# what the released files with these widths and blocks were trained with, where it is not the rule
RELEASED: dict[tuple[tuple[float, ...], int], dict[str, Any]] = {
    # 64x64_diffusion.pt
    ((1, 2, 3, 4), 3): {"use_new_attention_order": True, "schedule": "cosine"},
    # 128x128_diffusion.pt
    ((1, 1, 2, 3, 4), 2): {"num_heads": 4},
}
IMPROVED_LEVELS = 6  # LSUN's network, the one of improved-diffusion with the linear schedule
PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class Shape:
    """What a guided-diffusion U-Net's tensors tell of it.

    ``widths`` and ``attention`` by level; ``resample``: ``residual``, ``convolution`` or ``none``.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    scale_shift: bool
    resample: str
    in_channels: int
    out_channels: int
    classes: int | None
    time_channels: int

    @property
    def attended(self) -> set[int]:
        """The widths at which there is attention."""
        levels = zip(self.widths, self.attention, strict=True)
        return {width for width, attends in levels if attends} | {self.widths[-1]}


def recognises(weights: Weights) -> bool:
    """Whether these are a network of the family."""
    prefix = weights.prefix(MARKER)
    return prefix is not None and f"{prefix}time_embed.0.weight" in weights.tensors


def read(weights: Weights, said: Said) -> Checkpoint:
    """The network and its process.

    Raises:
        ModelError: a relative of the family that is not read, options that don't fit.
    """
    path, prefix = weights.path, weights.prefix(MARKER)
    tensors, betas = weights.under(prefix or ""), weights.noted("betas")
    if any("transformer_blocks" in name for name in tensors):
        raise ModelError(
            f"{path} is a latent diffusion network with text (Stable Diffusion): make a folder of"
            " it with diffusers (StableDiffusionPipeline.from_single_file(...).save_pretrained)"
        )
    if any(name.startswith("first_stage_model.") for name in weights.tensors):
        raise ModelError(
            f"{path} is a latent diffusion network, which works on an autoencoder's latents"
            f" (first_stage_model): only diffusers' folders of such are read; {HOW_TO_WRAP}"
        )
    weights.tensors.clear()
    if "out.2.weight" not in tensors or "output_blocks.0.0.in_layers.0.weight" not in tensors:
        raise ModelError(
            f"{path} is a classifier or an encoder of guided-diffusion, which denoises nothing:"
            " give the diffusion model"
        )
    shape = shape_of(path, tensors)
    if OTHER_SCALING.match(path.name) and shape.out_channels == shape.in_channels:
        raise ModelError(
            f"{path} is by its name of consistency_models (cd_, ct_, edm_), whose networks are of"
            " guided-diffusion's shape, but shown a scaled state and log(sigma)/4: rename it if it"
            f" is none, or {HOW_TO_WRAP}"
        )
    # improved-diffusion's networks resample by convolutions, scale and shift, and know one order
    improved = shape.resample != "residual" and shape.scale_shift
    improved = improved and not said.given.get("use_new_attention_order", False)
    multipliers = tuple(width / shape.time_channels for width in shape.widths)
    released = {} if improved else RELEASED.get((multipliers, shape.blocks), {})
    heads = _heads(path, shape, said, improved, released)
    new = said.get("use_new_attention_order", released.get("use_new_attention_order", False))
    if betas is not None:
        process = process_of_betas(path, said, betas)
    else:
        cosine = improved and len(shape.widths) != IMPROVED_LEVELS
        known = released.get("schedule", "cosine" if cosine else "linear")
        schedule = said.one_of("schedule", known, ("linear", "cosine"))
        steps = said.count("train_steps", 4000 if improved and schedule == "cosine" else 1000)
        process = process_of(path, schedule, steps)
    name, config = config_of(shape, heads)
    network = build(path, name, config, renamed(tensors, shape, heads, new))
    condition = shape.in_channels - _image_channels(path, shape)
    settings: dict[str, Any] = {"condition_channels": condition}
    if condition:
        settings["shown"] = "degraded"
    family = "improved-diffusion" if improved else "guided-diffusion"
    details = described(shape) + ("" if betas is None else ", the schedule in the file")
    return Checkpoint(family, network, process, "epsilon", settings, details)


def process_of_betas(path: Path, said: Said, betas: Tensor) -> VP:
    """The VP process of a schedule that lies in the file.

    Raises:
        ModelError: values that are none, or a schedule that is said too.
    """
    if said.has("schedule") or said.has("train_steps"):
        raise ModelError(f"{path} holds its own schedule: leave out --schedule and --train-steps")
    with reading(path, "a table of betas", ModelError):
        return VP.from_betas(betas.double().flatten().tolist())


def process_of(path: Path, schedule: str, steps: int) -> VP:
    """The VP process of a named schedule on the network's clock, which runs to 1000: of more steps
    every n-th level (the released code gives the network ``1000 t/steps``).

    Raises:
        ModelError: steps that are no multiple of 1000, beyond that.
    """
    if steps > 1000 and steps % 1000:
        raise ModelError(f"{path}: --train-steps above 1000 must be a multiple of it; got {steps}")
    if schedule == "linear":
        process = VP.linear(steps, 0.1 / steps, 20 / steps)
    else:
        process = VP.cosine(steps)
    return process if steps <= 1000 else VP(process.alphas_cumprod[:: steps // 1000])


def shape_of(path: Path, tensors: dict[str, Tensor]) -> Shape:
    """What the names and shapes tell.

    Raises:
        ModelError: blocks that are not arranged as the family's are.
    """

    def width(block: str) -> int:
        return int(tensors[f"{block}.0.out_layers.3.weight"].shape[0])

    def has(name: str) -> bool:
        return name in tensors

    ins = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("input_blocks."))
    outs = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("output_blocks."))
    # a level ends with what enlarges (or halves); without weights of its own it shows as a gap
    ends = [
        k
        for k in range(outs)
        if any(
            has(f"output_blocks.{k}.{part}")
            for j in (1, 2)
            for part in (f"{j}.conv.weight", f"{j}.in_layers.0.weight")
        )
    ]
    gaps = [
        k for k in range(1, ins) if not any(n.startswith(f"input_blocks.{k}.") for n in tensors)
    ]
    blocks = ends[0] if ends else gaps[0] - 1 if gaps else outs - 1
    levels, rest = divmod(outs, blocks + 1)
    if blocks < 1 or rest or ins != levels * (blocks + 1):
        raise ModelError(
            f"{path}: {ins} input and {outs} output blocks don't make levels of a guided-diffusion"
            " U-Net"
        )
    first = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    halving = f"input_blocks.{blocks + 1}.0"
    resample = "none"
    if levels == 1 or has(f"{halving}.in_layers.0.weight"):
        resample = "residual"
    elif has(f"{halving}.op.weight"):
        resample = "convolution"
    embedded = tensors[f"{first[0]}.0.emb_layers.1.weight"].shape[0]
    head = tensors["input_blocks.0.0.weight"]
    return Shape(
        widths=tuple(width(block) for block in first),
        blocks=blocks,
        attention=tuple(has(f"{block}.1.qkv.weight") for block in first),
        scale_shift=embedded == 2 * width(first[0]),
        resample=resample,
        in_channels=int(head.shape[1]),
        out_channels=int(tensors["out.2.weight"].shape[0]),
        time_channels=int(tensors["time_embed.0.weight"].shape[1]),
        classes=int(tensors["label_emb.weight"].shape[0]) if has("label_emb.weight") else None,
    )


def _image_channels(path: Path, shape: Shape) -> int:
    """Channels of the pictures: half of the outputs where a variance is learned; of a network that
    enlarges half of the inputs.
    """
    if shape.in_channels == 6 and shape.out_channels in (3, 6):
        return 3  # the released networks that enlarge: the picture beside the state
    for images in (shape.in_channels, shape.in_channels // 2):
        if images and shape.out_channels in (images, 2 * images):
            return images
    raise ModelError(
        f"{path}: {shape.in_channels} input and {shape.out_channels} output channels belong to no"
        f" network that denoises pictures; {HOW_TO_WRAP}"
    )


def _heads(
    path: Path, shape: Shape, said: Said, improved: bool, released: dict[str, Any]
) -> dict[int, int]:
    """Heads of attention at each width."""
    if said.has("num_heads") and not said.has("num_head_channels"):
        by_number = True
    else:
        by_number = not said.has("num_head_channels") and (improved or "num_heads" in released)
    if by_number:
        count = said.count("num_heads", released.get("num_heads", 4))
        heads = dict.fromkeys(shape.attended, count)
    else:
        channels = said.count("num_head_channels", 64)
        heads = {width: width // channels for width in shape.attended}
        if bad := [width for width in shape.attended if width % channels]:
            raise ModelError(
                f"{path}: attention of {bad[0]} channels has no heads of {channels}: say"
                " --num-head-channels (or --num-heads) as it was trained with"
            )
    if bad := [width for width, count in heads.items() if width % count]:
        raise ModelError(
            f"{path}: attention of {bad[0]} channels can't have {heads[bad[0]]} heads: say"
            " --num-heads (or --num-head-channels) as it was trained with"
        )
    return heads


def config_of(shape: Shape, heads: dict[int, int]) -> tuple[str, dict[str, Any]]:
    """The network's class and configuration."""
    sides = {width // count for width, count in heads.items()}
    narrow = shape.time_channels != shape.widths[0]
    same = len(sides) == 1 and shape.resample != "none" and not narrow
    name = "UNet2DModel" if same else "GuidedUNet"
    residual = shape.resample == "residual"
    resample, plain = ("resnet", "Resnet{}sampleBlock2D") if residual else ("conv", "{}Block2D")
    config: dict[str, Any] = {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.blocks,
        "down_block_types": tuple(
            "AttnDownBlock2D" if attends else plain.format("Down") for attends in shape.attention
        ),
        "up_block_types": tuple(
            "AttnUpBlock2D" if attends else plain.format("Up")
            for attends in reversed(shape.attention)
        ),
        "downsample_type": resample,
        "upsample_type": resample,
        "time_embedding_dim": 4 * shape.time_channels,
        "attention_head_dim": next(iter(sides)) if len(sides) == 1 else None,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if shape.scale_shift else "default",
        "num_class_embeds": shape.classes,
    }
    if name == "GuidedUNet":
        config["num_heads"] = None if len(sides) == 1 else next(iter(heads.values()))
        config["resample_without_convolution"] = shape.resample == "none"
        config["time_channels"] = shape.time_channels if narrow else None
    return name, config


def renamed(
    tensors: dict[str, Tensor], shape: Shape, heads: dict[int, int], new_order: bool
) -> dict[str, Tensor]:
    """The tensors by diffusers' names; ``tensors`` is used up."""
    found = {}
    places = places_of(shape)
    while tensors:
        name, value = tensors.popitem()
        place, _, part = _split(name, places)
        if place is None:
            found[name] = value  # refused by whoever builds the network
        elif part.startswith("qkv."):
            kinds = split_heads(value, heads[value.shape[0] // 3], new_order)
            for kind, piece in zip("qkv", kinds, strict=True):
                found[f"{place}.to_{kind}.{part[4:]}"] = piece
        elif part.startswith("proj_out."):
            found[f"{place}.to_out.0.{part[9:]}"] = (
                value.reshape(value.shape[:2]) if value.ndim > 1 else value
            )
        elif part.startswith("norm."):
            found[f"{place}.group_norm.{part[5:]}"] = value
        else:
            stem, _, leaf = part.rpartition(".")
            found[".".join(filter(None, (place, PARTS.get(stem, stem), leaf)))] = value
    return found


def _split(name: str, places: dict[str, str]) -> tuple[str | None, str, str]:
    for depth in (4, 3, 2, 1):
        words = name.split(".")
        source, part = ".".join(words[:depth]), ".".join(words[depth:])
        if source in places and part:
            return places[source], source, part
    return None, "", ""


def places_of(shape: Shape) -> dict[str, str]:
    """Where diffusers has each module of guided-diffusion."""
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    levels, residual = len(shape.widths), shape.resample == "residual"
    for level in range(levels):
        at, block = 1 + level * (shape.blocks + 1), f"down_blocks.{level}"
        for j in range(shape.blocks):
            places[f"input_blocks.{at + j}.0"] = f"{block}.resnets.{j}"
            places[f"input_blocks.{at + j}.1"] = f"{block}.attentions.{j}"
        end = f"input_blocks.{at + shape.blocks}.0"
        places[end if residual else f"{end}.op"] = f"{block}.downsamplers.0" + (
            "" if residual else ".conv"
        )
        at, block = level * (shape.blocks + 1), f"up_blocks.{level}"
        attends = shape.attention[levels - 1 - level]
        for j in range(shape.blocks + 1):
            places[f"output_blocks.{at + j}.0"] = f"{block}.resnets.{j}"
            if attends:
                places[f"output_blocks.{at + j}.1"] = f"{block}.attentions.{j}"
        end = f"output_blocks.{at + shape.blocks}.{2 if attends else 1}"
        places[end if residual else f"{end}.conv"] = f"{block}.upsamplers.0" + (
            "" if residual else ".conv"
        )
    return places


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a joint layer ``(3C, ...)``: the legacy order has the three of each
    head together.
    """
    flat = qkv.reshape(qkv.shape[0], -1) if qkv.ndim > 1 else qkv
    if new_order:
        q, k, v = flat.chunk(3)
        return q.clone(), k.clone(), v.clone()
    split = torch.unflatten(flat, 0, (heads, 3, -1))
    q, k, v = (torch.flatten(split[:, j], 0, 1).clone() for j in range(3))
    return q, k, v


def described(shape: Shape) -> str:
    """In words."""
    attends = [str(2**k) for k, on in enumerate(shape.attention) if on]
    parts = [
        f"widths {', '.join(map(str, shape.widths))}",
        f"{shape.blocks} blocks a level",
        f"attention at 1/{', 1/'.join(attends)}" if attends else "attention in the middle",
    ]
    if shape.out_channels == 2 * shape.in_channels or shape.in_channels == shape.out_channels == 6:
        parts.append("learned variance")
    if shape.classes:
        parts.append(f"{shape.classes} classes")
    return ", ".join(parts)
