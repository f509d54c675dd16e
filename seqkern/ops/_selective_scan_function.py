# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the compiled ops behind the selective scan.

B and C come as [B, G, T, N], or [D, N] when they do not change over time.
"""

from typing import Any

import torch
from torch import Tensor

from seqkern import reference
from seqkern._runtime import library
from seqkern.ops._gradients import differentiable_grads

FORWARD = library.find_op("selective_scan_fwd")
BACKWARD = library.find_op("selective_scan_bwd")
STEP = library.find_op("selective_scan_step")

# kScanRows and kScanLanes of selective_scan.h.
ROWS, LANES = 32, 16


class SelectiveScanFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        h0: Tensor | None,
        cu_seqlens: Tensor | None,
        softplus: bool,
        negative: bool,
        time_major: bool,
        output_state: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return ``out`` and the last state ([0] unless asked for); see `selective_scan`."""
        inputs = (u, delta, A, B, C, D, z, delta_bias, h0, cu_seqlens)
        out, ht, checkpoints = FORWARD(*inputs, softplus, negative, time_major, output_state, True)
        if time_major and not torch.compiler.is_compiling():
            # The op made a view, and autograd lets nobody write into one made in here.
            out = out.data
        ctx.save_for_backward(*inputs, checkpoints)
        ctx.flags = (softplus, negative, time_major)
        ctx.output_state = output_state
        ctx.set_materialize_grads(False)
        return out, ht

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dht: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of u, delta, A, B, C, D, z, delta_bias and h0."""
        *inputs, checkpoints = ctx.saved_tensors
        dht = dht if ctx.output_state else None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (*_differentiable(ctx, inputs, dout, dht), *(None,) * 5)
        u = inputs[0]
        if dout is None:
            dout = torch.zeros_like(u)
        grads = BACKWARD(dout, dht, *inputs, checkpoints, *ctx.flags)
        narrow = (
            None if x is None else g if g.dtype is x.dtype else g.to(x.dtype)
            for x, g in zip(inputs, grads, strict=False)
        )
        return (*narrow, *(None,) * 5)


def _differentiable(
    ctx: Any, inputs: list[Tensor | None], dout: Tensor | None, dht: Tensor | None
) -> list[Tensor | None]:
    softplus, negative, _ = ctx.flags

    def definition(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        D, z, bias, h0 = others
        b, c = (x if x.dim() == 2 else x.transpose(2, 3) for x in (B, C))
        return reference.selective_scan(
            u, delta, A, b, c, D, z, bias, softplus, h0, negative, inputs[9]
        )

    return differentiable_grads(definition, inputs[:9], ctx.needs_input_grad, (dout, dht))


def _rows(like: Tensor, u: Tensor, time_major: bool) -> Tensor:
    """A tensor [B, D, T] as the binding allocates it."""
    B, D, T = u.shape
    if not time_major:
        return like.new_empty((B, D, T))
    return like.new_empty((B, T, D)).transpose(1, 2)


def _state_shape(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    sequences = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (sequences, A.shape[0], A.shape[1])


def _forward_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    softplus: bool,
    negative: bool,
    time_major: bool,
    output_state: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1
    blocks = groups * ((u.shape[1] // groups + LANES - 1) // LANES)
    shape = (u.shape[0], u.shape[2] // ROWS, blocks, A.shape[1], LANES) if save else (0,)
    state = _state_shape(u, A, cu_seqlens) if output_state else (0,)
    return (
        _rows(u, u, time_major),
        u.new_empty(state, dtype=torch.float32),
        u.new_empty(shape, dtype=torch.float32),
    )


def _backward_fake(
    dout: Tensor,
    dht: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    negative: bool,
    time_major: bool,
) -> tuple[Tensor, ...]:
    def wide(x: Tensor | None) -> Tensor:
        return u.new_empty((0,) if x is None else x.shape, dtype=torch.float32)

    state = _state_shape(u, A, cu_seqlens) if h0 is not None else (0,)
    return (
        _rows(u, u, time_major),
        _rows(delta, u, time_major),
        wide(A),
        wide(B),
        wide(C),
        wide(D),
        u.new_empty((0,)) if z is None else _rows(z, u, time_major),
        wide(delta_bias),
        u.new_empty(state, dtype=torch.float32),
    )


def _step_fake(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    negative: bool,
) -> Tensor:
    return u.new_empty(u.shape)


if FORWARD is not None:
    torch.library.register_fake("seqkern::selective_scan_fwd", _forward_fake)
    torch.library.register_fake("seqkern::selective_scan_bwd", _backward_fake)
    torch.library.register_fake("seqkern::selective_scan_step", _step_fake)
