# SPDX-License-Identifier: Apache-2.0
"""Each layer against its equations in plain torch, with all gradients."""

import inspect

import pytest
import torch
from layer_cases import CASES, Case, assert_no_worse, build, definition, inputs, truth_and_peers
from layer_cases import outputs_and_grads as run
from torch.nn import functional

from seqkern import ops
from seqkern.nn import DeltaNet, GatedLinearAttention


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


@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_gates_and_strengths_are_never_narrower_than_float32(case, T, monkeypatch):
    given = []

    def watch(op):
        def call(*tensors, **options):
            given.append(inspect.signature(op).bind(*tensors, **options).arguments)
            return op(*tensors, **options)

        return call

    for name in ops.__all__:
        if name.startswith(("chunk", "fused")):
            monkeypatch.setattr(ops, name, watch(getattr(ops, name)))
    layer, x = build(case, torch.bfloat16), inputs(2, T, torch.bfloat16)
    layer(x)
    (arguments,) = given
    gates = [arguments[name] for name in ("g", "gk", "beta") if arguments.get(name) is not None]
    assert gates
    assert all(gate.dtype is torch.float32 for gate in gates)
    if hasattr(layer, "A_log"):
        raw = layer.a_proj(x).double() + layer.dt_bias.double()
        g = -layer.A_log.double().exp() * functional.softplus(raw)
        torch.testing.assert_close(arguments["g"].double(), g, rtol=1e-5, atol=1e-7)


def test_a_log_decay_may_be_clamped_to_zero():
    case = Case("clamped", GatedLinearAttention, {"num_heads": 3, "clamp_min": 0})
    layer, x = build(case), inputs(2, 9)
    torch.testing.assert_close(layer(x)[0], definition(layer, x), rtol=1e-4, atol=1e-5)
    free = build(case, clamp_min=None)
    assert not torch.allclose(free(x)[0], layer(x)[0], rtol=1e-2)


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
