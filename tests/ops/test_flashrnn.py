# SPDX-License-Identifier: Apache-2.0
"""The recurrent cells: values, gradients, packing, strides, options, the same bits."""

import itertools

import pytest
import torch
from harness import (
    DTYPES,
    RESTRIDE,
    assert_packed_equals_separate,
    assert_right,
    assert_same,
    assert_strides_change_nothing,
    each_dtype,
    leaves_of,
    time_before_batch,
)
from op_cases import RECURRENT, over
from rnn_inputs import PACKED, SHAPES, SMALL, RnnShape, definition, expected, op, rnn_inputs

from seqkern import ops
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import grads_of, run, yardstick

each_cell = pytest.mark.parametrize("cell", CELLS)


@each_cell
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id)
def test_matches_the_definition(cell, shape, dtype, isa, threads):
    x, *_ = expected(cell, shape, dtype)
    threads(1)
    alone = assert_right(op, lambda seed: expected(cell, shape, dtype, seed=seed))
    threads(2)
    assert_same(run(op, x, backend="cpu"), alone)


LONG = (
    RnnShape("one wide head for long", B=1, T=290, N=1, D=257),
    RnnShape("a tile that fills for long", N=1, D=8, lengths=(301, 200, 3)),
    RnnShape("tiles that share their sums", B=150, T=2, N=1, D=3),
)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", LONG, ids=lambda s: s.id)
def test_gradients_summed_in_many_parts(shape, dtype, isa):
    assert_right(op, lambda seed: expected("elman", shape, dtype, seed=seed))


OPTIONS = {
    "reverse": {"reverse": True},
    "reset": {"reset": True},
    "reset, reverse": {"reset": True, "reverse": True},
    "no states": {"states": False},
    "no bias": {"bias": False},
    "h alone": {"all_states": False},
    "h alone, no states, no bias": {"all_states": False, "states": False, "bias": False},
    "cut": {"gradient_recurrent_cut": True},
    "gradient clip": {"gradient_recurrent_clipval": 0.3},
    "cut, gradient clip": {"gradient_recurrent_cut": True, "gradient_recurrent_clipval": 0.05},
    "forward clip": {"forward_clipval": 0.4},
    "everything": {
        "reset": True,
        "reverse": True,
        "gradient_recurrent_clipval": 0.5,
        "forward_clipval": 0.5,
    },
}


@each_cell
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_match_the_definition(cell, shape, options):
    assert_right(op, lambda seed: expected(cell, shape, seed=seed, **options))


@each_cell
@pytest.mark.parametrize("options", [OPTIONS["everything"], OPTIONS["h alone"]], ids=str)
def test_options_on_every_isa(cell, options, isa):
    assert_right(op, lambda seed: expected(cell, PACKED, seed=seed, **options))


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    "options", [OPTIONS["reset, reverse"], OPTIONS["h alone"], OPTIONS["no states"]], ids=str
)
def test_options_in_sixteen_bits(cell, options, dtype):
    assert_right(op, lambda seed: expected(cell, PACKED, dtype, seed=seed, **options))


@over(RECURRENT, dtype=lambda case: case.dtypes)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
def test_packed_equals_separate_with_resets(case, dtype, reverse, isa):
    x = case.inputs(dtype, "packed", reset=True, reverse=reverse)
    assert_packed_equals_separate(case, x)


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("restride", RESTRIDE)
def test_strided_inputs(cell, dtype, restride):
    """Strides change no bit of any result, and the results follow the order of ``Wx``."""
    x = rnn_inputs(cell, SMALL, dtype, reset=True)
    every, _, dWx, *_ = assert_strides_change_nothing(op, x, restride)
    if restride is time_before_batch:
        assert every.transpose(1, 2).is_contiguous()
        assert dWx.transpose(0, 1).is_contiguous()
    views = {name: restride(t) for name, t in x.tensors.items()}
    reference, _ = ops.flashrnn(**views, **x.options, backend="reference")
    assert reference.stride() == every.stride()


@each_cell
@each_dtype
def test_inference_equals_training(cell, dtype, isa):
    """The forward pass that saves nothing gives the same bits, and so does h alone."""
    x = rnn_inputs(cell, SMALL, dtype, reset=True)
    got = run(op, x)
    every, last = ops.flashrnn(**x.tensors, **x.options)
    assert torch.equal(every, got["o"])
    assert torch.equal(last, got["ht"])
    h, last = ops.flashrnn(**x.tensors, **x.options, output_all_states=False)
    assert torch.equal(h, every[:1])
    assert torch.equal(last, got["ht"])


@each_cell
def test_every_returned_state_alone(cell):
    """A loss on one returned state takes the gradients of all the others as zero."""
    x = rnn_inputs(cell, SMALL)
    for i, which in itertools.product(range(CELLS[cell].states), (0, 1)):
        results = []
        for function in (op, definition):
            leaves = leaves_of(x)
            out = function(**leaves, **x.options)[which][i]
            dy = (x.do, x.dht)[which][i]
            results.append(grads_of([out], list(leaves.values()), [dy]))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("function", ["lstm", "slstm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_states_and_bias_in_other_dtypes(function, dtype):
    """They are read as float32, and their gradients come back in their own dtype."""
    x = rnn_inputs(function, SMALL)
    tensors = {n: t.to(dtype) if n in ("b", "states") else t for n, t in x.tensors.items()}
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    outs = ops.flashrnn(**leaves, **x.options)
    same = ops.flashrnn(**{n: t.float() for n, t in tensors.items()}, **x.options)
    for a, b in zip(outs, same, strict=True):
        assert torch.equal(a, b)
    for leaf, grad in zip(
        leaves.values(), grads_of(outs, list(leaves.values()), (x.do, x.dht)), strict=True
    ):
        assert grad.dtype == leaf.dtype
        assert grad.abs().max() > 0


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_wide_recurrence_beside_narrow_inputs(cell, dtype, isa):
    """A float32 R beside a 16-bit Wx loses no digits."""

    def draw(seed):
        x = rnn_inputs(cell, SMALL, dtype, seed=seed)
        x.tensors["R"] = x.tensors["R"].float()
        return x, *yardstick(definition, x)

    assert_right(op, draw)


@each_cell
@each_dtype
def test_step_equals_whole(cell, dtype, isa):
    """Single steps for decoding carry the states that the whole call reaches."""
    x = rnn_inputs(cell, SMALL, dtype)
    tensors, state = x.tensors, x.tensors["states"]
    _, last = ops.flashrnn(**tensors, **x.options)
    for t in range(SMALL.T):
        state = ops.flashrnn_step(tensors["Wx"][:, t], tensors["R"], tensors["b"], state, cell)
    # The product with a 16-bit R may round h in one of the two.
    tolerance = 1e-5 if dtype is torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(state, last, rtol=tolerance, atol=tolerance)
    assert state.dtype == torch.float32


@each_cell
@each_dtype
def test_step_matches_the_definition(cell, dtype, isa):
    shape = RnnShape("step", B=5, T=1, N=2, D=37)

    def step(output_final_state=True, **arguments):
        arguments["Wx"] = arguments["Wx"][:, 0]
        with torch.no_grad():
            states = ops.flashrnn_step(**arguments)
        return states[:1], states

    def whole(output_final_state=True, **arguments):
        with torch.no_grad():
            _, last = definition(**arguments)
        return last[:1], last

    for options in ({}, {"states": False}, {"bias": False}, {"forward_clipval": 0.3}):
        assert_right(
            step,
            lambda seed, options=options: (
                x := rnn_inputs(cell, shape, dtype, seed=seed, **options),
                *yardstick(whole, x),
            ),
        )


@each_cell
def test_step_on_the_reference(cell):
    x = rnn_inputs(cell, RnnShape("step", B=5, T=1, N=2, D=7), forward_clipval=0.3)
    Wx = x.tensors["Wx"][:, 0]
    got = ops.flashrnn_step(**{**x.tensors, "Wx": Wx}, **x.options, backend="reference")
    assert torch.equal(got, definition(**x.tensors, **x.options)[1])


@pytest.mark.parametrize("cell", ["lstm", "slstm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_states_and_bias_of_a_step_in_other_dtypes(cell, dtype):
    Wx, R, b, states = rnn_inputs(cell, SMALL).tensors.values()
    b, states = b.to(dtype), states.to(dtype)
    got = ops.flashrnn_step(Wx[:, 0], R, b, states, cell)
    assert torch.equal(got, ops.flashrnn_step(Wx[:, 0], R, b.float(), states.float(), cell))


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_step_of_a_wide_recurrence_beside_narrow_inputs(cell, dtype):
    Wx, R, b, states = rnn_inputs(cell, SMALL).tensors.values()
    Wx = Wx[:, 0].to(dtype)
    got = ops.flashrnn_step(Wx, R, b, states, cell)
    assert torch.equal(got, ops.flashrnn_step(Wx.float(), R, b, states, cell))


@each_cell
@pytest.mark.parametrize("restride", RESTRIDE)
def test_strided_inputs_of_a_step(cell, restride):
    x = rnn_inputs(cell, SMALL)
    tensors = {**x.tensors, "Wx": x.tensors["Wx"][:, 0]}
    views = {name: restride(t) for name, t in tensors.items()}
    expected = ops.flashrnn_step(**tensors, **x.options)
    assert torch.equal(ops.flashrnn_step(**views, **x.options), expected)


@each_cell
def test_a_strided_reset(cell):
    x = rnn_inputs(cell, SMALL, reset=True)
    expected = ops.flashrnn(**x.tensors, **x.options)
    reset = x.options["reset"].t().contiguous().t()
    for a, b in zip(
        ops.flashrnn(**x.tensors, **{**x.options, "reset": reset}), expected, strict=True
    ):
        assert torch.equal(a, b)


@each_cell
def test_a_step_shared_among_threads(cell, threads):
    Wx, R, b, states = rnn_inputs(cell, RnnShape("wide", B=8, T=1, N=4, D=136)).tensors.values()
    threads(1)
    expected = ops.flashrnn_step(Wx[:, 0], R, b, states, cell)
    torch.testing.assert_close(
        expected, ops.flashrnn(Wx, R, b, states, cell)[1], rtol=1e-5, atol=1e-5
    )
    threads(2)
    assert torch.equal(ops.flashrnn_step(Wx[:, 0], R, b, states, cell), expected)
