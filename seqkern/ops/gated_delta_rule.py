# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule (Gated DeltaNet).

    S   = exp(g_t) S_{t-1}                                  S: [K, V] per head
    S_t = S + beta_t k_t (v_t - S^T k_t)^T
    o_t = scale * S_t^T q_t

Both names run the same compiled kernel; `seqkern.reference.gated_delta_rule` is the definition.
"""

import torch
from torch import Tensor

from seqkern.errors import OptionError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._linear_attention import linear_attention


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: object = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int | None = None,
    head_first: bool | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta rule over whole sequences.

    Args:
        q, k: [B, T, H, K], float32, bfloat16 or float16 (computed in float32); float64 takes the
            reference. The rule is stable for keys of unit length.
        v: [B, T, HV, V], dtype of ``q``; HV is a multiple of H.
        g: [B, T, HV] natural-log decay, <= 0, any floating dtype, or None for no decay.
        beta: [B, T, HV] or [B, T, HV, V] write strength, any floating dtype, in [0, 1], or [0, 2]
            to allow negative eigenvalues.
        scale: factor on q; default ``K**-0.5``.
        initial_state: [N, HV, K, V], read as float32, or None for zeros.
        output_final_state: return the state after the last token, too.
        use_qk_l2norm_in_kernel: scale q and k to unit length, ``x / sqrt(sum(x**2) + 1e-6)``.
        use_beta_sigmoid_in_kernel: ``beta`` holds logits, and sigmoid(beta) is the strength.
        allow_neg_eigval: twice that sigmoid; needs ``use_beta_sigmoid_in_kernel``.
        state_v_first: states are [N, HV, V, K] instead.
        cu_seqlens: [N + 1] int32 or int64, from 0 to T; packs N sequences, empty ones too, into
            B = 1.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
        chunk_indices: accepted and not needed.
        cp_context: must be None.
        use_gate_in_kernel: ``g`` is raw, and -exp(A_log) * softplus(g + dt_bias) the log decay.
        A_log: [HV], needed by ``use_gate_in_kernel``, and only there.
        dt_bias: [HV] or None; only with ``use_gate_in_kernel``.
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
        Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".

    Example:
        >>> o, ht = chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True)
        >>> o2, _ = chunk_gated_delta_rule(q2, k2, v2, g2, beta2, initial_state=ht)
    """
    op = "chunk_gated_delta_rule"
    _checks.chunk_size(op, chunk_size, head_first)
    _checks.no_context_parallel(op, cp_context)
    _checks.tensor(op, "beta", beta)
    if use_gate_in_kernel or A_log is not None or dt_bias is not None:
        g = _raw_gate(op, v, g, A_log, dt_bias, use_gate_in_kernel)
    if use_beta_sigmoid_in_kernel or allow_neg_eigval:
        beta = _logits(op, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
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
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
    )


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the gated delta rule; on a CPU the kernel of `chunk_gated_delta_rule`, backward included.

    Args:
        q, k, v, g, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
            use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval,
            state_v_first, cu_seqlens, backend: as in `chunk_gated_delta_rule`.
        gk: [B, T, HV, K] natural-log decay of the rows of S, or None.
        gv: [B, T, HV, V] natural-log decay of the columns of S, or None. ``gk`` and ``gv`` have no
            compiled kernel: with one of them the reference runs, with one warning.
        beta: [B, T, HV] or [B, T, HV, V] write strength, or None for ones.

    Returns:
        ``o`` [B, T, HV, V] and the final state or None, as `chunk_gated_delta_rule`.
    """
    op = "fused_recurrent_gated_delta_rule"
    if use_gate_in_kernel or A_log is not None or dt_bias is not None:
        g = _raw_gate(op, v, g, A_log, dt_bias, use_gate_in_kernel)
    if beta is None:
        beta = _checks.ones_like_heads(op, v)
    if use_beta_sigmoid_in_kernel or allow_neg_eigval:
        beta = _logits(op, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
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
        l2norm=use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
        gk=gk,
        gv=gv,
    )


def _raw_gate(
    op: str,
    v: Tensor,
    g: Tensor | None,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    raw: bool,
) -> Tensor:
    """Return the log decay -exp(A_log) * softplus(g + dt_bias), at least in float32."""
    if not raw:
        raise OptionError(
            f"{op}: `A_log` and `dt_bias` need `use_gate_in_kernel=True`. Or pass the log decay as "
            "`g` and leave them out."
        )
    if g is None or A_log is None:
        missing = "g" if g is None else "A_log"
        raise OptionError(f"{op}: `use_gate_in_kernel=True` needs `{missing}`, got None.")
    _checks.tensor(op, "v", v)
    _checks.tensor(op, "g", g)
    if v.dim() == 4:  # another rank is refused later, with `v` named
        _checks.gate(op, "g", "[B, T, HV]", g, tuple(v.shape[:3]), "")
    for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
        if x is None:
            continue
        _checks.tensor(op, name, x)
        if x.shape != g.shape[-1:]:
            raise ShapeError(
                f"{op}: `{name}` must be [HV] = {list(g.shape[-1:])} like the last axis of `g`, "
                f"got {list(x.shape)}."
            )
    dtype = torch.promote_types(g.dtype, torch.float32)
    g = g.to(dtype) if dt_bias is None else g.to(dtype) + dt_bias
    return -A_log.to(dtype).exp() * torch.nn.functional.softplus(g)


def _logits(op: str, beta: Tensor, sigmoid: bool, allow_neg_eigval: bool) -> Tensor:
    """Return the write strength, sigmoid(beta) or twice that, at least in float32."""
    if not sigmoid:
        raise OptionError(
            f"{op}: `allow_neg_eigval=True` needs `use_beta_sigmoid_in_kernel=True`. Or pass "
            "`beta` in [0, 2] and leave both out."
        )
    _checks.tensor(op, "beta", beta)
    beta = beta.to(torch.promote_types(beta.dtype, torch.float32)).sigmoid()
    return beta * 2 if allow_neg_eigval else beta
