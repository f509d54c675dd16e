# SPDX-License-Identifier: Apache-2.0
"""The vectorized functions of the cells: their error over all floats, and at the edges."""

import math

import pytest
import torch

from seqkern import ops
from seqkern._runtime import library

# The largest errors that csrc/cpu/rnn_math.hpp states, in units in the last place.
STATED = {"sigmoid": 3, "tanh": 3, "log_sigmoid": 4}
# Those of exp(x) for x <= 0, by the op that shows it; the second is stated in functions.hpp.
STATED_EXP = {"slstm": 2, "gla": 1.5}
TRUTH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "log_sigmoid": torch.nn.functional.logsigmoid,
}
SMALLEST = 1.2e-38  # what is smaller may count as zero
each_function = pytest.mark.parametrize("name", STATED)


def activate(x, name):
    return library.find_op("rnn_activate")(x, name)


def all_floats(step):
    """Every ``step``-th float there is, NaN and infinities included."""
    bits = torch.arange(-(2**31), 2**31, step, dtype=torch.int64).to(torch.int32)
    return bits.view(torch.float32)


def dense_floats():
    """Every float near the points where the formulas change or values saturate, in part."""
    parts = [torch.linspace(-a, a, 1_000_001) for a in (1e-3, 0.7, 2.0, 10.0, 20.0, 110.0)]
    return torch.cat(parts)


def exponential(x, op):
    """exp(x) for x <= 0, where an op hands it out: after one step as a state."""
    x = x.view(1, -1, 1)
    if op == "gla":
        one, none = torch.ones(1, x.shape[1], 1, 1), torch.zeros(1, 1, x.shape[1], 1)
        _, state = ops.chunk_gla(
            none, none, none, x[None], initial_state=one, output_final_state=True
        )
        return state.flatten()
    # c' = exp(x - m) tanh(z), where m stays 0.
    gates = torch.stack([x, torch.full_like(x, 200), torch.full_like(x, 20), x], 1)
    states = torch.zeros(4, 1, 1, x.shape[1], 1)
    states[2] = 1
    R = torch.zeros(4, x.shape[1], 1, 1)
    return ops.flashrnn_step(gates, R, None, states, "slstm")[1].flatten()


def assert_error(x, got, truth, stated):
    assert got.isfinite().all()
    # The spacing of float32 at the true value.
    ulp = torch.exp2(truth.abs().clamp_min(SMALLEST).log2().floor() - 23)
    error = (got.double() - truth).abs() / ulp
    error[(truth.abs() < SMALLEST) & (got.abs() <= SMALLEST)] = 0
    worst = error.argmax()
    assert error[worst] <= stated, (x[worst].item(), got[worst].item(), truth[worst].item())


each_range = pytest.mark.parametrize(
    "floats", [lambda: all_floats(4999), dense_floats], ids=["all", "dense"]
)


@each_function
@each_range
def test_error_is_as_stated(name, floats, isa):
    x = floats()
    x = x[x.isfinite()]
    assert_error(x, activate(x, name), TRUTH[name](x.double()), STATED[name])


@pytest.mark.parametrize("op", STATED_EXP)
@each_range
def test_error_of_the_exponential_is_as_stated(op, floats, isa):
    x = floats()
    x = x[x.isfinite() & (x <= 0)][::7]
    assert_error(x, exponential(x, op), x.double().exp(), STATED_EXP[op])


@pytest.mark.parametrize("op", STATED_EXP)
def test_edges_of_the_exponential(op, isa):
    x = torch.tensor([-math.inf, 0.0, -0.0, -104.0])
    assert exponential(x, op).tolist() == [0, 1, 1, 0]
    assert exponential(torch.tensor([math.nan]), op).isnan().all()


@each_function
def test_infinities_and_nan(name, isa):
    x = torch.tensor([math.inf, -math.inf, math.nan] * 7)
    got, truth = activate(x, name), TRUTH[name](x)
    assert torch.equal(got.isnan(), truth.isnan())
    assert torch.equal(got[~got.isnan()], truth[~truth.isnan()])


def test_tanh_is_odd_and_keeps_the_sign_of_zero(isa):
    x = all_floats(65_537)
    x = x[x.isfinite()]
    assert torch.equal(activate(-x, "tanh"), -activate(x, "tanh"))
    zeros = activate(torch.tensor([0.0, -0.0]), "tanh")
    assert torch.equal(zeros.signbit(), torch.tensor([False, True]))


@each_function
def test_values_stay_in_range(name, isa):
    low, high = {"sigmoid": (0, 1), "tanh": (-1, 1), "log_sigmoid": (-math.inf, 0)}[name]
    x = torch.cat([all_floats(9973), dense_floats()])
    y = activate(x[~x.isnan()], name)
    assert low <= y.min()
    assert y.max() <= high


@each_function
def test_every_length(name, isa):
    """Tails shorter than a vector give the bits of full vectors."""
    x = torch.linspace(-9, 9, 67)
    whole = activate(x, name)
    for n in (0, 1, 7, 8, 15, 16, 17, 33, 67):
        assert torch.equal(activate(x[:n].clone(), name), whole[:n])
