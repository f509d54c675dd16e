# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule, sequentially.

S  = exp(g_t) S_{t-1}                                   S: [K, V] per head
S_t = S + beta_t k_t (v_t - S^T k_t)^T
o_t = scale * S_t^T q_t
"""

from torch import Tensor

from seqkern.reference._recurrence import recurrence, to_layout


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Define `chunk_gated_delta_rule` and `fused_recurrent_gated_delta_rule`.

    ``gk`` [B, T, HV, K] and ``gv`` [B, T, HV, V] decay the rows and the columns of S besides ``g``
    [B, T, HV]; ``beta`` None means ones. Otherwise as `seqkern.ops.chunk_gated_delta_rule`.
    """
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    gates = [] if g is None else [g[..., None, None]]
    gates += [] if gk is None else [gk.unsqueeze(-1)]
    gates += [] if gv is None else [gv.unsqueeze(-2)]
    h0 = to_layout(initial_state, state_v_first)
    o, ht = recurrence(q, k, v, gates, beta, scale, h0, cu_seqlens, l2norm=use_qk_l2norm_in_kernel)
    return o, to_layout(ht, state_v_first) if output_final_state else None
