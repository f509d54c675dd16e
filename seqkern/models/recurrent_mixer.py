# SPDX-License-Identifier: Apache-2.0
"""A classical recurrent layer as the mixer of a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from seqkern import nn as snn
from seqkern.nn._linear import Linear

_LAYERS = {"lstm": snn.LSTM, "gru": snn.GRU, "rnn": snn.RNN, "slstm": snn.SLSTM}
RECURRENT = tuple(_LAYERS)


class RecurrentMixer(nn.Module):
    """``o_proj(norm(layer(x)))`` with the calls of the other mixers.

    Args:
        layer: "lstm", "gru", "rnn" or "slstm".
        hidden_size: channels in, inside and out.
        num_heads: heads of the block-diagonal recurrence.
        layer_idx: place of the states in a cache.
    """

    def __init__(self, layer: str, hidden_size: int, num_heads: int, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.layer = _LAYERS[layer](hidden_size, hidden_size, batch_first=True, num_heads=num_heads)
        self.norm = snn.RMSNorm(hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> tuple[Tensor, None, Any]:
        """Mix over time.

        Args:
            hidden_states: [B, T, hidden_size].
            past_key_values: a `seqkern.nn.Cache` with the states to start from, or None.
            use_cache: write the states after the last step to the cache.

        Returns:
            [B, T, hidden_size], None, and the cache.
        """
        cache, states = past_key_values, None
        if cache is not None and len(cache) > self.layer_idx:
            kept = cache[self.layer_idx]["recurrent_state"]
            # The cache wants the sequences first, to select among them.
            states = None if kept is None else tuple(s.transpose(0, 1) for s in kept)
        if states is not None and len(states) == 1:
            states = states[0]
        y, states = self.layer(hidden_states, states)
        if use_cache:
            states = states if isinstance(states, tuple) else (states,)
            kept = tuple(s.transpose(0, 1) for s in states)
            cache = snn.Cache() if cache is None else cache
            cache.update(
                recurrent_state=kept, layer_idx=self.layer_idx, offset=hidden_states.shape[1]
            )
        return self.o_proj(self.norm(y)), None, cache
