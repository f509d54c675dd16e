# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the compiled ops behind the causal convolution.

The forward pass saves its inputs and nothing else: the backward pass recomputes the sums under
the activation, which costs less than reading them back from memory.
"""

from typing import Any

import torch
from torch import Tensor

from seqkern import reference
from seqkern._runtime import library
from seqkern.ops._gradients import differentiable_grads

FORWARD = library.find_op("causal_conv1d_fwd")
BACKWARD = library.find_op("causal_conv1d_bwd")
UPDATE = library.find_op("causal_conv1d_update")

# The longest kernel that the compiled ops hold in their buffers: kConvMaxWidth in causal_conv1d.h.
MAX_WIDTH = 32


class CausalConv1dFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        h0: Tensor | None,
        cu_seqlens: Tensor | None,
        silu: bool,
        output_final_state: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return ``y`` and the final state ([0] unless asked for); see `causal_conv1d`."""
        y, ht = FORWARD(x, weight, bias, residual, h0, cu_seqlens, silu, output_final_state)
        ctx.save_for_backward(x, weight, bias, h0, cu_seqlens)
        ctx.silu, ctx.output_final_state = silu, output_final_state
        ctx.set_materialize_grads(False)
        return y, ht

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dht: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias, residual and h0."""
        x, weight, bias, h0, cu_seqlens = ctx.saved_tensors
        dresidual = dy if ctx.needs_input_grad[3] else None
        dht = dht if ctx.output_final_state else None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx, dw, db, dh0 = _differentiable(ctx, (x, weight, bias, h0), cu_seqlens, dy, dht)
            return dx, dw, db, dresidual, dh0, None, None, None
        if dy is None:
            dy = torch.zeros_like(x)
        dx, dw, db, dh0 = BACKWARD(dy, dht, x, weight, bias, h0, cu_seqlens, ctx.silu)
        dw = dw.to(weight.dtype)
        db = None if bias is None else db.to(bias.dtype)
        return dx, dw, db, dresidual, None if h0 is None else dh0, None, None, None


def _differentiable(
    ctx: Any,
    inputs: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
    dy: Tensor | None,
    dht: Tensor | None,
) -> list[Tensor | None]:
    """Return the same gradients with a graph of their own, by way of the reference."""

    def definition(
        x: Tensor, weight: Tensor, bias: Tensor | None, h0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        activation = "silu" if ctx.silu else None
        return reference.causal_conv1d(x, weight, bias, None, h0, activation, cu_seqlens)

    needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4)]
    return differentiable_grads(definition, inputs, needs, (dy, dht))


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    B, _, D = x.shape
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = (N, D, weight.shape[1]) if output_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state)


def _backward_fake(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty(weight.shape, dtype=torch.float32),
        x.new_empty((0,) if bias is None else bias.shape, dtype=torch.float32),
        x.new_empty((0,) if initial_state is None else initial_state.shape),
    )


def _update_fake(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    silu: bool,
) -> Tensor:
    return x.new_empty(x.shape)


if FORWARD is not None:
    torch.library.register_fake("seqkern::causal_conv1d_fwd", _forward_fake)
    torch.library.register_fake("seqkern::causal_conv1d_bwd", _backward_fake)
    torch.library.register_fake("seqkern::causal_conv1d_update", _update_fake)
