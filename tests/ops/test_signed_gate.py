# SPDX-License-Identifier: Apache-2.0
"""Gated linear attention whose decays have signs: values, gradients, zeros, single steps."""

import functools
from dataclasses import replace

import pytest
import torch
from harness import assert_right, each_dtype
from specs import GLA, SHAPES, SMALL, with_signs

from seqkern import ops, reference
from seqkern.testing import Shape, assert_close, run, yardstick


def make(shape, dtype=torch.float32, seed=0):
    return with_signs(GLA.inputs(shape, dtype, seed=seed))


@functools.cache
def expected(shape, dtype=torch.float32, seed=0):
    x = make(shape, dtype, seed)
    assert shape.T < 10 or (x.tensors["g"] < 0).any()
    return x, *yardstick(reference.gla, x)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id)
def test_matches_the_definition(shape, dtype, isa):
    assert_right(ops.chunk_gla, lambda seed: expected(shape, dtype, seed))


def test_positive_decays_are_those_of_the_logarithm():
    """With ``g`` = exp(log decay) it is the op without signs, but for a rounding of the decay."""
    x = GLA.inputs(SMALL)
    tensors = {**x.tensors, "g": x.tensors["g"].exp()}
    for a, b in zip(
        ops.chunk_gla(**tensors, signed_gate=True, output_final_state=True),
        ops.chunk_gla(**x.tensors, output_final_state=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@functools.cache
def with_values(values, seed):
    x = make(Shape(B=2, T=150, H=2, K=32, V=32), seed=seed)
    g = x.tensors["g"].clone()
    rows = [5, 40, 41, 99]
    g[:, rows] = torch.tensor(values).repeat(4)[:4].view(1, 4, 1, 1).expand_as(g[:, rows])
    x = replace(x, tensors={**x.tensors, "g": g})
    return x, *yardstick(reference.gla, x)


@pytest.mark.parametrize(
    "values", [(0.0,), (-0.0,), (1.0, -1.0), (-1.0,), (1e-30, -1e-30), (1e-8, -1e-5)], ids=str
)
def test_special_decays(values, isa):
    """Zeros reset and still have a gradient; -1 reflects; tiny ones lose no digits."""
    got = assert_right(ops.chunk_gla, lambda seed: with_values(values, seed))
    assert got["dg"][:, [5, 40, 99]].abs().min() > 0


def test_flips_cost_nothing_over_a_long_time(isa):
    """A decay of -1 keeps the state's size for ever, with its sign."""
    T = 1000
    q = k = v = torch.zeros(1, T, 1, 16)
    h0 = torch.randn(1, 1, 16, 16)
    g = torch.full((1, T, 1, 16), -1.0)
    for length in (T, T - 1):
        _, h = ops.chunk_gla(
            *(t[:, :length] for t in (q, k, v, g)),
            initial_state=h0,
            output_final_state=True,
            signed_gate=True,
        )
        assert torch.equal(h, h0 if length % 2 == 0 else -h0)


@each_dtype
def test_recurrent_equals_chunk_and_steps(dtype, isa):
    x = make(Shape(B=2, T=20, H=2, HV=4, K=32, V=32), dtype)
    tensors = {"gk" if name == "g" else name: t for name, t in x.tensors.items()}
    o, ht = ops.chunk_gla(**x.tensors, **x.options, output_final_state=True)
    for a, b in zip(
        ops.fused_recurrent_gla(**tensors, **x.options, output_final_state=True),
        (o, ht),
        strict=True,
    ):
        assert torch.equal(a, b)
    h, outs = tensors.pop("initial_state"), []
    for t in range(20):
        row = {name: x[:, t : t + 1] for name, x in tensors.items()}
        y, h = ops.fused_recurrent_gla(
            **row, initial_state=h, signed_gate=True, output_final_state=True
        )
        outs.append(y)
    digits = 1e-4 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(torch.cat(outs, 1), o, rtol=digits, atol=digits)
    torch.testing.assert_close(h, ht, rtol=digits, atol=digits)


def test_reverse():
    x = make(SMALL)
    truth, peers = yardstick(reference.gla, x, reverse=True)
    tensors = {"gk" if name == "g" else name: t for name, t in x.tensors.items()}
    for backend in ("cpu", "reference"):
        got = run(
            ops.fused_recurrent_gla,
            replace(x, tensors=tensors),
            reverse=True,
            backend=backend,
        )
        got = {"dg" if name == "dgk" else name: t for name, t in got.items()}
        assert_close(got, truth, no_worse_than=peers)
