# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the compiled ops behind the root-mean-square norm.

The forward pass saves its inputs (the sum with the residual instead of its parts) and one float
a row; the backward pass recomputes the rest.
"""

from typing import Any

import torch
from torch import Tensor

from seqkern import reference
from seqkern._runtime import library
from seqkern.ops._gradients import differentiable_grads

FORWARD = library.find_op("rms_norm_gated_fwd")
BACKWARD = library.find_op("rms_norm_gated_bwd")

# GateAct in rms_norm_gated.h.
ACTIVATIONS = {"swish": 1, "silu": 1, "sigmoid": 2}


class RMSNormGatedFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        g: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        residual_in_fp32: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Return ``y`` and the residual stream, [0] where it is ``x`` itself."""
        code = ACTIVATIONS[activation]
        y, stream, rstd = FORWARD(x, g, weight, bias, residual, code, residual_in_fp32, eps)
        separate = residual is not None or (residual_in_fp32 and x.dtype is not torch.float32)
        ctx.save_for_backward(stream if separate else x, g, weight, bias, rstd)
        ctx.options = (activation, eps, x.dtype, separate)
        ctx.set_materialize_grads(False)
        return y, stream

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, g, weight, bias and the residual."""
        r, g, weight, bias, rstd = ctx.saved_tensors
        activation, _, dtype, separate = ctx.options
        dstream = dstream if separate else None
        needs_residual = ctx.needs_input_grad[4]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dr, dg, dw, db = _differentiable(ctx, (r, g, weight, bias), dy, dstream)
        else:
            if dy is None:
                dy = torch.zeros_like(r, dtype=dtype)
            dr, dg, dw, db = BACKWARD(
                dy, dstream, r, g, weight, bias, rstd, ACTIVATIONS[activation]
            )
            dg = None if g is None else dg
            dw = None if weight is None else dw.to(weight.dtype)
            db = None if bias is None else db.to(bias.dtype)
        dx = None if dr is None else dr.to(dtype)
        return dx, dg, dw, db, dr if needs_residual else None, None, None, None


def _differentiable(
    ctx: Any, inputs: tuple[Tensor, ...], dy: Tensor | None, dstream: Tensor | None
) -> list[Tensor | None]:
    """Return the gradients of r, g, weight and bias with a graph, by way of the reference."""
    activation, eps, dtype, _ = ctx.options

    def definition(
        r: Tensor, g: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, stream = reference.rms_norm_gated(r, g, weight, bias, activation, eps=eps)
        return y.to(dtype), stream

    needs = [t is not None and t.requires_grad for t in inputs]
    return differentiable_grads(definition, inputs, needs, (dy, dstream))


def _forward_fake(
    x: Tensor,
    g: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    residual_in_fp32: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    wide = residual_in_fp32 and x.dtype != torch.float32
    dtype = residual.dtype if residual is not None else torch.float32 if wide else x.dtype
    stream = x.shape if residual is not None or wide else (0,)
    return (
        x.new_empty(x.shape),
        x.new_empty(stream, dtype=dtype),
        x.new_empty((rows,), dtype=torch.float32),
    )


def _backward_fake(
    dy: Tensor,
    dresidual_out: Tensor | None,
    r: Tensor,
    g: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    activation: int,
) -> tuple[Tensor, ...]:
    dg = dy.new_empty((0,)) if g is None else g.new_empty(g.shape)
    dw, db = (
        dy.new_empty((0,) if t is None else t.shape, dtype=torch.float32) for t in (weight, bias)
    )
    return r.new_empty(r.shape), dg, dw, db


if FORWARD is not None:
    torch.library.register_fake("seqkern::rms_norm_gated_fwd", _forward_fake)
    torch.library.register_fake("seqkern::rms_norm_gated_bwd", _backward_fake)
