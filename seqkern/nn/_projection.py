# SPDX-License-Identifier: Apache-2.0
"""The input projection of a recurrent layer, whose products are long and narrow.

Wx = x W^T        x: [rows, K], W: [G * hidden, K], rows = B * T
dx = g W          by way of a dense W^T: one small copy makes the large product faster
dW = g^T x        in blocks of rows, summed in their order: a block of g^T stays in cache
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import backends
from seqkern._runtime.matmul import linear, matmul_nt

# Rows of a block, and rows from which on blocks win.
_BLOCK = 1024
_LONG = 2048


def project(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight^T`` of x [..., K] and weight [N, K], any dtype, with all derivatives."""
    if (
        x.dtype is not torch.float32
        or weight.dtype is not torch.float32
        or type(weight) not in (Tensor, torch.nn.Parameter)
        or not (x.is_cpu and weight.is_cpu)
        or not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or backends.forward_mode()
        or x.numel() < _LONG * max(1, x.shape[-1])
    ):
        return linear(x, weight)
    return _Project.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul_nt(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = matmul_nt(g, weight.t().contiguous()) if ctx.needs_input_grad[0] else None
        dW = None
        if ctx.needs_input_grad[1]:
            for rows, part in zip(g.split(_BLOCK), x.split(_BLOCK), strict=True):
                product = matmul_nt(rows.t(), part.t())
                # In place only where no graph of the gradient is asked for.
                inplace = dW is not None and not torch.is_grad_enabled()
                dW = product if dW is None else dW.add_(product) if inplace else dW + product
        return dx, dW
