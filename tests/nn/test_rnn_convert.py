# SPDX-License-Identifier: Apache-2.0
"""Conversion of a model: what is swapped, what stays and why, and that nothing else changes."""

import copy
import pickle

import pytest
import torch
from torch import nn as tnn

from seqkern import nn
from seqkern.errors import DTypeError


class Model(tnn.Module):
    """Recurrent layers of many kinds, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.encoder = tnn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.stack = tnn.ModuleList([tnn.GRU(12, 6, batch_first=True), tnn.Linear(6, 6)])
        self.again = self.stack[0]
        self.plain = tnn.RNN(6, 6, nonlinearity="relu", batch_first=True)

    def forward(self, x):
        y, _ = self.encoder(x)
        y, _ = self.again(y)
        return self.plain(self.stack[1](y))[0]


def test_swaps_in_place_and_changes_no_result():
    model, x = Model(), torch.randn(3, 7, 4)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    model.plain.register_forward_hook(lambda *arguments: calls.append(1))
    model.plain.eval()
    expected = model(x)
    expected.sum().backward()
    grads = {name: p.grad.clone() for name, p in parameters.items()}
    done = nn.convert(model)
    assert done.model is model
    assert done.swapped == {
        "encoder": "seqkern.nn.LSTM",
        "stack.0": "seqkern.nn.GRU",
        "plain": "seqkern.nn.RNN",
    }
    assert done.left == {}
    assert type(model.encoder) is nn.LSTM
    assert isinstance(model.encoder, tnn.RNNBase)
    assert not isinstance(model.encoder, tnn.LSTM)
    assert model.again is model.stack[0]
    assert not model.plain.training
    assert model.encoder.training
    for name, p in model.named_parameters():
        assert p is parameters[name]
    optimizer.zero_grad()
    got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2
    got.sum().backward()
    for name, p in parameters.items():
        scale = 1 + grads[name].abs().max().item()
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-4, atol=1e-5 * scale)
    optimizer.step()
    assert not torch.equal(model(x), got)


def test_a_copy_shares_the_parameters():
    model = Model()
    model.register_buffer("offset", torch.zeros(3))
    done = nn.convert(model, inplace=False)
    assert type(model.encoder) is tnn.LSTM
    assert type(done.model.encoder) is nn.LSTM
    for p, q in zip(model.parameters(), done.model.parameters(), strict=True):
        assert p is q
    assert done.model.offset is model.offset


def test_a_layer_alone():
    layer = tnn.GRU(3, 4)
    done = nn.convert(layer)
    assert done.model is layer
    assert type(layer) is nn.GRU
    assert done.swapped == {"": "seqkern.nn.GRU"}
    assert str(done) == "the model: now seqkern.nn.GRU"
    assert layer(torch.zeros(2, 1, 3))[0].shape == (2, 1, 4)
    assert repr(layer) == "GRU(3, 4)"


class Mine(tnn.LSTM):
    """A subclass, which may do anything."""


def _with_a_wide_bias(layer):
    layer.bias_hh_l0 = tnn.Parameter(layer.bias_hh_l0.detach().float())
    return layer


@pytest.mark.filterwarnings("ignore")  # TorchScript announces its end
@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: tnn.LSTM(3, 4, proj_size=2), "proj_size=2 is not supported"),
        (lambda: tnn.LSTM(3, 4).double(), "no kernel serves parameters of torch.float64"),
        (
            lambda: _with_a_wide_bias(tnn.GRU(3, 4).bfloat16()),
            "no kernel serves parameters of torch.bfloat16, torch.float32",
        ),
        (lambda: tnn.GRU(3, 4, device="meta"), "no kernel serves parameters on meta"),
        (lambda: Mine(3, 4), "Mine is a subclass that may compute something else"),
        (
            lambda: tnn.utils.parametrizations.weight_norm(tnn.GRU(3, 4), "weight_hh_l0"),
            "it has a parametrization: convert the model before one is registered",
        ),
        (lambda: tnn.LSTMCell(3, 4), "a cell takes one step a call, which leaves nothing to gain"),
        (lambda: torch.jit.script(tnn.GRU(3, 4)), "TorchScript has compiled it"),
    ],
    ids=["proj_size", "float64", "mixed", "device", "subclass", "parametrized", "cell", "script"],
)
def test_says_what_it_left_and_why(layer, why):
    model = tnn.ModuleDict({"net": layer(), "rest": tnn.Linear(2, 2)})
    kind = type(model["net"])
    done = nn.convert(model)
    assert done.swapped == {}
    assert why in done.left["net"]
    assert str(done).startswith(f"net: left, {why}")
    assert type(model["net"]) is kind


@pytest.mark.parametrize("kind", [tnn.LSTM, tnn.GRU], ids=lambda k: k.__name__)
def test_leaves_a_layer_whose_forward_was_replaced(kind):
    layer = kind(4, 6)
    inner = layer.forward
    layer.forward = lambda *args: inner(*args)
    done = nn.convert(layer)
    assert (done.swapped, type(layer)) == ({}, kind)
    assert "its `forward` was replaced" in done.left[""]
    assert layer(torch.zeros(3, 2, 4))[0].shape == (3, 2, 6)


@pytest.mark.filterwarnings("ignore")  # TorchScript announces its end
def test_nothing_to_do():
    assert str(nn.convert(tnn.Linear(2, 2))) == "no recurrent layer of torch was found"
    assert nn.convert(torch.jit.script(tnn.Linear(2, 2))).left == {}
    once = nn.convert(Model()).model
    assert nn.convert(once).swapped == {}


def test_converted_models_travel():
    model, x = nn.convert(Model()).model, torch.randn(2, 5, 4)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
    fresh = Model()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), expected, rtol=1e-5, atol=1e-5)


def test_rejects_what_is_no_module():
    with pytest.raises(DTypeError, match=r"`model` must be a torch.nn.Module, got list"):
        nn.convert([tnn.GRU(3, 4)])
