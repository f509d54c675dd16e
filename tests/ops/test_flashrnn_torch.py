# SPDX-License-Identifier: Apache-2.0
"""The cells inside torch: opcheck, inductor, single steps, autocast, derivatives, large shapes."""

import pytest
import torch
from harness import assert_gradients_have_the_shapes, assert_second_derivatives, leaves_of
from rnn_inputs import PACKED, SMALL, TINY, RnnShape, op, rnn_inputs

from seqkern import ops
from seqkern._runtime import library
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import grads_of, run

each_cell = pytest.mark.parametrize("cell", CELLS)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
def test_opcheck(cell, shape, dtype):
    x = rnn_inputs(cell, shape, dtype, reset=True)
    forward, backward = library.find_op("rnn_fwd"), library.find_op("rnn_bwd")
    Wx, R, b, s0 = x.tensors.values()
    inputs = (Wx, R, b, s0.squeeze(2), x.options.get("cu_seqlens"), x.options["reset"])
    for save, out_states in ((False, 1), (True, 1), (True, CELLS[cell].states)):
        arguments = (*inputs, cell, False, 0.0, out_states, save)
        torch.library.opcheck(forward, arguments)
    states, _, saved = forward(*arguments)
    dlast = x.dht.squeeze(2)
    for dstates, dends in ((x.do, dlast), (x.do[:1], None), (None, dlast)):
        gradient = (dstates, dends, *inputs[1:], states, saved, cell, False, 0.0, False, 0.0)
        torch.library.opcheck(backward, gradient)


@each_cell
def test_opcheck_of_time_major_and_absent_tensors(cell):
    Wx, R, _, _ = rnn_inputs(cell, SMALL).tensors.values()
    Wx = Wx.transpose(0, 1).contiguous().transpose(0, 1)
    arguments = (Wx, R, None, None, None, None, cell, True, 0.5, 1, True)
    torch.library.opcheck(library.find_op("rnn_fwd"), arguments)
    states, _, saved = library.find_op("rnn_fwd")(*arguments)
    gradient = (states, None, *arguments[1:6], states, saved, cell, True, 0.5, True, 0.1)
    torch.library.opcheck(library.find_op("rnn_bwd"), gradient)


@each_cell
def test_opcheck_of_the_step(cell):
    x = rnn_inputs(cell, RnnShape("step", B=3, T=1, N=2, D=5))
    Wx, R, b, s = x.tensors.values()
    for bias in (b, None):
        for first in (0, CELLS[cell].recurrent - 1):
            arguments = (Wx[:, 0], R, bias, s.squeeze(2), cell, 0.0, first)
            torch.library.opcheck(library.find_op("rnn_step"), arguments)


def test_compiles_with_inductor():
    x = rnn_inputs("lstm", SMALL, all_states=False)

    def call(Wx, **named):
        every, last = op(Wx=Wx * 2, **named)
        return every.sigmoid(), last

    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(call, x), rtol=1e-5, atol=1e-5)


@each_cell
def test_the_step_compiles(cell):
    torch._dynamo.reset()
    Wx, R, b, s = rnn_inputs(cell, SMALL).tensors.values()
    step = torch.compile(ops.flashrnn_step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = ops.flashrnn_step(Wx[:, 0], R, b, s, cell)
        assert torch.equal(step(Wx[:, 0], R, b, s, cell), expected)


@each_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(cell, dtype):
    """Under autocast Wx and R are cast; the bias and the states are not."""
    x = rnn_inputs(cell, SMALL)
    leaves = leaves_of(x)
    with torch.autocast("cpu", dtype):
        outs = ops.flashrnn(**leaves, **x.options)
        slow = ops.flashrnn(**leaves, **x.options, backend="reference")[0]
    assert outs[0].dtype == dtype
    assert outs[1].dtype == torch.float32
    torch.testing.assert_close(slow, outs[0], rtol=0.03, atol=0.03)
    explicit = ops.flashrnn(**leaves, **x.options, dtype=dtype)
    for a, b in zip(explicit, outs, strict=True):
        assert torch.equal(a, b)
    grads = grads_of(outs, list(leaves.values()), (x.do, x.dht))
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.dtype == leaf.dtype


def test_dtype_by_name():
    x = rnn_inputs("gru", SMALL)
    a = ops.flashrnn(**x.tensors, **x.options, dtype="bfloat16")
    b = ops.flashrnn(**x.tensors, **x.options, dtype=torch.bfloat16)
    assert a[0].dtype == torch.bfloat16
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


@each_cell
def test_second_derivatives_with_options(cell):
    x = rnn_inputs(cell, TINY, reverse=True, forward_clipval=0.6)
    assert_second_derivatives(op, x, shared=("Wx",))


@pytest.mark.parametrize(
    ("cell", "shape", "options"),
    [
        ("lstm", TINY, {"gradient_recurrent_cut": True}),
        ("gru", TINY, {"gradient_recurrent_clipval": 0.1}),
        ("lstm", RnnShape("packed", N=2, D=3, lengths=(2, 0, 5)), {"reset": True}),
    ],
    ids=["cut", "clip", "packed with resets"],
)
def test_hessian_vector_product_with_options(cell, shape, options):
    x = rnn_inputs(cell, shape, **options)
    results = []
    for backend in ("cpu", "reference"):
        R = x.tensors["R"].clone().requires_grad_()
        every, _ = ops.flashrnn(**{**x.tensors, "R": R}, **x.options, backend=backend)
        # A fixed gradient of h: clips of two summands are not the clip of their sum.
        (dR,) = torch.autograd.grad((every * x.do).sum(), R, create_graph=True)
        (product,) = torch.autograd.grad((dR * x.tensors["R"]).sum(), R)
        results.append((dR, product))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert results[0][1].abs().max() > 0


@each_cell
def test_offsets_beyond_int32(cell):
    """Shapes hold past 2**31 elements, on meta tensors."""
    kind = CELLS[cell]
    B, T, N, D = 4, 2**17, 64, 128
    with torch.device("meta"):
        Wx = torch.empty(B, T, kind.input, N, D, requires_grad=True)
        R = torch.empty(kind.recurrent, N, D, D, requires_grad=True)
        states = torch.empty(kind.states, B, 1, N, D, requires_grad=True)
    assert Wx.numel() > 2**31
    every, last = ops.flashrnn(Wx, R, None, states, cell)
    assert every.shape == (kind.states, B, T, N, D)
    assert last.shape == states.shape
    assert_gradients_have_the_shapes((every, last), (Wx, R, states))


def test_training_keeps_one_gate_tensor_and_the_states():
    """The saved buffer is at most one number per gate and state of every step."""
    forward = library.find_op("rnn_fwd")
    for function, cell in CELLS.items():
        x = rnn_inputs(function, RnnShape("wide", B=2, T=5, N=2, D=64))
        Wx, R, b, _ = x.tensors.values()
        *_, saved = forward(Wx, R, b, None, None, None, function, False, 0.0, 1, True)
        most = (max(cell.bias, 5 if function == "slstm" else 0) + cell.states) * 2 * 5 * 2 * 64
        assert saved.numel() <= most
        *_, saved = forward(Wx, R, b, None, None, None, function, False, 0.0, 1, False)
        assert saved.numel() == 0
