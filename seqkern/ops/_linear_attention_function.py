# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the two compiled ops behind the linear-attention family.

The forward pass keeps what replaying costs most: for the delta rule the residuals v - S^T k
(float32), and the state after every `checkpoint_interval` updates. The backward pass replays the
states in between.
"""

import operator
from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import library
from seqkern.ops._gradients import differentiable_grads
from seqkern.reference._recurrence import recurrence

FORWARD = library.find_op("linear_attention_fwd")
BACKWARD = library.find_op("linear_attention_bwd")

# Updates that a kernel takes at a time: intervals are multiples of it.
_CHUNK = 16
_SHORTEST_INTERVAL = 64


def static(size: int) -> int:
    """Return ``size`` as a plain integer, also while tracing with symbolic shapes."""
    return operator.index(size)


def checkpoint_interval(q: Tensor, v: Tensor, g: Tensor | None, n: int) -> int:
    """Return how many updates lie between two saved states, a multiple of 16, at least 64.

    Chosen so that the saved states take at most a third of the bytes of q, k, v and g.
    """
    H, K, HV, V = (static(size) for size in (*q.shape[2:], *v.shape[2:]))
    per_token = H * K * q.element_size()
    if g is not None:
        per_token += (H * K if g.dim() == 4 else HV) * g.element_size()
    per_update = (H * K + HV * V) * q.element_size() + per_token / n
    needed = 3 * 4 * HV * K * V / per_update if HV else 0
    return max(_SHORTEST_INTERVAL, -int(-needed // _CHUNK) * _CHUNK)


class LinearAttentionFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor | None,
        h0: Tensor | None,
        cu_seqlens: Tensor | None,
        scale: float,
        n: int,
        l2norm: bool,
        interval: int,
        signed_gate: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return ``o`` and the final state; see `linear_attention` for the arguments."""
        o, ht, residual, checkpoints = FORWARD(
            q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, interval, signed_gate
        )
        ctx.save_for_backward(q, k, v, g, beta, h0, cu_seqlens, residual, checkpoints)
        ctx.options = (scale, n, l2norm, interval, signed_gate)
        ctx.set_materialize_grads(False)
        return o, ht

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dht: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v, g, beta and h0."""
        q, k, v, g, beta, h0, cu_seqlens, residual, checkpoints = ctx.saved_tensors
        inputs = (q, k, v, g, beta, h0)
        none = (None,) * 6
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable(ctx, inputs, cu_seqlens, do, dht), *none
        if do is None:
            do = v.new_zeros((*q.shape[:2], *v.shape[2:]))
        dq, dk, dv, dg, dbeta, dh0 = BACKWARD(
            do, dht, *inputs, cu_seqlens, residual, checkpoints, *ctx.options
        )
        dg = None if g is None else dg.to(g.dtype)
        dbeta = None if beta is None else dbeta.to(beta.dtype)
        return dq, dk, dv, dg, dbeta, None if h0 is None else dh0, *none


def _differentiable(
    ctx: Any,
    inputs: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
    do: Tensor | None,
    dht: Tensor | None,
) -> list[Tensor | None]:
    """Return the same gradients with a graph of their own, by way of the reference."""
    scale, n, l2norm, _, signed_gate = ctx.options

    def definition(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, h0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        gates = [] if g is None else [g.unsqueeze(-1) if g.dim() == 4 else g[..., None, None]]
        return recurrence(
            q, k, v, gates, beta, scale, h0, cu_seqlens, n, l2norm, signed_gates=signed_gate
        )

    return differentiable_grads(definition, inputs, ctx.needs_input_grad, (do, dht))


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    num_householder: int,
    l2norm: bool,
    checkpoint_interval: int,
    signed_gate: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, _, K = q.shape
    rows, HV, V = v.shape[1:]
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    o = q.new_empty((B, T, HV, V))
    ht = q.new_empty((N, HV, K, V), dtype=torch.float32)
    residual: tuple[int, ...] = (0,)
    checkpoints: tuple[int, ...] = (0,)
    if checkpoint_interval:
        residual = residual if beta is None else (B, rows, HV, V)
        checkpoints = (B, rows // checkpoint_interval, HV, K, V)
    return (
        o,
        ht,
        q.new_empty(residual, dtype=torch.float32),
        q.new_empty(checkpoints, dtype=torch.float32),
    )


def _backward_fake(
    do: Tensor,
    dht: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    residual: Tensor,
    checkpoints: Tensor,
    scale: float,
    num_householder: int,
    l2norm: bool,
    checkpoint_interval: int,
    signed_gate: bool = False,
) -> tuple[Tensor, ...]:
    N = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dg, dbeta = (
        q.new_empty((0,) if x is None else x.shape, dtype=torch.float32) for x in (g, beta)
    )
    dh0 = q.new_empty((N, v.shape[2], q.shape[3], v.shape[3]), dtype=torch.float32)
    return dq, dk, dv, dg, dbeta, dh0


if FORWARD is not None:
    torch.library.register_fake("seqkern::linear_attention_fwd", _forward_fake)
    torch.library.register_fake("seqkern::linear_attention_bwd", _backward_fake)
