# SPDX-License-Identifier: Apache-2.0
"""The DeltaNet layer."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from seqkern import ops
from seqkern.errors import OptionError
from seqkern.nn._activations import elu_plus_one
from seqkern.nn._base import (
    RecurrentLayer,
    Tensors,
    divides,
    split_heads,
    times,
    warn_without_convolution,
    wide,
)
from seqkern.nn._linear import Linear
from seqkern.nn.norm import FusedRMSNormGated, RMSNorm
from seqkern.ops._checks import at_least

_QK_ACTIVATIONS = ("silu", "relu", "elu", "identity")
_QK_NORMS = ("l2", "sum")


class DeltaNet(RecurrentLayer):
    """Linear attention whose writes replace what a key held, instead of adding to it.

        beta = sigmoid(b_proj(x)), times 2 with allow_neg_eigval
        o = o_proj(RMSNorm(delta_rule(q, k, v, beta)) [* swish(g_proj(x))])

    Constructor, parameter names and shapes are flash-linear-attention's.

    Args:
        mode: "chunk" or "fused_recurrent"; one kernel serves both.
        d_model: another name for ``hidden_size``; wins if given.
        hidden_size: width of the input and the output.
        expand_k, expand_v: width of all keys and all values, relative to ``hidden_size``.
        num_heads: heads.
        use_beta: learn the write strength; False writes with strength 1.
        use_gate: multiply the normed output by a learned gate.
        use_short_conv, conv_size, conv_bias: convolutions in front of q, k and v.
        allow_neg_eigval: double beta, so that it lies in (0, 2) and the state's transition may
            have negative eigenvalues.
        layer_idx: position in the model; the key into a cache.
        qk_activation: "silu", "relu", "elu" (elu + 1) or "identity", on q and k.
        qk_norm: "l2" (in the kernel) or "sum" (divide by the sum, which suits an activation without
            negative values: "relu" or "elu").
        norm_eps: of the output norm.
    Source:
        Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence
        Length".

    Example:
        >>> layer = DeltaNet(hidden_size=256, num_heads=4, allow_neg_eigval=True)
        >>> y, _, _ = layer(torch.randn(8, 128, 256))        # [8, 128, 256]
    """

    def __init__(
        self,
        mode: str = "chunk",
        d_model: int | None = None,
        hidden_size: int = 1024,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        num_heads: int = 4,
        use_beta: bool = True,
        use_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        layer_idx: int | None = None,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        norm_eps: float = 1e-5,
    ):
        hidden_size = hidden_size if d_model is None else d_model
        super().__init__(
            hidden_size, mode, layer_idx, norm_eps, conv_size if use_short_conv else None
        )
        name = type(self).__name__
        for option, value, allowed in (
            ("qk_activation", qk_activation, _QK_ACTIVATIONS),
            ("qk_norm", qk_norm, _QK_NORMS),
        ):
            if value not in allowed:
                raise OptionError(
                    f"{name}: `{option}` must be one of {', '.join(allowed)}, got {value!r}."
                )
        self.num_heads = at_least(name, "num_heads", 1, num_heads)
        self.key_dim = times(name, "hidden_size", hidden_size, "expand_k", expand_k)
        self.value_dim = times(name, "hidden_size", hidden_size, "expand_v", expand_v)
        divisible = "`num_heads` must divide `hidden_size * {}`"
        self.head_k_dim = divides(num_heads, self.key_dim, divisible.format("expand_k"), name)
        self.head_v_dim = divides(num_heads, self.value_dim, divisible.format("expand_v"), name)
        self.use_beta = use_beta
        self.use_gate = use_gate
        self.allow_neg_eigval = allow_neg_eigval
        self.qk_activation = qk_activation
        self.qk_norm = qk_norm

        self.q_proj = Linear(hidden_size, self.key_dim, bias=False)
        self.k_proj = Linear(hidden_size, self.key_dim, bias=False)
        self.v_proj = Linear(hidden_size, self.value_dim, bias=False)
        if use_beta:
            self.b_proj = Linear(hidden_size, num_heads, bias=False)
        if use_short_conv:
            self._add_short_convolutions(
                (self.key_dim, self.key_dim, self.value_dim),
                conv_size,
                conv_bias,
                qk_activation="silu" if qk_activation == "silu" else None,
            )
        else:
            warn_without_convolution(name)
        self.o_norm: FusedRMSNormGated | RMSNorm
        if use_gate:
            self.g_proj = Linear(hidden_size, self.value_dim, bias=False)
            self.o_norm = FusedRMSNormGated(self.head_v_dim, eps=norm_eps)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, dtype=torch.float32)
        self.o_proj = Linear(self.value_dim, hidden_size, bias=False)

    def _activate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        if self.qk_activation == "silu":
            q, k = silu(q), silu(k)
        return q, k, silu(v)

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
        q, k = split_heads(q, self.head_k_dim), split_heads(k, self.head_k_dim)
        if self.qk_activation == "relu":
            q, k = q.relu(), k.relu()
        elif self.qk_activation == "elu":
            q, k = elu_plus_one(q), elu_plus_one(k)
        if self.qk_norm == "sum":
            q, k = _sum_to_one(q), _sum_to_one(k)
        beta = wide(self.b_proj(x)).sigmoid() if self.use_beta else wide(q.new_ones(q.shape[:-1]))
        if self.allow_neg_eigval:
            beta = beta * 2
        op = ops.fused_recurrent_delta_rule if self._steps(x) else ops.chunk_delta_rule
        return op(
            q,
            k,
            split_heads(v, self.head_v_dim),
            beta=beta,
            initial_state=state,
            output_final_state=keep,
            use_qk_l2norm_in_kernel=self.qk_norm == "l2",
            cu_seqlens=cu_seqlens,
        )

    def _normalize(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        if self.use_gate:
            return self.o_norm(o, split_heads(self.g_proj(x), self.head_v_dim))
        return self.o_norm(o)


def _sum_to_one(x: torch.Tensor) -> torch.Tensor:
    """``x`` over the sum of its last axis, signs and all; left as it is where that is zero."""
    total = x.sum(-1, keepdim=True)
    # On a GPU autocast makes the sum float32.
    return (x / total.masked_fill(total == 0, 1)).to(x.dtype)
