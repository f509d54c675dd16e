# SPDX-License-Identifier: Apache-2.0
"""The recurrence that the linear-attention references share.

for each token t:    S <- exp(g_t) * S                                   the gates, any of the three
    for each of the n rank-one updates j of token t:
        S <- S + k_j w_j^T
        w_j = v_j                          without `beta` (linear attention)
        w_j = beta_j * (v_j - S^T k_j)     with `beta` (delta rule)
    o_t = scale * S^T q_t                  S: [K, V] per head, read once per real token
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from seqkern._runtime.autocast import without_autocast

# Under this squared norm, normalising leaves a vector small instead of blowing it up.
L2NORM_EPS = 1e-6


def l2_normalize(x: Tensor) -> Tensor:
    """Scale the last axis of ``x`` to unit length: ``x / sqrt(sum(x**2) + 1e-6)``."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2NORM_EPS)


def to_layout(state: Tensor | None, state_v_first: bool) -> Tensor | None:
    """Swap the last two axes of a state when it is stored as [N, HV, V, K]."""
    return state if state is None or not state_v_first else state.transpose(-1, -2)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor] = (),
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    num_householder: int = 1,
    l2norm: bool = False,
    reverse: bool = False,
    signed_gates: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence above token by token, in float64 for float64 inputs and float32 otherwise.

    Args:
        q: [B, T, H, K], any floating dtype.
        k: [B, T * num_householder, H, K].
        v: [B, T * num_householder, HV, V]; HV is a multiple of H.
        gates: natural-log decays of rank five, each broadcastable to [B, T, HV, K, V] (H heads are
            repeated to HV like the keys).
        beta: None, [B, T * num_householder, HV] or [B, T * num_householder, HV, V].
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], or None for zeros.
        cu_seqlens: [N + 1] integers; packs N sequences into B = 1.
        num_householder: rank-one updates per token, >= 1.
        l2norm: normalise q and k over K first.
        reverse: run each sequence from its last token to its first.
        signed_gates: the gates are the decays themselves, of any sign, not their logarithms.

    Returns:
        ``o`` [B, T, HV, V] in ``q.dtype`` and the final state [N, HV, K, V] in the computing dtype.
    """
    H, HV, n = q.shape[2], v.shape[2], num_householder
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

    def widen(x: Tensor) -> Tensor:
        x = x.to(dtype)
        return x if x.shape[2] == HV else x.repeat_interleave(HV // H, 2)

    with without_autocast(q.device.type):
        q32, k32 = q.to(dtype), k.to(dtype)
        if l2norm:
            q32, k32 = l2_normalize(q32), l2_normalize(k32)
        per_token = [widen(q32 * (q.shape[-1] ** -0.5 if scale is None else scale))]
        per_token += [widen(g) if signed_gates else widen(g).exp() for g in gates]
        per_update = [widen(k32), v.to(dtype)]
        if beta is not None:
            per_update.append(widen(beta if beta.dim() == 4 else beta.unsqueeze(-1)))
        bounds = None if cu_seqlens is None else cu_seqlens.tolist()
        N = q.shape[0] if bounds is None else len(bounds) - 1
        if initial_state is None:
            h = q32.new_zeros(N, HV, q.shape[-1], v.shape[-1])
        else:
            h = initial_state.to(dtype, copy=True)
        if bounds is None:
            o, h = _scan(per_token, per_update, h, n, reverse)
            return o.to(q.dtype), h
        outs, states = [v[:, :0].to(dtype)], [h[:0]]
        for i, (a, b) in enumerate(itertools.pairwise(bounds)):
            tokens = [x[:, a:b] for x in per_token]
            updates = [x[:, a * n : b * n] for x in per_update]
            o, final = _scan(tokens, updates, h[i : i + 1], n, reverse)
            outs.append(o)
            states.append(final)
        return torch.cat(outs, 1).to(q.dtype), torch.cat(states)


def _scan(
    per_token: list[Tensor], per_update: list[Tensor], h: Tensor, n: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Scan sequences of one length: ``o`` [B, T, HV, V] and the last state [B, HV, K, V]."""
    T = per_token[0].shape[1]
    if T == 0:
        return per_update[1], h
    # Unbinding once keeps autograd linear in T: indexing would fill a whole gradient per token.
    q, *decays = [x.unbind(1) for x in per_token]
    k, v, *beta = [x.unbind(1) for x in per_update]
    outs: list[Tensor] = []
    for t in reversed(range(T)) if reverse else range(T):
        for decay in decays:
            h = h * decay[t]
        for j in range(t * n, t * n + n):
            w = v[j] if not beta else beta[0][j] * (v[j] - (k[j].unsqueeze(-2) @ h).squeeze(-2))
            h = h + k[j].unsqueeze(-1) * w.unsqueeze(-2)
        outs.append((q[t].unsqueeze(-2) @ h).squeeze(-2))
    return torch.stack(outs[::-1] if reverse else outs, 1), h
