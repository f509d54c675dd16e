# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the compiled ops behind the classical recurrent cells.

The forward pass keeps what the backward pass needs of every step in one buffer of the size of the
gates; without gradients it keeps nothing. Wx itself is kept for second derivatives alone, and a
layer, which can project its input again, has that input kept instead.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqkern._runtime import library
from seqkern._runtime.matmul import linear
from seqkern.ops._gradients import differentiable_grads
from seqkern.reference.flashrnn import CELLS
from seqkern.reference.flashrnn import flashrnn as reference_flashrnn

FORWARD = library.find_op("rnn_fwd")
BACKWARD = library.find_op("rnn_bwd")
STEP = library.find_op("rnn_step")

# Vectors of D that the forward pass saves of the gates of one step.
_SAVED_GATES = {"elman": 1, "elman_relu": 1, "lstm": 4, "gru": 4, "slstm": 5, "mgu": 3}


class Projection(NamedTuple):
    """What a layer's Wx comes from."""

    x: Tensor  # [B, T, K], or [T, B, K] if `time_major`
    weight: Tensor  # [G * N * D, K]
    time_major: bool

    def project(self, N: int, D: int) -> Tensor:
        """Return Wx [B, T, G, N, D]."""
        Wx = linear(self.x, self.weight).unflatten(-1, (-1, N, D))
        return Wx.transpose(0, 1) if self.time_major else Wx


class FlashRNNFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference.

    ``x`` and ``weight`` are those of a `Projection`, or None. Their gradients are that projection's
    to return.
    """

    @staticmethod
    def forward(
        ctx: Any,
        Wx: Tensor,
        R: Tensor,
        b: Tensor | None,
        s0: Tensor | None,
        cu_seqlens: Tensor | None,
        reset: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        time_major: bool,
        cell: str,
        reverse: bool,
        forward_clip: float,
        out_states: int,
        cut: bool,
        clip: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the first ``out_states`` states of every step, and all last ones."""
        states, last, saved = FORWARD(
            Wx, R, b, s0, cu_seqlens, reset, cell, reverse, forward_clip, out_states, True
        )
        if not torch.compiler.is_compiling():
            # The op may have made a view, and autograd lets nobody write into one made in here.
            states = states.data
        kept = Wx if x is None else None
        ctx.save_for_backward(kept, R, b, s0, cu_seqlens, reset, x, weight, states, saved)
        ctx.time_major = time_major
        ctx.options = (cell, reverse, forward_clip, cut, clip)
        ctx.set_materialize_grads(False)
        return states, last

    @staticmethod
    def backward(
        ctx: Any, dstates: Tensor | None, dlast: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of Wx, R, b and s0."""
        Wx, R, b, s0, cu_seqlens, reset, x, weight, states, saved = ctx.saved_tensors
        none = (None,) * 11
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if Wx is None:
                Wx = Projection(x, weight, ctx.time_major).project(*R.shape[1:3])
            inputs = (Wx, R, b, s0)
            return *_differentiable(ctx, inputs, cu_seqlens, reset, dstates, dlast), *none
        dWx, dR, db, ds0 = BACKWARD(
            dstates, dlast, R, b, s0, cu_seqlens, reset, states, saved, *ctx.options
        )
        db = None if b is None else db.to(b.dtype)
        return dWx, dR, db, None if s0 is None else ds0, *none


def _differentiable(
    ctx: Any,
    inputs: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
    reset: Tensor | None,
    dstates: Tensor | None,
    dlast: Tensor | None,
) -> list[Tensor | None]:
    """Return the same gradients with a graph of their own, by way of the reference."""
    cell, reverse, forward_clip, cut, clip = ctx.options
    out_states = 0 if dstates is None else dstates.shape[0]

    def definition(
        Wx: Tensor, R: Tensor, b: Tensor | None, s0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        states, last = reference_flashrnn(
            Wx,
            R,
            b,
            None if s0 is None else s0.unsqueeze(2),
            cell,
            reset=reset,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
            gradient_recurrent_cut=cut,
            gradient_recurrent_clipval=clip,
            forward_clipval=forward_clip,
        )
        return states[:out_states], last.squeeze(2)

    return differentiable_grads(definition, inputs, ctx.needs_input_grad, (dstates, dlast))


def is_time_major(Wx: Tensor) -> bool:
    """Tell whether Wx [B, T, ...] has its steps further apart in memory than its sequences."""
    return _time_first(Wx, 0)


def _time_first(x: Tensor, batch: int) -> bool:
    """Tell whether time, the dimension after ``batch``, comes first in the memory of x."""
    B, T = x.shape[batch : batch + 2]
    return B > 1 and T > 1 and x.stride(batch) < x.stride(batch + 1)


def _along_time(like: Tensor, sizes: tuple[int, ...], batch: int, time_first: bool) -> Tensor:
    """Return an empty tensor of these sizes, in either order of batch and time in memory."""
    if not time_first:
        return like.new_empty(sizes)
    swapped = (*sizes[:batch], sizes[batch + 1], sizes[batch], *sizes[batch + 2 :])
    return like.new_empty(swapped).transpose(batch, batch + 1)


def _forward_fake(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None,
    s0: Tensor | None,
    cu_seqlens: Tensor | None,
    reset: Tensor | None,
    cell: str,
    reverse: bool,
    forward_clip: float,
    out_states: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, N, D = Wx.shape
    count = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = _along_time(Wx, (out_states, B, T, N, D), 1, is_time_major(Wx))
    last = Wx.new_empty((CELLS[cell].states, count, N, D), dtype=torch.float32)
    size = _saved_size(Wx, cell) if save else (0,)
    return states, last, Wx.new_empty(size, dtype=torch.float32)


def _saved_size(Wx: Tensor, cell: str) -> tuple[int, ...]:
    """Every state but h in float32, and the activated gates, two to a float beside bfloat16."""
    B, T, _, N, D = Wx.shape
    width = (D + 15) // 16 * 16
    halves = Wx.dtype is torch.bfloat16
    gates = _SAVED_GATES[cell] * width // (2 if halves else 1)
    return N, T, B, (CELLS[cell].states - 1) * width + gates


def _backward_fake(
    dstates: Tensor | None,
    dlast: Tensor | None,
    R: Tensor,
    b: Tensor | None,
    s0: Tensor | None,
    cu_seqlens: Tensor | None,
    reset: Tensor | None,
    states: Tensor,
    saved: Tensor,
    cell: str,
    reverse: bool,
    forward_clip: float,
    cut: bool,
    clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, B, T, N, D = states.shape
    count = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    counts = CELLS[cell]
    return (
        _along_time(states, (B, T, counts.input, N, D), 0, _time_first(states, 1)),
        R.new_empty(R.shape),
        states.new_empty((counts.bias, N, D), dtype=torch.float32),
        states.new_empty((counts.states, count, N, D), dtype=torch.float32),
    )


def _step_fake(
    Wx: Tensor, R: Tensor, b: Tensor | None, s: Tensor, cell: str, forward_clip: float, first: int
) -> Tensor:
    return s.new_empty(s.shape)


if FORWARD is not None:
    torch.library.register_fake("seqkern::rnn_fwd", _forward_fake)
    torch.library.register_fake("seqkern::rnn_bwd", _backward_fake)
    torch.library.register_fake("seqkern::rnn_step", _step_fake)
