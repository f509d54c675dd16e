# SPDX-License-Identifier: Apache-2.0
"""The convolution step by step."""

import pytest
import torch
from conv_inputs import backend_of, each_float
from harness import last_strided

from seqkern.errors import (
    DeviceError,
    DTypeError,
    SeqkernError,
    ShapeError,
)
from seqkern.ops import (
    causal_conv1d,
    causal_conv1d_update,
    causal_conv1d_update_fn,
)


@each_float
@pytest.mark.parametrize("W", [1, 3, 4])
@pytest.mark.parametrize("activation", [None, "swish"])
def test_steps_equal_the_whole(W, activation, dtype, isa):
    """Token by token from a prompt's state: the bits of the whole sequence, and of its state."""
    x, residual = torch.randn(2, 3, 12, 70).to(dtype)
    weight, bias = torch.randn(70, W), torch.randn(70, dtype=dtype)
    named = {"weight": weight, "bias": bias, "activation": activation}
    named["backend"] = backend_of(dtype)
    whole, final = causal_conv1d(x, residual=residual, output_final_state=True, **named)
    _, cache = causal_conv1d(x[:, :5], output_final_state=True, **named)
    for t in range(5, 12):
        token = (slice(None), t) if t % 2 else (slice(None), slice(t, t + 1))
        y, same = causal_conv1d_update(x[token], cache, residual[token], **named)
        assert same is cache
        # torch's own vectors and tails differ in the last bit of float64.
        digits = 1e-14 if dtype is torch.float64 else 0.0
        torch.testing.assert_close(y, whole[token], rtol=digits, atol=digits)
    assert torch.equal(cache, final)


def test_autograd_notices_the_overwritten_cache():
    """A graph that needs the old cache refuses the new one, as with torch's own in-place ops."""
    cache, scale = torch.randn(3, 20, 4), torch.ones(4, requires_grad=True)
    loss = (cache * scale).sum()
    causal_conv1d_update(torch.randn(3, 20), cache, weight=torch.randn(20, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_layouts_of_a_step():
    """[N, D], [N, 1, D] and [1, N, D] are the same step; several tokens are several steps."""
    x, weight, start = torch.randn(3, 20), torch.randn(20, 4), torch.randn(3, 20, 4)
    caches = [start.clone() for _ in range(3)]
    flat, _ = causal_conv1d_update(x, caches[0], x, weight)
    column, _ = causal_conv1d_update(x.unsqueeze(1), caches[1], x.unsqueeze(1), weight)
    row, _ = causal_conv1d_update(x.unsqueeze(0), caches[2], x.unsqueeze(0), weight)
    assert row.shape == (1, 3, 20)
    assert torch.equal(flat, column.squeeze(1))
    assert torch.equal(flat, row.squeeze(0))
    assert torch.equal(caches[0], caches[1])
    assert torch.equal(caches[0], caches[2])
    both, cache = causal_conv1d_update(torch.stack([x, x], 1), start.clone(), weight=weight)
    first, again = causal_conv1d_update(x, start, weight=weight)
    second, again = causal_conv1d_update(x, again, weight=weight)
    assert torch.equal(both, torch.stack([first, second], 1))
    assert torch.equal(cache, again)
    alone, _ = causal_conv1d_update(torch.stack([x, x], 1)[:1], caches[1][:1], weight=weight)
    third, _ = causal_conv1d_update(x, caches[0], weight=weight)
    assert alone.shape == (1, 2, 20)
    assert torch.equal(alone[:, 0], third[:1])


@pytest.mark.parametrize("W", [3, 4])
def test_strided_step(W):
    """The cache is written where it lies, and the token and its residual are read there."""
    x, weight, start = torch.randn(2, 3, 20), torch.randn(20, W), torch.randn(3, 20, 4)
    wide = torch.full((20, 8, 3), float("nan"))
    view = wide[:, ::2].permute(2, 0, 1)
    view.copy_(start)
    for token in x:
        expected, _ = causal_conv1d_update(token, start, token, weight)
        spread = last_strided(token)
        got, _ = causal_conv1d_update(spread, view, spread, weight)
        assert torch.equal(got, expected)
    assert torch.equal(view, start)
    assert wide[:, 1::2].isnan().all()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_vmap(grad):
    """Every cache of an ensemble is moved on in its place."""
    x, weight, caches = torch.randn(3, 20), torch.randn(20, 4), torch.randn(2, 3, 20, 4)
    moved = [causal_conv1d_update(x, cache.clone(), weight=weight) for cache in caches]
    with torch.set_grad_enabled(grad):
        y = torch.vmap(lambda cache: causal_conv1d_update(x, cache, weight=weight)[0])(caches)
    torch.testing.assert_close(y, torch.stack([y for y, _ in moved]))
    assert torch.equal(caches, torch.stack([cache for _, cache in moved]))


def test_step_compiles():
    torch._dynamo.reset()
    weight, start = torch.randn(20, 4), torch.randn(3, 20, 4)

    def call(x, cache):
        return causal_conv1d_update(x, cache, weight=weight, activation="silu")[0]

    def call_on_rows(x, cache):
        return causal_conv1d_update_fn(x, cache, weight, conv_state_indices=rows)

    rows = torch.tensor([2, 0, 1])
    for function in (call, call_on_rows):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch.no_grad():
            for _ in range(2):
                x, cache, other = torch.randn(3, 20), start.clone(), start.clone()
                assert torch.equal(compiled(x, cache), function(x, other))
                assert torch.equal(cache, other)


STEP = {
    "no cache": ({"cache": None}, DTypeError, "`cache` must be a torch.Tensor"),
    "cache too narrow": ({"cache": torch.zeros(3, 6, 2)}, ShapeError, r"= \[3, 6, 4\] \(or any"),
    "cache of others": ({"cache": torch.zeros(2, 6, 4)}, ShapeError, "`cache` must be"),
    "cache of other channels": ({"cache": torch.zeros(3, 5, 4)}, ShapeError, r"got \[3, 5, 4\]"),
    "cache of two axes": ({"cache": torch.zeros(3, 6)}, ShapeError, r"got \[3, 6\]"),
    "cache is a number": ({"cache": torch.tensor(0.0)}, ShapeError, r"got \[\]"),
    "cache elsewhere": (
        {"cache": torch.zeros(3, 6, 4, device="meta")},
        DeviceError,
        "`cache` must be on",
    ),
    "time before sequences": (
        {"x": torch.zeros(2, 3, 6)},
        ShapeError,
        r"`cache` must be .* = \[2, 6, 4\] .*, got \[3, 6, 4\]",
    ),
    "cache dtype": ({"cache": torch.zeros(3, 6, 4).bfloat16()}, DTypeError, "updated in place"),
    "sparse cache": (
        {"cache": torch.zeros(3, 6, 4).to_sparse()},
        DTypeError,
        "`cache` must be a dense",
    ),
    "cache expanded": (
        {"cache": torch.zeros(1, 6, 4).expand(3, 6, 4)},
        ShapeError,
        r"must not share memory, got \[3, 6, 4\] of strides \[0, 4, 1\]",
    ),
    "residual": ({"residual": torch.zeros(3, 5)}, ShapeError, "`residual` must be the shape of"),
    "weight": ({"weight": torch.zeros(5, 4)}, ShapeError, r"`weight` must be \[D, W\]"),
    **{
        f"gradient of {name}": (
            {name: torch.zeros(size, requires_grad=True)},
            SeqkernError,
            r"under torch.no_grad\(\)",
        )
        for name, size in {
            "x": (3, 6),
            "cache": (3, 6, 4),
            "residual": (3, 6),
            "weight": (6, 4),
            "bias": (6,),
        }.items()
    },
}


@pytest.mark.parametrize(("change", "error", "message"), STEP.values(), ids=STEP)
def test_rejects(change, error, message):
    good = {"x": torch.zeros(3, 6), "cache": torch.zeros(3, 6, 4), "weight": torch.zeros(6, 4)}
    with pytest.raises(error, match=message):
        causal_conv1d_update(**{**good, **change})
