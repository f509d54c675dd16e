# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer inside torch: transforms, fake tensors, export, compile."""

import copy

import pytest
import torch
from lssl_layer_cases import make_layer
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from seqkern.nn import LSSL


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_inference_mode(learn):
    """It may build the layer, run it, and leave it fit for training."""
    options = {"learn_A": learn, "learn_dt": learn}
    layer, u = make_layer(**options), torch.randn(2, 12, 10)
    expected = copy.deepcopy(layer)(u)[0]
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(layer(u)[0], expected)
            torch.testing.assert_close(layer(u, output_final_state=True)[0], expected)
        built = make_layer(**options)
        built.load_state_dict(layer.state_dict())
        torch.testing.assert_close(built(u)[0], expected)
    layer(u)[0].sum().backward()
    copy.deepcopy(layer)(u)[0].sum().backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_calls():
    """Parameters of an ensemble, mapped over or one after the other, and meta tensors."""
    layers, u = [make_layer(learn_dt=False) for _ in range(3)], torch.randn(2, 12, 10)
    stacked = torch.func.stack_module_state(layers)

    def call(state):
        return torch.func.functional_call(layers[0], state, (u,))[0]

    with torch.no_grad():
        expected = torch.stack([layer(u)[0] for layer in layers])
        torch.testing.assert_close(torch.vmap(call)(stacked), expected)
        each = [call([{k: v[i] for k, v in d.items()} for d in stacked]) for i in range(3)]
        torch.testing.assert_close(torch.stack(each), expected)
        assert layers[0].to("meta")(u.to("meta"))[0].is_meta


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_function_transforms(mode):
    """Gradients of the parameters by torch.func, also through a map over the batch."""
    layer, u = make_layer(mode=mode), torch.randn(2, 12, 10)
    parameters = dict(layer.named_parameters())

    def loss(parameters, u):
        return torch.func.functional_call(layer, parameters, (u,))[0].square().sum()

    def mapped(parameters):
        return torch.vmap(loss, (None, 0))(parameters, u.unsqueeze(1)).sum()

    expected = torch.autograd.grad(loss(parameters, u), list(parameters.values()))
    for grads in (torch.func.grad(loss)(parameters, u), torch.func.grad(mapped)(parameters)):
        for name, grad in zip(parameters, expected, strict=True):
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_fake_tensors(mode, learn):
    """Shapes are found without numbers, and nothing fake stays behind."""
    layer, u = make_layer(mode=mode, learn_A=learn, learn_dt=learn), torch.randn(2, 12, 10)
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            for _ in range(2):
                assert layer(torch.randn(2, 12, 10))[0].shape == u.shape
        with torch.no_grad():
            assert type(layer(u)[0]) is torch.Tensor


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_export(mode, grad):
    layer, T = make_layer(mode=mode), torch.export.Dim("T", max=512)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (torch.randn(2, 6, 10),), dynamic_shapes=({1: T},))
        for length in (3, 33, 200):
            u = torch.randn(2, length, 10)
            torch.testing.assert_close(program.module()(u)[0], layer(u)[0])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mode", ["auto", "parallel", "recurrent"])
def test_export_for_any_number_of_sequences(mode, strict):
    layer = LSSL(10, 32, mode=mode)
    sizes = {0: torch.export.Dim("B", max=512), 1: torch.export.Dim("T", max=512)}
    u = torch.randn(2, 6, 10)
    program = torch.export.export(layer, (u,), dynamic_shapes=(sizes,), strict=strict)
    for count, length in ((1, 3), (4, 33), (40, 20)):
        u = torch.randn(count, length, 10)
        torch.testing.assert_close(program.module()(u)[0], layer(u)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_export_of_a_dense_matrix(mode):
    layer, u = make_layer("random", mode=mode), torch.randn(3, 21, 10)
    sizes = {0: torch.export.Dim("B", max=512)}
    program = torch.export.export(layer, (u[:2],), dynamic_shapes=(sizes,))
    torch.testing.assert_close(program.module()(u)[0], layer(u)[0])


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_one_graph_serves_every_length(mode):
    torch._dynamo.reset()
    layer, graphs = make_layer(mode=mode), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda u: layer(u)[0], fullgraph=True, dynamic=True, backend=backend)
    for length in (33, 80, 200):
        u = torch.randn(2, length, 10)
        torch.testing.assert_close(compiled(u), layer(u)[0])
    assert len(graphs) == 1


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_traces_after_a_call(mode):
    """What was discretised before cannot be compared with what a tracer watches."""
    layer, u = make_layer(mode=mode), torch.randn(2, 12, 10)
    with torch.no_grad():
        expected = layer(u)[0]
        assert torch.equal(make_fx(lambda u: layer(u)[0])(0 * u)(u), expected)
        assert torch.equal(layer(u)[0], expected)


def test_compiles_fullgraph():
    torch._dynamo.reset()
    layer = make_layer()
    u = torch.randn(2, 21, 10)
    compiled = torch.compile(lambda u: layer(u)[0], fullgraph=True, backend="aot_eager")
    grads = [
        torch.autograd.grad(call(u).square().sum(), list(layer.parameters()))
        for call in (lambda u: layer(u)[0], compiled)
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
