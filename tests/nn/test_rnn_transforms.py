# SPDX-License-Identifier: Apache-2.0
"""The recurrent layers inside torch: compilation, export, torch.func, long and large products."""

import copy

import pytest
import torch
from rnn_layer_cases import GATES, HIDDEN, IN, KINDS, each_kind, tuple_of
from torch.nn.utils.rnn import pack_sequence

from seqkern import nn
from seqkern.nn import _rnn_base
from seqkern.ops import _flashrnn_function


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_fullgraph(name, batch_first):
    """One dynamic graph, with eager's bits; also the single step of decoding."""
    torch._dynamo.reset()
    layer = KINDS[name](IN, HIDDEN, num_layers=2, num_heads=2, batch_first=batch_first)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in ((4, 3), (7, 2), (9, 5)):
        x = torch.randn(a, b, IN)
        y, states = compiled(x)
        expected, last = layer(x)
        assert torch.equal(y, expected)
        for s, e in zip(tuple_of(states), tuple_of(last), strict=True):
            assert torch.equal(s, e)
        y.sum().backward()
    step = torch.randn(2, 1, IN) if batch_first else torch.randn(1, 2, IN)
    with torch.no_grad():
        assert torch.equal(compiled(step)[0], layer(step)[0])


@each_kind
def test_export(name):
    layer = KINDS[name](IN, HIDDEN, num_heads=2, batch_first=True)
    program = torch.export.export(
        layer, (torch.randn(2, 6, IN),), dynamic_shapes=({1: torch.export.Dim("T", max=512)},)
    )
    x = torch.randn(2, 33, IN)
    assert torch.equal(program.module()(x)[0], layer(x)[0])


@each_kind
def test_fx_takes_the_layer_as_it_is(name):
    """As it takes torch's layers, also inside a model and with states."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = torch.nn.ModuleList([KINDS[name](IN, HIDDEN), KINDS[name](HIDDEN, HIDDEN)])

        def forward(self, x):
            y, states = self.stack[0](x)
            return self.stack[1](y, states)[0].relu()

    model, x = Model(), torch.randn(6, 3, IN)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["stack.0", "stack.1"]
    assert torch.equal(traced(x), model(x))


@each_kind
@pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("size", [(5, 12), (300, 160)], ids=str)
def test_traces_and_saves(name, size, tmp_path):
    layer, x = KINDS[name](*size), torch.randn(160, 8, size[0])
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(layer, (x,), check_trace=False), tmp_path / "layer.pt")
        y, states = torch.jit.load(tmp_path / "layer.pt")(x)
        expected, last = layer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tuple_of(states), tuple_of(last))


@each_kind
def test_gradients_of_second_order(name):
    layer = KINDS[name](3, 4, num_heads=2).double()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)
    xs = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (3, 1)]
    assert torch.autograd.gradgradcheck(lambda *xs: layer(pack_sequence(xs))[0].data, xs)


@each_kind
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms(name):
    """torch.func: gradients, products with the Hessian, Jacobians, gradients per sample."""
    layer = KINDS[name](3, 4, num_heads=2)
    parameters, x = dict(layer.named_parameters()), torch.randn(5, 3, 3)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[0].square().sum()

    grads = torch.func.grad(loss)(parameters, x)
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for a, b in zip(grads.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for a, b in zip(each.values(), expected, strict=True):
        torch.testing.assert_close(a.sum(0), b, rtol=1e-4, atol=1e-5)

    steps = x.unsqueeze(1)
    mapped = torch.func.grad(lambda x: torch.vmap(loss, (None, 0))(parameters, x).sum())(steps)
    one_by_one = [torch.func.grad(loss, argnums=1)(parameters, step) for step in steps]
    torch.testing.assert_close(mapped, torch.stack(one_by_one), rtol=1e-4, atol=1e-5)

    gradient = torch.func.grad(loss, argnums=1)
    product = torch.func.vjp(lambda x: gradient(parameters, x), x)[1](x)[0]
    double = x.double().requires_grad_()
    twin = copy.deepcopy(layer).double()
    (first,) = torch.autograd.grad(twin(double)[0].square().sum(), double, create_graph=True)
    (second,) = torch.autograd.grad(first, double, x.double())
    torch.testing.assert_close(product, second.float(), rtol=1e-4, atol=1e-5)

    jacobian = torch.func.jacrev(lambda x: layer(x)[0].sum((0, 1)))(x)
    assert jacobian.shape == (4, 5, 3, 3)


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_long_inference_in_pieces(name, batch_first, monkeypatch):
    """Without gradients a long input is projected piece by piece, which changes nothing."""
    layer = KINDS[name](IN, HIDDEN, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 41, IN) if batch_first else torch.randn(41, 3, IN)
    whole, states = layer(x)
    projected = []
    monkeypatch.setattr(_rnn_base, "_PIECE_BYTES", 4 * 3 * GATES[name] * HIDDEN * 7)
    original = _flashrnn_function.linear
    monkeypatch.setattr(
        _flashrnn_function, "linear", lambda x, w: projected.append(x.shape) or original(x, w)
    )
    with torch.no_grad():
        pieces, last = layer(x)
    assert len(projected) == 4 * 6
    assert pieces.is_contiguous()
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)
    for a, b in zip(tuple_of(last), tuple_of(states), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    projected.clear()
    layer(x)
    assert len(projected) == 4


def test_a_step_wider_than_a_piece(monkeypatch):
    layer, x = nn.GRU(IN, HIDDEN), torch.randn(4, 3, IN)
    expected, _ = layer(x)
    monkeypatch.setattr(_rnn_base, "_PIECE_BYTES", 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-5)


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_training_keeps_the_input_and_not_its_projection(name, batch_first, monkeypatch):
    layer = KINDS[name](IN, HIDDEN, batch_first=batch_first)
    projected, kept = [], []
    original = _flashrnn_function.linear

    def project(x, weight):
        projected.append(original(x, weight))
        return projected[-1]

    monkeypatch.setattr(_flashrnn_function, "linear", project)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 41, IN, requires_grad=True))
    assert len(projected) == 1
    assert projected[0].data_ptr() not in [t.data_ptr() for t in kept]


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_second_derivatives_project_again(name, batch_first):
    """A Hessian-vector product reaches the input and every weight through the projection."""
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        layer = KINDS[name](IN, HIDDEN, batch_first=batch_first).to(dtype)
        x = torch.randn(2, 5, IN).to(dtype).requires_grad_()
        leaves = [x, *layer.parameters()]
        loss = layer(x)[0].square().sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for actual, expected in zip(*results, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5 * scale)


@each_kind
@pytest.mark.parametrize("T", [1, 4], ids=["one step", "steps"])
def test_forward_mode(name, T):
    """torch.func.jvp, with and without reverse mode around it, agrees with reverse mode."""
    layer, x, direction = KINDS[name](3, 4), torch.randn(T, 2, 3), torch.randn(T, 2, 3)

    def loss(x):
        return layer(x)[0].pow(3).sum()

    expected = (torch.func.grad(loss)(x) * direction).sum()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            _, tangent = torch.func.jvp(loss, (x,), (direction,))
        torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


@each_kind
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms_of_packed_sequences(name):
    """Gradients of parameters, and forward mode and vmap over the data."""
    layer = KINDS[name](3, 4)
    parameters, lengths = dict(layer.named_parameters()), (2, 5, 1)
    packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)

    def loss(parameters, data):
        x = packed._replace(data=data)
        return torch.func.functional_call(layer, parameters, (x,))[0].data.square().sum()

    grads = torch.func.grad(loss)(parameters, packed.data)
    expected = torch.autograd.grad(loss(parameters, packed.data), list(parameters.values()))
    for a, b in zip(grads.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    direction = torch.randn_like(packed.data)
    _, tangent = torch.func.jvp(lambda x: loss(parameters, x), (packed.data,), (direction,))
    gradient = torch.func.grad(loss, argnums=1)(parameters, packed.data)
    torch.testing.assert_close(tangent, (gradient * direction).sum(), rtol=1e-4, atol=1e-5)
    both = torch.vmap(lambda x: loss(parameters, x))(torch.stack([packed.data, direction]))
    torch.testing.assert_close(both[1], loss(parameters, direction), rtol=1e-4, atol=1e-5)
