# SPDX-License-Identifier: Apache-2.0
"""The selective scan against its definition: values, gradients, packing, the same bits."""

import math

import pytest
import torch
from harness import (
    DTYPES,
    MISFITS,
    assert_all_equal,
    assert_names_the_misfit,
    assert_right,
    assert_same,
    each_dtype,
)
from scan_inputs import PARTS, SHAPES, SMALL, definition, each_sign, expected, make, op

from seqkern.errors import (
    BackendUnavailableError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import selective_scan, selective_state_update
from seqkern.testing import Inputs, assert_close, run, yardstick


@each_sign
@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, dtype, negative, isa, threads):
    for count in (1, 2):
        threads(count)
        assert_right(op, lambda seed: expected(shape, dtype, negative, seed=seed))


@each_sign
@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS)], ids=lambda p: p or "bare")
def test_only_what_is_given(parts, negative):
    assert_right(op, lambda seed: expected(SMALL, negative=negative, parts=parts, seed=seed))


def test_without_softplus(isa):
    """``delta`` is the step itself; negative ones grow the state."""
    x = make(SMALL, parts=("D",))
    x.options["delta_softplus"] = False
    tensors = {**x.tensors, "delta": 0.02 * (x.tensors["delta"] + 2)}
    assert (tensors["delta"] < 0).any()
    x = Inputs(tensors, x.options, x.do, x.dht)
    truth, peers = yardstick(definition, x)
    assert_close(run(op, x, backend="cpu"), truth, no_worse_than=peers)
    assert_same(run(op, x.double()), truth)


def test_returns_what_was_asked_for():
    x = make(SMALL)
    out = selective_scan(**x.tensors, **x.options)
    both = selective_scan(**x.tensors, **x.options, return_last_state=True)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, both[0])
    assert both[1].dtype is torch.float32


@each_sign
def test_long_sums(negative):
    """Sums over 5,000 steps keep their digits: they are added chunk by chunk."""
    shape = (1, 5000, 3, 4, "cc", "t")
    assert_right(op, lambda seed: expected(shape, negative=negative, seed=seed))


@each_dtype
def test_parameters_of_other_dtypes(dtype):
    """A, B, C, D and the bias are read as float32 whatever they are."""
    kinds = {"A": torch.float64, "B": torch.float32, "C": torch.bfloat16, "D": torch.float64}
    x = make(SMALL, dtype, **kinds, delta=torch.float32, z=torch.bfloat16)
    got = run(op, x, backend="cpu")
    truth, peers = yardstick(definition, x)
    assert_close(got, truth, no_worse_than=peers)


@pytest.mark.parametrize("T", [0, 37])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_definition_computes_in_float32(dtype, T):
    """It rounds nothing but the output, or it would allow the kernel too much."""
    x = make((2, T, 20, 8, "22", "t"), dtype)
    x.tensors["initial_state"] = x.tensors["initial_state"].to(dtype)
    wide = {name: t.float() for name, t in x.tensors.items()}
    out, state = definition(**x.tensors, **x.options)
    expected, final = definition(**wide, **x.options)
    assert_all_equal((out, state), (expected.to(dtype), final))
    assert state.dtype is op(**x.tensors, **x.options)[1].dtype is torch.float32


@pytest.mark.parametrize("name", ["u", "delta", "z"])
def test_one_tensor_of_float64_takes_the_reference(name):
    x = make(SMALL, **{name: torch.float64})
    assert_same(run(op, x), run(definition, x))


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-3, 30.0, 1e4, 1e30])
@each_sign
def test_extreme_steps(step, negative, isa):
    """Steps of every size give the eigenvalue that they stand for: no overflow, no NaN."""
    A = torch.tensor([[-1e-3, -1.0, -50.0, -1e6]]).expand(3, 4)
    u, delta = torch.zeros(1, 3, 5), torch.full((1, 3, 5), step)
    B, C, h0 = torch.zeros(1, 4, 5), torch.ones(1, 4, 5), torch.ones(1, 3, 4)
    _, h = op(u, delta, A, B, C, initial_state=h0, allow_neg_eigval=negative, backend="cpu")
    a = (delta[0, :, :1].double() * A.double()).exp()
    a = 2 * a - 1 if negative else a
    torch.testing.assert_close(h[0].double(), a**5, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("step", [0.0, 1e-30, 1.0, 1e30])
@each_sign
def test_states_that_forget_at_once(step, negative, isa):
    """A at the end of float32, and -inf, makes an eigenvalue of 0, or -1: 0 * -inf alone is NaN."""
    A = torch.tensor([[-3.4e38, -float("inf")]])
    u, h0, nothing = torch.zeros(1, 1, 1), torch.ones(1, 1, 2), torch.zeros(1, 2, 1)
    delta = torch.full((1, 1, 1), step)
    options = {"initial_state": h0, "allow_neg_eigval": negative, "backend": "cpu"}
    _, h = op(u, delta, A, nothing, nothing, **options)
    moved = h0.clone()
    row = [t.squeeze(2) for t in (u, delta, nothing)]
    selective_state_update(moved, row[0], row[1], A, row[2], row[2], allow_neg_eigval=negative)
    a = (step * A.double()).exp().float()
    a = 2 * a - 1 if negative else a
    for state in (h[0], moved[0]):
        torch.testing.assert_close(state[~a.isnan()], a[~a.isnan()], rtol=0, atol=1e-37)


def test_eigenvalues_are_exponentials_to_the_last_places(isa):
    """exp(dt A) is off by at most 1.5 ulp, also where the exponent in base 2 ends in a half.

    Without fused multiply-adds the exponent is rounded first, to half an ulp of itself.
    """
    D, N = 64, 1024
    delta = torch.linspace(0.9, 1.1, D).view(1, D, 1)
    halves = (torch.arange(-115, 115) + 0.5) * math.log(2) / delta[0]
    A = torch.cat([torch.linspace(-80.0, 80.0, D * N).view(D, N), halves], 1)
    nothing, ones = torch.zeros(1, A.shape[1], 1), torch.ones(A.shape).unsqueeze(0)
    options = {"initial_state": ones, "return_last_state": True, "backend": "cpu"}
    _, h = selective_scan(torch.zeros(1, D, 1), delta, A, nothing, nothing, **options)
    exponent = delta[0].double() * A.double()
    truth = exponent.exp()
    error = (h[0].double() - truth).abs() / torch.exp2(truth.log2().floor() - 23)
    allowed = 1.5 + (2 * exponent.abs() if isa == "scalar" else 0)
    assert (error <= allowed).all(), error.max()


def test_nan_stays_and_spreads_no_further(isa):
    """A NaN spoils its own channel from its own step on, and nothing else."""
    x = make((2, 50, 20, 8, "cc", "t"), parts=("D",))
    good = selective_scan(**x.tensors, **x.options)
    for name in ("u", "delta"):
        bad = {**x.tensors, name: x.tensors[name].clone()}
        bad[name][1, 7, 20] = float("nan")
        got = selective_scan(**bad, **x.options)
        assert got[1, 7, 20:].isnan().all(), name
        got[1, 7, 20:] = good[1, 7, 20:]
        assert torch.equal(got, good), name


def test_layout_follows_the_input():
    """Channels that lie side by side come out side by side, and so do gradients."""
    for layout, dim in (("t", 2), ("d", 1)):
        x = make((2, 37, 20, 8, "11", layout))
        assert selective_scan(**x.tensors, **x.options).stride(dim) == 1
        got = run(op, x)
        assert all(got[name].stride(dim) == 1 for name in ("o", "du", "ddelta", "dz"))


GOOD = {
    "u": torch.zeros(2, 6, 9),
    "delta": torch.zeros(2, 6, 9),
    "A": torch.zeros(6, 4),
    "B": torch.zeros(2, 4, 9),
    "C": torch.zeros(2, 4, 9),
}
OPTIONAL = {
    "D": torch.zeros(6),
    "z": torch.zeros(2, 6, 9),
    "delta_bias": torch.zeros(6),
    "initial_state": torch.zeros(2, 6, 4),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_names_the_argument_that_is_wrong(misfit):
    assert_names_the_misfit(selective_scan, {**GOOD, **OPTIONAL}, misfit)


BAD = {
    "u has two axes": ({"u": torch.zeros(5, 6)}, ShapeError, r"`u` must be \[batch, D, T\], got"),
    "delta": ({"delta": torch.zeros(2, 5, 9)}, ShapeError, r"= \[2, 6, 9\], got \[2, 5, 9\]"),
    "delta transposed": (
        {"delta": torch.zeros(2, 9, 6)},
        ShapeError,
        r"got \[2, 9, 6\].\nIt looks transposed: pass `delta.transpose\(1, 2\)`",
    ),
    "A": ({"A": torch.zeros(5, 4)}, ShapeError, r"`A` must be \[D, N\] = \[6, at least 1\]"),
    "complex A": ({"A": torch.zeros(6, 4) * 1j}, DTypeError, "use `linear_scan`"),
    "B": ({"B": torch.zeros(2, 4, 8)}, ShapeError, r"`B` must be \[batch, N, T\] = \[2, 4, 9\]"),
    "no states": ({"A": torch.zeros(6, 0)}, ShapeError, r"`A` must be .* at least 1\] .* \[6, 0\]"),
    "B of another batch": (
        {"B": torch.zeros(1, 2, 4, 9)},
        ShapeError,
        r"`B` must be .* \[1, 2, 4, 9",
    ),
    "B of another width": (
        {"B": torch.zeros(2, 2, 5, 9)},
        ShapeError,
        r"`B` must be .* \[2, 2, 5, 9",
    ),
    "no groups of C": ({"C": torch.zeros(2, 0, 4, 9)}, ShapeError, "groups of `C` must .* got 0"),
    "groups of B": ({"B": torch.zeros(2, 4, 4, 9)}, ShapeError, "must divide D = 6, got 4"),
    "other groups": (
        {"B": torch.zeros(2, 3, 4, 9), "C": torch.zeros(2, 2, 4, 9)},
        ShapeError,
        "same number of groups, got 3 and 2",
    ),
    "groups of C alone": ({"C": torch.zeros(2, 2, 4, 9)}, ShapeError, "groups, got 1 and 2"),
    "D": ({"D": torch.zeros(5)}, ShapeError, r"`D` must be \[D\] = \[6\], got \[5\]"),
    "z": ({"z": torch.zeros(2, 6, 8)}, ShapeError, r"`z` must be \[batch, D, T\]"),
    "delta_bias": ({"delta_bias": torch.zeros(6, 1)}, ShapeError, r"`delta_bias` must be \[D\]"),
    "state": (
        {"initial_state": torch.zeros(1, 6, 4)},
        ShapeError,
        r"\[sequences, D, N\] = \[2, 6, 4\]",
    ),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**GOOD, **change})
