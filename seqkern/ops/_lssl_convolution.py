# SPDX-License-Identifier: Apache-2.0
"""Causal convolution of many features with long kernels, by Fourier transforms.

The compiled op transforms 16 features at a time where they lie, two sequences in one complex
transform, and saves nothing for the backward pass. Without it torch's real transforms serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import library
from seqkern.ops._gradients import differentiable_grads

FORWARD = library.find_op("lssl_conv_fwd")
BACKWARD = library.find_op("lssl_conv_bwd")


def convolve(u: Tensor, K: Tensor, D: Tensor | None, compiled: bool = True) -> Tensor:
    """Return K * u + D u, causal and zero-padded.

    Args:
        u: [B, L, H], float32 or float64.
        K: [H, M, L], dtype of ``u``.
        D: [H, M] or None, dtype of ``u``.
        compiled: use the compiled op where it can run.

    Returns:
        [B, L, H, M], a view of [B, L, M, H] in memory.
    """
    rows = K.permute(2, 1, 0)
    if compiled and FORWARD is not None and u.is_cpu and u.shape[1] > 0:
        return _Convolution.apply(u, rows, D).transpose(2, 3)
    return transformed(u, rows, D).transpose(2, 3)


def transformed(u: Tensor, K: Tensor, D: Tensor | None) -> Tensor:
    """Return what `_Convolution` computes, by torch's transforms; differentiable twice."""
    if u.numel() == 0:  # nothing, but part of the graph; torch's transforms would refuse it
        sums = K.sum(0)
        return u.unsqueeze(2) * (sums if D is None else sums + D.t())
    L = u.shape[1]
    size = fft_size(2 * L - 1)
    spectrum = torch.fft.rfft(u, n=size, dim=1).unsqueeze(2) * torch.fft.rfft(K, n=size, dim=0)
    y = torch.fft.irfft(spectrum, n=size, dim=1)[:, :L].contiguous()
    return y if D is None else torch.addcmul(y, D.t(), u.unsqueeze(2))


def _definition(u: Tensor, K: Tensor, D: Tensor | None) -> tuple[Tensor]:
    return (transformed(u, K, D),)


class _Convolution(torch.autograd.Function):
    """u [B, L, H], K [L, M, H] and D [H, M] or None to [B, L, M, H]."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, K: Tensor, D: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, K, D)
        return FORWARD(u, K, D)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, K, D = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return tuple(differentiable_grads(_definition, (u, K, D), needs, (dy,)))
        du, dK = BACKWARD(dy, u, K, D, needs[0], needs[1] or needs[2])
        return (
            du if needs[0] else None,
            dK if needs[1] else None,
            dK[0].t().contiguous() if needs[2] else None,
        )


def fft_size(least: int) -> int:
    """Return the smallest even 2^a 3^b 5^c of a short list that is at least ``least``."""
    best = 1 << max(1, (least - 1).bit_length())
    for odd in (3, 5, 9, 15, 25, 27, 45):
        size = odd * 2
        while size < least:
            size *= 2
        best = min(best, size)
    return best


def _forward_fake(u: Tensor, K: Tensor, D: Tensor | None) -> Tensor:
    return u.new_empty((u.shape[0], *K.shape))


def _backward_fake(
    dy: Tensor, u: Tensor, K: Tensor, D: Tensor | None, du_wanted: bool, dK_wanted: bool
) -> tuple[Tensor, Tensor]:
    return (
        u.new_empty(u.shape if du_wanted else (0,)),
        K.new_empty(K.shape if dK_wanted else (0,)),
    )


if FORWARD is not None:
    torch.library.register_fake("seqkern::lssl_conv_fwd", _forward_fake)
    torch.library.register_fake("seqkern::lssl_conv_bwd", _backward_fake)
