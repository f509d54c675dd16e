# SPDX-License-Identifier: Apache-2.0
"""Gated linear attention, sequentially.

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S: [K, V] per head
o_t = scale * S_t^T q_t
"""

from torch import Tensor

from seqkern.reference._recurrence import recurrence, to_layout


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    gv: Tensor | None = None,
    reverse: bool = False,
    signed_gate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Define `chunk_gla` and `fused_recurrent_gla`; ``g`` [B, T, H, K] decays the rows of S.

    ``gv`` [B, T, HV, V] decays its columns. With ``signed_gate`` both are the decays themselves
    instead of their logarithms. Shapes, defaults and results are those of
    `seqkern.ops.chunk_gla`; every argument is differentiable, any number of times.
    """
    gates = [] if g is None else [g.unsqueeze(-1)]
    gates += [] if gv is None else [gv.unsqueeze(-2)]
    h0 = to_layout(initial_state, state_v_first)
    o, ht = recurrence(
        q, k, v, gates, None, scale, h0, cu_seqlens, reverse=reverse, signed_gates=signed_gate
    )
    return o, to_layout(ht, state_v_first) if output_final_state else None
