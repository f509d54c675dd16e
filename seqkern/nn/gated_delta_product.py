# SPDX-License-Identifier: Apache-2.0
"""The Gated DeltaProduct layer."""

from __future__ import annotations

import torch

from seqkern import ops
from seqkern.nn._base import wide
from seqkern.nn._grouped import GroupedDeltaLayer
from seqkern.ops._checks import at_least


class GatedDeltaProduct(GroupedDeltaLayer):
    """The (gated) delta rule with several writes a token: a product of Householder-like steps.

        g = -exp(A_log) softplus(a_proj(x) + dt_bias), once a token
        beta = sigmoid(b_proj(x)), times 2 with allow_neg_eigval, once a step
        o = o_proj(RMSNorm(gated_delta_product(q, k, v, g, beta)) * swish(g_proj(x)))

    Constructor, parameter names and shapes are flash-linear-attention's.

    Args:
        hidden_size: width of the input and the output.
        expand_v: value width per head, relative to ``head_dim``.
        head_dim: key width per head.
        num_heads, num_v_heads: query/key heads, and value heads (a multiple; default the same).
        mode: "chunk" or "fused_recurrent"; one kernel serves both.
        use_output_gate: multiply the normed output by a learned gate.
        use_short_conv, conv_size, conv_bias: convolutions with SiLU in front of q, k and v.
        layer_idx: position in the model; the key into a cache.
        norm_eps: of the output norm.
        use_forget_gate: learn a decay per value head; False never forgets by itself.
        allow_neg_eigval: double beta, so that it lies in (0, 2) and the state's transition may
            have negative eigenvalues. On by default, as in the paper.
        num_householder: writes a token, >= 1.
    Source:
        Siems et al. 2025, "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder
        Products".

    Example:
        >>> layer = GatedDeltaProduct(256, head_dim=64, num_heads=4, num_householder=3)
        >>> y, _, _ = layer(torch.randn(8, 128, 256))        # [8, 128, 256]
    """

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 2,
        head_dim: int = 256,
        num_heads: int = 6,
        num_v_heads: int | None = None,
        mode: str = "chunk",
        use_output_gate: bool = True,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
        use_forget_gate: bool = True,
        allow_neg_eigval: bool = True,
        num_householder: int = 2,
    ):
        num_householder = at_least(type(self).__name__, "num_householder", 1, num_householder)
        super().__init__(
            hidden_size=hidden_size,
            expand_v=expand_v,
            head_dim=head_dim,
            num_heads=num_heads,
            num_v_heads=num_v_heads,
            mode=mode,
            use_gate=use_output_gate,
            use_short_conv=use_short_conv,
            conv_size=conv_size,
            conv_bias=conv_bias,
            layer_idx=layer_idx,
            norm_eps=norm_eps,
            use_decay=use_forget_gate,
            gate_activation="swish",
            n=num_householder,
        )
        self.use_output_gate = use_output_gate
        self.use_forget_gate = use_forget_gate
        self.allow_neg_eigval = allow_neg_eigval
        self.num_householder = num_householder

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
        step = self._steps(x)
        op = ops.fused_recurrent_gated_delta_product if step else ops.chunk_gated_delta_product
        return op(
            q.unflatten(-1, (self.num_heads, self.head_k_dim)),
            self._virtual(k, self.num_heads, self.head_k_dim),
            self._virtual(v, self.num_v_heads, self.head_v_dim),
            g=self._log_decay(self.a_proj(x)) if self.use_forget_gate else None,
            beta=self._virtual(beta, self.num_v_heads),
            num_householder=self.num_householder,
            initial_state=state,
            output_final_state=keep,
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=cu_seqlens,
        )

    def _virtual(self, x: torch.Tensor, *heads: int) -> torch.Tensor:
        """[B, T, n * ...] as [B, T * n, ...]: the writes of one token stand side by side."""
        return x.unflatten(-1, (self.num_householder, *heads)).flatten(1, 2)
