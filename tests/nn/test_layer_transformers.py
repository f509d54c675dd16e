# SPDX-License-Identifier: Apache-2.0
"""The layers with transformers' own cache classes."""

import pytest
import torch
from layer_cases import CASES, MAIN, build, inputs

from seqkern import nn
from seqkern.errors import SeqkernError, ShapeError

cache_utils = pytest.importorskip("transformers.cache_utils")
pytestmark = pytest.mark.skipif(
    not hasattr(cache_utils, "LinearAttentionLayer"), reason="needs transformers 5"
)


def linear_cache(layers=1):
    return cache_utils.Cache(layers=[cache_utils.LinearAttentionLayer() for _ in range(layers)])


def run(layer, x, cache, sizes, mask=None):
    outs, end = [], 0
    for size in sizes:
        start, end = end, end + size
        part = None if mask is None else mask[:, :end]
        o, _, same = layer(x[:, start:end], part, past_key_values=cache, use_cache=True)
        assert same is cache
        outs.append(o)
    return torch.cat(outs, 1)


@pytest.mark.parametrize("sizes", [[1] * 10, [6, 1, 1, 1, 1], [2, 3, 5]], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_transformers_cache_equals_ours(case, sizes):
    layer, x = build(case), inputs(2, 10)
    mask = torch.ones(2, 10)
    mask[1, :3] = 0
    with torch.no_grad():
        theirs = run(layer, x, linear_cache(), sizes, mask)
        assert torch.equal(theirs, run(layer, x, nn.Cache(), sizes, mask))


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_states_lie_where_transformers_keeps_them(case):
    layer, x, cache = build(case), inputs(2, 7), linear_cache()
    with torch.no_grad():
        run(layer, x, cache, [5, 1, 1])
        ours = layer(x, use_cache=True)[2][0]
    assert cache.has_previous_state(0)
    state = cache.get_recurrent_state(0)
    torch.testing.assert_close(state, ours["recurrent_state"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cache.get_conv_state(0), torch.cat(ours["conv_state"], 1))


def test_reset_starts_afresh():
    for case in (CASES[0], MAIN[2]):
        layer, x, cache = build(case), inputs(2, 7), linear_cache()
        with torch.no_grad():
            first = run(layer, x, cache, [7])
            cache.reset()
            assert torch.equal(run(layer, x, cache, [7]), first)


def test_reorder_follows_transformers():
    layer, x, cache = build(MAIN[2]), inputs(2, 7), linear_cache()
    beams = torch.tensor([1, 1])
    with torch.no_grad():
        run(layer, x[:, :6], cache, [6])
        cache.reorder_cache(beams)
        o = run(layer, x[:, 6:], cache, [1])
        whole = layer(torch.cat([x[beams, :6], x[:, 6:]], 1))[0]
    torch.testing.assert_close(o, whole[:, 6:], rtol=1e-4, atol=1e-5)


def test_dynamic_cache_grows_linear_layers():
    layers = [build(MAIN[2], layer_idx=0), build(MAIN[3], layer_idx=2)]
    x, cache = inputs(2, 9), cache_utils.DynamicCache()
    with torch.no_grad():
        for layer in layers:
            o = run(layer, x, cache, [4, 1, 4])
            torch.testing.assert_close(o, layer(x)[0], rtol=1e-4, atol=1e-5)
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert kinds == ["LinearAttentionLayer", "DynamicLayer", "LinearAttentionLayer"]


def test_a_subclass_of_a_cache_grows_linear_layers():
    class Own(cache_utils.DynamicCache):
        pass

    layer, x, cache = build(MAIN[2]), inputs(2, 9), Own()
    with torch.no_grad():
        o = run(layer, x, cache, [4, 1, 4])
        torch.testing.assert_close(o, layer(x)[0], rtol=1e-4, atol=1e-5)


def test_rejects_a_cache_of_fewer_layers():
    with pytest.raises(SeqkernError, match="layer 1 of the Cache is missing, not a linear"):
        build(MAIN[2], layer_idx=1)(inputs(2, 3), past_key_values=linear_cache())


def test_cache_of_a_qwen3_next_config():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3NextConfig(num_hidden_layers=4)
    cache = cache_utils.DynamicCache(config=config)
    layer, x = build(MAIN[2], layer_idx=1), inputs(2, 9)
    with torch.no_grad():
        o = run(layer, x, cache, [4, 1, 4])
        torch.testing.assert_close(o, layer(x)[0], rtol=1e-4, atol=1e-5)
    attention = build(MAIN[2], layer_idx=3)
    with pytest.raises(SeqkernError, match="layer 3 of the DynamicCache is DynamicLayer"):
        attention(x, past_key_values=cache)


def test_gradients_survive_a_cache_that_overwrites():
    layer, x = build(MAIN[2]), inputs(2, 9)
    whole = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    o = run(layer, x, linear_cache(), [4, 1, 4])
    split = torch.autograd.grad(o.square().sum(), list(layer.parameters()))
    for a, b in zip(split, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_rejects_a_cache_that_records_the_past():
    cache = linear_cache()
    cache.activate_past_recording()
    with pytest.raises(SeqkernError, match="records the past to roll it back"):
        build(MAIN[2])(inputs(2, 3), past_key_values=cache)


def test_rejects_a_cache_that_another_layer_has_filled():
    cache, x = linear_cache(), inputs(2, 3)
    nn.Mamba(x.shape[-1], layer_idx=0)(x, past_key_values=cache, use_cache=True)
    with pytest.raises(ShapeError, match="Another layer has filled them"):
        build(MAIN[2])(x, past_key_values=cache)
