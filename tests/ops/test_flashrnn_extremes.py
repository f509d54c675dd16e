# SPDX-License-Identifier: Apache-2.0
"""The recurrent cells where gates are nearly 0 or 1, h is infinite, or clips are tiny."""

import pytest
import torch
from rnn_inputs import RnnShape, definition, op, rnn_inputs

from seqkern import ops
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import run

each_cell = pytest.mark.parametrize("cell", CELLS)
BFLOAT16_EPS = torch.finfo(torch.bfloat16).eps
# Cells and those of their bias gates that are squashed.
GATES = [("lstm", i) for i in range(4)] + [("slstm", i) for i in range(4)]
GATES += [("gru", 1), ("gru", 2), ("gru", 3), ("mgu", 1), ("mgu", 2), ("elman", 0)]

TANH = {("elman", 0), ("lstm", 2), ("slstm", 2), ("gru", 3), ("mgu", 2)}


def _saturated(cell, gate, bias, T):
    """Return bfloat16 inputs of which one gate is near an end of its range."""
    x = rnn_inputs(cell, RnnShape("saturated", B=2, T=T, N=1, D=20), torch.bfloat16)
    x.tensors["Wx"] = x.tensors["Wx"] * 0.25
    x.tensors["R"] = x.tensors["R"] * 0.125
    x.tensors["b"] = torch.zeros_like(x.tensors["b"])
    x.tensors["b"][gate] = bias
    return x


def _gradients(result):
    """Return the gradients by name, those of Wx gate by gate, for sizes differ by far."""
    gates = result["dWx"].unbind(2)
    return {f"dWx of {i}": g for i, g in enumerate(gates)} | {n: result[n] for n in ("dR", "db")}


def _distance(actual, truth):
    return ((actual.double() - truth).norm() / truth.norm()).item()


def _assert_as_good_as_the_definition(x):
    """The gradients err at most twice as much as those of the definition in bfloat16."""
    truth = _gradients(run(definition, x.double()))
    peer, actual = _gradients(run(definition, x)), _gradients(run(op, x, backend="cpu"))
    for name, expected in truth.items():
        allowed = 2 * _distance(peer[name], expected) + BFLOAT16_EPS
        assert _distance(actual[name], expected) <= allowed, name


@pytest.mark.parametrize(("cell", "gate"), GATES)
@pytest.mark.parametrize("bias", [-9.0, 5.0, 9.0])
def test_gradients_of_saturated_gates(cell, gate, bias, isa):
    """What is kept of a gate in 16 bits tells 1 - 1e-4 from 1."""
    if (cell, gate) in TANH:
        bias /= 2  # tanh(x) = 2 sigmoid(2 x) - 1
    _assert_as_good_as_the_definition(_saturated(cell, gate, bias, 40))


@pytest.mark.parametrize(("cell", "gate"), [("lstm", 1), ("slstm", 1), ("gru", 2), ("mgu", 1)])
def test_gates_near_one_do_not_drift(cell, gate):
    """A forget gate of 0.9999, a thousand times."""
    bias = -9.0 if cell == "mgu" else 9.0
    _assert_as_good_as_the_definition(_saturated(cell, gate, bias, 1000))


def test_slope_of_a_small_relu():
    Wx = torch.full((1, 1, 1, 1, 16), 2e-8).bfloat16().requires_grad_()
    every, _ = op(Wx=Wx, R=torch.zeros(1, 1, 16, 16).bfloat16(), function="elman_relu")
    every.sum().backward()
    assert torch.equal(Wx.grad, torch.ones_like(Wx))


def _pattern(x):
    return torch.stack([x.isnan(), x == torch.inf, x == -torch.inf])


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [1, 3, 16, 17, 100])
def test_infinite_h_does_as_in_the_definition(cell, dtype, D, isa):
    """Lanes beyond the width do not turn 0 times infinity into NaN for the others."""
    x = rnn_inputs(cell, RnnShape("infinite", B=3, T=4, N=2, D=D), dtype)
    x.tensors["states"][0, 1, 0, 0, 0] = torch.inf
    actual, expected = run(op, x, backend="cpu"), run(definition, x)
    # Where a gate's slope is 0, 0 times infinity depends on the order of the factors.
    gradients = ("dWx", "db") if cell in ("elman", "lstm", "mgu") else ()
    for name in ("o", "ht", *gradients):
        assert torch.equal(_pattern(actual[name]), _pattern(expected[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "mgu"])
def test_nan_under_a_clip_stays_nan(cell, dtype):
    shape = RnnShape("nan", B=2, T=3, N=1, D=16)
    x = rnn_inputs(cell, shape, dtype, forward_clipval=0.3)
    x.tensors["Wx"][0, 1] = torch.nan
    actual, expected = run(op, x, backend="cpu"), run(definition, x)
    for name in ("o", "ht", "dWx"):
        assert torch.equal(actual[name].isnan(), expected[name].isnan()), name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_clip_below_the_smallest_number(backend):
    x = rnn_inputs("elman", RnnShape("tiny", B=2, T=3, N=1, D=5), forward_clipval=1e-46)
    assert run(op, x, backend=backend)["o"].abs().max() < 1e-37
    Wx, R, b, states = x.tensors.values()
    step = ops.flashrnn_step(Wx[:, 0], R, b, states, "elman", backend, forward_clipval=1e-46)
    assert step.abs().max() < 1e-37


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_gradient_clip_below_the_smallest_number(backend):
    shape = RnnShape("tiny", B=2, T=3, N=1, D=5)
    x = rnn_inputs("elman", shape, gradient_recurrent_clipval=1e-46)
    assert run(op, x, backend=backend)["dstates"].abs().max() < 1e-37


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_gradient_at_a_clip_flows(backend):
    """As that of torch.clamp: h that equals the limit was not cut."""
    Wx = torch.full((1, 1, 1, 1, 16), 0.25, requires_grad=True)
    R = torch.zeros(1, 1, 16, 16)
    every, _ = ops.flashrnn(Wx, R, None, None, "elman_relu", backend, forward_clipval=0.25)
    every.sum().backward()
    assert torch.equal(Wx.grad, torch.ones_like(Wx))


@pytest.mark.parametrize("cell", ["gru", "mgu"])
def test_products_beyond_float16(cell, isa):
    """They are kept in 16 bits, as the largest there is."""
    x = rnn_inputs(cell, RnnShape("large", B=2, T=4, N=1, D=20), torch.bfloat16)
    x.tensors["R"][0] *= 1e6
    for gradient in run(op, x, backend="cpu").values():
        assert gradient.isfinite().all()


@pytest.mark.parametrize("i", [0.0, -200.0])
def test_ties_of_the_slstm(i, isa):
    """Of i with log s(f) + m, and of F n + I with 1."""
    x = rnn_inputs("slstm", RnnShape("tie", B=2, T=1, N=1, D=20), bias=False)
    x.tensors["R"].zero_()
    Wx, (_, _, n, m) = x.tensors["Wx"], x.tensors["states"]
    Wx[:, :, 0], Wx[:, :, 1] = i, 200
    n.fill_(1)
    m.zero_()
    actual, expected = run(op, x, backend="cpu"), run(definition, x)
    for name in ("dWx", "dstates"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)


def test_gradients_of_a_fresh_element_of_the_slstm(isa):
    """Its c goes on whole, however far log s(f) + m lies above i."""
    x = rnn_inputs("slstm", RnnShape("fresh", B=2, T=2, N=1, D=20))
    x.tensors["states"][2].zero_()
    x.tensors["states"][3] = 3
    actual, expected = run(op, x, backend="cpu"), run(definition, x)
    for name in ("dWx", "dR", "db", "dstates"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4)
