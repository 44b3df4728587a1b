"""Editing by prompts: DDCM with unified attention control on a diffusers text-to-image network. Xu
et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.denoiser import Network
from solvers.editing.attention_control import LocalBlend, Prompts
from solvers.editing.attention_processor import AttentionControl
from solvers.grid import Grid, consistency
from solvers.loop import solve
from solvers.methods.ddcm import DDCM
from solvers.prediction import Prediction
from solvers.processes.process import VP, Process
from solvers.solver import RNG, randn


class PromptBranches:
    """A denoiser whose branches (equal parts of the batch) have prompts and guidance of their own:
    one network call for all.

    The network sees every branch without prompt, then every branch with its prompt, and answers
    ``e(none) + g (e(prompt) - e(none))``.

    Args:
        unet: diffusers ``UNet2DConditionModel``.
        process: the process it was trained under.
        prompts: ``(branches, tokens, features)``.
        no_prompt: ``(1, tokens, features)``.
        guidance: g of each branch.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        control: told of every call.

    Raises:
        ValueError: prompts and guidance that differ in number; a batch that can't be divided.
    """

    def __init__(
        self,
        unet: Network,
        process: Process,
        prompts: Tensor,
        no_prompt: Tensor,
        guidance: Sequence[float],
        prediction_type: str = "epsilon",
        control: AttentionControl | None = None,
    ):
        if len(prompts) != len(guidance):
            raise ValueError(f"{len(prompts)} prompts but {len(guidance)} guidance weights")
        self.unet, self.process, self.prompts, self.no_prompt = unet, process, prompts, no_prompt
        self.guidance, self.prediction_type, self.control = (
            tuple(guidance),
            prediction_type,
            control,
        )

    def __call__(self, x: Tensor, t: float) -> Prediction:
        branches = len(self.guidance)
        if len(x) % branches:
            raise ValueError(f"a batch of {len(x)} can't be divided among {branches} branches")
        images = len(x) // branches
        if self.control is not None:
            self.control.begin_call()
        prompts = torch.cat(
            [self.no_prompt.expand(len(x), -1, -1), self.prompts.repeat_interleave(images, dim=0)]
        )
        times = torch.full((2 * len(x),), t, dtype=torch.float32, device=x.device)
        out = (
            self.unet(torch.cat([x, x]).to(prompts.dtype), times, encoder_hidden_states=prompts)
            .sample[:, : x.shape[1]]
            .to(x.dtype)
        )
        free, prompted = out.chunk(2)
        weight = (
            torch.tensor(self.guidance, dtype=x.dtype, device=x.device)
            .repeat_interleave(images)
            .reshape(-1, 1, 1, 1)
        )
        return Prediction.from_output(
            free + weight * (prompted - free),
            x,
            self.process.a(t),
            self.process.b(t),
            self.prediction_type,
        )


@dataclass(frozen=True)
class PromptEdit:
    """How far an edit goes.

    Attributes:
        num_inference_steps: of ``original_inference_steps`` that the model was distilled at.
        strength: share of the steps that are run, in (0, 1]; below 1 the edit starts from the
            noised picture.
        source_guidance, target_guidance: weights of classifier-free guidance.
        cross_fraction, self_fraction: shares of the steps that inject attention maps.
        edited_words: words of the target prompt, apart by blanks, that the change is limited to;
            empty: anywhere.
        kept_words: words of the target prompt whose place keeps the source's look.
        control: unified attention control; without it the branches share only their noise.
        eta: of DDCM.
    """

    num_inference_steps: int = 12
    original_inference_steps: int = 50
    strength: float = 1.0
    source_guidance: float = 1.0
    target_guidance: float = 2.0
    cross_fraction: float = 0.7
    self_fraction: float = 0.7
    edited_words: str = ""
    kept_words: str = ""
    control: bool = True
    eta: float = 1.0


@torch.no_grad()
def edit_prompt(
    pipeline: Any,
    image: Tensor,
    source: str,
    target: str,
    how: PromptEdit = PromptEdit(),
    *,
    generator: RNG = None,
) -> Tensor:
    """Edit a picture by describing what it shows and what it should show; nothing is inverted or
    trained.

    Made for latent consistency models (12 to 15 steps); plain Stable Diffusion works with about 32.

    Args:
        pipeline: a diffusers text-to-image pipeline: ``unet``, ``vae``, ``tokenizer``,
            ``scheduler`` and ``encode_prompt`` are used.
        image: ``(1, 3, H, W)`` in [0, 1].
        source: what the picture shows.
        target: what it should show.
        how: steps, guidance, attention control.
        generator: of the noise.

    Returns:
        ``(1, 3, H, W)`` in [0, 1].

    Raises:
        ValueError: an image of another shape, a strength that leaves no step, words that the target
            prompt does not have.
    """
    num_inference_steps, strength = how.num_inference_steps, how.strength
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"image must be (1, 3, H, W); got {tuple(image.shape)}")
    kept = int(num_inference_steps * strength)
    if not 1 <= kept <= num_inference_steps:
        raise ValueError(
            f"strength must leave 1 to {num_inference_steps} steps; {strength} leaves {kept}"
        )
    unet, vae, config = pipeline.unet, pipeline.vae, pipeline.scheduler.config
    process = VP.from_diffusers(config)
    grid = Grid(
        consistency(process, num_inference_steps, how.original_inference_steps).times[-kept - 1 :]
    )
    weight = next(unet.parameters())
    of_source, no_prompt = pipeline.encode_prompt(source, weight.device, 1, True)
    of_target, _ = pipeline.encode_prompt(target, weight.device, 1, True)
    ids = [list(pipeline.tokenizer(prompt).input_ids) for prompt in (source, target)]
    tokens = of_source.shape[1]
    edited, mutual = (
        _positions(pipeline.tokenizer, ids[1], chosen, tokens)
        for chosen in (how.edited_words, how.kept_words)
    )
    chooses = bool(edited.any() or mutual.any())
    control_state = None
    if how.control:
        blend = LocalBlend(edited, mutual, len(ids[1])) if chooses else None
        skipped = num_inference_steps - kept
        control_state = AttentionControl(
            Prompts(ids[0], ids[1], tokens, (of_source[0], of_target[0])),
            num_inference_steps,
            skipped=skipped,
            cross_fraction=how.cross_fraction,
            self_fraction=how.self_fraction,
            blend=blend,
        )
    elif chooses:
        raise ValueError("edited_words and kept_words need attention control: leave control=True")
    denoiser = PromptBranches(
        unet,
        process,
        torch.cat([of_source, of_target, of_source]),
        no_prompt,
        (how.source_guidance, how.target_guidance, how.source_guidance),
        config.get("prediction_type", "epsilon"),
        control_state,
    )
    encoded = vae.encode((2 * image - 1).to(weight)).latent_dist.mode()
    x0 = (encoded * vae.config.scaling_factor).float()  # states stay in single precision
    noise = randn(x0.shape, generator, device=x0.device)
    start = noise if kept == num_inference_steps else process.add_noise(x0, noise, grid.times[0])
    with control_state.installed(unet) if control_state else nullcontext():
        blender = control_state.blender(process) if control_state else None
        latent = solve(
            DDCM(x0, how.eta, layout=True, blend=blender),
            denoiser,
            start,
            grid,
            generator=generator,
        ).x0
    decoded = vae.decode((latent / vae.config.scaling_factor).to(weight)).sample
    return ((decoded + 1) / 2).clamp(0, 1).to(image)


def _positions(tokenizer: Any, prompt: list[int], words: str, tokens: int) -> Tensor:
    """``(tokens,)``, 1 where ``prompt`` holds one of the words."""
    found = torch.zeros(tokens)
    for word in words.split():
        ids = list(tokenizer(word).input_ids)[1:-1]
        starts = [k for k in range(len(prompt) - len(ids) + 1) if prompt[k : k + len(ids)] == ids]
        if not ids or not starts:
            raise ValueError(f"the target prompt does not hold the word {word!r}")
        for k in starts:
            found[k : k + len(ids)] = 1
    return found
