# SPDX-License-Identifier: Apache-2.0
"""What every layer with a cached state shares: the width, padding, packing and the cache."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn as nn

from seqkern.errors import DTypeError, ShapeError
from seqkern.nn._linear import Linear
from seqkern.nn._padding import pack, unpack
from seqkern.nn._state import LayerState, read_state, write_state
from seqkern.nn.cache import Cache
from seqkern.ops._checks import dense, misfit_of_weights, tensor


class CachedLayer(nn.Module):
    """A layer that mixes information over time and can start from, and keep, a state.

    A subclass says how wide its convolutions' states are (`_conv_widths`) and mixes (`_mix`).
    """

    # The attribute that holds the width of the input, by the name users know it.
    _WIDTH: ClassVar[str] = "hidden_size"
    # The projection that reads the input.
    _ENTRANCE: ClassVar[str] = "q_proj"

    layer_idx: int | None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        *,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None, Any]:
        """Mix information over time.

        Args:
            hidden_states: [B, T, width], the width that the layer was built with; float32,
                bfloat16, float16 or float64.
            attention_mask: [B, S >= T] padding mask, nonzero for a real token; its last T columns
                belong to ``hidden_states``. Padding may stand anywhere, never touches the state,
                and comes out as zeros.
            past_key_values: `seqkern.nn.Cache`, or a cache of transformers 5; the state to start
                from. Needs ``layer_idx``.
            use_cache: write the state after the last token to the cache (a new `Cache` if none was
                passed). False leaves a cache as it was.
            output_attentions: ignored; a recurrence has no attention matrix.
            cu_seqlens: [N + 1] int, packs N sequences into B = 1; wins over ``attention_mask``.
        Returns:
            ``o`` [B, T, width], None (no attention matrix), and the cache.
        Raises:
            ShapeError, DTypeError, SeqkernError: the message names the argument.
        """
        name, width = type(self).__name__, getattr(self, self._WIDTH)
        tensor(name, "hidden_states", hidden_states)
        if hidden_states.dim() != 3 or hidden_states.shape[-1] != width:
            raise ShapeError(
                f"{name}: `hidden_states` must be [B, T, {self._WIDTH}] = [B, T, {width}], got "
                f"{list(hidden_states.shape)}."
            )
        dense(name, "hidden_states", hidden_states)
        _check_dtype(name, hidden_states, getattr(self, self._ENTRANCE))
        B, T, _ = hidden_states.shape
        x, cu_seqlens, indices, N = pack(hidden_states, attention_mask, cu_seqlens, name)
        if past_key_values is None and use_cache:
            past_key_values = Cache()
        state = read_state(past_key_values, self.layer_idx, self._conv_widths(), N, name)
        o, state = self._mix(x, state, bool(use_cache), cu_seqlens)
        if use_cache:  # reading has refused a layer without an index
            write_state(past_key_values, cast(int, self.layer_idx), state, T)
        return unpack(o, indices, B, T), None, past_key_values

    def _conv_widths(self) -> tuple[int, ...]:
        """Channels of each convolution whose state is kept."""
        raise NotImplementedError

    def _mix(
        self, x: torch.Tensor, state: LayerState, keep: bool, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerState]:
        """Return ``o`` [B, T, width], and the state after the last token if ``keep``."""
        raise NotImplementedError


def _check_dtype(name: str, x: torch.Tensor, entrance: nn.Module) -> None:
    """Check the dtype of the input against the weight that it meets first."""
    # A wrapped, replaced or hooked projection may cast by itself.
    if type(entrance) is not Linear or entrance._forward_pre_hooks or "forward" in vars(entrance):
        return
    misfit = misfit_of_weights(name, "hidden_states", x, entrance.weight.dtype)
    if misfit is not None:
        raise DTypeError(misfit)
