# SPDX-License-Identifier: Apache-2.0
"""What the two gated delta layers share: grouped value heads, decay, output norm and gate."""

from __future__ import annotations

import torch

from seqkern.errors import OptionError
from seqkern.nn._base import (
    RecurrentLayer,
    divides,
    split_heads,
    times,
    warn_without_convolution,
)
from seqkern.nn._linear import Linear
from seqkern.nn.norm import GATES, FusedRMSNormGated, RMSNorm
from seqkern.ops._checks import at_least


class GroupedDeltaLayer(RecurrentLayer):
    """A delta-rule layer with ``num_v_heads`` value heads over ``num_heads`` query/key heads.

    ``n`` Householder steps a token make the key, value and write-strength projections n times
    wider; their channels are ordered (step, head, width).
    """

    def __init__(
        self,
        hidden_size: int,
        expand_v: float,
        head_dim: int,
        num_heads: int,
        num_v_heads: int | None,
        mode: str,
        use_gate: bool,
        use_short_conv: bool,
        conv_size: int,
        conv_bias: bool,
        layer_idx: int | None,
        norm_eps: float,
        use_decay: bool,
        gate_activation: str,
        n: int,
    ):
        super().__init__(
            hidden_size, mode, layer_idx, norm_eps, conv_size if use_short_conv else None
        )
        name = type(self).__name__
        self.num_heads = at_least(name, "num_heads", 1, num_heads)
        self.num_v_heads = num_heads
        if num_v_heads is not None:
            self.num_v_heads = at_least(name, "num_v_heads", 1, num_v_heads)
        divides(num_heads, self.num_v_heads, "`num_heads` must divide `num_v_heads`", name)
        self.head_k_dim = at_least(name, "head_dim", 1, head_dim)
        self.head_v_dim = times(name, "head_dim", head_dim, "expand_v", expand_v)
        self.key_dim = num_heads * self.head_k_dim
        self.value_dim = self.num_v_heads * self.head_v_dim
        self.has_output_gate = use_gate
        if gate_activation not in GATES:
            raise OptionError(
                f"{name}: `output_gate_activation` must be one of {', '.join(GATES)}, "
                f"got {gate_activation!r}."
            )

        self.q_proj = Linear(hidden_size, self.key_dim, bias=False)
        self.k_proj = Linear(hidden_size, self.key_dim * n, bias=False)
        self.v_proj = Linear(hidden_size, self.value_dim * n, bias=False)
        self.b_proj = Linear(hidden_size, self.num_v_heads * n, bias=False)
        if use_decay:
            self.a_proj = Linear(hidden_size, self.num_v_heads, bias=False)
            self._add_decay(self.num_v_heads)
        if use_short_conv:
            widths = (self.key_dim, self.key_dim * n, self.value_dim * n)
            self._add_short_convolutions(widths, conv_size, conv_bias)
        else:
            warn_without_convolution(name, 4)
        self.o_norm: FusedRMSNormGated | RMSNorm
        if use_gate:
            self.g_proj = Linear(hidden_size, self.value_dim, bias=False)
            self.o_norm = FusedRMSNormGated(
                self.head_v_dim, eps=norm_eps, activation=gate_activation
            )
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, dtype=torch.float32)
        self.o_proj = Linear(self.value_dim, hidden_size, bias=False)

    def _normalize(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        if self.has_output_gate:
            return self.o_norm(o, split_heads(self.g_proj(x), self.head_v_dim))
        return self.o_norm(o)
