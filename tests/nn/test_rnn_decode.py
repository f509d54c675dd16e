# SPDX-License-Identifier: Apache-2.0
"""A single step without gradients, which has a kernel of its own: values, and when it is taken."""

import pytest
import torch
from rnn_layer_cases import HIDDEN, IN, KINDS, each_kind, tuple_of

from seqkern._runtime import backends
from seqkern.nn import _rnn_base


@each_kind
def test_heads_decode_like_the_whole(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, num_heads=3)
    x, state, outs = torch.randn(6, 2, IN), None, []
    with torch.no_grad():
        whole, last = layer(x)
        for part in x.split(1):
            y, state = layer(part, state)
            outs.append(y)
    torch.testing.assert_close(torch.cat(outs), whole, rtol=1e-5, atol=1e-5)
    for a, b in zip(tuple_of(last), tuple_of(state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _nothing(layer, monkeypatch):
    pass


def _named_backend(layer, monkeypatch):
    layer.backend = "reference"


def _preferred_backend(layer, monkeypatch):
    monkeypatch.setattr(backends, "preferred", "reference")


def _double(layer, monkeypatch):
    layer.double()


@each_kind
@pytest.mark.parametrize(
    ("change", "steps"),
    [(_nothing, 1), (_named_backend, 0), (_preferred_backend, 0), (_double, 0)],
    ids=["auto", "a named backend", "a preferred backend", "float64"],
)
def test_decodes_by_the_step_unless_told_otherwise(name, change, steps, monkeypatch):
    layer, taken, step = KINDS[name](IN, HIDDEN), [], _rnn_base.STEP
    monkeypatch.setattr(_rnn_base, "STEP", lambda *given: taken.append(1) or step(*given))
    change(layer, monkeypatch)
    x = torch.randn(1, 3, IN, dtype=layer.weight_ih_l0.dtype)
    expected = layer(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-6)
    assert len(taken) == steps


@each_kind
def test_decodes_without_the_library(name, monkeypatch):
    layer, x = KINDS[name](IN, HIDDEN), torch.randn(1, 3, IN)
    with torch.no_grad():
        expected = layer(x)[0]
        monkeypatch.setattr(_rnn_base, "STEP", None)
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-6)


@each_kind
def test_decodes_under_autocast(name):
    layer, x = KINDS[name](IN, HIDDEN), torch.randn(1, 3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)[0]
        with torch.no_grad():
            assert torch.equal(layer(x)[0], expected)
