# SPDX-License-Identifier: Apache-2.0
"""The causal convolution against its definition: values, gradients, packing, the same bits."""

import itertools

import pytest
import torch
from conv_inputs import (
    DTYPES,
    PACKED,
    SHAPES,
    SMALL,
    assert_same,
    definition,
    each_dtype,
    each_small,
    leaves_of,
    make,
    truth_and_peer,
)

from seqkern._runtime import backends
from seqkern._runtime.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import causal_conv1d
from seqkern.ops._causal_conv1d_function import MAX_WIDTH
from seqkern.testing import Inputs, assert_close, grads_of, run


@each_dtype
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, activation, dtype, isa, threads):
    x, truth, peer = truth_and_peer(shape, dtype, activation)
    for count in (1, 2):
        threads(count)
        assert_close(run(causal_conv1d, x, backend="cpu"), truth, no_worse_than=peer, factor=2)


@each_dtype
def test_parameters_of_other_dtypes(dtype):
    """Weight and bias are read as float32 whatever they are; states and residuals are cast."""
    kinds = {"weight": torch.float32, "bias": torch.bfloat16, "initial_state": torch.float64}
    x = make(SMALL, dtype, **kinds)
    got = run(causal_conv1d, x, backend="cpu")
    cast = {n: t.to(dtype) if n == "initial_state" else t for n, t in x.tensors.items()}
    same = Inputs(cast, x.options, x.do, x.dht)
    truth, peer = run(definition, same.double()), run(definition, same)
    peer["dinitial_state"] = peer["dinitial_state"].double()
    assert_close(got, truth, no_worse_than=peer, factor=2)


def test_only_what_is_given():
    """Without bias, residual and state nothing is added and no state comes back."""
    x = make(SMALL, states=False, extras=False, activation=None)
    y, state = causal_conv1d(**x.tensors)
    assert state is None
    assert torch.equal(y, causal_conv1d(**x.tensors, initial_state=torch.zeros(2, 20, 4))[0])
    conv = torch.nn.functional.conv1d(
        x.tensors["x"].transpose(1, 2), x.tensors["weight"].unsqueeze(1), padding=3, groups=20
    )
    torch.testing.assert_close(y, conv[..., :37].transpose(1, 2))


@each_dtype
def test_split_and_carry_equals_whole(dtype, isa):
    """Any cut gives the same bits, pieces shorter than the kernel included."""
    x = make((2, 150, 20, 4), dtype)
    tensors, state, outs = dict(x.tensors), x.tensors["initial_state"], []
    whole, final = causal_conv1d(**tensors, **x.options, output_final_state=True)
    for begin, end in itertools.pairwise((0, 1, 3, 3, 70, 71, 150)):
        part = {n: t[:, begin:end] if n in ("x", "residual") else t for n, t in tensors.items()}
        part["initial_state"] = state
        y, state = causal_conv1d(**part, **x.options, output_final_state=True)
        outs.append(y)
    assert torch.equal(torch.cat(outs, 1), whole)
    assert torch.equal(state, final)


def test_gradients_flow_through_the_carried_state():
    x, truth, peer = truth_and_peer(SMALL, torch.float32)
    leaves, outs = leaves_of(x), []
    state = leaves["initial_state"]
    for begin, end in itertools.pairwise((0, 2, 2, 36, 37)):
        part = {n: t[:, begin:end] if n in ("x", "residual") else t for n, t in leaves.items()}
        part["initial_state"] = state
        y, state = causal_conv1d(**part, **x.options, output_final_state=True)
        outs.append(y)
    outputs = (torch.cat(outs, 1), state)
    grads = grads_of(outputs, list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    results = {"o": outputs[0].detach(), "ht": state.detach(), **named}
    assert_close(results, truth, no_worse_than=peer, factor=2)


@each_dtype
def test_packed_equals_separate(dtype, isa):
    x = make(PACKED, dtype)
    packed = run(causal_conv1d, x)
    total = {"dweight": 0.0, "dbias": 0.0}
    for i, (a, b) in enumerate(itertools.pairwise(x.options["cu_seqlens"].tolist())):
        cut = {n: t[:, a:b] if n in ("x", "residual") else t for n, t in x.tensors.items()}
        cut["initial_state"] = x.tensors["initial_state"][i : i + 1]
        one = Inputs(cut, {"activation": "silu"}, x.do[:, a:b], x.dht[i : i + 1])
        alone = run(causal_conv1d, one)
        for name in ("o", "dx", "dresidual"):
            assert torch.equal(alone[name], packed[name][:, a:b]), name
        for name in ("ht", "dinitial_state"):
            assert torch.equal(alone[name][0], packed[name][i]), name
        for name in total:
            total[name] = total[name] + alone[name].float()
    for name, value in total.items():
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(value, packed[name].float(), rtol=8 * eps, atol=32 * eps)


def test_offsets_may_be_int32():
    x = make(PACKED)
    options = {**x.options, "cu_seqlens": x.options["cu_seqlens"].int()}
    assert_same(run(causal_conv1d, Inputs(x.tensors, options, x.do, x.dht)), run(causal_conv1d, x))


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
def test_strided_inputs(restride, dtype):
    """Strides change no bit of any result."""
    x = make(SMALL, dtype)
    odd = {name: restride(t) for name, t in x.tensors.items()}
    outs = []
    for tensors, do, dht in ((x.tensors, x.do, x.dht), (odd, restride(x.do), restride(x.dht))):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        named = dict(zip(tensors, leaves, strict=True))
        y = causal_conv1d(**named, **x.options, output_final_state=True)
        outs.append([*y, *torch.autograd.grad(y, leaves, (do, dht))])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_expanded_gradients():
    x = make(SMALL)
    leaves = leaves_of(x)
    y, _ = causal_conv1d(**leaves, **x.options)
    summed = torch.autograd.grad(y.sum(), list(leaves.values()), retain_graph=True)
    dense = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    for a, b in zip(summed, dense, strict=True):
        assert torch.equal(a, b)


def test_heads_are_flattened():
    """[B, T, H, K] is convolved as [B, T, H K]."""
    x = make((2, 9, 24, 4))
    tensors = dict(x.tensors)
    flat = causal_conv1d(**tensors, **x.options)[0]
    tensors |= {n: tensors[n].view(2, 9, 4, 6) for n in ("x", "residual")}
    assert torch.equal(causal_conv1d(**tensors, **x.options)[0], flat.view(2, 9, 4, 6))


@pytest.mark.parametrize(
    "shape",
    [(2, 0, 5, 4), (0, 5, 5, 4), (1, (0, 0), 5, 4), (1, (), 5, 4), (2, 1, 5, 4), (1, 6, 0, 4)],
    ids=["T=0", "B=0", "empty sequences", "no sequences", "T=1", "D=0"],
)
@pytest.mark.parametrize("states", [True, False])
def test_empty_and_single_step(shape, states, isa):
    x = make(shape, states=states)
    truth, peer = run(definition, x.double()), run(definition, x)
    got = run(causal_conv1d, x, backend="cpu")
    assert_close(got, truth, no_worse_than=peer, factor=2)
    if states and x.do.shape[1] == 0:
        assert torch.equal(got["ht"], x.tensors["initial_state"])
        assert torch.equal(got["dinitial_state"], x.dht)


@pytest.mark.parametrize("alone", ["o", "ht"])
def test_state_or_output_alone(alone):
    x = make(SMALL)
    do, dht = (x.do, None) if alone == "o" else (None, x.dht)
    results = []
    for op in (causal_conv1d, definition):
        leaves = leaves_of(x)
        outs = op(**leaves, **x.options, output_final_state=True)
        results.append(grads_of(outs, list(leaves.values()), (do, dht)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_small
@each_dtype
def test_writes_every_output(shape, dtype, isa, poisoned):
    assert torch.empty(3).isnan().all()
    for name, result in run(causal_conv1d, make(shape, dtype)).items():
        assert not result.isnan().any(), name


@each_dtype
def test_same_bits_twice(dtype, isa):
    x = make(SMALL, dtype)
    assert_same(run(causal_conv1d, x), run(causal_conv1d, x))


@each_dtype
@pytest.mark.parametrize("shape", [(2, 700, 200, 4), (1, (5, 0, 900, 64), 40, 4)], ids=str)
def test_same_bits_for_every_thread_count(shape, dtype, isa, threads):
    x = make(shape, dtype)
    threads(1)
    alone = run(causal_conv1d, x)
    for count in (2, 3):
        threads(count)
        assert_same(run(causal_conv1d, x), alone)


def test_slow_path_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    double, wide = make((1, 70, 3, 4)).double(), make((1, 70, 3, MAX_WIDTH + 1))
    for x in (double, double, wide, wide):
        assert_same(run(causal_conv1d, x), run(definition, x))
    reasons = [record.getMessage() for record in caplog.records]
    assert [f"of width {MAX_WIDTH} at most" in reason for reason in reasons] == [False, True]


BAD = {
    "x is no tensor": ({"x": [1.0]}, DTypeError, "`x` must be a torch.Tensor, got list"),
    "x has two axes": ({"x": torch.zeros(5, 6)}, ShapeError, r"`x` must be \[B, T, D\], got"),
    "x is integer": ({"x": torch.zeros(2, 9, 6).int()}, DTypeError, "`x` must be float32"),
    "no weight": ({"weight": None}, OptionError, "`weight` is required"),
    "weight of Conv1d": (
        {"weight": torch.zeros(6, 1, 4)},
        ShapeError,
        r"= \[6, at least 1\] to fit `x`, got \[6, 1, 4\].\n.*weight.squeeze\(1\)",
    ),
    "channels first": ({"x": torch.zeros(2, 6, 9)}, ShapeError, "use `causal_conv1d_fn`"),
    "weight is integer": ({"weight": torch.zeros(6, 4).int()}, DTypeError, "`weight` must be fl"),
    "bias": ({"bias": torch.zeros(5)}, ShapeError, r"`bias` must be \[D\] = \[6\] to fit"),
    "bias is no tensor": ({"bias": 1.0}, DTypeError, "`bias` must be a torch.Tensor"),
    "residual": ({"residual": torch.zeros(2, 8, 6)}, ShapeError, "`residual` must be the shape of"),
    "state": ({"initial_state": torch.zeros(1, 6, 4)}, ShapeError, r"\[N, D, W\] = \[2, 6, 4\]"),
    "activation": ({"activation": "relu"}, OptionError, '`activation` must be None, "silu"'),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "context parallel": ({"cp_context": object()}, OptionError, "`cp_context` is not supported"),
    "device": ({"weight": torch.zeros(6, 4, device="meta")}, DeviceError, "`weight` must be on"),
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
    "run names": ({"seq_idx": torch.zeros(2, 8).int()}, ShapeError, r"\[B, T\] = \[2, 9\]"),
    "run names and states": (
        {"seq_idx": torch.zeros(2, 9).int(), "output_final_state": True},
        OptionError,
        "`seq_idx` excludes",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    good = {"x": torch.zeros(2, 9, 6), "weight": torch.zeros(6, 4)}
    with pytest.raises(error, match=message):
        causal_conv1d(**{**good, **change})


def test_rejects_unknown_keywords():
    with pytest.raises(TypeError, match="unexpected keyword"):
        causal_conv1d(torch.zeros(2, 9, 6), torch.zeros(6, 4), use_cuda=True)
