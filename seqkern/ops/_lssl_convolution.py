# SPDX-License-Identifier: Apache-2.0
"""Causal convolution of many features with long kernels, by real FFTs in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def convolve(u: Tensor, K: Tensor, D: Tensor | None) -> Tensor:
    """Return K * u + D u, causal and zero-padded.

    Args:
        u: [B, L, H], float32 or float64.
        K: [H, M, L], dtype of ``u``.
        D: [H, M] or None.

    Returns:
        [B, L, H, M], a view of [B, L, M, H] in memory.
    """
    if u.shape[1] == 0:
        return u.new_zeros(*u.shape, K.shape[1])
    # Features last in memory, as whatever comes next wants them.
    y = _Convolution.apply(u.transpose(1, 2).contiguous(), K).permute(0, 3, 2, 1).contiguous()
    if D is not None:
        y = torch.addcmul(y, D.to(u.dtype).t(), u.unsqueeze(2))
    return y.transpose(2, 3)


class _Convolution(torch.autograd.Function):
    """u [B, H, L] and K [H, M, L] to [B, H, M, L].

    Autograd's own derivative of a real FFT is a complex one, at twice the cost.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, K: Tensor) -> Tensor:
        size = fft_size(2 * u.shape[-1] - 1)
        spectra = torch.fft.rfft(u, n=size), torch.fft.rfft(K, n=size)
        ctx.save_for_backward(u, K, *spectra)
        return _product(spectra[0].unsqueeze(2), spectra[1], size, u.shape[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, K, U, KF = ctx.saved_tensors
        L = u.shape[-1]
        size = fft_size(2 * L - 1)
        if torch.is_grad_enabled():  # the spectra were made outside the graph
            U, KF = torch.fft.rfft(u, n=size), torch.fft.rfft(K, n=size)
        spectrum = torch.fft.rfft(dy.contiguous(), n=size)
        du = dK = None
        if ctx.needs_input_grad[0]:
            du = torch.fft.irfft((spectrum * KF.conj()).sum(2), n=size)[..., :L]
        if ctx.needs_input_grad[1]:
            dK = torch.fft.irfft((spectrum * U.conj().unsqueeze(2)).sum(0), n=size)[..., :L]
        return du, dK


def _product(a: Tensor, b: Tensor, size: int, L: int) -> Tensor:
    return torch.fft.irfft(a * b, n=size)[..., :L]


def fft_size(least: int) -> int:
    """Return the smallest even 2^a 3^b 5^c of a short list that is at least ``least``."""
    best = 1 << max(1, (least - 1).bit_length())
    for odd in (3, 5, 9, 15, 25, 27, 45):
        size = odd * 2
        while size < least:
            size *= 2
        best = min(best, size)
    return best
