# SPDX-License-Identifier: Apache-2.0
"""The gated delta product, sequentially: n rank-one updates per token.

S <- exp(g_t) S_{t-1}                                   S: [K, V] per head
S <- S + beta_j k_j (v_j - S^T k_j)^T                   for j = t n, ..., t n + n - 1
o_t = scale * S_t^T q_t                                 S_t is S after the last update
"""

from torch import Tensor

from seqkern.reference._recurrence import recurrence, to_layout


def gated_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    state_v_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Define `chunk_gated_delta_product` and `fused_recurrent_gated_delta_product`.

    Shapes, defaults and results are those of `seqkern.ops.chunk_gated_delta_product`.
    """
    gates = [] if g is None else [g[..., None, None]]
    h0 = to_layout(initial_state, state_v_first)
    o, ht = recurrence(
        q, k, v, gates, beta, scale, h0, cu_seqlens, num_householder, use_qk_l2norm_in_kernel
    )
    return o, to_layout(ht, state_v_first) if output_final_state else None
