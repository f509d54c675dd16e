# SPDX-License-Identifier: Apache-2.0
"""Padding by mask, and packing by the caller, equal one call per sequence."""

import itertools

import pytest
import torch
from layer_cases import MAIN, assert_no_worse, build, inputs, outputs_and_grads, truth_and_peers

T = 24
MASKS = {
    "right": [[1] * 24, [1] * 17 + [0] * 7, [1] + [0] * 23],
    "left": [[0] * 3 + [1] * 21, [1] * 24, [0] * 22 + [1] * 2],
    "holes": [[1, 0, 1] * 8, [0, 0, 1, 1] * 6, [1] * 11 + [0] * 2 + [1] * 11],
    "one sequence empty": [[0] * 24, [1] * 24, [0] * 5 + [1] * 13 + [0] * 6],
}


def mask_of(name):
    return torch.tensor(MASKS[name])


def separately(mask):
    """One call per sequence, on its real tokens alone."""

    def run(layer, x):
        o = torch.zeros_like(x)
        for b, keep in enumerate(mask.bool()):
            if keep.any():
                o = o.index_put(
                    (torch.full_like(keep.nonzero()[:, 0], b), keep.nonzero()[:, 0]),
                    layer(x[b : b + 1, keep])[0][0],
                )
        return o

    return run


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
@pytest.mark.parametrize("name", MASKS)
def test_mask_equals_separate(case, name):
    layer, x, mask = build(case), inputs(3, T), mask_of(name)
    masked = outputs_and_grads(layer, x, lambda m, t: m(t, attention_mask=mask)[0])
    assert_no_worse(masked, *truth_and_peers(layer, x, separately(mask), draws=4))
    assert not masked["o"][mask == 0].any()
    assert not masked["dx"][mask == 0].any()


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_what_the_padding_holds_does_not_matter(case):
    layer, x, mask = build(case), inputs(3, T), mask_of("holes")
    poisoned = x.masked_fill(mask[..., None] == 0, float("nan"))
    assert torch.equal(layer(x, mask)[0], layer(poisoned, mask)[0])


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_masks_of_any_type(case):
    layer, x, mask = build(case), inputs(3, T), mask_of("left")
    expected = layer(x, mask)[0]
    for other in (mask.bool(), mask.float(), mask.int(), 3 * mask, -mask, 0.5 * mask):
        assert torch.equal(layer(x, other)[0], expected)
    assert torch.equal(layer(x, torch.ones(3, T))[0], layer(x)[0])


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_no_tokens_beside_a_mask_of_those_before(case):
    layer, x, mask = build(case), inputs(3, T), mask_of("left")
    _, _, cache = layer(x, mask, use_cache=True)
    before = cache[0]["recurrent_state"].clone()
    o, _, cache = layer(x[:, :0], mask, past_key_values=cache, use_cache=True)
    assert o.shape == (3, 0, x.shape[-1])
    assert torch.equal(cache[0]["recurrent_state"], before)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_all_padding(case):
    layer = build(case)
    o, _, cache = layer(inputs(2, 5), torch.zeros(2, 5), use_cache=True)
    assert not o.any()
    assert not cache[0]["recurrent_state"].any()


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_packed_equals_separate(case, dtype):
    layer, x = build(case), inputs(1, T)
    bounds = [0, 2, 2, 3, 17, T]
    cu_seqlens = torch.tensor(bounds, dtype=dtype)

    def run(m, t):
        parts = [m(t[:, a:b])[0] for a, b in itertools.pairwise(bounds) if b > a]
        return torch.cat(parts, 1)

    packed = outputs_and_grads(layer, x, lambda m, t: m(t, cu_seqlens=cu_seqlens)[0])
    assert_no_worse(packed, *truth_and_peers(layer, x, run, draws=4))


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_cu_seqlens_win_over_a_mask(case):
    layer, x, cu_seqlens = build(case), inputs(1, 10), torch.tensor([0, 4, 10])
    both = layer(x, torch.zeros(1, 10), cu_seqlens=cu_seqlens)[0]
    assert torch.equal(both, layer(x, cu_seqlens=cu_seqlens)[0])
