# SPDX-License-Identifier: Apache-2.0
"""Chunked forms of the linear-attention family in plain torch, the fast way without a kernel.

Rows i, j of a chunk of C tokens, S0 the state at its entry, G the inclusive cumulative sum of the
log gates inside the chunk, D_ij = exp(G_i - G_j) for j <= i and 0 otherwise:

    additive    o = scale [(q . e^G) S0 + (q k^T . D) v]
                S = e^{G_C} S0 + (k . e^{G_C - G})^T v
    delta rule  (I + strictlower(beta k k^T . D)) [w, u] = beta [e^G k, v]
                the additive form, with v replaced by u - w S0

`seqkern.reference` holds the sequential definitions; these agree with them to rounding for finite
gates. They exist to be compared with: a compiled kernel has to beat the best that torch itself can
do. Gates near -1e4 cost digits here, because a cumulative sum of float32 numbers forgets them.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
_SUBCHUNK = 16


def chunked_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    num_householder: int = 1,
    use_qk_l2norm: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run gated linear attention or a delta rule chunk by chunk, in torch operations only.

    Args:
        q: [B, T, H, K], any floating dtype; 16-bit inputs are computed in float32.
        k: [B, T * n, H, K] with n = ``num_householder``.
        v: [B, T * n, HV, V]; HV is a multiple of H.
        g: None, [B, T, HV] or (additive rule only, HV == H) [B, T, H, K]; natural-log decay, <= 0.
        beta: None for the additive rule, or [B, T * n, HV] for the delta rule.
        scale: default ``K**-0.5``.
        initial_state: [N, HV, K, V], or None for zeros.
        cu_seqlens: [N + 1] real-token offsets that pack N sequences into B = 1.
        num_householder: rank-one updates per token; the gate acts on the first of them.
        use_qk_l2norm: divide q and k by sqrt(sum(x^2) + 1e-6) over their width first.

    Returns:
        o [B, T, HV, V] in the dtype of ``q``, and the final state [N, HV, K, V] in the dtype of
        the computation (float32, or float64 for float64 inputs).
    """
    if cu_seqlens is not None:
        return _packed(
            q, k, v, g, beta, scale, initial_state, cu_seqlens, num_householder, use_qk_l2norm
        )
    with torch.autocast(q.device.type, enabled=False):
        o, state = _run(q, k, v, g, beta, scale, initial_state, num_householder, use_qk_l2norm)
    return o.to(q.dtype), state


def _run(q, k, v, g, beta, scale, initial_state, n, use_qk_l2norm):
    """Run equally long sequences in float32, or in float64 for float64 inputs."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, T, H, K = q.shape
    HV, V = v.shape[2], v.shape[3]
    state = q.new_zeros(B, HV, K, V, dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    if T == 0 or B == 0:
        return v.new_zeros(B, T, HV, V, dtype=dtype), state
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if use_qk_l2norm:
        q, k = _l2norm(q), _l2norm(k)
    q = q * (K**-0.5 if scale is None else scale)
    if HV > H:
        q, k = (x.repeat_interleave(HV // H, dim=2) for x in (q, k))
    tokens = max(1, CHUNK // n)
    q = _split(q, tokens)
    k, v = _split(k, tokens * n), _split(v, tokens * n)
    gate = _gate(g, B, T, HV, n, tokens, q)
    if beta is not None:
        write = _split(beta.to(dtype).unsqueeze(-1), tokens * n)
        o, state = _delta_rule(q, k, v, gate, write, state, n)
    elif gate.shape[-1] == 1:
        o, state = _scalar_gate(q, k, v, gate, state, n)
    else:
        o, state = _vector_gate(q, k, v, gate, state)
    return o.reshape(B, HV, -1, V)[:, :, :T].transpose(1, 2), state


def _packed(q, k, v, g, beta, scale, initial_state, cu_seqlens, n, use_qk_l2norm):
    """Run every sequence of a packed batch by itself."""
    bounds = cu_seqlens.tolist()
    outputs, states = [], []
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        o, state = chunked_linear_attention(
            q[:, a:b],
            k[:, a * n : b * n],
            v[:, a * n : b * n],
            None if g is None else g[:, a:b],
            None if beta is None else beta[:, a * n : b * n],
            scale,
            None if initial_state is None else initial_state[i : i + 1],
            None,
            n,
            use_qk_l2norm,
        )
        outputs.append(o)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states)


def _l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _split(x: Tensor, rows: int) -> Tensor:
    """[B, T, H, D] to [B, H, NT, rows, D]; missing rows are zeros, which leave a state as it is."""
    x = x.transpose(1, 2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % rows))
    return x.unflatten(2, (-1, rows))


def _gate(g: Tensor | None, B: int, T: int, HV: int, n: int, tokens: int, like: Tensor) -> Tensor:
    """Cumulative log gates inside each chunk of virtual tokens, [B, HV, NT, C, 1 or K]."""
    if g is None:
        return like.new_zeros(B, HV, like.shape[2], tokens * n, 1)
    g = g.to(like.dtype)
    g = g.unsqueeze(-1) if g.dim() == 3 else g
    if n > 1:
        rest = g.new_zeros(B, T, n - 1, HV, g.shape[-1])
        g = torch.cat([g.unsqueeze(2), rest], dim=2).flatten(1, 2)
    return _split(g, tokens * n).cumsum(-2)


def _decay(rows: Tensor, cols: Tensor, n: int = 1) -> Tensor:
    """exp(G_i - G_j) where row i may read column j, and 0 elsewhere; rows read after n columns."""
    i = torch.arange(rows.shape[-2], device=rows.device) * n + n - 1
    j = torch.arange(cols.shape[-2], device=rows.device)
    hidden = j[None, :] > i[:, None]
    return (rows - cols.transpose(-1, -2)).masked_fill(hidden, -torch.inf).exp()


def _scalar_gate(q, k, v, gate, state, n):
    """Additive rule with one gate per head: every chunk at once, then a scan over the states."""
    rows = gate[..., n - 1 :: n, :]
    last = gate[..., -1:, :]
    o = (q @ k.transpose(-1, -2) * _decay(rows, gate, n)) @ v
    writes = (k * (last - gate).exp()).transpose(-1, -2) @ v  # [B, H, NT, K, V]
    entries, state = _scan(writes, last.exp(), state)
    return o + (q * rows.exp()) @ entries, state


def _vector_gate(q, k, v, gate, state):
    """Additive rule with a gate per key channel; the scores need sub-blocks of 16 rows."""
    last = gate[..., -1:, :]
    o = _vector_scores(q, k, gate) @ v
    writes = (k * (last - gate).exp()).transpose(-1, -2) @ v
    entries, state = _scan(writes, last.exp().transpose(-1, -2), state)
    return o + (q * gate.exp()) @ entries, state


def _vector_scores(q: Tensor, k: Tensor, gate: Tensor) -> Tensor:
    """Lower-triangular scores sum_d q_id k_jd exp(G_id - G_jd), [B, H, NT, C, C].

    No exponent is ever positive: between sub-blocks both factors refer to the first row of the
    later one, and inside a sub-block the difference is taken before the exponential.
    """
    c = _SUBCHUNK
    qs, ks, gs = (x.unflatten(-2, (-1, c)) for x in (q, k, gate))
    hidden = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
    inner = (gs.unsqueeze(-2) - gs.unsqueeze(-3)).masked_fill(hidden.unsqueeze(-1), -torch.inf)
    diagonal = torch.einsum("...id,...ijd,...jd->...ij", qs, inner.exp(), ks)
    rows = []
    for i in range(qs.shape[-3]):
        first = gs[..., i, :1, :]
        parts = [diagonal[..., i, :, :]]
        if i > 0:
            left = qs[..., i, :, :] * (gs[..., i, :, :] - first).exp()
            right = k[..., : i * c, :] * (first - gate[..., : i * c, :]).exp()
            parts.insert(0, left @ right.transpose(-1, -2))
        rows.append(F.pad(torch.cat(parts, dim=-1), (0, q.shape[-2] - (i + 1) * c)))
    return torch.cat(rows, dim=-2)


def _scan(writes: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Entry state of every chunk [B, H, NT, K, V] and the state after the last one."""
    entries = []
    for write, decay in zip(writes.unbind(2), decays.unbind(2), strict=True):
        entries.append(state)
        state = decay * state + write
    return torch.stack(entries, dim=2), state


def _delta_rule(q, k, v, gate, beta, state, n):
    """Delta rule: one triangular solve for all chunks, then a loop over them."""
    rows = gate[..., n - 1 :: n, :]
    last = gate[..., -1:, :]
    lower = (beta * (k @ k.transpose(-1, -2)) * _decay(gate, gate)).tril(-1)
    right = torch.cat([beta * gate.exp() * k, beta * v], dim=-1)
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    w, u = solved.split([k.shape[-1], v.shape[-1]], dim=-1)
    scores = q @ k.transpose(-1, -2) * _decay(rows, gate, n)
    reads = q * rows.exp()
    keys = (k * (last - gate).exp()).transpose(-1, -2)
    outputs = []
    chunks = (x.unbind(2) for x in (w, u, scores, reads, keys, last.exp()))
    for w_t, u_t, scores_t, reads_t, keys_t, decay in zip(*chunks, strict=True):
        new = u_t - w_t @ state
        outputs.append(reads_t @ state + scores_t @ new)
        state = decay * state + keys_t @ new
    return torch.stack(outputs, dim=2), state
