# SPDX-License-Identifier: Apache-2.0
"""Carrying the state from call to call: equal to one call, whatever the pieces."""

import copy

import pytest
import torch
from layer_cases import (
    CASES,
    HIDDEN,
    MAIN,
    assert_no_worse,
    build,
    inputs,
    outputs_and_grads,
    truth_and_peers,
)

from seqkern import nn
from seqkern.errors import BackendUnavailableError, OptionError

T = 19
SPLITS = {
    "token by token": [1] * T,
    "several at once": [7, 5, 1, 6],
    "shorter than the convolution": [1, 2, 1, 3, 2, 10],
    "prompt and tokens": [16, 1, 1, 1],
    "an empty call": [9, 0, 10],
}


def pieces(sizes, total=T):
    assert sum(sizes) == total
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def carry(layer, x, sizes, mask=None, cache=None):
    outs = []
    for piece in pieces(sizes, x.shape[1]):
        part = None if mask is None else mask[:, : piece.stop]
        o, _, cache = layer(x[:, piece], part, past_key_values=cache, use_cache=True)
        outs.append(o)
    return torch.cat(outs, 1), cache


def close(layer, x, o, run=lambda m, t: m(t)[0]):
    truth, peers = truth_and_peers(layer, x, run, draws=4)
    assert_no_worse({"o": o}, {"o": truth["o"]}, [{"o": peer["o"]} for peer in peers])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_split_and_carry_equals_whole(case, split):
    layer, x = build(case), inputs(2, T)
    with torch.no_grad():
        o, cache = carry(layer, x, SPLITS[split])
    close(layer, x, o)
    assert cache.get_seq_length() == T


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_gradients_run_through_the_cache(case):
    layer, x = build(case), inputs(2, T)
    truth, peers = truth_and_peers(layer, x, lambda m, t: m(t)[0], draws=4)
    ours = outputs_and_grads(layer, x, lambda m, t: carry(m, t, [6, 1, 2, 10])[0])
    assert_no_worse(ours, truth, peers)


@pytest.mark.parametrize("sizes", [[12] + [1] * 7, [4, 5, 1, 9], [2] + [1] * 17], ids=str)
@pytest.mark.parametrize("side", ["left", "right and holes"])
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_mask_and_carry_equals_separate(case, side, sizes):
    layer, x, mask = build(case), inputs(3, T), torch.ones(3, T)
    if side == "left":
        mask[1, :3], mask[2, : sizes[0]] = 0, 0
    else:
        mask[0, 3:9], mask[1, 5:], mask[2, ::2] = 0, 0, 0
    with torch.no_grad():
        o, cache = carry(layer, x, sizes, mask)
        _whole, _, other = layer(x, mask, use_cache=True)
        alone = [layer(x[b : b + 1, mask[b] > 0], use_cache=True) for b in range(3)]
    close(layer, x, o, lambda m, t: m(t, mask)[0])
    assert cache.get_seq_length() == other.get_seq_length() == T
    for b in range(3):
        torch.testing.assert_close(o[b, mask[b] > 0], alone[b][0][0], rtol=1e-4, atol=1e-5)
        for states in (cache[0], other[0]):
            torch.testing.assert_close(
                states["recurrent_state"][b],
                alone[b][2][0]["recurrent_state"][0],
                rtol=1e-4,
                atol=1e-5,
            )
            for ours, theirs in zip(
                states["conv_state"], alone[b][2][0]["conv_state"], strict=True
            ):
                torch.testing.assert_close(ours[b], theirs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_packed_sequences_carry_their_states(case):
    layer, x = build(case), inputs(1, T)
    first, second = torch.tensor([0, 4, 4, 11]), torch.tensor([0, 1, 6, 8])
    with torch.no_grad():
        o1, _, cache = layer(x[:, :11], cu_seqlens=first, use_cache=True)
        o2, _, cache = layer(x[:, 11:], past_key_values=cache, use_cache=True, cu_seqlens=second)
        for i in range(3):
            a = slice(first[i], first[i + 1]), slice(11 + second[i], 11 + second[i + 1])
            whole = layer(torch.cat([x[:, s] for s in a], 1))[0]
            ours = torch.cat([o1[:, a[0]], o2[:, second[i] : second[i + 1]]], 1)
            torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_what_the_cache_holds(case):
    layer, x = build(case, layer_idx=1), inputs(2, 5)
    cache = layer(x, use_cache=True)[2]
    assert len(cache) == 2
    state = cache[1]
    assert state["recurrent_state"].dtype == torch.float32
    assert state["recurrent_state"].shape[0] == 2
    assert state["recurrent_state"].shape[2:] == (layer.head_k_dim, layer.head_v_dim)
    assert state["attn_state"] is state["ffn_state"] is None
    if not layer.use_short_conv:
        assert state["conv_state"] is None
        return
    for name, conv in zip("qkv", state["conv_state"], strict=True):
        module = getattr(layer, f"{name}_conv1d")
        W = module.kernel_size[0]
        raw = getattr(layer, f"{name}_proj")(x).transpose(1, 2)[..., -W:]
        torch.testing.assert_close(conv, raw)


@pytest.mark.parametrize("first", [True, False], ids=["prompt", "tokens"])
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_autocast_of_the_prompt_or_of_the_tokens_only(case, first):
    layer, x = build(case), inputs(2, 9)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            cache = layer(x[:, :8], use_cache=True)[2]
        cast = copy.deepcopy(cache)
        dtype = torch.float32 if first else torch.bfloat16
        cast.update(conv_state=tuple(s.to(dtype) for s in cast[0]["conv_state"]), offset=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=not first):
            o, o_cast = (layer(x[:, 8:], None, c, use_cache=True)[0] for c in (cache, cast))
    assert torch.equal(o, o_cast)
    for state, state_cast in zip(cache[0]["conv_state"], cast[0]["conv_state"], strict=True):
        assert torch.equal(state, state_cast)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_without_use_cache_the_cache_is_only_read(case):
    layer, x = build(case), inputs(2, 6)
    with torch.no_grad():
        cache = layer(x[:, :4], use_cache=True)[2]
        before = copy.deepcopy(cache)
        outs = [layer(x[:, 4:5], past_key_values=cache) for _ in range(2)]
    assert torch.equal(outs[0][0], outs[1][0])
    assert outs[0][2] is cache
    assert cache.get_seq_length() == 4
    assert torch.equal(cache[0]["recurrent_state"], before[0]["recurrent_state"])
    for now, then in zip(cache[0]["conv_state"], before[0]["conv_state"], strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_reorder_continues_the_chosen_beams(case):
    layer, x, beams = build(case), inputs(3, 6), torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = layer(x[:, :5], use_cache=True)[2]
        cache.reorder(beams)
        o = layer(x[:, 5:], past_key_values=cache, use_cache=True)[0]
        whole = layer(torch.cat([x[beams, :5], x[:, 5:]], 1))[0]
    torch.testing.assert_close(o, whole[:, 5:], rtol=1e-4, atol=1e-5)


def test_two_layers_share_a_cache():
    layers = [build(MAIN[2], layer_idx=0), build(MAIN[3], layer_idx=1, seed=3)]
    x, cache, outs = inputs(2, T), nn.Cache(), []

    def model(x, **cached):
        for layer in layers:
            x = x + layer(x, **cached)[0]
        return x

    with torch.no_grad():
        for piece in pieces(SPLITS["several at once"]):
            outs.append(model(x[:, piece], past_key_values=cache, use_cache=True))
        torch.testing.assert_close(torch.cat(outs, 1), model(x), rtol=1e-4, atol=1e-5)
    assert len(cache) == 2
    assert [cache.get_seq_length(i) for i in range(3)] == [T, T, 0]


def test_cache_protocol():
    cache = nn.Cache()
    assert (len(cache), cache.get_seq_length(), cache.get_max_cache_shape()) == (0, 0, None)
    with pytest.raises(KeyError, match="holds 0 layers, got layer_idx=0"):
        cache[0]
    with pytest.raises(KeyError, match="got layer_idx=-1"):
        cache[-1]
    S, C = torch.randn(2, 1, 3, 4), (torch.randn(2, 5, 4),)
    entry = cache.update(recurrent_state=S, conv_state=C, layer_idx=1, offset=7)
    assert entry is cache[1]
    assert cache[1]["recurrent_state"] is S
    assert cache[0] == dict.fromkeys(("recurrent_state", "attn_state", "conv_state", "ffn_state"))
    assert [cache.get_seq_length(i) for i in range(2)] == [0, 7]
    cache.update(ffn_state=S, layer_idx=1, offset=None)
    assert cache[1]["conv_state"] is C
    assert cache.get_seq_length(1) == 8
    assert [state["ffn_state"] is S for state in cache] == [False, True]
    assert repr(cache) == "Cache(layers=2, seen_tokens=0)"
    assert cache.to("cpu") is cache
    assert cache.to("meta")[1]["conv_state"][0].device.type == "meta"
    cache.reset()
    assert len(cache) == cache.get_seq_length(1) == 0


def test_the_cache_counts_on_from_the_tokens_seen_before():
    cache = nn.Cache(seen_tokens=5)
    assert cache.get_seq_length() == cache.get_seq_length(None) == cache.get_seq_length(3) == 5
    cache.update(layer_idx=1, offset=2)
    assert [cache.get_seq_length(i) for i in (None, 0, 1, 2)] == [5, 5, 7, 5]
    cache.reset()
    cache.update(layer_idx=0, offset=2)
    assert [cache.get_seq_length(i) for i in (None, 0, 1)] == [2, 2, 0]


def test_reorder_reaches_states_of_any_nesting():
    S, beams = torch.randn(3, 2), torch.tensor([2, 0], dtype=torch.int32)
    cache = nn.Cache()
    cache.update(recurrent_state=[S, -S], conv_state=(S,), ffn_state={"x": S, "of": "words"})
    cache.reorder_cache(beams)
    state, chosen = cache[0], S[[2, 0]]
    assert isinstance(state["recurrent_state"], list)
    assert isinstance(state["conv_state"], tuple)
    assert state["ffn_state"]["of"] == "words"
    assert torch.equal(state["recurrent_state"][1], -chosen)
    assert torch.equal(state["conv_state"][0], chosen)
    assert torch.equal(state["ffn_state"]["x"], chosen)


def test_the_cache_counts_no_tokens_back():
    with pytest.raises(OptionError, match="`offset` must be >= 0 or None, got -1"):
        nn.Cache().update(offset=-1)


def test_cache_appends_attention_states():
    cache, k = nn.Cache(), torch.randn(2, 5, 8)
    for piece in (slice(0, 3), slice(3, 5)):
        cache.update(attn_state=(k[:, piece], -k[:, piece]), offset=2)
    assert torch.equal(cache[0]["attn_state"][0], k)
    cache.update(attn_state=(k, -k), offset=5, cache_kwargs={"window_size": 4})
    assert torch.equal(cache[0]["attn_state"][1], -k[:, -4:])


def test_short_convolution_state():
    torch.manual_seed(0)
    conv, x = nn.ShortConvolution(HIDDEN, 4, bias=True), inputs(2, 9)
    whole, final = conv(x, output_final_state=True)
    torch.testing.assert_close(final, x[:, -4:].transpose(1, 2))
    with torch.no_grad():
        state, outs = None, []
        for t in range(9):
            y, state = conv(x[:, t : t + 1], cache=state, output_final_state=True)
            outs.append(y)
        torch.testing.assert_close(torch.cat(outs, 1), whole)
        torch.testing.assert_close(state, final)
        assert conv(x[:, :1])[1] is None
    mask = torch.ones(2, 9)
    mask[:, :3] = 0
    masked = conv(x, mask=mask)[0]
    torch.testing.assert_close(masked, conv(x * mask[..., None])[0])
    poisoned = x.masked_fill(mask[..., None] == 0, float("nan"))
    assert torch.equal(conv(poisoned, mask=mask)[0], masked)
    for other in (mask.bool(), -mask, 0.5 * mask):
        assert torch.equal(conv(x, mask=other)[0], masked)
    residual = conv(x, residual=x)[0]
    torch.testing.assert_close(residual, whole + x)
    with torch.no_grad():
        first = conv(x[:, :1], residual=x[:, :1])[0]
    torch.testing.assert_close(first, residual[:, :1])
    assert conv.state_size == HIDDEN * 4


@pytest.mark.parametrize("T", [1, 3])
def test_short_convolution_keeps_to_its_backend(T):
    conv, x = nn.ShortConvolution(HIDDEN, 4, backend="triton"), inputs(2, T)
    with torch.no_grad(), pytest.raises(BackendUnavailableError, match='backend="triton" for'):
        conv(x, output_final_state=True)
