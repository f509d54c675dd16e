# SPDX-License-Identifier: Apache-2.0
"""Heads, the sLSTM, dropout, copies, compilation and errors of the recurrent layers."""

import copy
import io
import pickle

import pytest
import torch
from rnn_layer_cases import GATES, HIDDEN, IN, KINDS, STATES, each_kind, tuple_of
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from seqkern import nn


def results(layer, x, hx=None):
    """Output, states and the gradients of the input and every parameter."""
    x = x.clone().requires_grad_()
    y, states = layer(x, hx)
    loss = y.square().sum() + sum(s.sin().sum() for s in tuple_of(states))
    return y, *tuple_of(states), *torch.autograd.grad(loss, [x, *layer.parameters()])


@each_kind
@pytest.mark.parametrize("heads", [2, 3, 12])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_heads_equal_a_block_diagonal_matrix(name, heads, bidirectional):
    options = {"num_layers": 2, "bidirectional": bidirectional}
    many = KINDS[name](IN, HIDDEN, num_heads=heads, **options)
    dense = KINDS[name](IN, HIDDEN, **options)
    D = HIDDEN // heads
    state_dict = many.state_dict()
    for key, weight in state_dict.items():
        if "weight_hh" in key:
            assert weight.shape == (GATES[name] * HIDDEN, D)
            gates = weight.view(-1, heads, D, D)
            state_dict[key] = torch.cat([torch.block_diag(*gate) for gate in gates])
    dense.load_state_dict(state_dict)
    x = torch.randn(7, 3, IN)
    for (key, _), a, b in zip(
        [(str(i), None) for i in range(2 + STATES[name])] + list(many.named_parameters()),
        results(many, x),
        results(dense, x),
        strict=True,
    ):
        if "weight_hh" in key:
            blocks = b.view(-1, heads, D, heads, D)
            b = torch.stack([blocks[:, i, :, i] for i in range(heads)], 1).reshape(a.shape)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("name", ["LSTM", "SLSTM"])
def test_a_list_of_states(name):
    layer, x = KINDS[name](IN, HIDDEN), torch.randn(4, 3, IN)
    states = layer(x)[1]
    assert torch.equal(layer(x, list(states))[0], layer(x, states)[0])


@each_kind
@pytest.mark.parametrize("T", [1, 4], ids=["one step", "steps"])
def test_a_frozen_layer_passes_gradients_on(name, T):
    """To its input alone, and to its states alone."""
    layer, x = KINDS[name](IN, HIDDEN), torch.randn(T, 3, IN)
    states = [s.detach() for s in tuple_of(layer(x)[1])]

    def gradients(of_x, of_states):
        own = [x.clone().requires_grad_(of_x)]
        own += [s.clone().requires_grad_(of_states) for s in states]
        y, _ = layer(own[0], tuple(own[1:]) if len(states) > 1 else own[1])
        return torch.autograd.grad(y.square().sum(), [t for t in own if t.requires_grad])

    both = gradients(True, True)
    layer.requires_grad_(False)
    for a, b in zip((*gradients(True, False), *gradients(False, True)), both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_kind
@pytest.mark.parametrize("wide", ["bias_ih_l0", "bias_hh_l0", "weight_hh_l0"])
def test_some_parameters_stay_wide(name, wide):
    """A float32 bias or recurrence in a bfloat16 layer: training, inference and decoding agree."""
    layer = KINDS[name](IN, HIDDEN, dtype=torch.bfloat16)
    setattr(layer, wide, torch.nn.Parameter(getattr(layer, wide).detach().float()))
    x = torch.randn(1, 3, IN, dtype=torch.bfloat16)
    expected, last = layer(x)
    with torch.no_grad():
        got, state = layer(x)
    assert torch.equal(got, expected)
    for a, b in zip(tuple_of(state), tuple_of(last), strict=True):
        assert torch.equal(a, b)


@each_kind
def test_carry_equals_whole(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, batch_first=True, num_heads=2)
    x = torch.randn(3, 11, IN)
    whole, last = layer(x)
    first, state = layer(x[:, :4])
    second, end = layer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)
    for a, b in zip(tuple_of(last), tuple_of(end), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_kind
def test_beside_another_default_device(name):
    """Where `torch.set_default_device` names a GPU, a model may still lie on the CPU."""
    layer, x = KINDS[name](IN, HIDDEN), torch.randn(5, 3, IN)
    packed = pack_sequence([x[:, 0], x[:2, 1]], enforce_sorted=False)
    expected = layer(x)[0], layer(packed)[0].data
    with torch.device("meta"):
        got = layer(x)[0], layer(packed)[0].data
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_equals_separate(name, bidirectional):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, bidirectional=bidirectional, num_heads=2)
    xs = [torch.randn(n, IN) for n in (3, 8, 1, 5)]
    output, states = layer(pack_sequence(xs, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == [3, 8, 1, 5]
    for i, x in enumerate(xs):
        y, own = layer(x)
        torch.testing.assert_close(padded[: len(x), i], y, rtol=1e-5, atol=1e-5)
        for a, b in zip(tuple_of(states), tuple_of(own), strict=True):
            torch.testing.assert_close(a[:, i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_slstm_conventions(dtype, bidirectional, batch_first):
    """Shapes and dtypes are those of an LSTM with four states, which stay float32."""
    layer = nn.SLSTM(
        IN,
        HIDDEN,
        num_layers=2,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=dtype,
        num_heads=2,
    )
    x = torch.randn(7, 3, IN, dtype=dtype)
    y, states = layer(x)
    directions = 2 if bidirectional else 1
    assert y.shape == (7, 3, directions * HIDDEN)
    assert y.dtype == dtype
    assert len(states) == 4
    B = 7 if batch_first else 3
    for s in states:
        assert s.shape == (2 * directions, B, HIDDEN)
        assert s.dtype == torch.float32
    again, _ = layer(x, states)
    assert again.isfinite().all()
    loss = again.float().sum() + sum(s.sum() for s in states)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_slstm_equals_its_definition():
    from seqkern import reference

    layer = nn.SLSTM(IN, HIDDEN, num_heads=3, batch_first=True)
    x = torch.randn(2, 9, IN)
    Wx = torch.nn.functional.linear(x, layer.weight_ih_l0).view(2, 9, 4, 3, 4)
    b = (layer.bias_ih_l0 + layer.bias_hh_l0).view(4, 3, 4)
    every, last = reference.flashrnn(Wx, layer.weight_hh_l0.view(4, 3, 4, 4), b, None, "slstm")
    y, states = layer(x)
    torch.testing.assert_close(y, every[0].flatten(2), rtol=1e-5, atol=1e-5)
    for a, b in zip(states, last.flatten(2), strict=True):
        torch.testing.assert_close(a, b.unsqueeze(0), rtol=1e-5, atol=1e-5)


@each_kind
def test_dropout_acts_between_layers_in_training_only(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, dropout=0.5, num_heads=2)
    x = torch.randn(4, 3, IN)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train()
    layer.dropout = 1.0
    muted, (h_n, *_) = layer(x)[0], tuple_of(layer(x)[1])
    other, (g_n, *_) = layer(-x)[0], tuple_of(layer(-x)[1])
    assert torch.equal(muted, other)
    assert torch.equal(h_n[1], g_n[1])
    assert not torch.equal(h_n[0], g_n[0])
    with pytest.warns(UserWarning, match="dropout"):
        KINDS[name](IN, HIDDEN, dropout=0.5)


@each_kind
def test_copies_and_checkpoints(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, num_heads=2, bidirectional=True)
    x = torch.randn(4, 3, IN)
    expected = layer(x)[0]
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    twins = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    for twin in twins:
        assert torch.equal(twin(x)[0], expected)
        assert repr(twin) == repr(layer)
    layer.flatten_parameters()
    assert torch.equal(layer(x)[0], expected)
    double = copy.deepcopy(layer).double()
    torch.testing.assert_close(double(x.double())[0].float(), expected, rtol=1e-4, atol=1e-5)
    fresh = KINDS[name](IN, HIDDEN, num_layers=2, num_heads=2, bidirectional=True, device="meta")
    fresh = fresh.to_empty(device="cpu")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x)[0], expected)


@each_kind
def test_replaced_parameters_are_used(name):
    """functional_call, parametrizations and plain assignment all reach the computation."""
    layer = KINDS[name](IN, HIDDEN)
    x = torch.randn(4, 3, IN)
    halved = {key: p / 2 for key, p in layer.named_parameters()}
    expected = torch.func.functional_call(layer, halved, (x,))[0]
    assert not torch.equal(expected, layer(x)[0])
    twin = copy.deepcopy(layer)
    for key, p in halved.items():
        setattr(twin, key, torch.nn.Parameter(p.detach()))
    torch.testing.assert_close(twin(x)[0], expected)

    class Half(torch.nn.Module):
        def forward(self, p):
            return p / 2

    for key in halved:
        parametrize.register_parametrization(layer, key, Half())
    torch.testing.assert_close(layer(x)[0], expected)


@each_kind
@pytest.mark.parametrize("T", [1, 4], ids=["one step", "steps"])
def test_gradient_of_a_weight_that_is_no_parameter(name, T):
    """A computed weight, as a hypernetwork or weight dropout sets it, in a frozen layer."""
    layer = KINDS[name](IN, HIDDEN).requires_grad_(False)
    x, source = torch.randn(T, 3, IN), layer.weight_ih_l0.detach().clone().requires_grad_()
    layer.weight_ih_l0.requires_grad_()
    layer(x)[0].square().sum().backward()
    expected = layer.weight_ih_l0.grad
    del layer.weight_ih_l0
    layer.weight_ih_l0 = source * 1
    layer(x)[0].square().sum().backward()
    torch.testing.assert_close(source.grad, expected)
    del layer.weight_ih_l0
    layer.register_buffer("weight_ih_l0", source * 2)
    layer(x)[0].square().sum().backward()
    assert not torch.equal(source.grad, expected)


@each_kind
@pytest.mark.parametrize("T", [1, 4], ids=["one step", "steps"])
def test_gradient_of_what_a_parametrization_reads(name, T):
    """Something that is no parameter of the layer, all of which are frozen."""
    layer = KINDS[name](IN, HIDDEN).requires_grad_(False)
    factor = torch.ones((), requires_grad=True)

    class Scaled(torch.nn.Module):
        def forward(self, p):
            return p * factor

    parametrize.register_parametrization(layer, "weight_ih_l0", Scaled())
    layer(torch.randn(T, 3, IN))[0].square().sum().backward()
    assert factor.grad.abs() > 0


@each_kind
def test_initialization_follows_the_fan(name):
    torch.manual_seed(0)
    layer = KINDS[name](64, 64, num_heads=4)
    for key, p in layer.named_parameters():
        bound = 16**-0.5 if "weight_hh" in key else 64**-0.5
        assert p.abs().max() <= bound
        assert p.std() > 0.4 * bound


@each_kind
def test_backends_agree(name):
    x = torch.randn(6, 3, IN)
    fast = KINDS[name](IN, HIDDEN, num_heads=2, backend="cpu")
    slow = KINDS[name](IN, HIDDEN, num_heads=2, backend="reference")
    slow.load_state_dict(fast.state_dict())
    assert repr(fast).endswith("num_heads=2, backend='cpu')")
    for a, b in zip(results(fast, x), results(slow, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@each_kind
def test_empty_batches_and_single_steps(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2, bidirectional=True)
    for T, B in ((4, 0), (1, 2), (1, 0), (0, 2), (0, 0)):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                y, states = layer(torch.randn(T, B, IN))
                again, states = layer(torch.randn(T, B, IN), states)
            assert y.shape == again.shape == (T, B, 2 * HIDDEN)
            for s in tuple_of(states):
                assert s.shape == (4, B, HIDDEN)


@each_kind
def test_last_states_may_be_changed_in_place(name):
    layer = KINDS[name](IN, HIDDEN, num_layers=2)
    for count in (1, 4):
        _, states = layer(torch.randn(count, 3, IN))
        for s in tuple_of(states):
            s[:, 0] = 0
            s.mul_(2)
        sum(s.sum() for s in tuple_of(states)).backward()


@each_kind
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_last_states_may_be_detached_in_place(name, num_layers, mode):
    """As programs do that cut the gradient between two pieces of a sequence."""
    layer, hx = KINDS[name](IN, HIDDEN, num_layers=num_layers), None
    for count in (1, 4):
        with mode():
            y, hx = layer(torch.randn(count, 3, IN), hx)
        hx = tuple(s.detach_() for s in tuple_of(hx))
        hx = hx if len(hx) > 1 else hx[0]
        if y.requires_grad:
            y.sum().backward()


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_output_may_be_changed_in_place(name, batch_first):
    """Like that of torch.nn.LSTM; the backward pass, which reads it, notices."""
    layer, x = KINDS[name](IN, HIDDEN, batch_first=batch_first), torch.randn(4, 3, IN)
    expected = layer(x)[0].relu()
    y = layer(x)[0].relu_()
    assert torch.equal(y, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_kind
@pytest.mark.parametrize("T", [0, 1, 4])
def test_nothing_written_into_the_output_reaches_the_states(name, T):
    layer = KINDS[name](IN, HIDDEN)
    with torch.no_grad():
        _, hx = layer(torch.randn(2, 3, IN))
        y, states = layer(torch.randn(T, 3, IN), hx)
        before = [s.clone() for s in (*tuple_of(states), *tuple_of(hx))]
        y.fill_(7)
    for s, expected in zip((*tuple_of(states), *tuple_of(hx)), before, strict=True):
        assert torch.equal(s, expected)


@each_kind
def test_without_any_gradient(name):
    """Inference mode, frozen weights, and gradients of the states alone."""
    layer = KINDS[name](IN, HIDDEN, num_layers=2)
    x = torch.randn(5, 3, IN)
    expected = layer(x)[0]
    with torch.inference_mode():
        assert torch.equal(layer(x)[0], expected)
        layer(x[:1], layer(x)[1])
    layer.requires_grad_(False)
    assert not layer(x)[0].requires_grad
    states = [torch.rand(2, 3, HIDDEN, requires_grad=True) for _ in range(STATES[name])]
    y, _ = layer(x[:1], tuple(states) if len(states) > 1 else states[0])
    for g in torch.autograd.grad(y.sum(), states):
        assert g.isfinite().all()
