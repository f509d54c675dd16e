# SPDX-License-Identifier: Apache-2.0
"""Each layer against its equations in plain torch, with all gradients."""

import pytest
import torch
from layer_cases import CASES, assert_no_worse, build, definition, inputs, truth_and_peers
from layer_cases import outputs_and_grads as run

from seqkern import ops
from seqkern.nn import DeltaNet


def _forward(layer, x):
    return layer(x)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_matches_the_definition(case):
    layer, x = build(case), inputs(2, 37)
    assert_no_worse(run(layer, x, _forward), *truth_and_peers(layer, x))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_float64_is_exact(case):
    layer, x = build(case, torch.float64), inputs(2, 9, torch.float64)
    truth, ours = run(layer, x, definition), run(layer, x, _forward)
    for name, value in truth.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_gradients_flow_to_every_parameter(case):
    layer = build(case)
    grads = run(layer, inputs(1, 21), _forward)
    assert set(dict(layer.named_parameters())) <= set(grads)
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        assert grad.any(), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_modes_are_the_same_function(case):
    x = inputs(2, 5)
    chunk, recurrent = build(case), build(case, mode="fused_recurrent")
    assert_no_worse(run(recurrent, x, _forward), *truth_and_peers(chunk, x))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("T", [0, 1, 2])
def test_empty_and_single_step(case, T):
    layer, x = build(case), inputs(2, T)
    o, attention, cache = layer(x)
    assert (o.shape, attention, cache) == (x.shape, None, None)
    if T:
        assert_no_worse(run(layer, x, _forward), *truth_and_peers(layer, x))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_output_does_not_depend_on_grad_mode(case):
    layer, x = build(case), inputs(2, 70)
    with torch.no_grad():
        silent = layer(x)[0]
    assert torch.equal(silent, layer(x)[0].detach())


@pytest.mark.parametrize("qk_activation", ["silu", "relu", "elu", "identity"])
def test_queries_and_keys_sum_to_one_whatever_their_signs(qk_activation, monkeypatch):
    given = []
    op = ops.chunk_delta_rule
    monkeypatch.setattr(ops, "chunk_delta_rule", lambda *a, **o: given.append(a[:2]) or op(*a, **o))
    torch.manual_seed(0)
    layer = DeltaNet(hidden_size=48, qk_activation=qk_activation, qk_norm="sum").double()
    layer(inputs(2, 9, torch.float64))
    for x in given[0]:
        assert (x < 0).any() == (qk_activation in ("silu", "identity"))
        torch.testing.assert_close(x.sum(-1), torch.ones_like(x[..., 0]))


def test_keys_of_zeros_stay_zeros_when_they_shall_sum_to_one():
    layer = DeltaNet(hidden_size=48, qk_activation="relu", qk_norm="sum")
    x = torch.zeros(1, 3, 48, requires_grad=True)
    o = layer(x)[0]
    o.sum().backward()
    assert not o.any()
    assert x.grad.isfinite().all()
