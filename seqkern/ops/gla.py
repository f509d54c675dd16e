# SPDX-License-Identifier: Apache-2.0
"""Gated linear attention.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S: [K, V] per head
    o_t = scale * S_t^T q_t

Both names run the same compiled kernel; `seqkern.reference.gla` is the sequential definition.
"""

from torch import Tensor

from seqkern.ops import _checks
from seqkern.ops._linear_attention import linear_attention


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    signed_gate: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run gated linear attention over whole sequences.

    Args:
        q, k: [B, T, H, K], float32, bfloat16 or float16 (computed in float32); float64 takes the
            reference.
        v: [B, T, HV, V], dtype of ``q``; HV is a multiple of H, and head i of q and k serves the
            value heads from i * HV / H on.
        g: [B, T, H, K] natural-log decay, <= 0, any floating dtype, read as float32.
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], read as float32, or None for zeros.
        output_final_state: return the state after the last token, too.
        state_v_first: states are [N, HV, V, K] instead.
        cu_seqlens: [N + 1] int32 or int64, from 0 to T; packs N sequences, empty ones too, into
            B = 1.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
        signed_gate: ``g`` is the decay itself instead of its logarithm, any number in [-1, 1]: a
            negative one, an eigenvalue that flips its row of the state, has no logarithm. Decays
            smaller than 2**-60 count as that (with their gradient).
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``o`` [B, T, HV, V] in ``q.dtype``, and the final state [N, HV, K, V] in float32 (float64
        for float64 inputs), or None unless ``output_final_state``. With ``state_v_first`` the
        final state is a transposed view.

    Every tensor but ``cu_seqlens`` is differentiable; with ``create_graph=True`` the gradients are
    recomputed through the reference, so that they can be differentiated again.

    Raises:
        ShapeError, DTypeError, DeviceError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training",
        section 4.

    Example:
        >>> o, ht = chunk_gla(q, k, v, g, output_final_state=True)
        >>> o2, _ = chunk_gla(q2, k2, v2, g2, initial_state=ht)     # continue where we stopped
    """
    _checks.tensor("chunk_gla", "g", g)
    return linear_attention(
        "chunk_gla",
        q,
        k,
        v,
        g,
        None,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu,
        backend,
        vector_gate="g",
        state_v_first=state_v_first,
        signed_gate=signed_gate,
    )


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    signed_gate: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run gated linear attention; on a CPU the same kernel as `chunk_gla`, documented there.

    Args:
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, backend: as
            in `chunk_gla`.
        signed_gate: ``gk`` and ``gv`` are the decays themselves instead of their logarithms.
        gk: [B, T, H, K] natural-log decay of the rows of S, <= 0, or None for no decay.
        gv: [B, T, HV, V] natural-log decay of the columns of S, or None. It has no compiled
            kernel: with it the reference runs, with one warning.
        reverse: run each sequence from its last token to its first; ``initial_state`` then comes
            before the last token and the final state after the first.

    Returns:
        ``o`` [B, T, HV, V] and the final state or None, as `chunk_gla`.
    """
    return linear_attention(
        "fused_recurrent_gla",
        q,
        k,
        v,
        gk,
        None,
        scale,
        initial_state,
        output_final_state,
        cu_seqlens,
        backend,
        vector_gate="gk",
        state_v_first=state_v_first,
        reverse=reverse,
        gv=gv,
        signed_gate=signed_gate,
    )
