"""RDDM's and Resfusion's networks: Liu et al. 2024 (arXiv 2308.13712), Shi et al. 2024 (arXiv
2311.14900).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers.inputs.errors import ModelError
from solvers.interop.checkpoints.build import Checkpoint, build
from solvers.interop.checkpoints.container import HOW_TO_WRAP, Weights
from solvers.interop.checkpoints.options import Said
from solvers.methods.rddm import RDDM
from solvers.methods.resfusion import Resfusion

MARKER = "init_conv.weight"
# the authors' words for what a network estimates, and ours
TWO = {"pred_res_noise": "residual_noise", "pred_x0_noise": "sample_noise"}
ONE = {"pred_res": "residual", "pred_noise": "epsilon"}
MODES = {"epsilon": "resnoise", "sample": "sample", "residual": "residual"}


def _decoder(name: str, number: str) -> tuple[tuple[str, str], ...]:
    """The names of a decoder's parts, and ours."""
    ours = rf"decoders.{number}.up_blocks.\1."
    return (
        (rf"^{name}\.(\d+)\.([01])\.", rf"{ours}resnets.\2."),
        (rf"^{name}\.(\d+)\.2\.", f"{ours}attention."),
        (rf"^{name}\.(\d+)\.3\.1\.", f"{ours}sample.conv."),
        (rf"^{name}\.(\d+)\.3\.", f"{ours}sample."),
    )


RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^init_conv\.", "conv_in."),
    (r"^downs\.(\d+)\.([01])\.", r"down_blocks.\1.resnets.\2."),
    (r"^downs\.(\d+)\.2\.", r"down_blocks.\1.attention."),
    (r"^downs\.(\d+)\.3\.", r"down_blocks.\1.sample."),
    (r"^mid_block([12])\.", lambda m: f"mid_resnets.{int(m[1]) - 1}."),
    (r"^mid_attn\.", "mid_attention."),
    *_decoder("ups", "{last}"),
    *_decoder("ups_no_skip", "0"),
    (r"^final_res_block(_2)?\.", "decoders.{last}.block_out."),
    (r"^final_conv(_2)?\.", "decoders.{last}.conv_out."),
    (r"^final_res_block_1\.", "decoders.0.block_out."),
    (r"^final_conv_1\.", "decoders.0.conv_out."),
    (r"\.mlp\.1\.", ".time_emb_proj."),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".norm\1."),
    (r"\.res_conv\.", ".conv_shortcut."),
    (r"attention\.fn\.norm\.g$", "attention.norm.g"),
    (r"attention\.fn\.fn\.to_qkv\.", "attention.to_qkv."),
    (r"attention\.fn\.fn\.to_out\.0\.", "attention.to_out."),
    (r"attention\.fn\.fn\.to_out\.1\.g$", "attention.norm_out.g"),
    (r"attention\.fn\.fn\.to_out\.", "attention.to_out."),
)


def recognises(weights: Weights) -> bool:
    """Whether these are a network of the family."""
    return weights.prefix(MARKER) is not None and any(
        re.search(r"(^|\.)downs\.0\.0\.block1\.proj\.weight$", name) for name in weights.tensors
    )


def read(weights: Weights, said: Said) -> Checkpoint:
    """The network and its process.

    Raises:
        ModelError: a relative of the families, or options that don't fit.
    """
    path, prefix = weights.path, weights.prefix(MARKER) or ""
    if prefix.endswith("unet0."):
        stem = prefix.removesuffix("unet0.")
        parts = [p for p in (weights.under(f"{stem}unet{k}.") for k in range(2)) if p]
        form = "two" if len(parts) == 2 else "single"
        return _rddm(weights, said, parts, form)
    parts = [weights.under(prefix)]
    if any(name.startswith("ups_no_skip.") for name in parts[0]):
        return _rddm(weights, said, parts, "shared")
    if prefix.endswith("denoising_module."):
        return _resfusion(weights, said, parts[0])
    raise ModelError(
        f"{path} holds a network like denoising-diffusion-pytorch's, which RDDM and Resfusion"
        f" have too, without the names of either, so its process is unknown: {HOW_TO_WRAP}"
    )


def _rddm(weights: Weights, said: Said, parts: list[dict[str, Tensor]], form: str) -> Checkpoint:
    path = weights.path
    outs = parts[0]["final_conv_2.weight" if form == "shared" else "final_conv.weight"].shape[0]
    ins = parts[0][MARKER].shape[1]
    condition = ins - outs
    if condition not in (0, outs):
        raise ModelError(
            f"{path}: a network of {ins} channels for pictures of {outs} is shown more than the"
            f" degraded picture (RDDM's masks), which is not read; {HOW_TO_WRAP}"
        )
    words = ONE if form == "single" else TWO
    objective = said.one_of("objective", next(iter(words)), tuple(words))
    process = _rddm_process(weights, said, conditioned=condition > 0)
    network = _build(weights, said, parts, form)
    settings = {"condition_channels": condition, "shown": "degraded" if condition else None}
    family = {"single": "RDDM, one network", "two": "RDDM, two networks"}.get(
        form, "RDDM, one encoder and two decoders"
    )
    return Checkpoint(family, network, process, words[objective], settings, _described(network))


def _rddm_process(weights: Weights, said: Said, conditioned: bool) -> RDDM:
    """That of the tables in the file, else the released schedule."""
    places = [weights.prefix(name) for name in ("alphas_cumsum", "betas_cumsum")]
    if None not in places:
        if said.has("sum_scale") or said.has("train_steps"):
            raise ModelError(
                f"{weights.path} holds its own schedule: leave out --sum-scale and --train-steps"
            )
        residual, noise = (
            weights.tensors[f"{place}{name}"].double().numpy()
            for place, name in zip(places, ("alphas_cumsum", "betas_cumsum"), strict=True)
        )
        if noise[0] == 0 or abs((1 - residual) ** 2 + noise**2 - 1).max() < 1e-3:
            raise ModelError(
                f"{weights.path} is of RDDM's later release by its tables, whose networks are told"
                f" how much residual and noise there is in place of the time; {HOW_TO_WRAP}"
            )
        return RDDM(residual, noise)
    steps = said.count("train_steps", 1000)
    scale = said.get("sum_scale", 0.01 if conditioned else 1.0)
    if not 0 < scale <= 1:
        raise ModelError(f"{weights.path}: --sum-scale must lie in (0, 1]; got {scale}")
    return RDDM.scheduled(max(steps, 2), scale)


def _resfusion(weights: Weights, said: Said, tensors: dict[str, Tensor]) -> Checkpoint:
    path = weights.path
    outs, ins = tensors["final_conv.weight"].shape[0], tensors[MARKER].shape[1]
    masks = ins - 2 * outs
    if masks == 2:  # white and black marked apart: the second is the first with its sign turned
        head = tensors[MARKER].float()
        tensors[MARKER] = torch.cat([head[:, :-2], head[:, -1:] - head[:, -2:-1]], dim=1)
    elif masks not in (0, 1):
        raise ModelError(
            f"{path}: a Resfusion network of {ins} channels for pictures of {outs} is shown neither"
            f" the degraded picture alone nor a mask too; {HOW_TO_WRAP}"
        )
    mode = said.one_of("objective", str(weights.notes.get("mode", "epsilon")), tuple(MODES))
    if "mode" in weights.notes:
        said.assumed.pop("objective", None)  # the file says so
    schedule = said.one_of("schedule", "linear", ("linear", "cosine"))
    process = Resfusion.scheduled(schedule, said.count("train_steps", 12))
    network = _build(weights, said, [tensors], "single")
    settings = {
        "condition_channels": outs + min(masks, 1),
        "shown": "degraded+mask" if masks else "degraded",
    }
    details = _described(network) + (", shown a mask" if masks else "")
    return Checkpoint("Resfusion", network, process, MODES[mode], settings, details)


def _build(weights: Weights, said: Said, parts: list[dict[str, Tensor]], form: str) -> Any:
    path, first = weights.path, parts[0]
    levels = 1 + max(int(n.split(".")[1]) for n in first if n.startswith("downs."))
    widths = [int(first[MARKER].shape[0])]
    widths += [int(first[f"downs.{k}.3.weight"].shape[0]) for k in range(levels)]
    groups = said.count("groups", 8)
    if bad := [width for width in widths if width % groups]:
        raise ModelError(
            f"{path}: {bad[0]} channels make no {groups} groups of a norm: say --groups as it was"
            " trained with"
        )
    last = "final_conv_2.weight" if form == "shared" else "final_conv.weight"
    config = {
        "in_channels": int(first[MARKER].shape[1]),
        "out_channels": int(first[last].shape[0]) * (1 if form == "single" else 2),
        "block_out_channels": widths,
        "norm_num_groups": groups,
        "form": form,
    }
    weights.tensors.clear()
    return build(path, "ResidualUNet", config, joined(path, parts, 1 if form == "shared" else 0))


@torch.no_grad()
def joined(path: Path, parts: list[dict[str, Tensor]], last: int) -> dict[str, Tensor]:
    """The tensors of one or two U-Nets by our names; ``last`` is the decoder with skips. Their time
    embeddings are put side by side: each block reads its own network's half of them.
    """
    found: dict[str, Tensor] = {}
    times = []
    for k, part in enumerate(parts):
        try:
            times.append({n: part.pop(f"time_mlp.{n}") for n in _TIME})
        except KeyError as error:
            raise ModelError(f"{path} lacks {error.args[0]}, a tensor of an RDDM U-Net") from None
        for name, value in part.items():
            new = _renamed(name, last)
            if new.endswith("time_emb_proj.weight") and len(parts) == 2:
                zeros = torch.zeros_like(value)
                value = torch.cat([value, zeros] if k == 0 else [zeros, value], dim=1)
            elif re.search(r"\.block[12]\.proj\.weight$", name):
                value = standardized(value)
            found[f"unets.{k}.{new}"] = value
    for n, (source, leaf) in enumerate((("1", "linear_1"), ("3", "linear_2"))):
        weights = [t[f"{source}.weight"] for t in times]
        found[f"time_embedding.{leaf}.weight"] = (
            torch.cat(weights) if n == 0 else _diagonal(weights)
        )
        found[f"time_embedding.{leaf}.bias"] = torch.cat([t[f"{source}.bias"] for t in times])
    return found


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """Square matrices of one size along the diagonal of a larger one."""
    side = blocks[0].shape[0]
    whole = blocks[0].new_zeros(side * len(blocks), side * len(blocks))
    for k, block in enumerate(blocks):
        whole[k * side : (k + 1) * side, k * side : (k + 1) * side] = block
    return whole


_TIME = ("1.weight", "1.bias", "3.weight", "3.bias")


def _renamed(name: str, last: int) -> str:
    for pattern, new in RENAMED:
        name = (
            re.sub(pattern, new, name)
            if callable(new)
            else re.sub(pattern, new.replace("{last}", str(last)), name)
        )
    return name


def standardized(weight: Tensor) -> Tensor:
    """Each output channel's weights less their mean, over their standard deviation (Qiao et al.
    2019, arXiv 1903.10520), as the networks make them at every call.
    """
    flat = weight.double().flatten(1)
    variance = flat.var(1, unbiased=False, keepdim=True)
    flat = (flat - flat.mean(1, keepdim=True)) * (variance + 1e-5).rsqrt()
    return flat.reshape(weight.shape).float()


def _described(network: Any) -> str:
    return f"widths {', '.join(map(str, network.config.block_out_channels))}"
