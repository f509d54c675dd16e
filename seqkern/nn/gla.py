# SPDX-License-Identifier: Apache-2.0
"""The gated linear attention layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch.nn.functional import logsigmoid

from seqkern import ops
from seqkern.errors import OptionError
from seqkern.nn._activations import activation
from seqkern.nn._base import RecurrentLayer, Tensors, divides, split_heads, times, wide
from seqkern.nn._linear import Linear
from seqkern.nn.norm import FusedRMSNormGated, RMSNorm
from seqkern.ops._checks import at_least, positive, real


class GatedLinearAttention(RecurrentLayer):
    """Gated linear attention with a low-rank gate per key channel.

        g = logsigmoid(gk_proj(x)) / gate_logit_normalizer
        o = o_proj(RMSNorm(gla(q, k, v, g)) * gate_fn(g_proj(x)))

    Constructor, parameter names and shapes are flash-linear-attention's; the cached state is
    [N, H, K, V] (there: [N, H, V, K]).

    Args:
        mode: "chunk" or "fused_recurrent"; one kernel serves both.
        hidden_size: width of the input and the output.
        expand_k, expand_v: width of all keys and all values, relative to ``hidden_size``.
        num_heads, num_kv_heads: heads; each key-value head serves num_heads / num_kv_heads of them.
        feature_map: name of a function on q and k, or None.
        use_short_conv, conv_size, conv_bias: convolutions with SiLU in front of q, k and v.
        use_output_gate, gate_fn: the gate on the output, and its function.
        elementwise_affine, norm_eps: of the output norm.
        gate_logit_normalizer: divides the log decay; larger remembers longer.
        gate_low_rank_dim: rank of the gate's projection.
        clamp_min: smallest log decay, <= 0, or None.
        fuse_norm: norm and gate in one pass, if ``gate_fn`` is "swish"; decides the norm's name.
        layer_idx: position in the model; the key into a cache.
        allow_neg_eigval: decays ``2 exp(g) - 1`` in [-1, 1] instead of ``exp(g)``, which lets the
            layer keep track of parities.
    Source:
        Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training".

    Example:
        >>> layer = GatedLinearAttention(hidden_size=256, num_heads=4)
        >>> y, _, _ = layer(torch.randn(8, 128, 256))        # [8, 128, 256]
    """

    def __init__(
        self,
        mode: str = "chunk",
        hidden_size: int = 1024,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        feature_map: str | None = None,
        use_short_conv: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        use_output_gate: bool = True,
        gate_fn: str = "swish",
        elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        gate_logit_normalizer: int = 16,
        gate_low_rank_dim: int = 16,
        clamp_min: float | None = None,
        fuse_norm: bool = True,
        layer_idx: int | None = None,
        allow_neg_eigval: bool = False,
    ):
        super().__init__(
            hidden_size, mode, layer_idx, norm_eps, conv_size if use_short_conv else None
        )
        name = type(self).__name__
        self.num_heads = at_least(name, "num_heads", 1, num_heads)
        self.num_kv_heads = num_heads
        if num_kv_heads is not None:
            self.num_kv_heads = at_least(name, "num_kv_heads", 1, num_kv_heads)
        self.num_kv_groups = divides(
            self.num_kv_heads, num_heads, "`num_kv_heads` must divide `num_heads`", name
        )
        self.key_dim = times(name, "hidden_size", hidden_size, "expand_k", expand_k)
        self.value_dim = times(name, "hidden_size", hidden_size, "expand_v", expand_v)
        divisible = "`num_heads` must divide `hidden_size * {}`"
        self.head_k_dim = divides(num_heads, self.key_dim, divisible.format("expand_k"), name)
        self.head_v_dim = divides(num_heads, self.value_dim, divisible.format("expand_v"), name)
        self.use_output_gate = use_output_gate
        self.gate_logit_normalizer = gate_logit_normalizer
        self.clamp_min = clamp_min
        self.allow_neg_eigval = allow_neg_eigval
        self.feature_map = activation(feature_map, "feature_map", name) if feature_map else None
        self.gate_fn = activation(gate_fn, "gate_fn", name)
        at_least(name, "gate_low_rank_dim", 1, gate_low_rank_dim)
        positive(name, "gate_logit_normalizer", gate_logit_normalizer)
        bound = "a number <= 0, for it bounds a log decay, or None"
        if clamp_min is not None and not real(name, "clamp_min", bound, clamp_min) <= 0:
            raise OptionError(f"{name}: `clamp_min` must be {bound}, got {clamp_min!r}.")

        kv_key_dim = self.num_kv_heads * self.head_k_dim
        kv_value_dim = self.num_kv_heads * self.head_v_dim
        self.q_proj = Linear(hidden_size, self.key_dim, bias=False)
        self.k_proj = Linear(hidden_size, kv_key_dim, bias=False)
        self.v_proj = Linear(hidden_size, kv_value_dim, bias=False)
        if use_output_gate:
            self.g_proj = Linear(hidden_size, self.value_dim, bias=False)
        if use_short_conv:
            widths = (self.key_dim, kv_key_dim, kv_value_dim)
            self._add_short_convolutions(widths, conv_size, conv_bias)
        self.gk_proj = nn.Sequential(
            Linear(hidden_size, gate_low_rank_dim, bias=False),
            Linear(gate_low_rank_dim, kv_key_dim, bias=True),
        )
        self.o_proj = Linear(self.value_dim, hidden_size, bias=False)
        self.fuse_norm_and_gate = gate_fn == "swish" and fuse_norm and use_output_gate
        if self.fuse_norm_and_gate:
            self.g_norm_swish_gate = FusedRMSNormGated(
                self.head_v_dim, elementwise_affine, norm_eps
            )
        else:
            self.g_norm = RMSNorm(
                self.head_v_dim, elementwise_affine, eps=norm_eps, dtype=torch.float32
            )

    def _activate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        return q, k, v

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
        g = logsigmoid(wide(self.gk_proj(x))) / self.gate_logit_normalizer
        if self.clamp_min is not None:
            g = g.clamp_min(self.clamp_min)
        if self.allow_neg_eigval:
            g = g.exp().mul(2).sub_(1)
        q, k, g = (split_heads(t, self.head_k_dim) for t in (q, k, g))
        v = split_heads(v, self.head_v_dim)
        if self.feature_map is not None:
            q, k = self.feature_map(q), self.feature_map(k)
        if self.num_kv_groups > 1:
            k, v, g = (t.repeat_interleave(self.num_kv_groups, dim=2) for t in (k, v, g))
        options: dict[str, Any] = {
            "initial_state": state,
            "output_final_state": keep,
            "cu_seqlens": cu_seqlens,
            "signed_gate": self.allow_neg_eigval,
        }
        if self._steps(x):
            return ops.fused_recurrent_gla(q, k, v, gk=g, **options)
        return ops.chunk_gla(q, k, v, g, **options)

    def _normalize(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        if not self.use_output_gate:
            return self.g_norm(o)
        g = split_heads(self.g_proj(x), self.head_v_dim)
        if self.fuse_norm_and_gate:
            return self.g_norm_swish_gate(o, g)
        return self.g_norm(o) * self.gate_fn(g)
