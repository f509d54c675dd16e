# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer with a dense state matrix, by matrix products.

Baby steps V_j = A_bar^j B_bar for j < S and giant steps W_r = C A_bar^(S r) give K_(S r + j) = W_r
V_j: about 2 sqrt(L) vectors instead of L. The recurrence runs chunk by chunk with the same vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 64
_ROWS = 4


def _bits(x: int) -> int:
    """Return the number of doublings from 1 to at least ``x``."""
    return max(0, (x - 1).bit_length())


def dense_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, L: int) -> Tensor:
    """Return K [H, M, L] of A_bar [H, N, N], B_bar [H, N] and C [H, M, N]."""
    H, M, _ = C.shape
    doublings = (_bits(L) + 1) // 2
    V, power = B_bar.unsqueeze(-1), A_bar
    for _ in range(doublings):
        V = torch.cat([V, power @ V], dim=-1)
        power = power @ power
    steps = V.shape[-1]
    rows = -(-L // steps)
    # A squaring costs as much as N rows; a few rows at a time need fewer of them.
    W = C
    while W.shape[1] < min(_ROWS, rows) * M:
        W = torch.cat([W, W @ power], dim=1)
        if W.shape[1] < rows * M:
            power = power @ power
    parts = [W]
    while len(parts) * W.shape[1] < rows * M:
        parts.append(parts[-1] @ power)
    W = torch.cat(parts, dim=1)
    K = (W[:, : rows * M] @ V).unflatten(1, (rows, M))
    return K.transpose(1, 2).reshape(H, M, rows * steps)[..., :L]


def dense_scan(
    u: Tensor, A_bar: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None, x0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over u [B, L, H]; return y [B, L, H, M] and the last state [B, H, N]."""
    x = u.new_zeros(u.shape[0], *B_bar.shape) if x0 is None else x0.clone()
    ys, begin = [u.new_zeros(u.shape[0], 0, *C.shape[:2])], 0
    while begin < u.shape[1]:
        S = min(_CHUNK, 1 << (u.shape[1] - begin).bit_length() - 1)
        end = begin + (u.shape[1] - begin) // S * S
        y, x = _whole_chunks(u[:, begin:end], S, A_bar, B_bar, C, x)
        ys.append(y)
        begin = end
    y = torch.cat(ys, dim=1)
    return (y if D is None else y + D * u.unsqueeze(-1)), x


def _whole_chunks(
    u: Tensor, S: int, A_bar: Tensor, B_bar: Tensor, C: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Run chunks of S steps (a power of two that divides the length)."""
    B, L, H = u.shape
    M = C.shape[1]
    V, rows, power = B_bar.unsqueeze(-1), C @ A_bar, A_bar
    while V.shape[-1] < S:
        V, rows = torch.cat([V, power @ V], dim=-1), torch.cat([rows, rows @ power], dim=1)
        power = power @ power
    steps = torch.arange(S, device=u.device)
    lag = steps.unsqueeze(1) - steps
    K = (C @ V)[..., lag.clamp_min(0)] * (lag >= 0)  # [H, M, S, S]
    chunks = u.unflatten(1, (L // S, S)).permute(3, 2, 1, 0).flatten(2)  # [H, S, chunks * B]
    entering = (V.flip(-1) @ chunks).unflatten(-1, (L // S, B))
    states, state = [], x.permute(1, 2, 0)
    for i in range(L // S):
        states.append(state)
        state = power @ state + entering[:, :, i]
    starts = torch.stack(states, dim=2).flatten(2)  # [H, N, chunks * B]
    inside = (K.flatten(1, 2) @ chunks).unflatten(1, (M, S)).transpose(1, 2)
    y = inside + (rows @ starts).unflatten(1, (S, M))  # [H, S, M, chunks * B]
    y = y.unflatten(-1, (L // S, B)).permute(4, 3, 1, 0, 2)
    return y.reshape(B, L, H, M), state.permute(2, 0, 1)
