# SPDX-License-Identifier: Apache-2.0
"""Linear attention with one decay per head, sequentially.

S_t = exp(g_t) S_{t-1} + k_t v_t^T              S: [K, V] per head
o_t = scale * S_t^T q_t
"""

from torch import Tensor

from seqkern.reference._recurrence import recurrence, to_layout


def simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Define `chunk_simple_gla` and `fused_recurrent_simple_gla`.

    ``g`` is [B, T, HV], ``g_gamma`` [HV] the same decay at every token; both None means no decay.
    Shapes, defaults and results are those of `seqkern.ops.chunk_simple_gla`.
    """
    if g_gamma is not None:
        g = g_gamma.expand(q.shape[0], q.shape[1], -1)
    gates = [] if g is None else [g[..., None, None]]
    h0 = to_layout(initial_state, state_v_first)
    o, ht = recurrence(q, k, v, gates, None, scale, h0, cu_seqlens, reverse=reverse)
    return o, to_layout(ht, state_v_first) if output_final_state else None
