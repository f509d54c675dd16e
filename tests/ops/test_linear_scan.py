# SPDX-License-Identifier: Apache-2.0
"""The linear scan against its definition: any sign, complex numbers, packing, the same bits."""

import itertools

import pytest
import torch
from harness import (
    assert_names_the_misfit,
    assert_refuses_longer_tensors,
    assert_same,
    assert_second_derivatives,
    each_dtype,
    first_and_last_swapped,
)
from linear_scan_inputs import PACKED, SHAPES, SMALL, expected, make, op

from seqkern._runtime import library
from seqkern.errors import (
    BackendUnavailableError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import linear_scan
from seqkern.testing import Inputs, assert_close, run


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, dtype, isa, threads):
    x, truth, peers = expected(shape, dtype)
    for count in (1, 2):
        threads(count)
        assert_close(run(op, x, backend="cpu"), truth, no_worse_than=peers)


def test_without_a_state():
    x = make(SMALL, state=False)
    zeros = torch.zeros(2, 20)
    assert torch.equal(linear_scan(**x.tensors), linear_scan(**x.tensors, h0=zeros))


@pytest.mark.parametrize("width", [2064, 2056], ids=["aligned", "between cache lines"])
def test_large_tensors_have_the_bits_of_small_ones(width, isa):
    """What is written past the caches, 16 MB and more, is what would be written to them."""
    generator = torch.Generator().manual_seed(2)
    a, b, do = (torch.rand(4, 512, width, generator=generator) * 2 - 1 for _ in range(3))

    def both(i):
        leaves = [t[i].clone().requires_grad_() for t in (a, b)]
        x = linear_scan(*leaves, backend="cpu")
        return x.detach(), *torch.autograd.grad(x, leaves, do[i])

    whole = both(slice(None))
    assert whole[0].numel() * 4 >= 16 << 20
    for one, part in zip(whole, both(slice(2, 3)), strict=True):
        assert torch.equal(one[2:3], part)


def test_zeros_reset(isa):
    """What comes after a zero does not depend on what came before it."""
    x = make(SMALL)
    a = x.tensors["a"].clone()
    a[:, 20] = 0
    other = x.tensors["b"].clone()
    other[:, :20] = 7
    first, second = linear_scan(a, x.tensors["b"]), linear_scan(a, other)
    assert torch.equal(first[:, 20:], second[:, 20:])
    assert not torch.equal(first[:, :20], second[:, :20])


@each_dtype
def test_split_and_carry_equals_whole(dtype, isa):
    """The carried state is rounded to the dtype of the rows, so float32 alone has the same bits."""
    x = make((2, 150, (20,)), dtype)
    whole = linear_scan(**x.tensors)
    h, outs = x.tensors["h0"], []
    for begin, end in itertools.pairwise((0, 1, 3, 3, 70, 150)):
        part = linear_scan(x.tensors["a"][:, begin:end], x.tensors["b"][:, begin:end], h)
        h = part[:, -1] if end > begin else h
        outs.append(part)
    if dtype is torch.float32:
        assert torch.equal(torch.cat(outs, 1), whole)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0.05, atol=0.1)


def complex_inputs(shape, dtype=torch.complex64):
    draw = torch.Generator().manual_seed(3)

    def normal(*size):
        return torch.randn(*size, dtype=dtype, generator=draw)

    batch, T, rest = shape
    a = normal(batch, T, *rest)
    a = a / a.abs().pow(0.97)
    return {"a": a, "b": normal(batch, T, *rest), "h0": normal(batch, *rest)}


@pytest.mark.parametrize(
    "shape", [SMALL, (1, 1, (1,)), (2, 30, (3, 5)), (1, 9, (700,)), (2, 9, ())], ids=str
)
def test_complex(shape, isa):
    """Complex rows, their gradients included, against the definition in complex128."""
    x, results = complex_inputs(shape), []
    do = torch.randn(x["b"].shape, dtype=torch.complex64)
    for backend, dtype in (("cpu", torch.complex64), ("auto", torch.complex128)):
        leaves = [t.to(dtype).requires_grad_() for t in x.values()]
        y = linear_scan(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad(y, leaves, do.to(dtype))])
    for ours, truth in zip(*results, strict=True):
        assert ours.dtype is torch.complex64
        error = (ours.to(torch.complex128) - truth).abs().max()
        assert error <= 64 * 2.0**-24 * truth.abs().max()


def test_complex_views():
    """Conjugated and strided complex tensors are read as what they are."""
    x = complex_inputs(SMALL)
    for name in x:
        expected = linear_scan(**{**x, name: x[name].conj().resolve_conj()})
        assert torch.equal(linear_scan(**{**x, name: x[name].conj()}), expected), name
    wide = torch.stack([x["b"], x["b"]], -1)[..., 0]
    assert torch.equal(linear_scan(x["a"], wide, x["h0"]), linear_scan(**x))


def test_is_a_gated_rnn():
    """Backward Euler of h' = -h + u with steps exp(z) is the gated RNN with gates sigmoid(z)."""
    z, u = torch.randn(2, 2, 50, 8, dtype=torch.float64)
    dt = z.exp()
    euler = linear_scan(1 / (1 + dt), dt / (1 + dt) * u)
    gate = z.sigmoid()
    torch.testing.assert_close(linear_scan(1 - gate, gate * u), euler)


@pytest.mark.parametrize("lengths", [(4,), (3, 0, 1)], ids=str)
def test_second_derivatives_of_complex_rows(lengths):
    x = complex_inputs((1, 4, (3,)))
    x["h0"] = x["h0"].repeat(len(lengths), 1)
    offsets = {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0)}
    assert_second_derivatives(op, Inputs(x, offsets, None, None), shared=("a",))


@each_dtype
def test_opcheck(dtype):
    forward, backward = (library.find_op(f"linear_scan_{way}") for way in ("fwd", "bwd"))
    for shape in (SMALL, PACKED):
        x = make(shape, dtype)
        a, b, h0 = x.tensors.values()
        offsets = x.options.get("cu_seqlens")
        for state in (h0, None):
            torch.library.opcheck(forward, (a, b, state, offsets, False))
            y = forward(a, b, state, offsets, False)
            torch.library.opcheck(backward, (x.do, a, y, state, offsets, False))


@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=str)
def test_the_compiled_ops_refuse_what_does_not_fit(shape):
    """A compiled graph, which sees no offsets, has nobody else to ask."""
    forward, backward = (library.find_op(f"linear_scan_{way}") for way in ("fwd", "bwd"))
    x = make(shape)
    a, b, h0 = x.tensors.values()
    offsets = x.options.get("cu_seqlens")
    y = forward(a, b, h0, offsets, False)
    assert_refuses_longer_tensors(forward, (a, b, h0, offsets, False))
    assert_refuses_longer_tensors(backward, (x.do, a, y, h0, offsets, False))
    odd = [t[..., 1:] for t in (a, b)]
    for tensors, pairs in ((odd, True), ((a.half(), b.half()), True), ((a, b.half()), False)):
        with pytest.raises(RuntimeError, match=r"pairs must be float32|share one dtype"):
            forward(*tensors, None, offsets, pairs)


@pytest.mark.parametrize("offsets", [[1, 9], [0, 8], [0, 5, 4, 9]], ids=str)
def test_the_compiled_op_refuses_offsets(offsets):
    rows = torch.zeros(1, 9, 6)
    with pytest.raises(RuntimeError, match="`cu_seqlens` must rise from 0 to T = 9"):
        library.find_op("linear_scan_fwd")(rows, rows, None, torch.tensor(offsets), False)


def test_saved_tensors_may_be_laid_out_again():
    """As they are by a hook that keeps them elsewhere."""
    x = make(SMALL)
    expected = run(op, x)
    with torch.autograd.graph.saved_tensors_hooks(first_and_last_swapped, lambda t: t):
        assert_same(run(op, x), expected)


def test_offsets_beyond_int32():
    with torch.device("meta"):
        a = torch.empty(4, 2**19 + 7, 1025).requires_grad_()
    assert a.numel() > 2**31
    x = linear_scan(a, a)
    assert x.shape == a.shape
    assert torch.autograd.grad(x, a, x)[0].shape == a.shape


GOOD = {"a": torch.zeros(2, 9, 6), "b": torch.zeros(2, 9, 6)}


@pytest.mark.parametrize("misfit", ["a list", "sparse", "elsewhere"])
def test_names_the_argument_that_is_wrong(misfit):
    assert_names_the_misfit(linear_scan, {**GOOD, "h0": torch.zeros(2, 6)}, misfit)


BAD = {
    "a has one axis": ({"a": torch.zeros(9)}, ShapeError, r"`a` must be \[batch, T, ...\], got"),
    "b": ({"b": torch.zeros(2, 9, 5)}, ShapeError, r"shape of `a`, \[2, 9, 6\], got \[2, 9, 5\]"),
    "other dtypes": ({"a": torch.zeros(2, 9, 6).half()}, DTypeError, "must share one floating"),
    "integers": (
        {"a": torch.zeros(2, 9, 6).int(), "b": torch.zeros(2, 9, 6).int()},
        DTypeError,
        "one floating or complex dtype",
    ),
    "h0": ({"h0": torch.zeros(1, 6)}, ShapeError, r"\[sequences, ...\] = \[2, 6\], got \[1, 6\]"),
    "width of h0": ({"h0": torch.zeros(2, 5)}, ShapeError, r"= \[2, 6\], got \[2, 5\]"),
    "packed h0": (
        {**{n: torch.zeros(1, 9, 6) for n in "ab"}, "h0": torch.zeros(1, 6)}
        | {"cu_seqlens": torch.tensor([0, 4, 9])},
        ShapeError,
        r"= \[2, 6\], got \[1, 6\]",
    ),
    "integer h0": (
        {"h0": torch.zeros(2, 6).int()},
        DTypeError,
        "`h0` must be floating, or complex",
    ),
    "complex h0": ({"h0": torch.zeros(2, 6) * 1j}, DTypeError, "`h0` must be floating, or complex"),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "cuda"}, BackendUnavailableError, "no cuda kernel"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    with pytest.raises(error, match=message):
        linear_scan(**{**GOOD, **change})
