# SPDX-License-Identifier: Apache-2.0
"""The selective scan against its definition: values, gradients, packing, the same bits."""

import itertools

import pytest
import torch
from scan_inputs import (
    DTYPES,
    PACKED,
    PARTS,
    SHAPES,
    SMALL,
    assert_same,
    definition,
    each_dtype,
    each_sign,
    each_small,
    expected,
    leaves_of,
    make,
    op,
)
from specs import assert_right

from seqkern._runtime import backends
from seqkern._runtime.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import selective_scan
from seqkern.testing import Inputs, assert_close, grads_of, run, yardstick


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_of_other_dtypes(dtype):
    """A, B, C, D and the bias are read as float32 whatever they are."""
    kinds = {"A": torch.float64, "B": torch.float32, "C": torch.bfloat16, "D": torch.float64}
    x = make(SMALL, dtype, **kinds, delta=torch.float32, z=torch.bfloat16)
    got = run(op, x, backend="cpu")
    truth, peers = yardstick(definition, x)
    assert_close(got, truth, no_worse_than=peers)


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


@each_sign
@each_dtype
@pytest.mark.parametrize("layout", ["t", "d"])
def test_split_and_carry_equals_whole(dtype, negative, layout, isa):
    """Cuts change nothing but the last bits, and none where a chunk begins."""
    x = make((2, 150, 20, 8, "11", layout), dtype, negative)
    whole, final = op(**x.tensors, **x.options)
    over_time = ("u", "delta", "B", "C", "z")
    for ends in ((0, 32, 96, 150), (0, 1, 3, 3, 70, 71, 150)):
        state, outs = x.tensors["initial_state"], []
        for begin, end in itertools.pairwise(ends):
            part = {n: t[..., begin:end] if n in over_time else t for n, t in x.tensors.items()}
            y, state = op(**{**part, "initial_state": state}, **x.options)
            outs.append(y)
        assert torch.equal(torch.cat(outs, 2), whole)
        assert torch.equal(state, final)


@each_sign
def test_gradients_flow_through_the_carried_state(negative):
    x, truth, peers = expected((2, 150, 20, 8, "11", "t"), negative=negative)
    leaves, outs = leaves_of(x), []
    state, over_time = leaves["initial_state"], ("u", "delta", "B", "C", "z")
    for begin, end in itertools.pairwise((0, 2, 2, 70, 150)):
        part = {n: t[..., begin:end] if n in over_time else t for n, t in leaves.items()}
        y, state = op(**{**part, "initial_state": state}, **x.options)
        outs.append(y)
    outputs = (torch.cat(outs, 2), state)
    grads = grads_of(outputs, list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    results = {"o": outputs[0].detach(), "ht": state.detach(), **named}
    assert_close(results, truth, no_worse_than=peers)


@each_sign
def test_packed_equals_separate(negative, isa):
    x = make(PACKED, negative=negative)
    packed = run(op, x)
    over_time, totals = ("u", "delta", "B", "C", "z"), {"A": 0.0, "D": 0.0, "delta_bias": 0.0}
    for i, (a, b) in enumerate(itertools.pairwise(x.options["cu_seqlens"].tolist())):
        cut = {n: t[..., a:b] if n in over_time else t for n, t in x.tensors.items()}
        cut["initial_state"] = x.tensors["initial_state"][i : i + 1]
        options = {n: v for n, v in x.options.items() if n != "cu_seqlens"}
        alone = run(op, Inputs(cut, options, x.do[..., a:b], x.dht[i : i + 1]))
        for name in ("o", *(f"d{n}" for n in over_time)):
            assert torch.equal(alone[name], packed[name][..., a:b]), name
        for name in ("ht", "dinitial_state"):
            assert torch.equal(alone[name][0], packed[name][i]), name
        for name in totals:
            totals[name] = totals[name] + alone[f"d{name}"]
    for name, value in totals.items():
        torch.testing.assert_close(value, packed[f"d{name}"], rtol=1e-5, atol=1e-4)


def test_offsets_may_be_int32():
    x = make(PACKED)
    options = {**x.options, "cu_seqlens": x.options["cu_seqlens"].int()}
    assert_same(run(op, Inputs(x.tensors, options, x.do, x.dht)), run(op, x))


def _swapped(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def _sliced(t):
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def _last_strided(t):
    wide = torch.full((*t.shape, 2), float("nan"), dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("restride", [_swapped, _sliced, _last_strided])
@pytest.mark.parametrize("shape", [SMALL, SHAPES["both constant"]], ids=["varying", "constant"])
def test_strided_inputs(restride, shape, dtype, isa):
    """Strides change no bit of any result."""
    x = make(shape, dtype)
    odd = {name: restride(t) for name, t in x.tensors.items()}
    outs = []
    for tensors, do, dht in ((x.tensors, x.do, x.dht), (odd, restride(x.do), restride(x.dht))):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        named = dict(zip(tensors, leaves, strict=True))
        y = op(**named, **x.options)
        outs.append([*y, *torch.autograd.grad(y, leaves, (do, dht))])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_layout_follows_the_input():
    """Channels that lie side by side come out side by side."""
    for layout, dim in (("t", 2), ("d", 1)):
        x = make((2, 37, 20, 8, "11", layout))
        assert selective_scan(**x.tensors, **x.options).stride(dim) == 1


def test_expanded_gradients():
    x = make(SMALL)
    leaves = leaves_of(x)
    y, _ = op(**leaves, **x.options)
    summed = torch.autograd.grad(y.sum(), list(leaves.values()), retain_graph=True)
    dense = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    for a, b in zip(summed, dense, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 0, 5, 4, "11", "t"),
        (0, 5, 5, 4, "11", "t"),
        (1, (0, 0), 5, 4, "11", "t"),
        (1, (), 5, 4, "11", "t"),
        (2, 1, 5, 4, "cc", "t"),
        (1, 6, 0, 4, "11", "t"),
    ],
    ids=["T=0", "B=0", "empty sequences", "no sequences", "T=1", "D=0"],
)
def test_empty_and_single_step(shape, isa):
    x = make(shape)
    truth, peers = yardstick(definition, x)
    got = run(op, x, backend="cpu")
    assert_close(got, truth, no_worse_than=peers)
    if x.do.shape[2] == 0:
        assert torch.equal(got["ht"], x.tensors["initial_state"])
        assert torch.equal(got["dinitial_state"], x.dht)


@pytest.mark.parametrize("alone", ["o", "ht"])
def test_state_or_output_alone(alone):
    x = make(SMALL)
    do, dht = (x.do, None) if alone == "o" else (None, x.dht)
    results = []
    for function in (op, definition):
        leaves = leaves_of(x)
        outs = function(**leaves, **x.options)
        results.append(grads_of(outs, list(leaves.values()), (do, dht)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_small
@each_dtype
def test_writes_every_output(shape, dtype, isa, poisoned):
    assert torch.empty(3).isnan().all()
    for name, result in run(op, make(shape, dtype)).items():
        assert not result.isnan().any(), name


@each_sign
@each_dtype
def test_same_bits_twice(dtype, negative, isa):
    x = make(SMALL, dtype, negative)
    assert_same(run(op, x), run(op, x))


@each_dtype
@pytest.mark.parametrize(
    "shape",
    [(2, 200, 200, 8, "22", "t"), (1, (5, 0, 200, 64), 150, 8, "c1", "d")],
    ids=["batch", "packed"],
)
def test_same_bits_for_every_thread_count(shape, dtype, isa, threads):
    x = make(shape, dtype)
    threads(1)
    alone = run(op, x)
    for count in (2, 3):
        threads(count)
        assert_same(run(op, x), alone)


def test_slow_path_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    x = make(SMALL).double()
    for _ in range(2):
        assert_same(run(op, x), run(definition, x))
    assert ["float64 has no compiled kernel" in r.getMessage() for r in caplog.records] == [True]


GOOD = {
    "u": torch.zeros(2, 6, 9),
    "delta": torch.zeros(2, 6, 9),
    "A": torch.zeros(6, 4),
    "B": torch.zeros(2, 4, 9),
    "C": torch.zeros(2, 4, 9),
}
BAD = {
    "u is no tensor": ({"u": [1.0]}, DTypeError, "`u` must be a torch.Tensor, got list"),
    "u has two axes": ({"u": torch.zeros(5, 6)}, ShapeError, r"`u` must be \[batch, D, T\], got"),
    "u is integer": ({"u": torch.zeros(2, 6, 9).int()}, DTypeError, "`u` must be float32"),
    "delta": ({"delta": torch.zeros(2, 5, 9)}, ShapeError, r"= \[2, 6, 9\], got \[2, 5, 9\]"),
    "delta transposed": (
        {"delta": torch.zeros(2, 9, 6)},
        ShapeError,
        r"got \[2, 9, 6\].\nIt looks transposed: pass `delta.transpose\(1, 2\)`",
    ),
    "A": ({"A": torch.zeros(5, 4)}, ShapeError, r"`A` must be \[D, N\] = \[6, at least 1\]"),
    "complex A": ({"A": torch.zeros(6, 4) * 1j}, DTypeError, "use `linear_scan`"),
    "B": ({"B": torch.zeros(2, 4, 8)}, ShapeError, r"`B` must be \[batch, N, T\] = \[2, 4, 9\]"),
    "groups of B": ({"B": torch.zeros(2, 4, 4, 9)}, ShapeError, "must divide D = 6, got 4"),
    "other groups": (
        {"B": torch.zeros(2, 3, 4, 9), "C": torch.zeros(2, 2, 4, 9)},
        ShapeError,
        "same number of groups, got 3 and 2",
    ),
    "C is integer": ({"C": torch.zeros(2, 4, 9).int()}, DTypeError, "`C` must be float32"),
    "D": ({"D": torch.zeros(5)}, ShapeError, r"`D` must be \[D\] = \[6\], got \[5\]"),
    "z": ({"z": torch.zeros(2, 6, 8)}, ShapeError, r"`z` must be \[batch, D, T\]"),
    "delta_bias": ({"delta_bias": torch.zeros(6, 1)}, ShapeError, r"`delta_bias` must be \[D\]"),
    "state": (
        {"initial_state": torch.zeros(1, 6, 4)},
        ShapeError,
        r"\[sequences, D, N\] = \[2, 6, 4\]",
    ),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "device": ({"A": torch.zeros(6, 4, device="meta")}, DeviceError, "`A` must be on"),
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**GOOD, **change})


def test_rejects_unknown_keywords():
    with pytest.raises(TypeError, match="unexpected keyword"):
        selective_scan(**GOOD, use_cuda=True)
