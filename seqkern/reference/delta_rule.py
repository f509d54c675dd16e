# SPDX-License-Identifier: Apache-2.0
"""The delta rule, sequentially.

S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T      S: [K, V] per head
o_t = scale * S_t^T q_t
"""

from torch import Tensor

from seqkern.reference._recurrence import recurrence, to_layout


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    state_v_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Define `chunk_delta_rule` and `fused_recurrent_delta_rule`; ``beta`` None means ones.

    Shapes, defaults and results are those of `seqkern.ops.chunk_delta_rule`.
    """
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    h0 = to_layout(initial_state, state_v_first)
    o, ht = recurrence(q, k, v, [], beta, scale, h0, cu_seqlens, l2norm=use_qk_l2norm_in_kernel)
    return o, to_layout(ht, state_v_first) if output_final_state else None
