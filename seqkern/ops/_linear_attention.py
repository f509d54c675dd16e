# SPDX-License-Identifier: Apache-2.0
"""The one core behind every public op of the linear-attention family.

    S <- exp(g_t) S                                    g: none, one per head, or one per key row
    S <- S + k_j w_j^T       for the n updates of t    w_j = v_j, or beta_j (v_j - S^T k_j)
    o_t = scale * S^T q_t                              S: [K, V] per value head, float32

Chunked and recurrent names share one compiled kernel pair; `seqkern.reference` defines it.
"""

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern._runtime.autocast import autocasts
from seqkern.ops import _checks
from seqkern.ops._linear_attention_function import (
    FORWARD,
    LinearAttentionFunction,
    checkpoint_interval,
    static,
)
from seqkern.reference._recurrence import recurrence


def linear_attention(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    backend: str,
    vector_gate: str = "",
    num_householder: int = 1,
    l2norm: bool = False,
    state_v_first: bool = False,
    reverse: bool = False,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    signed_gate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Check, choose a backend and run; the public functions document the arguments.

    ``vector_gate`` is the argument's name when ``g`` is [B, T, H, K], and empty when it is
    [B, T, HV]. ``gk`` [B, T, HV, K] and ``gv`` [B, T, HV, V] are known to the reference only.
    With ``signed_gate`` the vector gate is the decay itself instead of its logarithm.
    """
    _checks.tensors(op, q, k, v)
    if torch.is_autocast_enabled("cpu") if q.is_cpu else autocasts(q.device.type):
        q, k, v = _autocast(q, k, v)
    if scale is not None and not isinstance(scale, (float, int, torch.SymFloat)):
        scale = _checks.factor(op, "scale", scale)
    h0, n = initial_state, num_householder
    _checks.linear_attention(op, q, k, v, g, beta, h0, cu_seqlens, n, vector_gate, state_v_first)
    obstacle = None
    if (
        FORWARD is None
        or q.dtype is torch.float64
        or not (q.is_cpu and k.is_cpu and v.is_cpu)
        or not (g is None or g.is_cpu)
        or not (beta is None or beta.is_cpu)
        or not (h0 is None or h0.is_cpu)
        or gk is not None
        or gv is not None
    ):
        obstacle = _obstacle(op, q, k, v, g, beta, h0, gk, gv)
    if h0 is not None and state_v_first:
        h0 = h0.transpose(-1, -2)
    if not backends.use_kernel(op, backend, obstacle):
        gates = [] if g is None else [g.unsqueeze(-1) if vector_gate else g[..., None, None]]
        gates += [] if gk is None else [gk.unsqueeze(-1)]
        gates += [] if gv is None else [gv.unsqueeze(-2)]
        o, ht = recurrence(
            q, k, v, gates, beta, scale, h0, cu_seqlens, n, l2norm, reverse, signed_gate
        )
    elif reverse:
        o, ht = _run_reversed(q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, signed_gate)
    else:
        o, ht = _run_kernel(q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, signed_gate)
    if not output_final_state:
        return o, None
    return o, ht.transpose(-1, -2) if state_v_first else ht


def _run_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    n: int,
    l2norm: bool,
    signed_gate: bool,
) -> tuple[Tensor, Tensor]:
    """Call the compiled op, through autograd only where something wants a gradient."""
    cu_seqlens = _checks.kernel_offsets(cu_seqlens, q)
    if scale is None:
        scale = static(q.shape[3]) ** -0.5
    if g is not None and g.dtype is torch.float64:
        g = g.float()
    if beta is not None and beta.dtype is torch.float64:
        beta = beta.float()
    if h0 is not None and h0.dtype is not torch.float32:
        h0 = h0.float()
    # An exported graph has no backward pass, and the checkpoints of one would pin its length.
    if (torch.is_grad_enabled() and not torch.compiler.is_exporting()) and (
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or (g is not None and g.requires_grad)
        or (beta is not None and beta.requires_grad)
        or (h0 is not None and h0.requires_grad)
    ):
        interval = checkpoint_interval(q, v, g, n)
        return LinearAttentionFunction.apply(
            q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, interval, signed_gate
        )
    o, ht, _, _ = FORWARD(q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, 0, signed_gate)
    return o, ht


def _autocast(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Cast q, k and v to autocast's dtype, as it does for products; float64 stays."""
    dtype = torch.get_autocast_dtype(q.device.type)
    return [
        x.to(dtype) if x.is_floating_point() and x.dtype is not torch.float64 else x
        for x in (q, k, v)
    ]


def _obstacle(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    gk: Tensor | None,
    gv: Tensor | None,
) -> str | None:
    """Return why the compiled kernel cannot serve these tensors, or None when it can."""
    B, T, _, K = q.shape
    HV, V = v.shape[2:]
    if gk is not None:
        _checks.gate(op, "gk", "[B, T, HV, K]", gk, (B, T, HV, K), "")
    if gv is not None:
        _checks.gate(op, "gv", "[B, T, HV, V]", gv, (B, T, HV, V), "")
    named = {"q": q, "k": k, "v": v, "g": g, "beta": beta, "initial_state": h0}
    _checks.same_device(op, {**named, "gk": gk, "gv": gv})
    if not (q.is_cpu or q.is_meta):
        return f"there is no compiled kernel for {q.device.type} tensors"
    if gk is not None or gv is not None:
        return f"`{'gk' if gv is None else 'gv'}` has no compiled kernel"
    if q.dtype is torch.float64:
        return "float64 has no compiled kernel"
    return library.missing_reason("linear_attention_fwd")


def _run_reversed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    n: int,
    l2norm: bool,
    signed_gate: bool,
) -> tuple[Tensor, Tensor]:
    """Run the additive rule from the last token to the first: the kernel on reversed time."""
    q, k, v = (_reverse(x, cu_seqlens) for x in (q, k, v))
    g = None if g is None else _reverse(g, cu_seqlens)
    o, ht = _run_kernel(q, k, v, g, beta, h0, cu_seqlens, scale, n, l2norm, signed_gate)
    return _reverse(o, cu_seqlens), ht


def _reverse(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Reverse every sequence of ``x`` [B, T, ...] in time."""
    if cu_seqlens is None:
        return x.flip(1)
    t = torch.arange(x.shape[1], device="cpu")
    cu_seqlens = cu_seqlens.to("cpu", torch.int64)
    i_n = torch.searchsorted(cu_seqlens, t, right=True)
    return x.index_select(1, cu_seqlens[i_n - 1] + cu_seqlens[i_n] - 1 - t)
