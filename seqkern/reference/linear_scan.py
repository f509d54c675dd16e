# SPDX-License-Identifier: Apache-2.0
"""The definition of the diagonal linear scan: ``x_t = a_t x_{t-1} + b_t``."""

from itertools import pairwise

import torch
from torch import Tensor

_WIDE = (torch.float64, torch.complex64, torch.complex128)


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Scan step by step; 16-bit inputs are computed in float32.

    Args:
        a, b: [B, T, ...], any floating or complex dtype.
        h0: [sequences, ...], or None for zeros.
        cu_seqlens: [sequences + 1] integers; packs sequences into a batch of 1.

    Returns:
        ``x`` of the shape and dtype of ``b``.
    """
    dtype = b.dtype if b.dtype in _WIDE else torch.float32
    T = b.shape[1]
    rows = [t.to(dtype).unbind(1) for t in (a, b)]
    state = b.new_zeros((), dtype=dtype) if h0 is None else h0.to(dtype)
    bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
    outs = []
    for i, (begin, end) in enumerate(pairwise(bounds)):
        x = state if cu_seqlens is None or h0 is None else state[i : i + 1]
        for t in range(begin, end):
            x = rows[0][t] * x + rows[1][t]
            outs.append(x)
    return torch.stack(outs, 1).to(b.dtype) if outs else b.clone()
