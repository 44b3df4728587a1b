"""Text of latent networks: prompts, embedded by the folder's text encoder or stored beside it, and
classifier-free guidance by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.memory import check_bytes
from solvers.inputs.strict_json import read_object
from solvers.interop.checkpoints.container import HOW_TO_WRAP
from solvers.interop.checkpoints.options import flag
from solvers.interop.folders import check_network, said_of

Network = Any

STORED = "encoder_hidden_states.safetensors"
PROMPT, FREE, GUIDANCE = "encoder_hidden_states", "without_prompt", "guidance"
BUFFERS = (PROMPT, FREE, GUIDANCE)
# of the released pipelines
USUAL_GUIDANCE = 7.5
OPTIONS = ("prompt", "negative_prompt", "guidance")

# what UNet2DConditionModels can be told beside text, by the entries of their descriptions
TOLD: dict[str, str | dict[str, str]] = {
    "addition_embed_type": {
        "text_time": "image sizes and pooled text (Stable Diffusion XL)",
        "text": "pooled text (DeepFloyd)",
        "image": "embeddings of pictures (Kandinsky)",
        "image_hint": "embeddings and hints of pictures (Kandinsky)",
        "text_image": "embeddings of text and pictures (Kandinsky)",
    },
    "encoder_hid_dim_type": {
        "text_proj": "another encoder's text (DeepFloyd)",
        "image_proj": "embeddings of pictures (Kandinsky)",
        "text_image_proj": "embeddings of text and pictures (Kandinsky)",
        "ip_image_proj": "embeddings of pictures (IP-Adapter)",
    },
    "class_embed_type": {
        "timestep": "the noise of a small picture (upscalers)",
        "projection": "embeddings of pictures (unCLIP)",
    },
    "num_class_embeds": "a class, or the noise of a small picture (Stable Diffusion's upscaler)",
    "time_cond_proj_dim": "its guidance, as a number (latent consistency models)",
}


def show_text(network: Network, root: Path, options: Mapping[str, Any]) -> str:
    """Let ``network(x, t)`` run on a prompt, stored in the folder or embedded here, with guidance
    ``g``: one call of twice the batch, ``e(without) + g (e(prompt) - e(without))`` (Ho & Salimans
    2022, arXiv 2207.12598, in the pipelines' count of ``g``). Embeddings and guidance are buffers,
    so that they count as a part of the model.

    Args:
        network: diffusers' ``UNet2DConditionModel``.
        root: its folder, with ``text_encoder/`` and ``tokenizer/`` or a stored embedding.
        options: ``prompt``, ``negative_prompt`` and ``guidance``, as they were given.

    Returns:
        What was assumed, in words; empty: nothing.

    Raises:
        ModelError: no text, or a network that takes more than text.
    """
    config = network.config
    if more := next((name for name in TOLD if config.get(name)), None):
        kinds = TOLD[more]
        what = kinds if isinstance(kinds, str) else kinds.get(config[more], str(config[more]))
        raise ModelError(
            f"{root} is told {what} with every call ({more}); of networks that are shown text,"
            " those that take a prompt alone are read, as Stable Diffusion 1 and 2:"
            f" {HOW_TO_WRAP}"
        )
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    stored, encoder = root / STORED, root / "text_encoder"
    if stored.is_file() and not given:
        with reading(stored, "text embeddings", ModelError):
            states, said = _stored(stored), ""
    elif (encoder / "config.json").is_file():
        states, said = _embedded(root, given)
    else:
        raise ModelError(
            f"{root} holds no text encoder, and a UNet2DConditionModel needs a text embedding: give"
            " the whole pipeline's folder, with text_encoder/ and tokenizer/, and a --prompt; or"
            f" write the prompt's encoder_hidden_states (1, L, D) to {stored} under the key"
            f" {PROMPT}, and leave out --prompt, --negative-prompt and --guidance"
        )
    width = config.cross_attention_dim
    for name in (PROMPT, FREE):
        value = states.get(name, states[PROMPT])
        if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != width:
            raise ModelError(
                f"{root}: {name} must be (1, L, {width}), one prompt; got {tuple(value.shape)}"
            )
        if not torch.isfinite(value).all():
            raise ModelError(f"{root}: {name} must be finite; it holds NaN or infinite values")
    if (FREE in states) != (GUIDANCE in states):
        raise ModelError(f"{stored}: {FREE} and {GUIDANCE} go together; one is missing")
    for name, value in states.items():
        network.register_buffer(name, value)
    network.register_forward_pre_hook(_with_text, with_kwargs=True)
    if GUIDANCE in states:
        network.register_forward_hook(_guided)
    return said


def tensors_of(network: Network) -> dict[str, Tensor]:
    """The text buffers of a network, to be stored; none where it is shown no text."""
    return {name: v for name in BUFFERS if (v := network._buffers.get(name)) is not None}


def _with_text(
    network: Network, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: the stored embeddings for a network that is called without any."""
    x, *others = inputs
    states = getattr(network, PROMPT).to(x).expand(x.shape[0], -1, -1)
    if GUIDANCE in network._buffers:
        free = getattr(network, FREE).to(x).expand(x.shape[0], -1, -1)
        states = torch.cat([free, states])
        t = torch.as_tensor(others[0], device=x.device).expand(x.shape[0])
        inputs = (torch.cat([x, x]), torch.cat([t, t]), *others[1:])
    return inputs, {"encoder_hidden_states": states} | named


def _guided(network: Network, _: tuple[Any, ...], answer: Any) -> Tensor | None:
    """Forward hook: both halves of the batch in one answer."""
    if answer is None:  # a call that was stopped on its way, at the layer that it was made for
        return None
    both = answer if isinstance(answer, Tensor) else answer.sample
    halves = both.unflatten(0, (2, -1))
    return halves[0] + getattr(network, GUIDANCE).to(both) * (halves[1] - halves[0])


def _stored(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_bytes(str(path), path.stat().st_size)
    found = load_file(path)
    if PROMPT not in found or set(found) - set(BUFFERS):
        raise ModelError(f"{path} holds {', '.join(found)}; it must hold a tensor {PROMPT}")
    return {name: value.float() for name, value in found.items()}


@torch.no_grad()
def _embedded(root: Path, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The buffers for a prompt, and what was assumed."""
    guidance = given.get("guidance", USUAL_GUIDANCE if "prompt" in given else None)
    if "prompt" not in given and guidance != 0:
        raise ModelError(
            f"{root} is a network that is told what the picture shows: say it, --prompt (in Python"
            " prompt=), or --guidance 0 to go without"
        )
    if not (isinstance(guidance, (int, float)) and 0 <= guidance <= 100):
        raise ModelError(f"{root}: --guidance must be from 0 to 100; got {guidance}")
    negative = given.get("negative_prompt", "")
    unused = "prompt" if guidance == 0 else "negative_prompt" if guidance == 1 else ""
    if given.get(unused):
        raise ModelError(
            f"{root}: {flag(unused)} has no effect with --guidance {guidance:g}; leave it out"
        )
    embed = _Encoder(root)
    if guidance in (0, 1):
        return {PROMPT: embed(negative if guidance == 0 else given["prompt"])}, ""
    states = {PROMPT: embed(given["prompt"]), FREE: embed(negative)}
    said = "" if "guidance" in given else f"--guidance {guidance:g}"
    return states | {GUIDANCE: torch.tensor(float(guidance))}, said


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """transformers shows no bar for what takes a moment."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _Encoder:
    """The text encoder of a pipeline's folder, ``encoder(prompt) -> (1, L, D)``.

    Raises:
        ModelError: another than CLIP's, or transformers is not installed.
    """

    def __init__(self, root: Path):
        self.root, place = root, root / "text_encoder"
        try:
            from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
        except ImportError:
            raise ModelError(
                f"{root}: prompts are embedded by the package transformers: pip install"
                " 'restobox[text]'"
            ) from None
        config = read_object(place / "config.json", ModelError)
        kind = (config.get("architectures") or ["?"])[0]
        if kind != "CLIPTextModel":
            raise ModelError(
                f"{place} is a {kind}, and only CLIPTextModel is read: write the prompt's embedding"
                f" (1, L, D) to {root / STORED} under the key {PROMPT}"
            )
        names = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors")
        weights = next((place / n for n in names if (place / n).is_file()), None)
        if weights is None:
            raise ModelError(f"{place} is no text encoder's folder: it needs {names[0]}")
        check_network(kind, lambda c: CLIPTextModel(CLIPTextConfig.from_dict(c)), config, weights)
        variant = said_of(weights)["variant"]
        with reading(root / "tokenizer", "a tokenizer", ModelError):
            self.tokenizer = CLIPTokenizer.from_pretrained(
                root / "tokenizer", local_files_only=True
            )
        with reading(place, "a text encoder", ModelError), _silent():
            read: Any = CLIPTextModel.from_pretrained
            model, report = read(
                place,
                local_files_only=True,
                dtype=torch.float32,
                variant=variant,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):  # transformers would leave them random
            raise ModelError(f"{weights} lacks {len(missing)} tensors, such as {missing[0]}")
        self.model = model.eval()

    def __call__(self, prompt: str) -> Tensor:
        most = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompt, padding="max_length", max_length=most, return_tensors="pt")
        count = tokens.input_ids.shape[1]
        if count > most:
            raise ModelError(
                f"{self.root}: the prompt {prompt[:40]!r}... has {count - 2} tokens; the text"
                f" encoder takes {most - 2}"
            )
        masked = getattr(self.model.config, "use_attention_mask", False)
        mask = {"attention_mask": tokens.attention_mask} if masked else {}
        return self.model(tokens.input_ids, **mask)[0].float()
