# SPDX-License-Identifier: Apache-2.0
"""Linear attention with one decay per head: RetNet, Mamba-2's recurrence, plain linear attention.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T              S: [K, V] per head
    o_t = scale * S_t^T q_t

Both names run the same compiled kernel; `seqkern.reference.simple_gla` is the definition.
"""

from torch import Tensor

from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._linear_attention import linear_attention


def chunk_simple_gla(
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
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    head_first: bool | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run linear attention with one decay per head over whole sequences.

    Args:
        q, k: [B, T, H, K], float32, bfloat16 or float16 (computed in float32); float64 takes the
            reference.
        v: [B, T, HV, V], dtype of ``q``; HV is a multiple of H.
        g: [B, T, HV] natural-log decay, <= 0, any floating dtype, or None.
        g_gamma: [HV] natural-log decay, the same at every token, or None. With neither there is no
            decay.
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], read as float32, or None for zeros.
        output_final_state: return the state after the last token, too.
        state_v_first: states are [N, HV, V, K] instead.
        cu_seqlens: [N + 1] int32 or int64, from 0 to T; packs N sequences, empty ones too, into
            B = 1.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
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
        Sun et al. 2023, "Retentive Network"; Dao and Gu 2024, "Transformers are SSMs".

    Example:
        >>> o, ht = chunk_simple_gla(q, k, v, g, output_final_state=True)
        >>> o2, _ = chunk_simple_gla(q2, k2, v2, g2, initial_state=ht)
    """
    _checks.chunk_size("chunk_simple_gla", chunk_size, head_first)
    return linear_attention(
        "chunk_simple_gla",
        q,
        k,
        v,
        g if g_gamma is None else _constant_gate("chunk_simple_gla", v, g, g_gamma),
        None,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu,
        backend,
        state_v_first=state_v_first,
    )


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run linear attention with one decay per head; on a CPU the kernel of `chunk_simple_gla`.

    Args:
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, state_v_first, cu_seqlens,
            backend: as in `chunk_simple_gla`.
        reverse: run each sequence from its last token to its first; ``initial_state`` then comes
            before the last token and the final state after the first.

    Returns:
        ``o`` [B, T, HV, V] and the final state or None, as `chunk_simple_gla`.
    """
    op = "fused_recurrent_simple_gla"
    return linear_attention(
        op,
        q,
        k,
        v,
        g if g_gamma is None else _constant_gate(op, v, g, g_gamma),
        None,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        backend,
        state_v_first=state_v_first,
        reverse=reverse,
    )


def _constant_gate(op: str, v: Tensor, g: Tensor | None, g_gamma: Tensor) -> Tensor:
    """Spread ``g_gamma`` [HV] over batch and time without copying it."""
    if g is not None:
        raise OptionError(f"{op}: pass `g` or `g_gamma`, not both. Add them to combine them.")
    _checks.tensor(op, "v", v)
    _checks.tensor(op, "g_gamma", g_gamma)
    if g_gamma.dtype not in _checks.FLOAT_DTYPES:
        raise DTypeError(f"{op}: `g_gamma` must be a floating tensor, got {g_gamma.dtype}.")
    if g_gamma.dim() != 1 or v.dim() != 4 or g_gamma.shape[0] != v.shape[2]:
        raise ShapeError(
            f"{op}: `g_gamma` must be [HV] like the heads of `v`, {list(v.shape)}, got "
            f"{list(g_gamma.shape)}. For a decay per token use `g`."
        )
    return g_gamma.expand(v.shape[0], v.shape[1], -1)
