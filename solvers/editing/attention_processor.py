"""Unified attention control inside a diffusers U-Net: processors that exchange attention between
DDCM's branches.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from solvers.denoiser import Network
from solvers.editing.attention_control import (
    INJECTED,
    LocalBlend,
    Prompts,
    control_cross,
    control_self,
    refinement,
)
from solvers.methods.ddcm import Blend
from solvers.processes.process import Process

STORED_PIXELS = 32 * 32  # finer maps are edited but not kept
_installing = threading.RLock()


class AttentionControl:
    """The state of one edit: how far it is, which tokens belong together, what was looked at (Xu et
    al. 2024, unified attention control).

        control = AttentionControl(Prompts(source_ids, target_ids), num_steps=12)
        with control.installed(unet):
            ...                     # every network call is preceded by control.begin_call()

    The batch of a call holds source, target and layout, without prompt and then with it, each with
    the same number of images. With r the share of steps begun, self-attention is exchanged "early"
    while ``r < self_fraction``, cross-attention refined while ``r <= cross_fraction``; see
    :mod:`solvers.editing.attention_control`.

    Args:
        prompts: source and target.
        num_steps: steps of the whole grid.
        skipped: steps of it that this run leaves out at the noisy end.
        cross_fraction: share of the steps that hold the layout of the words; the more, the closer
            to the source.
        self_fraction: share of the steps that hold the layout of the image.
        inject: whose maps the target gets: ``layout`` as published, ``source`` as in the authors'
            demo.
        blend: limits the edit to its words; for one image at a time.

    Raises:
        ValueError: fractions outside [0, 1], an unknown ``inject``, prompts that are too long, no
            steps.
    """

    def __init__(
        self,
        prompts: Prompts,
        num_steps: int,
        *,
        skipped: int = 0,
        cross_fraction: float = 0.7,
        self_fraction: float = 0.7,
        inject: str = "layout",
        blend: LocalBlend | None = None,
    ):
        if not (0 <= cross_fraction <= 1 and 0 <= self_fraction <= 1):
            raise ValueError(
                f"cross_fraction and self_fraction must lie in [0, 1]; got {cross_fraction} and"
                f" {self_fraction}"
            )
        if inject not in INJECTED:
            raise ValueError(f"inject {inject!r} is unknown; known: {', '.join(INJECTED)}")
        if not 0 <= skipped < num_steps:
            raise ValueError(
                f"skipped must lie between 0 and num_steps - 1; got {skipped} of {num_steps}"
            )
        self.mapper, self.alphas = refinement(*prompts)
        self.num_steps, self.skipped, self.calls = num_steps, skipped, 0
        self.cross_fraction, self.self_fraction, self.inject, self.blend = (
            cross_fraction,
            self_fraction,
            inject,
            blend,
        )
        self.maps: dict[str, Tensor] = {}  # by layer, summed over the steps

    @property
    def progress(self) -> float:
        return (self.skipped + self.calls) / self.num_steps

    def begin_call(self) -> None:
        """One more network call is about to be made."""
        self.calls += 1

    @contextmanager
    def installed(self, unet: Network) -> Iterator[None]:
        """Let ``unet`` (diffusers) attend under this control; its own processors come back
        afterwards.

        Edits in other threads wait: a network has one set of processors. Nothing else may call it
        meanwhile.
        """
        with _installing:
            own = unet.attn_processors
            unet.set_attn_processor({name: ControlledAttention(self, name) for name in own})
            try:
                yield
            finally:
                unet.set_attn_processor(own)

    def self_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return control_self(q, k, v, heads, early=self.progress < self.self_fraction)

    def cross_attention(self, name: str, maps: Tensor, heads: int) -> Tensor:
        other, conditional = maps[: -3 * heads], maps[-3 * heads :]
        early = self.progress <= self.cross_fraction
        mapper, alphas = self.mapper.to(maps.device), self.alphas.to(maps)
        conditional, stored = control_cross(conditional, heads, mapper, alphas, early, self.inject)
        if self.blend is not None and maps.shape[1] <= STORED_PIXELS:
            self.maps[name] = self.maps.get(name, 0) + stored
        return torch.cat([other, conditional])

    def blender(self, process: Process) -> Blend | None:
        """For ``DDCM(blend=...)``: the local blend with all maps seen so far, from the second step
        on; None without one.

        Used are the layers at a quarter of the state's height and width.

        Raises:
            ValueError: (when called) the network has no such layer.
        """
        local = self.blend
        if local is None:
            return None

        def blend(source: Tensor, target: Tensor, layout: Tensor, t: float) -> Tensor:
            if self.calls < 2:
                return target
            height, width = target.shape[-2:]
            chosen = [m for m in self.maps.values() if m.shape[1] * 16 == height * width]
            if not chosen:
                raise ValueError(
                    f"no cross-attention layer works at a quarter of {height} x {width}: edit"
                    " without local blend"
                )
            last_but_one = self.skipped + self.calls == self.num_steps - 1
            return local(
                source, target, layout, torch.stack(chosen), process.a(t), keep_layout=last_but_one
            )

        return blend


class ControlledAttention:
    """A diffusers attention processor (the plain one, with maps in the open) under an
    :class:`AttentionControl`.
    """

    def __init__(self, control: AttentionControl, name: str):
        self.control, self.name = control, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context, crosses = hidden_states, encoder_hidden_states is not None
        if encoder_hidden_states is not None:
            context = (
                attn.norm_encoder_hidden_states(encoder_hidden_states)
                if attn.norm_cross
                else encoder_hidden_states
            )
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        q, k, v = (
            attn.head_to_batch_dim(part)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        # a branch is its images times the heads
        heads = _branch_size(len(hidden_states)) * attn.heads
        if not crosses:
            q, k, v = self.control.self_attention(q, k, v, heads)
        maps = attn.get_attention_scores(q, k, mask)
        if crosses:
            maps = self.control.cross_attention(self.name, maps, heads)
        out = attn.batch_to_head_dim(torch.bmm(maps, v))
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


def _branch_size(batch: int) -> int:
    if batch % 6 == 0:
        return batch // 6
    raise ValueError(
        "attention control needs source, target and layout with and without prompt: 6 parts; the"
        f" batch is {batch}"
    )
