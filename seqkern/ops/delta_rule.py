# SPDX-License-Identifier: Apache-2.0
"""The delta rule (DeltaNet).

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T      S: [K, V] per head
    o_t = scale * S_t^T q_t

Both names run the same compiled kernel; `seqkern.reference.delta_rule` is the definition.
"""

from torch import Tensor

from seqkern.ops import _checks
from seqkern.ops._linear_attention import linear_attention


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    state_v_first: bool = False,
    chunk_size: int | None = None,
    head_first: bool | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the delta rule over whole sequences.

    Args:
        q, k: [B, T, H, K], float32, bfloat16 or float16 (computed in float32); float64 takes the
            reference. The rule is stable for keys of unit length.
        v: [B, T, HV, V], dtype of ``q``; HV is a multiple of H.
        beta: [B, T, HV] or [B, T, HV, V] write strength, any floating dtype, in [0, 1], or [0, 2]
            to allow negative eigenvalues.
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], read as float32, or None for zeros.
        output_final_state: return the state after the last token, too.
        use_qk_l2norm_in_kernel: scale q and k to unit length, ``x / sqrt(sum(x**2) + 1e-6)``.
        cu_seqlens: [N + 1] int32 or int64, from 0 to T; packs N sequences, empty ones too, into
            B = 1.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
        state_v_first: states are [N, HV, V, K] instead.
        chunk_size: a power of two from 16 on; checked, without effect.
        head_first: must not be True.
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
        Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence
        Length".

    Example:
        >>> o, ht = chunk_delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel=True)
    """
    _checks.chunk_size("chunk_delta_rule", chunk_size, head_first)
    _checks.tensor("chunk_delta_rule", "beta", beta)
    return linear_attention(
        "chunk_delta_rule",
        q,
        k,
        v,
        None,
        beta,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu,
        backend,
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
    )


def fused_recurrent_delta_rule(
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
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the delta rule; on a CPU the same kernel as `chunk_delta_rule`, which documents the rest.

    Args:
        q, k, v, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens,
            state_v_first, backend: as in `chunk_delta_rule`.
        beta: [B, T, HV] or [B, T, HV, V] write strength, or None for ones.

    Returns:
        ``o`` [B, T, HV, V] and the final state or None, as `chunk_delta_rule`.
    """
    op = "fused_recurrent_delta_rule"
    return linear_attention(
        op,
        q,
        k,
        v,
        None,
        _checks.ones_like_heads(op, v) if beta is None else beta,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        backend,
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
    )
