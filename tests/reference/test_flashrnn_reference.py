# SPDX-License-Identifier: Apache-2.0
"""The definition of the recurrent cells: finite differences, torch's own cells, cost."""

import pytest
import torch
from torch import nn

from seqkern import reference
from seqkern.reference.flashrnn import CELLS

each_cell = pytest.mark.parametrize("cell", CELLS)


def draw(cell, B=2, T=3, N=2, D=2, count=None):
    """Float64 leaves: Wx, R, b and states."""
    kind = CELLS[cell]
    torch.manual_seed(5)
    sizes = [
        (B, T, kind.input, N, D),
        (kind.recurrent, N, D, D),
        (kind.bias, N, D),
        (kind.states, B if count is None else count, 1, N, D),
    ]
    leaves = [torch.randn(size, dtype=torch.float64) for size in sizes]
    if cell == "slstm":
        leaves[3][2] = leaves[3][2].abs() + 1
    return [x.requires_grad_() for x in leaves]


@each_cell
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reverse": True, "reset": torch.tensor([[True, False, False], [False, False, True]])},
        {"forward_clipval": 0.7},
    ],
    ids=["plain", "reset, reverse", "clip"],
)
def test_gradcheck_reference(cell, options):
    """First and second derivatives agree with finite differences, from every returned state."""
    leaves = draw(cell)

    def call(*tensors):
        return reference.flashrnn(*tensors, cell, **options)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@each_cell
def test_gradcheck_of_packed_sequences(cell):
    leaves = draw(cell, B=1, T=4, count=3)

    def call(*tensors):
        return reference.flashrnn(*tensors, cell, cu_seqlens=torch.tensor([0, 1, 1, 4]))

    assert torch.autograd.gradcheck(call, leaves)


def test_gradcheck_of_fresh_elements():
    """A fresh sLSTM has the derivatives of its first step, whatever its zero states are."""
    Wx, R, b, states = draw("slstm")
    fresh = torch.zeros_like(states)

    def call(*tensors):
        return reference.flashrnn(*tensors, fresh, "slstm")

    assert torch.autograd.gradcheck(call, (Wx, R, b))


@pytest.mark.parametrize("cell", ["elman", "elman_relu", "lstm", "gru"])
def test_equals_torch(cell):
    """One head with torch's weights gives torch's results, to float64's digits."""
    kinds = {"elman": nn.RNN, "elman_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    options = {"nonlinearity": "relu"} if cell == "elman_relu" else {}
    G, H = CELLS[cell].input, 5
    layer = kinds[cell](3, H, batch_first=True, dtype=torch.float64, **options)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    Wx = (x @ layer.weight_ih_l0.T).view(2, 7, G, 1, H)
    R = layer.weight_hh_l0.view(G, 1, H, H)
    b_ih, b_hh = layer.bias_ih_l0.view(G, 1, H), layer.bias_hh_l0.view(G, 1, H)
    b = b_ih + b_hh
    if cell == "gru":  # torch: r z n; here n's product first, and its two biases apart
        R = R[[2, 0, 1]]
        b = torch.stack([b_hh[2], b[0], b[1], b_ih[2]])
    every, _ = reference.flashrnn(Wx, R, b, None, cell)
    torch.testing.assert_close(every[0].squeeze(2), layer(x)[0], rtol=1e-13, atol=1e-13)


def test_slstm_equals_its_unstabilized_form():
    """With moderate gates the stabilizer changes nothing: c' = s(f) c + exp(i) tanh(z), and so on.

    n' = max(F n + I, 1) holds in the stabilized scale, where it is exact for n of this size.
    """
    Wx, R, b, _ = draw("slstm", T=6)
    every, _ = reference.flashrnn(Wx, R, b, None, "slstm")
    h = c = n = torch.zeros(2, 2, 2, dtype=torch.float64)
    for t in range(6):
        y = torch.einsum("gndp,bnp->gbnd", R, h)
        i, f, z, o = (y[g] + Wx[:, t, g] + b[g] for g in range(4))
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        torch.testing.assert_close(every[0, :, t], h, rtol=1e-10, atol=1e-10)


def test_the_tape_grows_linearly_with_time():
    """Nothing is written in place, so a step keeps as many tensors whatever T is."""

    def kept(T):
        Wx, R, b, states = draw("lstm", T=T)
        count = 0

        def pack(x):
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            reference.flashrnn(Wx, R, b, states, "lstm")
        return count

    assert kept(48) - kept(32) == kept(32) - kept(16)


def test_inputs_are_left_alone():
    leaves = draw("slstm")
    before = [x.detach().clone() for x in leaves]
    every, last = reference.flashrnn(*leaves, "slstm", reset=torch.ones(2, 3, dtype=torch.bool))
    (every.sum() + last.sum()).backward()
    for x, y in zip(leaves, before, strict=True):
        assert torch.equal(x, y)
