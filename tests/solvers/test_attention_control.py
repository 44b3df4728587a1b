"""Attention control against recorded tensors of the authors' code, and its own definition."""

import json
import re

import pytest
import torch
from helpers.data import golden

from solvers.editing.attention_control import (
    LocalBlend,
    align,
    control_cross,
    control_self,
    link_gaps,
    refine,
    refinement,
)


class Recorded(dict):
    def tensor(self, key):
        return torch.from_numpy(self[key])

    def options(self, key):
        return json.loads(str(self[f"{key}/opts"]))

    def names(self, pattern):
        found = sorted({m[0] for key in self if (m := re.match(pattern, key))})
        assert found
        return found


@pytest.fixture(scope="module")
def arrays():
    return Recorded(golden("ddcm"))


def assert_same(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-12


def test_self_attention(arrays):
    heads = int(arrays["uac_self/heads"])
    for name in arrays.names(r"uac_self_cfg\d+_(early|late)"):
        inputs = [arrays.tensor(f"{name}/in_{letter}") for letter in "qkv"]
        for letter, got in zip(
            "qkv", control_self(*inputs, heads, early=name.endswith("early")), strict=True
        ):
            assert_same(got, arrays.tensor(f"{name}/out_{letter}"))


def test_cross_attention(arrays):
    maps, heads = arrays.tensor("uac_cross/attn_in"), arrays.options("uac_cross")["heads"]
    mapper, alphas = arrays.tensor("uac_cross/mapper")[0], arrays.tensor("uac_cross/alphas")[0]
    for name in arrays.names(r"uac_cross_(bench|app)_(early|late)"):
        inject = "layout" if "_bench_" in name else "source"
        out, stored = control_cross(maps, heads, mapper, alphas, name.endswith("early"), inject)
        assert_same(out, arrays.tensor(f"{name}/attn_out"))
        assert_same(stored, arrays.tensor(f"{name}/stored"))


def test_local_blend(arrays):
    o = arrays.options("local_blend")
    x_s, x_t, x_m, maps, edited, mutual = (
        arrays.tensor(f"local_blend/{k}")
        for k in ("x_s", "x_t", "x_m", "maps", "alpha_e", "alpha_m")
    )
    blend = LocalBlend(
        edited[0],
        mutual[0],
        o["target_token_count"],
        o["thresh_e"],
        o["thresh_m"],
        o["temperature"],
    )
    for name in arrays.names(r"local_blend_(mid|final)"):
        a = float(arrays[f"{name}/alpha_prod"]) ** 0.5
        assert_same(
            blend(x_s, x_t, x_m, maps, a, keep_layout=name.endswith("final")),
            arrays.tensor(f"{name}/x_out"),
        )


def test_alignment(arrays):
    for name in arrays.names(r"align_\d+"):
        got = align(arrays[f"{name}/source"], arrays[f"{name}/target"])
        assert torch.equal(got, arrays.tensor(f"{name}/map_target_to_source"))


def test_alignment_of_a_word_put_in():
    assert align([1, 5, 6, 2], [1, 5, 9, 6, 2]).tolist() == [
        [0, 0],
        [1, 1],
        [2, -1],
        [3, 2],
        [4, 3],
    ]
    assert align([], [4]).tolist() == [[0, -1]]
    assert align([4], []).tolist() == []


def test_replaced_words_are_linked():
    source, target = [1, 5, 6, 7, 2], [1, 8, 9, 7, 3, 2]
    pairs = align(source, target)
    assert pairs[:, 1].tolist() == [0, -1, -1, 3, -1, 4]
    e_source, e_target = (
        torch.eye(5, 4, dtype=torch.float64),
        torch.zeros(6, 4, dtype=torch.float64),
    )
    # token 9 is most like token 6, whatever its length
    e_target[2] = torch.tensor([0, 0.1, 2.0, 0])
    e_target[1] = torch.tensor([0, 0.5, 0.5, 0])
    e_target[4] = 1
    assert link_gaps(pairs, e_source, e_target)[:, 1].tolist() == [
        0,
        -1,
        2,
        3,
        -1,
        4,
    ]  # nothing was left out where 3 was put in
    mapper, alphas = refinement(source, target, 8, (e_source, e_target))
    assert mapper.tolist() == [0, -1, 2, 3, -1, 4, 6, 7]
    assert alphas.tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
    assert link_gaps(align([5], [6]), torch.ones(1, 2), torch.ones(1, 2)).tolist() == [[0, 0]]


def test_refinement_pads_with_itself():
    mapper, alphas = refinement([1, 5, 6, 2], [1, 5, 9, 6, 2], tokens=8)
    assert mapper.tolist() == [0, 1, -1, 2, 3, 5, 6, 7]
    assert alphas.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    base, target = torch.rand(2, 3, 8), torch.rand(2, 3, 8)
    out = refine(base, target, mapper, alphas)
    assert torch.equal(out[..., 2], target[..., 2])
    assert torch.equal(out[..., 3], base[..., 2])
    with pytest.raises(ValueError, match="fit into 4"):
        refinement([1] * 5, [1], tokens=4)


def test_local_blend_without_words_changes_nothing():
    states, none = torch.randn(3, 1, 4, 8, 12), torch.zeros(77)
    blend = LocalBlend(none, none, 10)
    maps = torch.rand(2, 4, 6, 77)  # 2 x 3 pixels: the image's proportions
    assert torch.equal(blend(*states, maps, 0.5), states[1])
    edited = none.clone()
    edited[3] = 1
    maps[..., 3] = 0
    maps[:, 2:, 0, 3] = 1  # the layout looks at the first pixel
    out = LocalBlend(edited, none, 10)(*states, maps, 0.5)
    assert torch.equal(out[..., :4, :4], states[1][..., :4, :4])
    assert torch.equal(out[..., 4:, 4:], states[2][..., 4:, 4:])


def test_refusals():
    with pytest.raises(ValueError, match="three branches"):
        control_self(*[torch.zeros(4, 1, 1)] * 3, heads=2, early=True)
    with pytest.raises(ValueError, match="layout, source"):
        control_cross(
            torch.zeros(3, 1, 77), 1, torch.arange(77), torch.ones(77), True, inject="target"
        )
