# SPDX-License-Identifier: Apache-2.0
"""The drop-ins against torch.nn: same parameters, same inputs, same results and gradients."""

import itertools
import warnings

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from seqkern import nn
from seqkern.testing import compare, pooled

KINDS = ("LSTM", "GRU", "RNN")
LENGTHS = {"sorted": (9, 6, 2, 1), "unsorted": (2, 9, 1, 6), "equal": (5, 5, 5)}
INPUTS = ("batch", "single", *LENGTHS)
DRAWS = 8
IN, HIDDEN = 5, 13


def twins(name, dtype=torch.float32, **options):
    """Torch's layer and ours with its state dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(torch.nn, name)(IN, HIDDEN, **options).to(dtype)
        ours = getattr(nn, name)(IN, HIDDEN, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make(kind, batch_first, dtype):
    """Tensors of one input: leaves, and how a layer takes them."""
    if kind == "batch":
        shape = (4, 9, IN) if batch_first else (9, 4, IN)
        return [torch.randn(shape, dtype=dtype)], lambda xs: xs[0], 4
    if kind == "single":
        return [torch.randn(9, IN, dtype=dtype)], lambda xs: xs[0], None
    xs = [torch.randn(n, IN, dtype=dtype) for n in LENGTHS[kind]]
    return xs, lambda xs: pack_sequence(xs, enforce_sorted=kind != "unsorted"), len(xs)


def run(layer, xs, wrap, states, cotangents):
    """Every output and the gradient of every leaf, by name."""
    xs = [x.clone().requires_grad_() for x in xs]
    states = [s.clone().requires_grad_() for s in states]
    hx = None if not states else tuple(states) if len(states) > 1 else states[0]
    output, last = layer(wrap(xs), hx)
    output = output.data if isinstance(output, PackedSequence) else output
    last = last if isinstance(last, tuple) else (last,)
    outs = (output, *last)
    loss = sum((y * dy.to(y.dtype)).sum() for y, dy in zip(outs, cotangents, strict=True))
    leaves = {f"x{i}": x for i, x in enumerate(xs)}
    leaves |= {f"s{i}": s for i, s in enumerate(states)}
    leaves |= dict(layer.named_parameters())
    grads = torch.autograd.grad(loss, list(leaves.values()))
    results = {f"out{i}": y.detach() for i, y in enumerate(outs)}
    return results | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


def results_of(name, options, kind, dtype, states, seed):
    """Ours, the truth in float64, and torch's in the dtype under test."""
    torch.manual_seed(seed)
    theirs, ours = twins(name, dtype, **options)
    xs, wrap, B = make(kind, options.get("batch_first", False), dtype)
    directions = 2 if options.get("bidirectional") else 1
    shape = [options.get("num_layers", 1) * directions, *([] if B is None else [B]), HIDDEN]
    count = 2 if name == "LSTM" else 1
    given = [torch.randn(shape, dtype=dtype) for _ in range(count)] if states else []
    with torch.no_grad():
        output, _ = theirs(wrap(xs))
        output = output.data if isinstance(output, PackedSequence) else output
    cotangents = [torch.randn(output.shape), *(torch.randn(shape) for _ in range(count))]
    got = run(ours, xs, wrap, given, cotangents)
    peer = run(theirs, xs, wrap, given, cotangents)
    truth = run(
        theirs.double(),
        [x.double() for x in xs],
        wrap,
        [s.double() for s in given],
        [c.double() for c in cotangents],
    )
    return got, truth, peer


def assert_as_right_as_torch(*case):
    """Our error against float64 is at most twice that of torch's layer, pooled over draws."""
    draws = []
    for seed in range(DRAWS):
        got, truth, peer = results_of(*case, seed)
        draws.append((compare(got, truth, no_worse_than=peer), truth))
        if seed == 0 and all(budget.ok for budget in draws[0][0]):
            return
    over = [str(budget) for budget in pooled(draws) if not budget.ok]
    assert not over, "\n".join(over)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", KINDS)
def test_same_results_and_gradients(name, bias, num_layers, bidirectional, batch_first, kind):
    options = {
        "num_layers": num_layers,
        "bias": bias,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
    }
    assert_as_right_as_torch(name, options, kind, torch.float32, True)


@pytest.mark.parametrize("kind", ["batch", "unsorted"])
@pytest.mark.parametrize("name", KINDS)
def test_same_results_on_every_isa(name, kind, isa):
    options = {"num_layers": 2, "bidirectional": True}
    assert_as_right_as_torch(name, options, kind, torch.float32, True)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", KINDS)
def test_same_results_without_states(name, kind):
    assert_as_right_as_torch(name, {}, kind, torch.float32, False)


def test_same_results_of_relu():
    for kind in INPUTS:
        options = {"nonlinearity": "relu", "num_layers": 2}
        assert_as_right_as_torch("RNN", options, kind, torch.float32, True)


@pytest.mark.parametrize("kind", ["batch", "unsorted"])
@pytest.mark.parametrize("name", KINDS)
def test_same_results_in_bfloat16(name, kind, isa):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    assert_as_right_as_torch(name, options, kind, torch.bfloat16, True)


@pytest.mark.parametrize("kind", ["batch", "unsorted"])
@pytest.mark.parametrize("name", ["GRU", "RNN"])  # torch has no LSTM in float16 on a CPU
def test_same_results_in_float16(name, kind):
    assert_as_right_as_torch(name, {"num_layers": 2}, kind, torch.float16, True)


@pytest.mark.parametrize("name", KINDS)
def test_same_results_in_float64(name):
    """Through the reference, where no kernel serves, to float64's own digits."""
    for kind in INPUTS:
        got, truth, _ = results_of(
            name, {"bidirectional": True, "num_layers": 2}, kind, torch.float64, True, 0
        )
        for key, value in got.items():
            torch.testing.assert_close(value, truth[key], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_same_layout_of_the_output(name, batch_first):
    """Where torch's output is contiguous ours is, so that ``view`` works alike."""
    theirs, ours = twins(name, batch_first=batch_first)
    x = torch.randn(4, 6, IN)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert ours(x)[0].is_contiguous() >= theirs(x)[0].is_contiguous()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_same_parameters_from_the_same_seed(name, bidirectional):
    layers = []
    for module in (torch.nn, nn):
        torch.manual_seed(3)
        layer = getattr(module, name)(IN, HIDDEN, num_layers=2, bidirectional=bidirectional)
        layers.append(layer.state_dict())
    assert list(layers[0]) == list(layers[1])
    for key in layers[0]:
        assert torch.equal(layers[0][key], layers[1][key])


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("name", KINDS)
def test_same_elements_dropped_with_the_same_seed(name, batch_first, kind):
    options = {"num_layers": 3, "dropout": 0.5, "bidirectional": True, "batch_first": batch_first}
    layers = twins(name, **options)
    xs, wrap, _ = make(kind, batch_first, torch.float32)
    outs = []
    for layer in layers:
        torch.manual_seed(5)
        y = layer(wrap(xs))[0]
        outs.append(y.data if isinstance(y, PackedSequence) else y)
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("LSTM", (3, 4, 2, False, True, 0.5, True), {}),
        ("GRU", (3, 4), {"dropout": 0.1, "num_layers": 3}),
        ("RNN", (3, 4, 1, "relu", False), {}),
    ],
)
def test_same_representation(name, arguments, options):
    theirs = getattr(torch.nn, name)(*arguments, **options)
    ours = getattr(nn, name)(*arguments, **options)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", KINDS)
def test_same_methods(name):
    """What torch's layers offer to subclasses takes the same arguments."""
    x, h, order = torch.randn(6, 3, IN), torch.randn(1, 3, HIDDEN), torch.tensor([2, 0, 1])
    hx = (h, h) if name == "LSTM" else h
    for layer in twins(name):
        layer.check_forward_args(x, hx, None)
        permuted = layer.permute_hidden(hx, order)
        assert torch.equal(permuted[0] if name == "LSTM" else permuted, h[:, order])
        if name == "LSTM":
            assert layer.get_expected_cell_size(x, None) == h.shape


@pytest.mark.parametrize("name", KINDS)
def test_same_packed_sequence_back(name):
    theirs, ours = twins(name, batch_first=True)
    x = pack_padded_sequence(
        torch.randn(3, 7, IN), torch.tensor([2, 7, 4]), batch_first=True, enforce_sorted=False
    )
    a, b = theirs(x)[0], ours(x)[0]
    assert isinstance(b, PackedSequence)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(a, field), getattr(b, field))
    theirs(pack_sequence([torch.randn(3, IN)]))
    assert ours(pack_sequence([torch.randn(3, IN)]))[0].sorted_indices is None


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("B", "bidirectional"), [(1, False), (3, False), (2, True)])
def test_decoding_equals_torch(name, B, bidirectional):
    """Single steps with carried states, without gradients: they take another path."""
    theirs, ours = twins(name, num_layers=2, bidirectional=bidirectional, batch_first=True)
    state, ours_state = None, None
    with torch.no_grad():
        for x in torch.randn(6, B, 1, IN):
            y, state = theirs(x, state)
            z, ours_state = ours(x, ours_state)
            torch.testing.assert_close(z, y, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        *(s if isinstance(s, tuple) else (s,) for s in (state, ours_state)), strict=True
    ):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decoding_equals_the_whole(name, dtype):
    ours = getattr(nn, name)(IN, HIDDEN, batch_first=True, dtype=dtype)
    x, state, outs = torch.randn(2, 5, IN, dtype=dtype), None, []
    with torch.no_grad():
        whole, last = ours(x)
        for part in x.split(1, dim=1):
            y, state = ours(part, state)
            outs.append(y)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=tolerance, atol=tolerance)
    last, state = (s if isinstance(s, tuple) else (s,) for s in (last, state))
    for a, b in zip(last, state, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_autocast(name):
    """Under autocast the output and the states come in its dtype, whatever the input's is."""
    theirs, ours = twins(name)
    x = torch.randn(6, 3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ours(x)
        z, _ = ours(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (state[0] if name == "LSTM" else state).dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), theirs(x)[0], rtol=0.03, atol=0.03)
    torch.testing.assert_close(z, y, rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_other_sixteen_bits(name, dtype):
    """Weights and initial states in the 16 bits that autocast does not cast to."""
    layer, x = twins(name)[1], torch.randn(6, 3, IN)
    state = torch.rand(1, 3, HIDDEN).to(dtype)
    hx = (state, state) if name == "LSTM" else state
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    expected, _ = layer(x, hx)
    for _ in range(2):
        with torch.autocast("cpu", other):
            y, _ = layer(x, hx)
        assert y.dtype == other
        torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)
        y.float().sum().backward()
        layer.to(dtype)


def test_errors_are_torch_errors_too():
    """Code that catches what torch.nn raises for a wrong call catches ours."""
    x, bad = torch.randn(6, 3, IN), torch.zeros(1, 4, HIDDEN)
    calls = [
        lambda layer: layer(torch.randn(6, 3, IN + 1)),
        lambda layer: layer(x.double()),
        lambda layer: layer(x[None]),
        lambda layer: layer(x, (bad, bad) if layer.mode == "LSTM" else bad),
        lambda layer: layer(
            x, (bad[0], bad[0]) if layer.mode == "LSTM" else torch.zeros(3, HIDDEN)
        ),
        lambda layer: layer(x[0], (bad, bad) if layer.mode == "LSTM" else bad),
    ]
    for name, call in itertools.product(KINDS, calls):
        theirs, ours = twins(name)
        with pytest.raises((RuntimeError, ValueError)) as expected:
            call(theirs)
        with pytest.raises(expected.type):
            call(ours)
