# SPDX-License-Identifier: Apache-2.0
"""Every mistake with a recurrent layer is refused in words that name the way out."""

import io
import warnings

import numpy as np
import pytest
import torch
from rnn_layer_cases import HIDDEN, IN, KINDS, each_kind
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from seqkern import nn
from seqkern.errors import DeviceError, DTypeError, OptionError, SeqkernError, ShapeError

X = torch.zeros(6, 3, IN)
H = torch.zeros(1, 3, HIDDEN)


def _with_weight_hh(layer, dtype):
    layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.detach().to(dtype))
    return layer


ROWS = {
    "heads": (
        lambda: nn.LSTM(4, 10, num_heads=3),
        ShapeError,
        "LSTM: `num_heads` must be an int that divides `hidden_size`, got 3 and 10.",
    ),
    "no heads": (lambda: nn.GRU(4, 10, num_heads=0), ShapeError, "got 0 and 10"),
    "input_size": (
        lambda: nn.RNN(0, 10),
        OptionError,
        "RNN: `input_size` must be an integer >= 1, got 0.",
    ),
    "hidden_size": (
        lambda: nn.SLSTM(4, 10.0),
        DTypeError,
        "SLSTM: `hidden_size` must be an integer >= 1, got 10.0.",
    ),
    "num_layers": (
        lambda: nn.LSTM(4, 10, 2.0),
        DTypeError,
        "LSTM: `num_layers` must be an integer >= 1, got 2.0.",
    ),
    "bias": (
        lambda: nn.LSTM(4, 10, 2, 1),
        DTypeError,
        "LSTM: `bias` must be True or False, got 1.",
    ),
    "batch_first": (
        lambda: nn.GRU(4, 10, batch_first="yes"),
        DTypeError,
        "GRU: `batch_first` must be True or False, got 'yes'.",
    ),
    "dropout": (
        lambda: nn.GRU(4, 10, 2, dropout=1.5),
        OptionError,
        "GRU: `dropout` must be a number from 0 to 1, got 1.5.",
    ),
    "dropout as text": (
        lambda: nn.GRU(4, 10, 2, dropout="none"),
        OptionError,
        "got 'none'.",
    ),
    "dropout that is a flag": (
        lambda: nn.GRU(4, 10, 2, dropout=True),
        OptionError,
        "GRU: `dropout` must be a number from 0 to 1, got True.",
    ),
    "proj_size": (
        lambda: nn.LSTM(4, 10, proj_size=2),
        OptionError,
        "LSTM: `proj_size` is not supported, got 2. Leave it out and put a torch.nn.Linear behind",
    ),
    "nonlinearity": (
        lambda: nn.RNN(4, 10, nonlinearity="gelu"),
        OptionError,
        'RNN: `nonlinearity` must be "tanh" or "relu", got \'gelu\'.',
    ),
    "backend": (
        lambda: nn.RNN(4, 10, backend="gpu"),
        OptionError,
        "RNN: `backend` must be one of",
    ),
    "no tensor": (
        lambda: nn.GRU(IN, HIDDEN)([1]),
        DTypeError,
        "GRU: `input` must be a torch.Tensor or a PackedSequence, got list.",
    ),
    "a sparse tensor": (
        lambda: nn.LSTM(IN, HIDDEN)(X.to_sparse()),
        DTypeError,
        "LSTM: `input` must be a dense tensor, got torch.sparse_coo. Pass `input.to_dense()`.",
    ),
    "a nested tensor": (
        lambda: nn.GRU(IN, HIDDEN)(
            torch.nested.nested_tensor([X[0], X[0, :2]], layout=torch.jagged)
        ),
        DTypeError,
        "GRU: `input` must be no nested tensor. Pass sequences of different lengths as "
        "torch.nn.utils.rnn.pack_sequence(input.unbind(), enforce_sorted=False).",
    ),
    "sparse states": (
        lambda: nn.LSTM(IN, HIDDEN)(X, (H, H.to_sparse())),
        DTypeError,
        "LSTM: `c_0` must be a dense tensor, got torch.sparse_coo.",
    ),
    "rank": (
        lambda: nn.GRU(IN, HIDDEN)(X[0, 0]),
        DTypeError,
        "`input` must be [T, B, input_size], or [T, input_size] for one sequence, got [5].",
    ),
    "rank, batch first": (
        lambda: nn.GRU(IN, HIDDEN, batch_first=True)(X[None]),
        DTypeError,
        "`input` must be [B, T, input_size], or",
    ),
    "width": (
        lambda: nn.LSTM(IN, HIDDEN)(X[..., 1:]),
        ShapeError,
        "LSTM: the last axis of `input` must be input_size = 5, got [6, 3, 4].",
    ),
    "dtype": (
        lambda: nn.LSTM(IN, HIDDEN)(X.double()),
        DTypeError,
        "LSTM: `input` must have the dtype of the weights, torch.float32, got torch.float64. Pass "
        "`input.to(torch.float32)`, or call `.to(torch.float64)` on the layer.",
    ),
    "dtype that no layer can have": (
        lambda: nn.GRU(IN, HIDDEN)(X.long()),
        DTypeError,
        "the weights, torch.float32, got torch.int64. Pass `input.to(torch.float32)`.",
    ),
    "dtype that autocast leaves": (
        lambda: torch.autocast("cpu")(nn.LSTM(IN, HIDDEN))(X.double()),
        DTypeError,
        "LSTM: `input` must have the dtype of the weights, torch.float32, got torch.float64.",
    ),
    "dtype of the weights": (
        lambda: nn.GRU(IN, HIDDEN, dtype=torch.complex64)(X.to(torch.complex64)),
        DTypeError,
        "GRU: the weights must be float32, bfloat16, float16 or float64, got torch.complex64.",
    ),
    "one state for an lstm": (
        lambda: nn.LSTM(IN, HIDDEN)(X, H),
        DTypeError,
        "LSTM: `hx` must be (h_0, c_0), tensors, or None for zeros, got Tensor.",
    ),
    "two states for an slstm": (
        lambda: nn.SLSTM(IN, HIDDEN)(X, (H, H)),
        DTypeError,
        "SLSTM: `hx` must be (h_0, c_0, n_0, m_0), tensors, or None for zeros, got 2 of Tensor.",
    ),
    "states that are none": (
        lambda: nn.LSTM(IN, HIDDEN)(X, (H, None)),
        DTypeError,
        "got 2 of NoneType, Tensor.",
    ),
    "two states for a gru": (
        lambda: nn.GRU(IN, HIDDEN)(X, (H, H)),
        DTypeError,
        "GRU: `hx` must be h_0, a tensor, or None for zeros, got 2 of Tensor.",
    ),
    "states without a batch": (
        lambda: nn.GRU(IN, HIDDEN)(X, H[0]),
        ShapeError,
        "GRU: `h_0` must be [layers * directions, B, hidden_size] because `input` has a batch "
        "axis, got [3, 12].",
    ),
    "states with a batch": (
        lambda: nn.LSTM(IN, HIDDEN)(X[0], (H, H)),
        ShapeError,
        "LSTM: `h_0` must be [layers * directions, hidden_size] because `input` has no batch axis",
    ),
    "sizes of states": (
        lambda: nn.LSTM(IN, HIDDEN, num_layers=2)(X, (torch.zeros(2, 3, HIDDEN), H)),
        ShapeError,
        "LSTM: `c_0` must be [layers * directions, B, hidden_size] = [2, 3, 12], got [1, 3, 12].",
    ),
    "states that have the batch first": (
        lambda: nn.GRU(IN, HIDDEN, batch_first=True)(X, torch.zeros(6, 1, HIDDEN)),
        ShapeError,
        "= [1, 6, 12], got [6, 1, 12]. Pass `h_0.transpose(0, 1)`: states have B second, also if",
    ),
    "states of a packed sequence": (
        lambda: nn.GRU(IN, HIDDEN)(pack_sequence([X[:, 0], X[:3, 0]]), H),
        ShapeError,
        "= [1, 2, 12], got [1, 3, 12].",
    ),
    "device of the input": (
        lambda: nn.GRU(IN, HIDDEN)(X.to("meta")),
        DeviceError,
        "GRU: `input` must be on the device of the weights, cpu, got meta. Pass `input.to(",
    ),
    "device of a state": (
        lambda: nn.LSTM(IN, HIDDEN)(X, (H, H.to("meta"))),
        DeviceError,
        "LSTM: `c_0` must be on the device of the weights, cpu, got meta. Pass `c_0.to(",
    ),
    "a packed sequence of matrices": (
        lambda: nn.GRU(IN, HIDDEN)(pack_sequence([X, X[:3]])),
        ShapeError,
        "GRU: a PackedSequence must be made of sequences [T, input_size], so that its `data` is "
        "[all steps, input_size], got [9, 3, 5].",
    ),
    "a packed sequence without steps": (
        lambda: nn.GRU(IN, HIDDEN)(PackedSequence(X[0], torch.tensor([], dtype=torch.int64))),
        ShapeError,
        "got [] with a sum of 0. Make it with torch.nn.utils.rnn.pack_sequence.",
    ),
    "a packed sequence of nothing": (
        lambda: nn.GRU(IN, HIDDEN)(PackedSequence(X[0, :0], torch.tensor([], dtype=torch.int64))),
        ShapeError,
        "never rise and sum to the 0 rows of its `data`, got [] with a sum of 0.",
    ),
    "a packed sequence with an empty step": (
        lambda: nn.GRU(IN, HIDDEN)(PackedSequence(X[0], torch.tensor([3, 0]))),
        ShapeError,
        "must be positive, never rise and sum to the 3 rows of its `data`, got [3, 0]",
    ),
    "a packed sequence of too few rows": (
        lambda: nn.LSTM(IN, HIDDEN)(PackedSequence(X[0], torch.tensor([2, 2]))),
        ShapeError,
        "LSTM: the `batch_sizes` of a PackedSequence must be positive, never rise and sum to the 3 "
        "rows of its `data`, got [2, 2] with a sum of 4.",
    ),
    "a packed sequence that grows": (
        lambda: nn.RNN(IN, HIDDEN)(PackedSequence(X[0], torch.tensor([1, 2]))),
        ShapeError,
        "got [1, 2] with a sum of 3.",
    ),
    "no states": (
        lambda: nn.LSTM(IN, HIDDEN)(X, ()),
        DTypeError,
        "LSTM: `hx` must be (h_0, c_0), tensors, or None for zeros, got an empty tuple.",
    ),
    "a trace with gradients": (
        lambda: torch.jit.trace(nn.GRU(IN, HIDDEN), (X,)),
        SeqkernError,
        "torch.jit.trace cannot record a gradient. Trace under torch.no_grad(), or use",
    ),
    "ONNX": (
        lambda: torch.onnx.export(nn.SLSTM(IN, HIDDEN), (X,), io.BytesIO(), dynamo=False),
        SeqkernError,
        "SLSTM: ONNX has no operator for the kernel of this layer. Export torch.nn's layer with",
    ),
    "weights of two dtypes": (
        lambda: _with_weight_hh(nn.GRU(IN, HIDDEN), torch.bfloat16)(X),
        DTypeError,
        "GRU: `weight_hh_l0` must have the dtype of `weight_ih_l0`, torch.float32, or be float32 "
        "beside 16 bits, got torch.bfloat16. Call `.to(torch.float32)` on the layer.",
    ),
    "weights of two dtypes, one of 64 bits": (
        lambda: _with_weight_hh(nn.LSTM(IN, HIDDEN).double(), torch.float32)(X.double()),
        DTypeError,
        "LSTM: `weight_hh_l0` must have the dtype of `weight_ih_l0`, torch.float64, or be",
    ),
    "integer states": (
        lambda: nn.GRU(IN, HIDDEN)(X, H.int()),
        DTypeError,
        "GRU: `h_0` must be a floating tensor, got torch.int32.",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rejects(row):
    call, error, message = row
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, SeqkernError)
    assert message in str(caught.value)


@each_kind
def test_rejects_unknown_keywords(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden_size'"):
        KINDS[name](IN, HIDDEN, hiden_size=3)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_sizes_are_refused_as_torch_refuses_them(size):
    for name in ("LSTM", "GRU", "RNN"):
        with pytest.raises((ValueError, TypeError)) as expected, warnings.catch_warnings():
            getattr(torch.nn, name)(IN, size)
        with pytest.raises(expected.type, match="hidden_size"):
            KINDS[name](IN, size)


@each_kind
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_rejects_torchscript(name):
    """Alone or inside a model, with the ways that do work."""
    for model in (KINDS[name](IN, HIDDEN), torch.nn.Sequential(KINDS[name](IN, HIDDEN))):
        with pytest.raises(SeqkernError, match=f"{name}: TorchScript cannot compile this layer"):
            torch.jit.script(model)


def test_takes_any_integer():
    layer = nn.LSTM(np.int64(4), np.int32(10), num_layers=np.int64(2), num_heads=np.int64(5))
    assert layer.weight_hh_l1.shape == (40, 2)


def test_takes_every_probability():
    assert nn.GRU(4, 10, 2, dropout=1.0).dropout == 1.0


def test_advises_a_transpose_only_where_it_helps():
    with pytest.raises(ShapeError, match=r"got \[2, 3, 12\]\.$"):
        nn.GRU(IN, HIDDEN)(X, torch.zeros(2, 3, HIDDEN))
