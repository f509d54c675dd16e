# SPDX-License-Identifier: Apache-2.0
"""The root-mean-square norm against its definition: values, gradients, strides, the same bits."""

import itertools

import pytest
import torch
from harness import DTYPES, each_dtype
from norm_inputs import SHAPES, SMALL, definition, make, op, truth_and_peer

from seqkern.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import rms_norm_gated
from seqkern.testing import Inputs, assert_close, run


@each_dtype
@pytest.mark.parametrize(
    ("gate", "parts", "wide"),
    [
        ("swish", ("weight",), False),
        ("sigmoid", ("weight", "bias", "residual"), False),
        ("silu", ("bias", "residual"), True),
        (None, ("weight", "bias", "residual"), True),
        (None, ("weight",), False),
    ],
    ids=["gated", "all", "no weight, wide stream", "plain, all", "plain"],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, gate, parts, wide, dtype, isa, threads):
    stream = torch.float32 if wide else dtype
    x, truth, peer = truth_and_peer(shape, dtype, gate, parts, stream)
    for count in (1, 2):
        threads(count)
        assert_close(run(op, x, backend="cpu"), truth, no_worse_than=peer, factor=2)


@each_dtype
def test_one_column(dtype, isa):
    """Gradients of single numbers that cancel: measured against the sum of their magnitudes."""
    x = make((70, 1), dtype)
    got, truth = run(op, x, backend="cpu"), run(definition, x.double())
    for name, t in got.items():
        atol = 4 * torch.finfo(dtype).eps * (70 if t.numel() == 1 else 4)
        torch.testing.assert_close(t.double(), truth[name], rtol=0, atol=atol)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e3, 1e18], ids=str)
def test_any_magnitude(scale, isa):
    """Squares of large and small rows neither overflow nor vanish before they have to."""
    x = make(SMALL, parts=("weight",))
    x.tensors["x"].mul_(scale)
    assert_close(
        run(op, x, backend="cpu"), run(definition, x.double()), no_worse_than=run(definition, x)
    )


@each_dtype
def test_extreme_gates(dtype, isa):
    """The gate saturates without NaN, forwards and backwards."""
    x = make((4, 18), dtype)
    x.tensors["g"][:] = torch.tensor([-60000.0, -100.0, 100.0, 1000.0]).to(dtype).unsqueeze(1)
    for gate in ("swish", "sigmoid"):
        for name, t in run(op, Inputs(x.tensors, {"activation": gate}, x.do, x.dht)).items():
            assert t.isfinite().all(), name


@each_dtype
@pytest.mark.parametrize("other", DTYPES, ids=str)
def test_gate_of_another_dtype(dtype, other):
    """Mixed dtypes are read in the wider one, and every result keeps its own."""
    x = make(SMALL, dtype, "sigmoid", eps=0.5, g=other)
    got = run(op, x)
    wide = torch.promote_types(dtype, other)
    widened = {name: t.to(wide) for name, t in x.tensors.items()}
    expected = run(op, Inputs(widened, x.options, x.do, x.dht))
    for name, t in got.items():
        own = x.tensors[name[1:]].dtype if name[1:] in x.tensors else dtype
        assert t.dtype == own, name
        eps = torch.finfo(own).eps
        torch.testing.assert_close(t, expected[name].to(own), rtol=2 * eps, atol=8 * eps)


def test_residual_streams():
    """What ``prenorm`` returns: x itself, x in float32, or the sum in the residual's dtype."""
    x = make(SMALL, torch.bfloat16, parts=("weight",))
    tensors = x.tensors
    _, stream = rms_norm_gated(**tensors, prenorm=True)
    assert stream is tensors["x"]
    assert isinstance(rms_norm_gated(**tensors), torch.Tensor)
    for backend in ("cpu", "reference"):
        _, stream = rms_norm_gated(**tensors, prenorm=True, residual_in_fp32=True, backend=backend)
        assert stream.dtype == torch.float32
        assert torch.equal(stream, tensors["x"].float())
    wide, g = tensors["x"].double(), tensors["g"]
    for x, gate, kind in ((wide.float(), g.float(), torch.float32), (wide, g, torch.float64)):
        for backend in ("auto", "reference"):
            _, stream = rms_norm_gated(
                x, gate, None, prenorm=True, residual_in_fp32=True, backend=backend
            )
            assert stream.dtype is kind
            assert torch.equal(stream, x)
    residual = torch.randn(SMALL)
    y, stream = rms_norm_gated(**tensors, residual=residual, prenorm=True)
    assert torch.equal(stream, tensors["x"] + residual)
    assert y.dtype == torch.bfloat16
    for g in (tensors["g"], tensors["g"].float()):
        leaf = tensors["x"].clone().requires_grad_()
        _, stream = rms_norm_gated(leaf, g, None, prenorm=True, residual_in_fp32=True)
        assert stream.dtype == torch.float32
        (grad,) = torch.autograd.grad(stream.sum(), leaf)
        assert torch.equal(grad, torch.ones_like(leaf))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_sums_are_rounded_as_torch_rounds(dtype, isa):
    """Of every number, with numbers beyond the largest, and half way between two."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(256, 256)
    # The bfloat16 unit of the CPU takes subnormal numbers for 0.
    atol = torch.finfo(dtype).tiny if isa == "avx512_bf16" and dtype is torch.bfloat16 else 0
    for residual in (torch.zeros_like(x), x.roll(1, 1), x.flip(0)):
        _, stream = op(x=x, residual=residual, weight=None, backend="cpu")
        expected = (x.float() + residual.float()).to(dtype)
        torch.testing.assert_close(stream, expected, rtol=0, atol=atol, equal_nan=True)


def test_expanded_tensors():
    """Rows with stride 0: a gradient as ``sum()`` makes it, a gate shared by all heads."""
    x = make((3, 4, 5, 16), parts=("weight",))
    tensors = {**x.tensors, "g": x.tensors["g"][:, :, :1].expand(3, 4, 5, 16)}
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = rms_norm_gated(**leaves)
    assert torch.equal(y, rms_norm_gated(**{n: t.contiguous() for n, t in tensors.items()}))
    summed = torch.autograd.grad(y.sum(), list(leaves.values()), retain_graph=True)
    dense = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    for a, b in zip(summed, dense, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (0, 8)], ids=str)
@pytest.mark.parametrize("gate", ["swish", None])
def test_empty(shape, gate, isa):
    x = make(shape, gate=gate)
    for name, t in run(op, x, backend="cpu").items():
        assert t.numel() == 0 or not t.any(), name


def test_same_bits_for_every_batch(isa):
    """A row's result does not depend on the rows beside it."""
    x = make((70, 40))
    y, stream = op(**x.tensors, **x.options)
    for a, b in itertools.pairwise((0, 1, 33, 70)):
        part = {n: t[a:b] if t.dim() == 2 else t for n, t in x.tensors.items()}
        some, sums = op(**part, **x.options)
        assert torch.equal(some, y[a:b])
        assert torch.equal(sums, stream[a:b])


BAD = {
    "x is no tensor": ({"x": [1.0]}, DTypeError, "`x` must be a torch.Tensor, got list"),
    "x is a number": ({"x": torch.tensor(1.0)}, ShapeError, r"`x` must be \[..., D\] with D >= 1"),
    "x is integer": ({"x": torch.zeros(9, 6).int()}, DTypeError, "`x` must be float32"),
    "g is missing": ({"g": None}, DTypeError, "`g` must be a torch.Tensor, got NoneType"),
    "g": ({"g": torch.zeros(6)}, ShapeError, r"`g` must have the shape of `x`, \[9, 6\], got \[6"),
    "g is integer": ({"g": torch.zeros(9, 6).int()}, DTypeError, "`g` must be a floating tensor"),
    "x of no width": (
        {name: torch.zeros(9, 0) for name in "xg"},
        ShapeError,
        r"with D >= 1, got \[9, 0\]",
    ),
    "weight": ({"weight": torch.zeros(5)}, ShapeError, r"`weight` must be \[D\] = \[6\]"),
    "weight of two axes": ({"weight": torch.zeros(1, 6)}, ShapeError, r"got \[1, 6\]"),
    "bias": ({"bias": torch.zeros(5)}, ShapeError, r"`bias` must be \[D\] = \[6\]"),
    "bias is integer": ({"bias": torch.zeros(6).int()}, DTypeError, "`bias` must be a floating"),
    "residual": ({"residual": torch.zeros(6, 9)}, ShapeError, "`residual` must have the shape of"),
    "residual of a float64 x": (
        {"x": torch.zeros(9, 6).double(), "residual": torch.zeros(9, 6)},
        DTypeError,
        "the dtype of `x`, torch.float64, got torch.float32. Cast",
    ),
    "residual dtype": (
        {"residual": torch.zeros(9, 6).half()},
        DTypeError,
        "the dtype of `x`, torch.float32, or float32, got torch.float16",
    ),
    "activation": ({"activation": "relu"}, OptionError, '`activation` must be "swish", "silu"'),
    "activations": ({"activation": ["swish"]}, OptionError, '`activation` must be "swish", "silu"'),
    "x is sparse": ({"x": torch.zeros(9, 6).to_sparse()}, DTypeError, "`x` must be a dense"),
    "eps in words": ({"eps": "tiny"}, OptionError, "`eps` must be > 0, got 'tiny'"),
    "eps": ({"eps": 0.0}, OptionError, "`eps` must be > 0, got 0.0"),
    "eps is nan": ({"eps": float("nan")}, OptionError, "`eps` must be > 0, got nan"),
    **{
        f"{name} elsewhere": (
            {name: torch.zeros(size, device="meta")},
            DeviceError,
            f"`{name}` must be on",
        )
        for name, size in {"g": (9, 6), "weight": 6, "bias": 6, "residual": (9, 6)}.items()
    },
    **{
        f"no kernel{of}": (
            {"backend": "cuda", "g": g},
            BackendUnavailableError,
            "no cuda kernel",
        )
        for of, g in {"": torch.zeros(9, 6), " of a wider gate": torch.zeros(9, 6).double()}.items()
    },
    "float64": (
        {name: torch.zeros(9, 6).double() for name in "xg"} | {"backend": "cpu"},
        BackendUnavailableError,
        "float64 has no compiled kernel",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    good = {"x": torch.zeros(9, 6), "g": torch.zeros(9, 6), "weight": torch.ones(6)}
    with pytest.raises(error, match=message):
        rms_norm_gated(**{**good, **change})
