# SPDX-License-Identifier: Apache-2.0
"""What must hold between calls: torch's cells, heads, cuts, clips, and gates at their limits."""

import itertools
import threading

import numpy as np
import pytest
import torch
from conftest import ISAS
from rnn_inputs import SMALL, TINY, RnnShape, rnn_inputs
from torch import nn

from seqkern import ops
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import grads_of

each_cell = pytest.mark.parametrize("cell", CELLS)
BACKENDS = ("cpu", "reference")


def call(x, backend="auto", **changes):
    """Outputs and the gradients of every input tensor."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.tensors.items()}
    every, last = ops.flashrnn(**leaves, **{**x.options, **changes}, backend=backend)
    do, dht = x.do[: every.shape[0]], x.dht
    return every.detach(), last.detach(), *grads_of((every, last), list(leaves.values()), (do, dht))


@each_cell
def test_heads_equal_a_block_diagonal_dense_recurrence(cell):
    """N heads are one head whose R has N blocks on its diagonal."""
    x = rnn_inputs(cell, SMALL)
    many = call(x)
    N, D = SMALL.N, SMALL.D
    R = x.tensors["R"]
    dense = torch.stack([torch.block_diag(*gate) for gate in R]).unsqueeze(1)

    def flat(t):
        return t.flatten(-2).unsqueeze(-2)

    tensors = {name: flat(t) for name, t in x.tensors.items() if name != "R"}
    one = type(x)({**tensors, "R": dense}, x.options, flat(x.do), flat(x.dht))
    one = type(x)({n: one.tensors[n] for n in x.tensors}, one.options, one.do, one.dht)
    whole = call(one)
    for i, (a, b) in enumerate(zip(many, whole, strict=True)):
        if i == 3:  # of dR the blocks on the diagonal count
            b = b.view(-1, N, D, N, D)
            b = torch.stack([b[:, n, :, n] for n in range(N)], 1)
        else:
            a = flat(a)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("cell", ["elman", "elman_relu", "lstm"])
def test_one_head_equals_torch(cell):
    kind = {"elman": nn.RNN, "elman_relu": nn.RNN, "lstm": nn.LSTM}[cell]
    options = {"nonlinearity": "relu"} if cell == "elman_relu" else {}
    G, H = CELLS[cell].input, 24
    layer = kind(7, H, batch_first=True, **options)
    u = torch.randn(3, 9, 7)
    Wx = nn.functional.linear(u, layer.weight_ih_l0).view(3, 9, G, 1, H)
    b = (layer.bias_ih_l0 + layer.bias_hh_l0).view(G, 1, H)
    every, _ = ops.flashrnn(Wx, layer.weight_hh_l0.view(G, 1, H, H), b, function=cell)
    torch.testing.assert_close(every[0].flatten(2), layer(u)[0], rtol=1e-5, atol=1e-6)


@each_cell
@pytest.mark.parametrize("backend", BACKENDS)
def test_reset_equals_a_new_sequence(cell, backend):
    """A reset step forgets all that came before it, whatever the states are."""
    x = rnn_inputs(cell, SMALL)
    t = 5
    reset = torch.zeros(SMALL.B, SMALL.T, dtype=torch.bool)
    reset[1, t] = True
    every, last, dWx, _, _, dstates = call(x, backend, reset=reset)
    Wx, R, b, _ = x.tensors.values()
    fresh, end = ops.flashrnn(Wx[1:2, t:], R, b, None, cell, backend)
    torch.testing.assert_close(every[:, 1:2, t:], fresh, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last[:, 1:2], end, rtol=1e-5, atol=1e-6)
    for mask in (reset.byte(), reset):
        again = call(x, backend, reset=mask)
        assert torch.equal(again[0], every)
    only_later = x.do.clone()
    only_later[:, :, :t] = 0
    y = type(x)(x.tensors, x.options, only_later, x.dht)
    *_, dWx, _, _, dstates = call(y, backend, reset=reset)
    assert not dWx[1, :t].any()
    assert not dstates[:, 1].any()
    assert dstates[0, 0].any() or cell in ("slstm",)


@each_cell
@pytest.mark.parametrize("backend", BACKENDS)
def test_cut_gradient_equals_detached_recurrence(cell, backend):
    """With the cut, R h counts as an input: the gradients are those of ``Wx + (R h).detach()``."""
    x = rnn_inputs(cell, TINY).double() if backend == "reference" else rnn_inputs(cell, TINY)
    kind = CELLS[cell]
    every, _, dWx, dR, db, dstates = call(x, backend, gradient_recurrent_cut=True)
    leaves = {n: t.double().detach().clone().requires_grad_() for n, t in x.tensors.items()}
    Wx, R, b, states = leaves.values()
    s, outs, h = states.squeeze(2).unbind(0), [], states[0, :, 0].detach()
    for t in range(TINY.T):
        y = torch.einsum("gndp,bnp->gbnd", R, h).unbind(0)
        first = kind.bias - kind.input
        a = []
        for i in range(kind.bias):
            parts = [b[i]]
            parts += [y[i]] if i < kind.recurrent else []
            parts += [Wx[:, t, i - first]] if i >= first else []
            a.append(sum(parts))
        s = kind.step(a, s)
        h = s[0].detach()
        outs.append(torch.stack(tuple(s)))
    loops = (torch.stack(outs, 2), torch.stack(tuple(s)).unsqueeze(2))
    torch.testing.assert_close(every.double(), loops[0], rtol=1e-5, atol=1e-5)
    cotangents = (x.do.double(), x.dht.double())
    expected = grads_of(loops, list(leaves.values()), cotangents)
    for a, b in zip((dWx, dR, db, dstates), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max()).item())


@each_cell
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_clip(cell, backend):
    """A wide clip changes no bit; a narrow one bounds what reaches the first state."""
    x = rnn_inputs(cell, SMALL)
    free = call(x, backend)
    wide = call(x, backend, gradient_recurrent_clipval=1e6)
    for a, b in zip(free, wide, strict=True):
        assert torch.equal(a, b)
    narrow = call(x, backend, gradient_recurrent_clipval=0.01)
    assert torch.equal(narrow[0], free[0])
    assert narrow[-1][0].abs().max() <= 0.01 < free[-1][0].abs().max()
    assert not torch.equal(narrow[2], free[2])
    zero = call(x, backend, gradient_recurrent_clipval=0)
    for a, b in zip(free, zero, strict=True):
        assert torch.equal(a, b)


@each_cell
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_clip(cell, backend):
    """h stays within the limit in every output, and the limit does not touch the gradient clip."""
    x = rnn_inputs(cell, SMALL)
    free = call(x, backend)
    every, last, *_ = call(x, backend, forward_clipval=0.1)
    assert every[0].abs().max() <= 0.1 < free[0][0].abs().max()
    assert last[0].abs().max() <= 0.1
    wide = call(x, backend, forward_clipval=np.float32(1e6))
    for a, b in zip(free, wide, strict=True):
        assert torch.equal(a, b)


@each_cell
def test_reverse_equals_flipped_time(cell):
    x = rnn_inputs(cell, SMALL)
    every, last, dWx, *rest = call(x, reverse=True)
    flipped = {**x.tensors, "Wx": x.tensors["Wx"].flip(1)}
    y = type(x)(flipped, x.options, x.do.flip(2), x.dht)
    every2, last2, dWx2, *rest2 = call(y)
    for a, b in zip(
        (every, last, dWx, *rest), (every2.flip(2), last2, dWx2.flip(1), *rest2), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _slstm(i, f, states, T=6, D=20, dtype=torch.float32):
    """sLSTM inputs with the input and forget gates shifted."""
    x = rnn_inputs("slstm", RnnShape("extreme", B=3, T=T, N=2, D=D), dtype, states=states)
    x.tensors["Wx"][:, :, 0] += i
    x.tensors["Wx"][:, :, 1] += f
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("states", [True, False], ids=["carried", "fresh"])
@pytest.mark.parametrize("i", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("f", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_extreme_gates_of_the_slstm(i, f, states, backend, isa):
    """No gate, however large, makes a NaN or an infinity; the values stay the definition's."""
    x = _slstm(i, f, states)
    got = call(x, backend)
    truth = call(x.double(), "reference")
    for a, b in zip(got, truth, strict=True):
        assert a.isfinite().all()
        # The stabilizer holds values of the gates' own size, which have that size's digits.
        digits = 1e-5 + 4e-7 * max(abs(i), abs(f))
        torch.testing.assert_close(
            a.double(), b, rtol=digits, atol=digits * (1 + b.abs().max().item())
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_fresh_and_carried_elements_in_one_batch(backend, isa):
    """Whether an element is fresh is its own affair, not its batch's."""
    x = _slstm(-200.0, 0.0, True)
    states = x.tensors["states"]
    states[:, 1] = 0
    states[:, 2, :, :, ::2] = 0
    every, last, *_ = call(x, backend)
    alone = rnn_inputs("slstm", RnnShape("alone", B=1, T=6, N=2, D=20))
    alone = type(x)(
        {**x.tensors, "Wx": x.tensors["Wx"][1:2], "states": states[:, 1:2]},
        x.options,
        x.do[:, 1:2],
        x.dht[:, 1:2],
    )
    own, end, *_ = call(alone, backend)
    torch.testing.assert_close(every[:, 1:2], own, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last[:, 1:2], end, rtol=1e-6, atol=1e-6)
    without = ops.flashrnn(
        alone.tensors["Wx"], alone.tensors["R"], alone.tensors["b"], None, "slstm", backend
    )
    assert torch.equal(without[0], own)
    truth = call(x.double(), "reference")[0]
    torch.testing.assert_close(every.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "mgu"])
@pytest.mark.parametrize("size", [1e4, 1e30, float("inf")])
def test_saturated_gates(cell, size, isa):
    """Gates beyond all bounds saturate; infinities give the limit, not NaN."""
    x = rnn_inputs(cell, RnnShape("saturated", B=2, T=3, N=1, D=17), states=False, bias=False)
    x.tensors["Wx"][...] = torch.where(x.tensors["Wx"] > 0, size, -size)
    got, truth = call(x), call(x, "reference")
    assert got[0].isfinite().all()
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_cell
def test_nan_stays_where_it_belongs(cell, isa):
    """A NaN in one sequence and head reaches no other sequence and no other head."""
    x = rnn_inputs(cell, SMALL)
    x.tensors["Wx"][1, 3, 0, 1, 2] = float("nan")
    every, last = ops.flashrnn(**x.tensors, **x.options)
    hit = torch.zeros_like(every[0], dtype=torch.bool)
    hit[1, 3:, 1] = True
    assert every[0][1, 3:, 1].isnan().any()
    assert every.isnan().any(0)[hit].any()
    assert not every[:, ~hit].isnan().any()
    assert not last[:, 0].isnan().any()


@each_cell
@pytest.mark.parametrize("D", [4, 8, 24, 40])
def test_nothing_is_left_from_the_call_before(cell, D, isa):
    """Units that only pad a width hold none of the NaN of a call before, and pass none on."""
    before = rnn_inputs(cell, RnnShape("before", B=16, T=5, N=2, D=64)).tensors
    x = rnn_inputs(cell, RnnShape("after", B=2, T=5, N=2, D=D))
    for dtype in (torch.float32, torch.bfloat16):
        wrong = {name: torch.full_like(t, float("nan"), dtype=dtype) for name, t in before.items()}
        ops.flashrnn(**wrong, function=cell)
        right = {name: t.to(dtype) for name, t in x.tensors.items()}
        every, last = ops.flashrnn(**right, **x.options)
        assert every.isfinite().all()
        assert last.isfinite().all()


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_large_tensors_have_the_bits_of_small_ones(cell):
    """What is written past the caches, 16 MB and more, is what would be written to them."""
    B, T, N, D = 32, 128, 16, 64
    counts = CELLS[cell]
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    R, do = draw(counts.recurrent, N, D, D) * D**-0.5, draw(B, T, N, D)
    Wx, b = draw(B, T, counts.input, N, D), draw(counts.bias, N, D)

    def run(rows):
        x = Wx[rows].clone().requires_grad_()
        h = ops.flashrnn(x, R, b, function=cell, backend="cpu", output_all_states=False)[0][0]
        with torch.no_grad():
            again = ops.flashrnn(x, R, b, function=cell, backend="cpu", output_all_states=False)
        return h.detach(), again[0][0], *torch.autograd.grad(h, x, do[rows])

    whole = run(slice(0, B))
    assert whole[0].numel() * 4 >= 16 << 20
    for first in (0, 12, B - 4):
        rows = slice(first, first + 4)
        for one, part in zip(whole, run(rows), strict=True):
            assert torch.equal(one[rows], part)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sequence_has_the_same_bits_in_every_company(cell, dtype, isa):
    """However many sequences advance beside it: here from seventeen down to none."""
    lengths = tuple(range(1, 18))
    # Panels side by side, one left over, and a narrow one.
    x = rnn_inputs(cell, RnnShape("company", N=1, D=168, lengths=lengths), dtype=dtype)
    offsets = x.options["cu_seqlens"].tolist()

    def run(Wx, states, **offsets):
        Wx, states = Wx.detach().requires_grad_(), states.detach().requires_grad_()
        R, b = x.tensors["R"], x.tensors["b"]
        every, last = ops.flashrnn(Wx, R, b, states, function=cell, backend="cpu", **offsets)
        loss = every.float().sum() + last.sum()
        return every, last, *torch.autograd.grad(loss, (Wx, states))

    Wx, states = x.tensors["Wx"], x.tensors["states"]
    every, last, dWx, dstates = run(Wx, states, cu_seqlens=x.options["cu_seqlens"])
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        its = [every[:, :, begin:end], last[:, i : i + 1], dWx[:, begin:end], dstates[:, i : i + 1]]
        for one, alone in zip(its, run(Wx[:, begin:end], states[:, i : i + 1]), strict=True):
            assert torch.equal(one, alone)


@pytest.mark.skipif(len(ISAS) < 2, reason="one instruction set alone")
def test_an_instruction_set_that_changes_during_calls():
    """Another thread's cap must not meet weights that were packed for the one before."""
    x = rnn_inputs("lstm", SMALL, torch.bfloat16)
    cap = torch.ops.seqkern.set_isa_cap
    done = threading.Event()

    def change():
        while not done.is_set():
            for name in ISAS:
                cap(name)

    def output():
        return ops.flashrnn(**x.tensors, **x.options)[0]

    possible = []
    for name in ISAS:
        cap(name)
        possible.append(output())
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            out = output()
            assert any(torch.equal(out, one) for one in possible)
    finally:
        done.set()
        thread.join()
        cap("")
