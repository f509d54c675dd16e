# SPDX-License-Identifier: Apache-2.0
"""The convolution under the names and layouts of the causal-conv1d package."""

import pytest
import torch
from conv_inputs import backend_of, each_float
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv1d, pad, silu

from seqkern.errors import (
    BackendUnavailableError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import causal_conv1d_fn, causal_conv1d_update_fn

each_index = pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)


def mamba_definition(x, weight, bias, state=None, activation="silu"):
    """[B, D, T] in double precision: pad or continue, convolve, activate."""
    before = weight.shape[1] - 1
    h = pad(x, (before, 0)) if state is None else torch.cat([state, x], 2)
    z = conv1d(h, weight.unsqueeze(1), bias, groups=x.shape[1])
    return (silu(z) if activation else z), pad(h, (before - h.shape[2], 0))


@each_float
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("T", [1, 2, 30])
def test_mamba_names(T, channels_last, dtype):
    x, weight, bias = torch.randn(2, 20, T).to(dtype), torch.randn(20, 4), torch.randn(20)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    state = torch.randn(2, 20, 3).to(dtype)
    eps = torch.finfo(dtype if dtype.itemsize == 2 else torch.float32).eps
    close = {"rtol": 2 * eps, "atol": 16 * eps}
    named = {"activation": "silu", "backend": backend_of(dtype)}
    expected, _ = mamba_definition(x.double(), weight.double(), bias.double())
    got = causal_conv1d_fn(x, weight, bias, **named)
    torch.testing.assert_close(got.double(), expected, **close)
    expected, final = mamba_definition(x.double(), weight.double(), bias.double(), state.double())
    room = torch.empty(2, 20, 3, dtype=dtype)
    for out in (None, room):
        got, last = causal_conv1d_fn(
            x, weight, bias, None, state, True, final_states_out=out, **named
        )
        torch.testing.assert_close(got.double(), expected, **close)
        assert torch.equal(last.double(), final)
    assert last is room


def test_mamba_gradients():
    """Through the transposed layout, the narrower state and its final value."""
    x, weight, bias, state = (
        torch.randn(*size, dtype=torch.float64) for size in ((2, 5, 9), (5, 4), (5,), (2, 5, 3))
    )
    results = []
    for call in (
        lambda *t: mamba_definition(*(u.double() for u in t)),
        lambda x, w, b, s: causal_conv1d_fn(x, w, b, None, s, True, activation="silu"),
    ):
        leaves = [t.float().requires_grad_() for t in (x, weight, bias, state)]
        y, last = call(*leaves)
        loss = y.square().sum() + last.pow(3).sum()
        results.append([g.double() for g in torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_names_of_runs():
    """``seq_idx`` separates neighbors; a negative name yields zeros and no gradient."""
    seq_idx = torch.tensor([[0, 0, 0, 1, 2, 2, 2, -1], [4, 4, 5, 5, 5, 5, 5, 5]]).int()
    x = torch.randn(2, 20, 8, requires_grad=True)
    weight, bias = torch.randn(20, 4), torch.randn(20)
    y = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    (dx,) = torch.autograd.grad(y.sum(), x)
    for row, runs in enumerate((((0, 3), (3, 4), (4, 7)), ((0, 2), (2, 8)))):
        for a, b in runs:
            alone = x[row : row + 1, :, a:b].detach().requires_grad_()
            expected = causal_conv1d_fn(alone, weight, bias, activation="silu")
            (grad,) = torch.autograd.grad(expected.sum(), alone)
            assert torch.equal(y[row, :, a:b], expected[0])
            assert torch.equal(dx[row, :, a:b], grad[0])
    assert not y[0, :, 7].any()
    assert not dx[0, :, 7].any()
    torch._dynamo.reset()
    compiled = torch.compile(causal_conv1d_fn, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias, seq_idx, activation="silu"), y)


@each_float
@pytest.mark.parametrize("S", [3, 4, 7])
@pytest.mark.parametrize("T", [None, 1, 2, 9])
def test_mamba_step(T, S, dtype):
    """[B, D] or [B, D, T] on top of a state of any width from W - 1 on."""
    size = (2, 20) if T is None else (2, 20, T)
    x, state = torch.randn(size).to(dtype), torch.randn(2, 20, S).to(dtype)
    weight = torch.randn(20, 4)
    named = {"bias": torch.randn(20), "activation": "silu", "backend": backend_of(dtype)}
    columns = x.unsqueeze(2) if T is None else x
    expected, _ = causal_conv1d_fn(
        columns, weight, initial_states=state[..., S - 3 :], return_final_states=True, **named
    )
    last = torch.cat([state, columns], 2)[..., -S:]
    pool = torch.zeros(5, 20, S, dtype=dtype)
    rows = torch.tensor([4, 1])
    pool[rows] = state
    y = causal_conv1d_update_fn(x, state, weight, **named)
    assert torch.equal(y, expected.reshape(size))
    assert torch.equal(state, last)
    y = causal_conv1d_update_fn(x, pool, weight, conv_state_indices=rows, **named)
    assert torch.equal(y, expected.reshape(size))
    assert torch.equal(pool[rows], last)
    assert not pool[[0, 2, 3]].any()


@each_index
def test_mamba_step_of_some_rows(kind):
    """Rows may be named by int32, too, as the package's callers do."""
    x, weight, pool = torch.randn(2, 20), torch.randn(20, 4), torch.randn(5, 20, 4)
    expected = pool.clone()
    for token, row in zip(x, (4, 1), strict=True):
        causal_conv1d_update_fn(token.unsqueeze(0), expected[row : row + 1], weight)
    causal_conv1d_update_fn(x, pool, weight, conv_state_indices=torch.tensor([4, 1]).to(kind))
    assert torch.equal(pool, expected)


def test_mamba_step_of_no_rows():
    pool = torch.randn(5, 20, 4)
    none = torch.tensor([], dtype=torch.int64)
    y = causal_conv1d_update_fn(
        torch.zeros(0, 20), pool, torch.randn(20, 4), conv_state_indices=none
    )
    assert y.shape == (0, 20)


@pytest.mark.parametrize("mode", [torch.device("meta"), FakeTensorMode()], ids=["meta", "fake"])
def test_mamba_step_without_values(mode):
    with mode:
        rows, lengths = torch.tensor([4, 1]), torch.tensor([0, 3])
        y = causal_conv1d_update_fn(
            torch.randn(2, 20),
            torch.randn(5, 20, 6),
            torch.randn(20, 4),
            conv_state_indices=rows,
            cache_seqlens=lengths,
        )
        assert y.shape == (2, 20)


@pytest.mark.parametrize("T", [1, 2, 5, 7])
def test_mamba_ring_buffer(T):
    """``cache_seqlens`` makes the state a ring: the same outputs without moving it."""
    weight, straight = torch.randn(20, 4), torch.zeros(2, 20, 6)
    ring, lengths = straight.clone(), torch.tensor([0, 3]).int()
    for _ in range(5):
        x = torch.randn(2, 20, T)
        expected = causal_conv1d_update_fn(x, straight, weight)
        assert torch.equal(
            causal_conv1d_update_fn(x, ring, weight, cache_seqlens=lengths), expected
        )
        lengths += T
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(ring[row].roll(-(length % 6), 1), straight[row])


MAMBA = {
    "x": ({"x": torch.zeros(2, 6)}, ShapeError, r"`x` must be \[B, D, T\]"),
    "channels last": ({"x": torch.zeros(2, 9, 6)}, ShapeError, "tensors use `causal_conv1d`"),
    "state": (
        {"initial_states": torch.zeros(2, 6, 4)},
        ShapeError,
        r"\[B, D, W - 1\] = \[2, 6, 3\]",
    ),
    "room": (
        {"final_states_out": torch.zeros(2, 6, 3)},
        OptionError,
        "needs return_final_states=True",
    ),
    "other room": (
        {"return_final_states": True, "final_states_out": torch.zeros(4, 2, 6, 3)},
        ShapeError,
        r"`final_states_out` must be \[B, D, W - 1\] = \[2, 6, 3\], got \[4, 2, 6, 3\]",
    ),
    "room of integers": (
        {"return_final_states": True, "final_states_out": torch.zeros(2, 6, 3).int()},
        DTypeError,
        "`final_states_out` must be a floating tensor",
    ),
    "room that is expanded": (
        {"return_final_states": True, "final_states_out": torch.zeros(1, 6, 3).expand(2, 6, 3)},
        ShapeError,
        "`final_states_out` is updated in place",
    ),
    "weight of one axis": ({"weight": torch.zeros(6)}, ShapeError, r"at least 1\] .*, got \[6\]"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
    **{
        f"names and {name}": (
            {"seq_idx": torch.zeros(2, 9, dtype=torch.int32), name: value},
            OptionError,
            "causal_conv1d_fn: `seq_idx` excludes `initial_states` and `return_final_states`",
        )
        for name, value in {
            "initial_states": torch.zeros(2, 6, 3),
            "return_final_states": True,
        }.items()
    },
}


@pytest.mark.parametrize(("change", "error", "message"), MAMBA.values(), ids=MAMBA)
def test_mamba_rejects(change, error, message):
    good = {"x": torch.zeros(2, 6, 9), "weight": torch.zeros(6, 4)}
    with pytest.raises(error, match=message):
        causal_conv1d_fn(**{**good, **change})


ROWS, LENGTHS = "conv_state_indices", "cache_seqlens"
MAMBA_STEP = {
    "channels": (
        {"conv_state": torch.zeros(2, 5, 4)},
        ShapeError,
        r"\[B, D, W - 1 or more\] = \[2, 6, at least 3\]",
    ),
    "channels of some rows": (
        {"conv_state": torch.zeros(5, 5, 4), ROWS: torch.tensor([0, 1])},
        ShapeError,
        r"\[B, D, W - 1 or more\] = \[any, 6, at least 3\]",
    ),
    "dtype": (
        {"conv_state": torch.zeros(2, 6, 4).bfloat16()},
        DTypeError,
        "causal_conv1d_update_fn: `conv_state` must have the dtype of `x`, torch.float32, because",
    ),
    "one number": ({"conv_state": torch.tensor(0.0)}, ShapeError, r"at least 3\], got \[\]"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
    "more rows": ({"conv_state": torch.zeros(5, 6, 4)}, ShapeError, "pass `conv_state_indices`"),
    "a sequence read as several": (
        {"x": torch.zeros(1, 6, 2)},
        ShapeError,
        r"= \[1, 6, at least 3\], got \[2, 6, 4\]",
    ),
    "narrow ring": (
        {"conv_state": torch.zeros(2, 6, 2), LENGTHS: torch.tensor([0, 1])},
        ShapeError,
        r"at least 3\], got \[2, 6, 2\]",
    ),
    "expanded": (
        {"conv_state": torch.zeros(1, 6, 4).expand(2, 6, 4)},
        ShapeError,
        "`conv_state` is updated in place",
    ),
    "rows beyond": ({ROWS: torch.tensor([2, 0])}, ShapeError, "must name rows .*, 0 to 1, got"),
    "rows before": ({ROWS: torch.tensor([-1, 0])}, ShapeError, "must name rows .*, 0 to 1, got"),
    "one row twice": ({ROWS: torch.tensor([1, 1])}, ShapeError, r"every row once, .* \[1, 1\]"),
    "number of rows": (
        {ROWS: torch.tensor([0, 1, 2])},
        ShapeError,
        r"must be \[B\] = \[2\] of int32 or int64, got \[3\]",
    ),
    "floating rows": (
        {ROWS: torch.tensor([0.0, 1.0])},
        ShapeError,
        r"of int32 or int64, got \[2\] of torch.float32",
    ),
    "lengths": (
        {LENGTHS: torch.tensor([3])},
        ShapeError,
        r"`cache_seqlens` must be integers \[B\] = \[2\], got \[1\]",
    ),
    "floating lengths": ({LENGTHS: torch.zeros(2)}, ShapeError, r"got \[2\] of torch.float32"),
    "a list of lengths": ({LENGTHS: [3, 7]}, DTypeError, "`cache_seqlens` must be a torch.Tensor"),
}


@pytest.mark.parametrize(("change", "error", "message"), MAMBA_STEP.values(), ids=MAMBA_STEP)
def test_mamba_step_rejects(change, error, message):
    good = {"x": torch.zeros(2, 6), "conv_state": torch.zeros(2, 6, 4), "weight": torch.zeros(6, 4)}
    with pytest.raises(error, match=message):
        causal_conv1d_update_fn(**{**good, **change})
