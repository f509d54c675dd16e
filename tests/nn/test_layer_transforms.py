# SPDX-License-Identifier: Apache-2.0
"""The layers under torch's transformations: compile, autocast, checkpoint, copies, other dtypes."""

import copy
import io

import pytest
import torch
from layer_cases import MAIN, assert_no_worse, build, definition, inputs, truth_and_peers
from layer_cases import outputs_and_grads as run
from torch.utils.checkpoint import checkpoint

from seqkern import nn

NARROW = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """The layers share one compiled frame; without this they would use up its recompilations."""
    torch.compiler.reset()


def _forward(layer, x):
    return layer(x)[0]


def _same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_compiles_fullgraph(case):
    layer = build(case)
    compiled = torch.compile(_forward, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (33, 70):
        x = inputs(2, T)
        _same(run(layer, x, compiled), run(layer, x, _forward))


def test_compiles_with_inductor():
    layer, x = build(MAIN[2]), inputs(2, 33)
    compiled = torch.compile(_forward, fullgraph=True)
    truth, peers = truth_and_peers(layer, x, draws=4)
    assert_no_worse(run(layer, x, compiled), truth, peers)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_compiles_with_mask_and_cache(case):
    layer, x, mask = build(case), inputs(2, 12), torch.ones(2, 12)
    mask[1, :4] = 0
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask)[0], layer(x, mask)[0])
        cache, outs = nn.Cache(), []
        for t in range(12):
            o = compiled(x[:, t : t + 1], past_key_values=cache, use_cache=True)[0]
            outs.append(o)
        torch.testing.assert_close(torch.cat(outs, 1), layer(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_export(case, grad):
    layer, T = build(case), torch.export.Dim("T", min=2, max=4096)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (inputs(2, 20),), dynamic_shapes=({1: T},))
        for length in (2, 50, 130):
            x = inputs(2, length)
            torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_autocast(case, dtype):
    layer, x = build(case), inputs(2, 37)

    def under(function):
        def cast(m, t):
            with torch.autocast("cpu", dtype):
                return function(m, t)

        return cast

    ours = run(layer, x, under(_forward))
    assert ours["o"].dtype == dtype
    assert ours["q_proj.weight"].dtype == torch.float32
    truth, _ = truth_and_peers(layer, x, draws=0)
    # The peer rounds what ours rounds: the projections; sums stay float32 in both.
    assert_no_worse(ours, truth, [run(layer, x, under(definition))])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_half_precision_weights(case, dtype):
    layer, x = build(case, dtype), inputs(2, 37, dtype)
    ours = run(layer, x, _forward)
    assert all(value.dtype == dtype for value in ours.values())
    assert_no_worse(ours, *truth_and_peers(layer, x, draws=2))
    with torch.no_grad():
        cache, outs = nn.Cache(), []
        for t in range(37):
            outs.append(layer(x[:, t : t + 1], past_key_values=cache, use_cache=True)[0])
    assert cache[0]["recurrent_state"].dtype == torch.float32
    truth, peers = truth_and_peers(layer, x, draws=2)
    carried = {"o": torch.cat(outs, 1)}
    assert_no_worse(carried, {"o": truth["o"]}, [{"o": peer["o"]} for peer in peers])


@pytest.mark.parametrize("dtype", [None, *NARROW], ids=str)
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_decodes_under_autocast(case, dtype):
    layer, x = build(case), inputs(2, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        o1, _, cache = layer(x[:, :5], use_cache=True)
        outs = [o1]
        for t in range(5, 8):
            outs.append(layer(x[:, t : t + 1], past_key_values=cache, use_cache=True)[0])
        whole = layer(x)[0]
    eps = torch.finfo(whole.dtype).eps
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_checkpoint(case, reentrant):
    layer, x = build(case), inputs(2, 21)
    again = run(layer, x, lambda m, t: checkpoint(_forward, m, t, use_reentrant=reentrant))
    _same(again, run(layer, x, _forward))


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_copies(case):
    layer, x = build(case), inputs(2, 21)
    o = layer(x)[0]
    assert torch.equal(copy.deepcopy(layer)(x)[0], o)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = build(case, seed=5)
    assert not torch.equal(other(x)[0], o)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x)[0], o)
    with torch.no_grad():
        cache = layer(x, use_cache=True)[2]
        twin = copy.deepcopy(cache)
        first = layer(x[:, :1], past_key_values=cache, use_cache=True)[0]
        assert torch.equal(layer(x[:, :1], past_key_values=twin, use_cache=True)[0], first)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_same_bits_twice(case):
    layer, x = build(case), inputs(2, 70)
    first, second = (run(layer, x, _forward) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_strided_inputs(case):
    layer, x = build(case), inputs(2, 21)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided)[0], layer(x)[0], rtol=1e-5, atol=1e-6)
