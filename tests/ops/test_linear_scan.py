# SPDX-License-Identifier: Apache-2.0
"""The linear scan against its definition: any sign, complex numbers, packing, the same bits."""

import functools
import itertools

import pytest
import torch

from seqkern import reference
from seqkern._runtime import backends, library
from seqkern._runtime.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import linear_scan
from seqkern.testing import Inputs, assert_close, grads_of, run, yardstick

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# batch, T (or the lengths of packed sequences), the rest of the shape
SHAPES = {
    "one step": (2, 1, (5,)),
    "one channel": (2, 70, (1,)),
    "odd width": (2, 63, (37,)),
    "several blocks of channels": (2, 40, (2500,)),
    "no channels named": (3, 40, ()),
    "heads and states": (2, 30, (3, 4, 5)),
    "packed, with empty and short ones": (1, (0, 1, 70, 3, 0, 32, 0), (40,)),
}
SMALL, PACKED = (2, 37, (20,)), (1, (5, 0, 40, 30), (20,))


def make(shape, dtype=torch.float32, state=True, seed=0):
    batch, T, rest = shape
    options = {}
    lengths = None if isinstance(T, int) else T
    if lengths is not None:
        T = sum(lengths)
        options["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0)
    sequences = batch if lengths is None else len(lengths)
    draw = torch.Generator().manual_seed(seed)
    a = 2 * torch.rand(batch, T, *rest, generator=draw) - 1
    a = a.sign() * a.abs().pow(0.1)  # mostly near -1 or 1
    b, do = (torch.randn(batch, T, *rest, generator=draw) for _ in range(2))
    tensors = {"a": a.to(dtype), "b": b.to(dtype)}
    if state:
        tensors["h0"] = torch.randn(sequences, *rest, generator=draw)
    return Inputs(tensors, options, do.to(dtype), torch.zeros(1))


def op(*args, output_final_state=True, **named):
    """`linear_scan` with a second output that nothing depends on, as `run` wants it."""
    x = linear_scan(*args, **named)
    return x, torch.zeros(1, dtype=x.dtype)


def definition(output_final_state=True, **named):
    x = reference.linear_scan(**named)
    return x, torch.zeros(1, dtype=x.dtype)


@functools.cache
def expected(shape, dtype):
    x = make(shape, dtype)
    return x, *yardstick(definition, x)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


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


def test_large_tensors_have_the_bits_of_small_ones(isa):
    """What is written past the caches, 16 MB and more, is what would be written to them."""
    generator = torch.Generator().manual_seed(2)
    a, b, do = (torch.rand(4, 512, 2064, generator=generator) * 2 - 1 for _ in range(3))

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


@each_dtype
def test_packed_equals_separate(dtype, isa):
    x = make(PACKED, dtype)
    packed = run(op, x)
    for i, (a, b) in enumerate(itertools.pairwise(x.options["cu_seqlens"].tolist())):
        cut = {n: x.tensors[n][:, a:b] for n in ("a", "b")}
        cut["h0"] = x.tensors["h0"][i : i + 1]
        alone = run(op, Inputs(cut, {}, x.do[:, a:b], x.dht))
        for name in ("o", "da", "db"):
            assert torch.equal(alone[name], packed[name][:, a:b]), name
        assert torch.equal(alone["dh0"][0], packed["dh0"][i])


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
    for backend, dtype in (("cpu", torch.complex64), ("reference", torch.complex128)):
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
    expected = linear_scan(x["a"].conj().resolve_conj(), x["b"], x["h0"])
    assert torch.equal(linear_scan(x["a"].conj(), x["b"], x["h0"]), expected)
    wide = torch.stack([x["b"], x["b"]], -1)[..., 0]
    assert torch.equal(linear_scan(x["a"].conj(), wide, x["h0"]), expected)


def test_is_a_gated_rnn():
    """Backward Euler of h' = -h + u with steps exp(z) is the gated RNN with gates sigmoid(z)."""
    z, u = torch.randn(2, 2, 50, 8, dtype=torch.float64)
    dt = z.exp()
    euler = linear_scan(1 / (1 + dt), dt / (1 + dt) * u)
    gate = z.sigmoid()
    torch.testing.assert_close(linear_scan(1 - gate, gate * u), euler)


def _sliced(t):
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def _swapped(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("restride", [_sliced, _swapped])
@pytest.mark.parametrize("shape", [SMALL, SHAPES["heads and states"]], ids=["flat", "nested"])
def test_strided_inputs(restride, shape, isa):
    x = make(shape)
    odd = Inputs({n: restride(t) for n, t in x.tensors.items()}, {}, restride(x.do), x.dht)
    outs = []
    for y in (x, odd):
        leaves = [t.detach().requires_grad_() for t in y.tensors.values()]
        o = linear_scan(*leaves)
        outs.append([o, *torch.autograd.grad(o, leaves, y.do)])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "shape",
    [(2, 0, (5,)), (0, 5, (5,)), (1, (0, 0), (5,)), (1, (), (5,)), (2, 6, (0,)), (2, 6, (3, 0))],
    ids=["T=0", "B=0", "empty sequences", "no sequences", "D=0", "no states"],
)
def test_empty_and_single_step(shape, isa):
    x, truth, peers = expected(shape, torch.float32)
    assert_close(run(op, x, backend="cpu"), truth, no_worse_than=peers)


@each_dtype
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=["batch", "packed"])
def test_writes_every_output(shape, dtype, isa, poisoned):
    for name, result in run(op, make(shape, dtype)).items():
        assert not result.isnan().any(), name


@each_dtype
def test_same_bits_twice_and_for_every_thread_count(dtype, isa, threads):
    x = make((3, 200, (1500,)), dtype)
    threads(1)
    alone = run(op, x)
    for count in (1, 2, 3):
        threads(count)
        assert_same(run(op, x), alone)


def test_gradcheck_reference():
    x = make((1, 4, (3,))).double()
    leaves = [t.requires_grad_() for t in x.tensors.values()]
    assert torch.autograd.gradcheck(reference.linear_scan, leaves)
    assert torch.autograd.gradgradcheck(reference.linear_scan, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_second_derivatives(dtype):
    x = complex_inputs((1, 4, (3,))) if dtype.is_complex else make((1, 4, (3,))).tensors
    results = []
    for backend in ("cpu", "reference"):
        leaves = [t.clone().requires_grad_() for t in x.values()]
        loss = linear_scan(*leaves, backend=backend).abs().pow(3).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        total = sum(d.abs().square().sum() for d in first)
        results.append([*first, *torch.autograd.grad(total, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


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


def test_compiles_fullgraph():
    torch._dynamo.reset()
    compiled = torch.compile(linear_scan, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (38, 43, 80):
        x = make((2, T, (20,)))
        results = []
        for function in (linear_scan, compiled):
            leaves = [t.clone().requires_grad_() for t in x.tensors.values()]
            y = function(*leaves)
            results.append([y, *grads_of([y], leaves, [x.do])])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_offsets_beyond_int32():
    with torch.device("meta"):
        a = torch.empty(4, 2**19 + 7, 1025).requires_grad_()
    assert a.numel() > 2**31
    x = linear_scan(a, a)
    assert x.shape == a.shape
    assert torch.autograd.grad(x, a, x)[0].shape == a.shape


def test_slow_path_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    x = make(SMALL).double()
    for _ in range(2):
        assert torch.equal(linear_scan(**x.tensors), reference.linear_scan(**x.tensors))
    assert ["float64 has no compiled kernel" in r.getMessage() for r in caplog.records] == [True]


GOOD = {"a": torch.zeros(2, 9, 6), "b": torch.zeros(2, 9, 6)}
BAD = {
    "a is no tensor": ({"a": 0.5}, DTypeError, "`a` must be a torch.Tensor, got float"),
    "a has one axis": ({"a": torch.zeros(9)}, ShapeError, r"`a` must be \[batch, T, ...\], got"),
    "b": ({"b": torch.zeros(2, 9, 5)}, ShapeError, r"shape of `a`, \[2, 9, 6\], got \[2, 9, 5\]"),
    "other dtypes": ({"a": torch.zeros(2, 9, 6).half()}, DTypeError, "must share one floating"),
    "integers": (
        {"a": torch.zeros(2, 9, 6).int(), "b": torch.zeros(2, 9, 6).int()},
        DTypeError,
        "one floating or complex dtype",
    ),
    "h0": ({"h0": torch.zeros(1, 6)}, ShapeError, r"\[sequences, ...\] = \[2, 6\], got \[1, 6\]"),
    "complex h0": ({"h0": torch.zeros(2, 6) * 1j}, DTypeError, "`h0` must be floating, or complex"),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "device": ({"b": torch.zeros(2, 9, 6, device="meta")}, DeviceError, "`b` must be on"),
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "cuda"}, BackendUnavailableError, "no cuda kernel"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    with pytest.raises(error, match=message):
        linear_scan(**{**GOOD, **change})
