# SPDX-License-Identifier: Apache-2.0
"""The gated delta product (DeltaProduct): several rank-one updates per token.

    S <- exp(g_t) S_{t-1}                                   S: [K, V] per head
    S <- S + beta_j k_j (v_j - S^T k_j)^T                   for j = t n, ..., t n + n - 1
    o_t = scale * S_t^T q_t                                 S_t is S after the last update

Both names run the same compiled kernel, which reads out once per real token;
`seqkern.reference.gated_delta_product` is the definition.
"""

from torch import Tensor

from seqkern.ops import _checks
from seqkern.ops._linear_attention import linear_attention


def chunk_gated_delta_product(
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
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: object = None,
    *,
    state_v_first: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta product over whole sequences.

    Args:
        q: [B, T, H, K], float32, bfloat16 or float16 (computed in float32); float64 takes the
            reference.
        k: [B, T * num_householder, H, K], dtype of ``q``; the updates of one token are adjacent.
        v: [B, T * num_householder, HV, V], dtype of ``q``; HV is a multiple of H.
        g: [B, T, HV] natural-log decay, <= 0, any floating dtype, or None for no decay.
        beta: [B, T * num_householder, HV] or [B, T * num_householder, HV, V] write strength, any
            floating dtype, in [0, 1], or [0, 2] to allow negative eigenvalues.
        num_householder: updates per token, >= 1.
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], read as float32, or None for zeros.
        output_final_state: return the state after the last token, too.
        use_qk_l2norm_in_kernel: scale q and k to unit length, ``x / sqrt(sum(x**2) + 1e-6)``.
        cu_seqlens: [N + 1] int32 or int64 in real tokens, from 0 to T; packs N sequences, empty
            ones too, into B = 1.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
        cp_context: must be None.
        state_v_first: states are [N, HV, V, K] instead.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``o`` [B, T, HV, V] in ``q.dtype``, and the final state [N, HV, K, V] in float32 (float64
        for float64 inputs), or None unless ``output_final_state``. With ``state_v_first`` the
        final state is a transposed view.

    Every tensor but ``cu_seqlens`` is differentiable; with ``create_graph=True`` the gradients are
    recomputed through the reference, so that they can be differentiated again.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Siems et al. 2025, "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder
        Products".

    Example:
        >>> o, ht = chunk_gated_delta_product(q, k, v, g, beta, 2, output_final_state=True)
    """
    op = "chunk_gated_delta_product"
    _checks.no_context_parallel(op, cp_context)
    n = _checks.at_least(op, "num_householder", 1, num_householder)
    _checks.tensor(op, "beta", beta)
    return linear_attention(
        op,
        q,
        k,
        v,
        g,
        beta,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu,
        backend,
        num_householder=n,
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
    )


def fused_recurrent_gated_delta_product(
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
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta product, for example one token on top of a state, when decoding.

    On a CPU it is the kernel of `chunk_gated_delta_product`, which documents the arguments.

    Returns:
        ``o`` [B, T, HV, V] and the final state or None, as `chunk_gated_delta_product`.
    """
    op = "fused_recurrent_gated_delta_product"
    n = _checks.at_least(op, "num_householder", 1, num_householder)
    _checks.tensor(op, "beta", beta)
    return linear_attention(
        op,
        q,
        k,
        v,
        g,
        beta,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        backend,
        num_householder=n,
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
    )
