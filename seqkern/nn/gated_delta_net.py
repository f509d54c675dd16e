# SPDX-License-Identifier: Apache-2.0
"""The Gated DeltaNet layer."""

from __future__ import annotations

import torch

from seqkern import ops
from seqkern.nn._base import split_heads, wide
from seqkern.nn._grouped import GroupedDeltaLayer


class GatedDeltaNet(GroupedDeltaLayer):
    """The delta rule with one learned decay per value head.

        g = -exp(A_log) softplus(a_proj(x) + dt_bias)
        beta = sigmoid(b_proj(x)), times 2 with allow_neg_eigval
        o = o_proj(RMSNorm(gated_delta_rule(q, k, v, g, beta)) * act(g_proj(x)))

    Constructor, parameter names and shapes are flash-linear-attention's; the cached state is
    [N, HV, K, V] (there: [N, HV, V, K]).

    Args:
        hidden_size: width of the input and the output.
        expand_v: value width per head, relative to ``head_dim``.
        head_dim: key width per head.
        num_heads, num_v_heads: query/key heads, and value heads (a multiple; default the same).
        mode: "chunk" or "fused_recurrent"; one kernel serves both.
        use_gate: multiply the normed output by a learned gate.
        use_short_conv, conv_size, conv_bias: convolutions with SiLU in front of q, k and v.
        allow_neg_eigval: double beta, so that it lies in (0, 2) and the state's transition may
            have negative eigenvalues.
        layer_idx: position in the model; the key into a cache.
        norm_eps: of the output norm.
        output_gate_activation: "swish" (= "silu") or "sigmoid".
    Source:
        Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".

    Example:
        >>> layer = GatedDeltaNet(hidden_size=256, head_dim=64, num_heads=4, layer_idx=0)
        >>> y, _, cache = layer(torch.randn(8, 128, 256), use_cache=True)        # [8, 128, 256]
        >>> y, _, cache = layer(torch.randn(8, 1, 256), past_key_values=cache, use_cache=True)
    """

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 2,
        head_dim: int = 256,
        num_heads: int = 6,
        num_v_heads: int | None = None,
        mode: str = "chunk",
        use_gate: bool = True,
        use_short_conv: bool = True,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
        output_gate_activation: str = "swish",
    ):
        super().__init__(
            hidden_size=hidden_size,
            expand_v=expand_v,
            head_dim=head_dim,
            num_heads=num_heads,
            num_v_heads=num_v_heads,
            mode=mode,
            use_gate=use_gate,
            use_short_conv=use_short_conv,
            conv_size=conv_size,
            conv_bias=conv_bias,
            layer_idx=layer_idx,
            norm_eps=norm_eps,
            use_decay=True,
            gate_activation=output_gate_activation,
            n=1,
        )
        self.use_gate = use_gate
        self.allow_neg_eigval = allow_neg_eigval

    def _recur(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: torch.Tensor | None,
        keep: bool,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        beta = wide(self.b_proj(x)).sigmoid()
        if self.allow_neg_eigval:
            beta = beta * 2
        op = ops.fused_recurrent_gated_delta_rule if self._steps(x) else ops.chunk_gated_delta_rule
        return op(
            split_heads(q, self.head_k_dim),
            split_heads(k, self.head_k_dim),
            split_heads(v, self.head_v_dim),
            g=self._log_decay(self.a_proj(x)),
            beta=beta,
            initial_state=state,
            output_final_state=keep,
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=cu_seqlens,
        )
