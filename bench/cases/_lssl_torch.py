# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer as it is usually written: doubling, then FFTs, in torch."""

from __future__ import annotations

import torch
from torch.nn import functional

from seqkern.nn import LSSL
from seqkern.ops import Quasiseparable
from seqkern.reference import lssl_discretize


def doubling(A_bar: torch.Tensor, B_bar: torch.Tensor, C: torch.Tensor, L: int) -> torch.Tensor:
    """K [H, M, L]: X <- [X, P X], P <- P P."""
    X, power = B_bar.unsqueeze(-1), A_bar
    while X.shape[-1] < L:
        X = torch.cat([X, power @ X], dim=-1)
        if X.shape[-1] < L:
            power = power @ power
    return C @ X[..., :L]


def torch_layer(layer: LSSL, u: torch.Tensor) -> torch.Tensor:
    """What ``layer(u)[0]`` computes, with a dense matrix; u [B, L, H]."""
    A = layer.state_matrix()
    dense = A.dense() if isinstance(A, Quasiseparable) else A
    A_bar, B_bar = lssl_discretize(dense, layer.B, layer.log_dt.exp(), layer.alpha)
    L = u.shape[1]
    K = doubling(A_bar, B_bar, layer.C, L)
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=2 * L).unsqueeze(2)
    y = torch.fft.irfft(spectrum * torch.fft.rfft(K, n=2 * L), n=2 * L)[..., :L]
    y = y + layer.D.unsqueeze(-1) * u.transpose(1, 2).unsqueeze(2)
    mixed = functional.gelu(y).permute(0, 3, 2, 1).flatten(2)
    return functional.linear(mixed, layer.output_linear.weight, layer.output_linear.bias)
