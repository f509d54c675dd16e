# SPDX-License-Identifier: Apache-2.0
"""The definition of the selective scan.

dt_t = delta_t + delta_bias, through softplus if asked for
a_t  = exp(dt_t A), or 2 exp(dt_t A) - 1 with negative eigenvalues
h_t  = a_t h_{t-1} + dt_t u_t B_t                                  h: [D, N]
y_t  = sum_N C_t h_t + D u_t, times silu(z_t) if there is a z
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    allow_neg_eigval: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan step by step, in float64 for float64 inputs and in float32 otherwise.

    Args:
        u, delta: [B, D, T], any floating dtype.
        A: [D, N].
        B, C: [D, N], [B, N, T] or [B, G, N, T]; G divides D.
        D: [D] or None.
        z: [B, D, T] or None.
        delta_bias: [D] or None.
        delta_softplus: apply softplus to the biased delta.
        initial_state: [sequences, D, N], or None for zeros.
        allow_neg_eigval: eigenvalues ``2 exp(dt A) - 1`` instead of ``exp(dt A)``.
        cu_seqlens: [sequences + 1] integers; packs sequences into a batch of 1.

    Returns:
        ``out`` [B, D, T] in ``u.dtype`` and the last state [sequences, D, N] in the computing
        dtype.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, channels, T = u.shape
    with torch.autocast(u.device.type, enabled=False):
        x, dt, A = u.to(dtype), delta.to(dtype), A.to(dtype)
        if delta_bias is not None:
            dt = dt + delta_bias.to(dtype).unsqueeze(-1)
        if delta_softplus:
            dt = softplus(dt)
        n = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if initial_state is None:
            h = x.new_zeros(n, channels, A.shape[1])
        else:
            h = initial_state.to(dtype)
        # Unbinding once keeps autograd linear in T: indexing would fill a whole gradient per step.
        steps = [t.unsqueeze(-1).unbind(2) for t in (dt, dt * x)]
        steps += [_by_step(t.to(dtype), channels, T) for t in (B, C)]
        bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
        outs, states = [], [h[:0]]
        for i, (begin, end) in enumerate(pairwise(bounds)):
            state = h if cu_seqlens is None else h[i : i + 1]
            for t in range(begin, end):
                step, du, b, c = (parts[t] for parts in steps)
                a = (step * A).exp()
                a = 2 * a - 1 if allow_neg_eigval else a
                state = a * state + du * b
                outs.append((state * c).sum(-1))
            states.append(state)
        y = torch.stack(outs, -1) if outs else x
        y = y if D is None else y + D.to(dtype).unsqueeze(-1) * x
        y = y if z is None else y * silu(z.to(dtype))
        return y.to(u.dtype), torch.cat(states)


def _by_step(x: Tensor, channels: int, T: int) -> tuple[Tensor, ...]:
    """B or C at every step, [D, N] or [B, D, N]."""
    if x.dim() == 2:
        return (x,) * T
    x = x.unsqueeze(1) if x.dim() == 3 else x
    return x.repeat_interleave(channels // x.shape[1], 1).unbind(-1)
