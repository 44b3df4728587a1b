"""Unified attention control: how DDCM's branches share attention in a text-conditioned network. Xu
et al. 2024 (arXiv 2312.04965).

Pure tensor functions. Along the first axis lie the branches S, G, L (source, target, layout, the
layout with the source's prompt), for the unconditional half and then the conditional one, each with
its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

INJECTED = ("layout", "source")


def control_self(
    q: Tensor, k: Tensor, v: Tensor, heads: int, early: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of self-attention, each ``(halves * 3 * heads, pixels, d)``,
    exchanged between branches.

    Early, the source's attention maps act on everybody's content: ``q = k = (S, S, S)``, ``v = (S,
    G, S)``. Late, source and target are on their own and the layout asks with the target's queries
    for the source's content: ``q = (S, G, G)``, ``k = v = (S, G, S)``.

    Raises:
        ValueError: a first axis that isn't a multiple of ``3 * heads``.
    """
    parts = [_branches(x, heads) for x in (q, k, v)]
    orders = ((0, 0, 0), (0, 0, 0), (0, 1, 0)) if early else ((0, 1, 1), (0, 1, 0), (0, 1, 0))
    q, k, v = (
        part[:, list(order)].reshape(x.shape)
        for part, order, x in zip(parts, orders, (q, k, v), strict=True)
    )
    return q, k, v


def refine(base: Tensor, target: Tensor, mapper: Tensor, alphas: Tensor) -> Tensor:
    """``alpha_j base[:, A(j)] + (1 - alpha_j) target[:, j]``: shared tokens look where they looked
    in ``base``, new ones where they want.

    Args:
        base: maps ``(..., tokens)``.
        target: maps ``(..., tokens)``.
        mapper: A, ``(tokens,)``: the base's token for each target token; any number where there is
            none.
        alphas: ``(tokens,)``, 1 for tokens with a counterpart, else 0.
    """
    return alphas.to(base) * base[..., mapper] + (1 - alphas.to(base)) * target


def control_cross(
    maps: Tensor, heads: int, mapper: Tensor, alphas: Tensor, early: bool, inject: str = "layout"
) -> tuple[Tensor, Tensor]:
    """Cross-attention maps of the conditional half, ``(3 * heads, pixels, tokens)``: early, the
    target's are refined ones.

    Args:
        inject: whose maps are refined for the target: ``layout`` (as published and in the
            benchmark) or ``source`` (the authors' demo).

    Returns:
        The maps to go on with, and the refined source and layout maps ``(2 * heads, pixels,
            tokens)`` that local blends are made of.

    Raises:
        ValueError: an unknown ``inject``; a first axis other than ``3 * heads``.
    """
    if inject not in INJECTED:
        raise ValueError(f"inject {inject!r} is unknown; known: {', '.join(INJECTED)}")
    source, target, layout = _branches(maps, heads).squeeze(0)
    stored = [refine(base, target, mapper, alphas) for base in (source, layout)]
    if early:
        target = stored[INJECTED[::-1].index(inject)]
    return torch.cat([source, target, layout]), torch.cat(stored)


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Limits an edit to where its words are looked at.

    A word's mask is its mean map over layers and heads, the largest over its tokens, above a share
    of its own maximum. The target's state stays where the edited words are in the layout's maps,
    and is the layout's elsewhere; where words that both prompts share (and that are not edited) are
    in the source's maps, it is the source's.

    Args:
        edited: ``(tokens,)``, 1 for tokens of the words that the edit is about; all 0: the whole
            image may change.
        mutual: ``(tokens,)``, 1 for tokens of the words to keep.
        length: tokens of the target prompt with its start and end mark, which are never looked at.
        threshold: share of the maximum for edited words, in (0, 1).
        mutual_threshold: the same for kept words.
        temperature: the threshold is at least ``temperature/a`` at signal level a: early maps are
            vague.
    """

    edited: Tensor
    mutual: Tensor
    length: int
    threshold: float = 0.55
    mutual_threshold: float = 0.6
    temperature: float = 0.15

    def __call__(
        self,
        source: Tensor,
        target: Tensor,
        layout: Tensor,
        maps: Tensor,
        a: float,
        *,
        keep_layout: bool = False,
    ) -> Tensor:
        """The blended target state.

        Args:
            source: state ``(1, C, H, W)``, as are ``target`` and ``layout``.
            maps: refined maps ``(layers, 2 * heads, pixels, tokens)`` as :func:`control_cross`
                stores them, summed over steps.
            a: signal coefficient of the level.
            keep_layout: the layout's state also where words are both edited and kept (the authors
                do so in the last blend but one).
        """
        of_source, of_layout = maps.chunk(2, dim=1)
        size, both = target.shape[-2:], self.edited * self.mutual
        blended = target
        if self.edited.any():
            blended = torch.where(
                self.where(of_layout, self.edited, max(self.threshold, self.temperature / a), size),
                target,
                layout,
            )
        blended = torch.where(
            self.where(of_source, self.mutual - both, self.mutual_threshold, size), source, blended
        )
        if keep_layout:
            blended = torch.where(
                self.where(of_layout, both, self.threshold, size), layout, blended
            )
        return blended

    def where(self, maps: Tensor, words: Tensor, threshold: float, size: Sequence[int]) -> Tensor:
        """Mask ``(1, 1, H, W)`` of words in maps ``(layers, heads, pixels, tokens)`` of an image
        with the same proportions.
        """
        seen = (maps * words.to(maps))[..., 1 : self.length - 1].mean((0, 1)).amax(-1)
        shrink = round((size[0] * size[1] / len(seen)) ** 0.5)
        plane = seen.reshape(1, 1, -(-size[0] // shrink), -1)
        plane = F.interpolate(plane, size=tuple(size), mode="nearest")
        return plane > threshold * plane.max()


def align(source: Sequence[int], target: Sequence[int]) -> Tensor:
    """For each target token its source token, ``(len(target), 2)``: its index and the source's, -1
    for none.

    Global alignment (Needleman & Wunsch 1970) with match 1, mismatch -1 and gap 0; of equal paths
    an insertion is preferred to a deletion, a deletion to a match.
    """
    source, target = [int(i) for i in source], [int(i) for i in target]
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    came = [["insert"] * (len(target) + 1)] + [["delete"] * (len(target) + 1) for _ in source]
    for i, left in enumerate(source, 1):
        for j, right in enumerate(target, 1):
            options = {
                "insert": score[i][j - 1],
                "delete": score[i - 1][j],
                "match": score[i - 1][j - 1] + (1 if left == right else -1),
            }
            came[i][j] = max(options, key=options.__getitem__)  # the first of equals
            score[i][j] = options[came[i][j]]
    i, j, pairs = len(source), len(target), []
    while j > 0:
        step = came[i][j]
        i, j = i - (step != "insert"), j - (step != "delete")
        if step != "delete":
            pairs.append((j, i if step == "match" else -1))
    return torch.tensor(pairs[::-1], dtype=torch.int64).reshape(-1, 2)


def link_gaps(pairs: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """An alignment in which a word put in the place of another one is linked to it.

    In each run of target tokens without counterpart, the pair of one of them and one of the source
    tokens left out at the same place with the highest cosine similarity is linked. Where the
    authors' code differs: it looks up the two texts with their roles swapped, which shows in gaps
    of several tokens.

    Args:
        pairs: from :func:`align`.
        source: text embeddings ``(tokens, features)`` of the source prompt.
        target: text embeddings of the target prompt.
    """
    found, ends = pairs.clone(), pairs[:, 1].tolist()
    similarity = F.normalize(target.double(), dim=-1) @ F.normalize(source.double(), dim=-1).T
    j = 0
    while j < len(ends):
        if ends[j] >= 0:
            j += 1
            continue
        stop = next((k for k in range(j, len(ends)) if ends[k] >= 0), len(ends))
        low = ends[j - 1] + 1 if j > 0 else 0
        high = ends[stop] if stop < len(ends) else len(source)
        if low < high:
            block = similarity[j:stop, low:high]
            row, column = divmod(int(block.argmax()), block.shape[1])
            found[j + row, 1] = low + column
        j = stop
    return found


class Prompts(NamedTuple):
    """Two prompts to be aligned: see :func:`refinement`."""

    source: Sequence[int]
    target: Sequence[int]
    tokens: int = 77
    embeddings: tuple[Tensor, Tensor] | None = None


def refinement(
    source: Sequence[int],
    target: Sequence[int],
    tokens: int = 77,
    embeddings: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``mapper`` and ``alphas``, each ``(tokens,)``, for :func:`refine`; positions beyond the
    target prompt map to themselves.

    Args:
        source: token ids of the source prompt, with start and end marks, without padding.
        target: token ids of the target prompt, likewise.
        tokens: length of a padded prompt.
        embeddings: text embeddings of source and target, ``(tokens, features)`` each: replaced
            words then share their maps.

    Raises:
        ValueError: a prompt longer than ``tokens``.
    """
    if max(len(source), len(target)) > tokens:
        raise ValueError(
            f"prompts of {len(source)} and {len(target)} tokens don't fit into {tokens}"
        )
    mapper, alphas = torch.arange(tokens), torch.ones(tokens)
    pairs = align(source, target)
    if embeddings is not None:
        pairs = link_gaps(pairs, embeddings[0][: len(source)], embeddings[1][: len(target)])
    found = pairs[:, 1]
    mapper[: len(found)] = found
    alphas[: len(found)] = (found >= 0).float()
    return mapper, alphas


def _branches(x: Tensor, heads: int) -> Tensor:
    if len(x) % (3 * heads):
        raise ValueError(f"three branches of {heads} heads don't divide a first axis of {len(x)}")
    return x.reshape(-1, 3, heads, *x.shape[1:])
