# SPDX-License-Identifier: Apache-2.0
"""Properties of the recurrent cells that hold for every shape, packing, option and dtype."""

import torch
from harness import DTYPES, assert_right
from hypothesis import given, settings
from hypothesis import strategies as st
from rnn_inputs import RnnShape, judges, op, rnn_inputs

from seqkern import ops
from seqkern.reference.flashrnn import CELLS

fixed = settings(max_examples=40, deadline=None, derandomize=True)
cells = st.sampled_from(sorted(CELLS))


@st.composite
def shapes(draw, narrowest=1):
    """Any batch or packing, any heads, any width."""
    return RnnShape(
        "any",
        B=draw(st.integers(0, 20)),
        T=draw(st.integers(0, 12)),
        N=draw(st.integers(1, 4)),
        D=draw(st.integers(narrowest, 70)),
        lengths=draw(st.none() | st.lists(st.integers(0, 12), max_size=6).map(tuple)),
    )


options = st.fixed_dictionaries(
    {
        "states": st.booleans(),
        "bias": st.booleans(),
        "reset": st.booleans(),
        "all_states": st.booleans(),
        "reverse": st.booleans(),
        "gradient_recurrent_cut": st.booleans(),
        "gradient_recurrent_clipval": st.sampled_from([None, 0.2, 2.0]),
    }
)


@fixed
@given(cell=cells, shape=shapes(8), dtype=st.sampled_from(DTYPES), making=options)
def test_any_call_matches_the_definition(cell, shape, dtype, making):
    # Few numbers have errors that are luck: narrower heads have their own cases in test_flashrnn.
    making = {**making, "gradient_recurrent_clipval": making["gradient_recurrent_clipval"] or 0.0}

    def draw(seed):
        x = rnn_inputs(cell, shape, dtype, seed=seed, **making)
        return x, *judges(x)

    assert_right(op, draw)


@fixed
@given(cell=cells, shape=shapes(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_cut_carries(cell, shape, dtype, data):
    """Two calls, cut anywhere, reach the states of one."""
    if shape.lengths is not None:
        shape = RnnShape("batch", B=2, T=shape.T, N=shape.N, D=shape.D)
    cut = data.draw(st.integers(0, shape.T))
    x = rnn_inputs(cell, shape, dtype)
    Wx, R, b, states = x.tensors.values()
    every, last = ops.flashrnn(Wx, R, b, states, cell)
    first, state = ops.flashrnn(Wx[:, :cut], R, b, states, cell)
    second, end = ops.flashrnn(Wx[:, cut:], R, b, state, cell)
    # Short calls may take their products in another order, and h rounds in a 16-bit product.
    tolerance = 1e-5 if dtype is torch.float32 else 4 * torch.finfo(dtype).eps
    parts = torch.cat([first, second], 2)
    torch.testing.assert_close(parts, every, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(end, last, rtol=tolerance, atol=tolerance)


@fixed
@given(cell=cells, shape=shapes(), dtype=st.sampled_from(DTYPES))
def test_sequences_do_not_see_each_other(cell, shape, dtype):
    """Whatever the others of a batch hold, a sequence gets the same values."""
    x = rnn_inputs(cell, shape, dtype)
    every, last = ops.flashrnn(**x.tensors, **x.options)
    if shape.lengths is not None or shape.B < 2:
        return
    other = {**x.tensors, "Wx": x.tensors["Wx"].clone()}
    other["Wx"][1:] = other["Wx"][1:].flip(1) * 2
    every2, last2 = ops.flashrnn(**other, **x.options)
    assert torch.equal(every2[:, :1], every[:, :1])
    assert torch.equal(last2[:, :1], last[:, :1])
