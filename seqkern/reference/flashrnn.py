# SPDX-License-Identifier: Apache-2.0
"""The definition of the classical recurrent cells, with block-diagonal (head-wise) recurrence.

    y_t = R h_{t-1}                       per head and recurrent gate: R [D, D], h [D]
    a_t = x_t + y_t + b                   the pre-activations, one per bias gate
    (h_t, ...) = cell(a_t, (h_{t-1}, ...))

The gates of a cell form one list; the recurrent ones are its first, the input ones its last. A gate
without a recurrent or an input part is ``a = x + b`` or ``a = y + b``. s is the logistic sigmoid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from seqkern._runtime.autocast import without_autocast

States = Sequence[Tensor]


def _elman(a: States, s: States) -> States:
    """h' = tanh(a)."""
    return (torch.tanh(a[0]),)


def _elman_relu(a: States, s: States) -> States:
    """h' = max(a, 0)."""
    return (torch.relu(a[0]),)


def _lstm(a: States, s: States) -> States:
    """c' = s(f) c + s(i) tanh(z);  h' = s(o) tanh(c')."""
    i, f, z, o = a
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(a: States, s: States) -> States:
    """n = tanh(a_n + s(r) g);  h' = s(u) h + (1 - s(u)) n: the reset gate after the product."""
    g, r, u, n = a
    keep, new = torch.sigmoid(u), torch.tanh(n + torch.sigmoid(r) * g)
    return (keep * s[0] + (1 - keep) * new,)


def _mgu(a: States, s: States) -> States:
    """n = tanh(a_n + s(f) g);  h' = (1 - s(f)) h + s(f) n: one gate both resets and updates."""
    g, f, n = a
    write = torch.sigmoid(f)
    return ((1 - write) * s[0] + write * torch.tanh(n + write * g),)


def _slstm(a: States, s: States) -> States:
    """Exponential input gate, stabilized by m, normalized by n.

    l = log s(f) + m;  m' = i where n = 0 (a fresh element), else max(i, l)
    I = exp(i - m');  F = exp(l - m');  both at most 1
    c' = F c + I tanh(z);  n' = max(F n + I, 1);  h' = s(o) c' / n'
    """
    i, f, z, o = a
    _, c, n, m = s
    decayed = logsigmoid(f) + m
    m = torch.where((n == 0) | (i >= decayed), i, decayed)
    write, keep = (i - m).clamp_max(0).exp(), (decayed - m).clamp_max(0).exp()
    c = keep * c + write * torch.tanh(z)
    n = (keep * n + write).clamp_min(1)
    return torch.sigmoid(o) * c / n, c, n, m


@dataclass(frozen=True)
class Cell:
    """A cell: how many gates have a product with R, an input and a bias; the states; the step."""

    recurrent: int
    input: int
    bias: int
    states: int
    step: Callable[[States, States], States]


CELLS = {
    "elman": Cell(1, 1, 1, 1, _elman),
    "elman_relu": Cell(1, 1, 1, 1, _elman_relu),
    "lstm": Cell(4, 4, 4, 2, _lstm),
    "gru": Cell(3, 3, 4, 1, _gru),
    "slstm": Cell(4, 4, 4, 4, _slstm),
    "mgu": Cell(2, 2, 3, 1, _mgu),
}


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str = "lstm",
    *,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float = 0.0,
    forward_clipval: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run a cell step by step, in float64 for float64 inputs and in float32 otherwise.

    Where R is 16-bit, its product reads h rounded to that dtype, as torch's own layers do; all else
    stays float32.

    Args:
        Wx: [B, T, input gates, N, D], any floating dtype.
        R: [recurrent gates, N, D out, D in].
        b: [bias gates, N, D], or None for zeros.
        states: [S, sequences, 1, N, D], or None for zeros.
        function: a key of `CELLS`.
        reset: [B, T] bool; the states are zeros before the steps where it is True.
        cu_seqlens: [sequences + 1] integers; packs sequences into B = 1.
        reverse: run each sequence from its last step to its first.
        gradient_recurrent_cut: no gradient flows to h through the product with R.
        gradient_recurrent_clipval: cut the gradient that step t + 1 hands to h_t to
            [-value, value]; 0 leaves it.
        forward_clipval: cut h to [-value, value] after every step; 0 leaves it.

    Returns:
        The states of every step [S, B, T, N, D] in the dtype of ``Wx``, and the last ones
        [S, sequences, 1, N, D] in the computing dtype.
    """
    cell = CELLS[function]
    dtype = torch.float64 if Wx.dtype == torch.float64 else torch.float32
    B, T, _, N, D = Wx.shape
    bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
    count = B if cu_seqlens is None else len(bounds) - 1

    def advance(x: Tensor, s: States) -> States:
        """One step: ``x`` [B, input gates, N, D] and the states [B, N, D] each."""
        h = s[0].detach() if gradient_recurrent_cut else s[0]
        y = torch.einsum("gndp,bnp->gbnd", weight, h.to(R.dtype).to(dtype)).unbind(0)
        xs = x.unbind(1)
        first = cell.bias - cell.input
        a = [y[i] if i < first else xs[i - first] for i in range(cell.bias)]
        a = [a[i] + y[i] if first <= i < cell.recurrent else a[i] for i in range(cell.bias)]
        if b is not None:
            a = [p + q for p, q in zip(a, bias, strict=True)]
        h, *others = cell.step(a, s)
        return h.clamp(-forward_clipval, forward_clipval) if forward_clipval else h, *others

    def carry(s: States) -> States:
        """Return the states as the next step sees them."""
        if not gradient_recurrent_clipval:
            return s
        return _ClipGradient.apply(s[0], gradient_recurrent_clipval), *s[1:]

    with without_autocast(Wx.device.type):
        wide, weight = Wx.to(dtype), R.to(dtype)
        bias = [] if b is None else b.to(dtype).unbind(0)
        start = wide.new_zeros(cell.states, count, N, D)
        start = start if states is None else states.to(dtype).squeeze(2)
        every, last = [wide.new_zeros(cell.states, B, 0, N, D)], [start[:, :0]]
        for i, (begin, end) in enumerate(pairwise(bounds)):
            s: States = (start if cu_seqlens is None else start[:, i : i + 1]).unbind(0)
            # Unbinding keeps autograd linear in T: indexing would fill a whole gradient per step.
            xs = wide[:, begin:end].unbind(1)
            marks = None if reset is None else reset[:, begin:end].bool()[..., None, None].unbind(1)
            steps = range(end - begin)
            outs = []
            for t in reversed(steps) if reverse else steps:
                s = carry(s)
                s = s if marks is None else [x.masked_fill(marks[t], 0.0) for x in s]
                s = advance(xs[t], s)
                outs.append(torch.stack(tuple(s)))
            every += [torch.stack(outs[::-1] if reverse else outs, 2)] if outs else []
            last.append(torch.stack(tuple(s)))
        return torch.cat(every, 2).to(Wx.dtype), torch.cat(last, 1).unsqueeze(2)


class _ClipGradient(torch.autograd.Function):
    """The identity, whose gradient is cut to [-limit, limit]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        _, ctx.limit = inputs

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return dx.clamp(-ctx.limit, ctx.limit), None
