# SPDX-License-Identifier: Apache-2.0
"""The state that recurrent layers carry from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.ops._checks import tensor

_KEYS = ("recurrent_state", "attn_state", "conv_state", "ffn_state")


class Cache:
    """One dictionary of states per layer, with flash-linear-attention's protocol.

    ``cache[i]`` has the keys ``recurrent_state`` ([N, HV, K, V] float32 in every layer here; note
    that flash-linear-attention keeps [N, HV, V, K] in GLA and GatedDeltaNet), ``conv_state`` (a
    tuple of [N, D, W], the last W inputs of each short convolution), ``attn_state`` and
    ``ffn_state`` (free for other layers). A key is None until it is first updated. The size
    does not grow with the number of tokens, except that of ``attn_state``.

    Example:
        >>> cache = Cache()
        >>> o, _, cache = layer(prompt, past_key_values=cache, use_cache=True)
        >>> o, _, cache = layer(next_token, past_key_values=cache, use_cache=True)
    """

    def __init__(self, seen_tokens: int = 0):
        self._states: list[dict[str, Any]] = []
        self._seen: list[int] = []
        self._seen_before = int(seen_tokens)

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._states)

    def __getitem__(self, layer_idx: int) -> dict[str, Any]:
        if not 0 <= layer_idx < len(self._states):
            raise KeyError(f"the cache holds {len(self._states)} layers, got layer_idx={layer_idx}")
        return self._states[layer_idx]

    def __repr__(self) -> str:
        return f"Cache(layers={len(self)}, seen_tokens={self.get_seq_length()})"

    def update(
        self,
        recurrent_state: Any = None,
        attn_state: tuple[torch.Tensor, ...] | None = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        layer_idx: int = 0,
        offset: int | None = 1,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store the states given, keep those that are None, and count ``offset`` tokens.

        Args:
            recurrent_state, conv_state, ffn_state: replace what is stored.
            attn_state: tuple of [N, T, ...] tensors, appended along dimension 1 to what is stored.
            layer_idx: the layer; layers below it that are still missing become empty entries.
            offset: tokens this call has seen, >= 0; None counts as 1.
            cache_kwargs: ``{"window_size": w}`` keeps the last w positions of ``attn_state``.
        Returns:
            The layer's dictionary.
        """
        if offset is not None and offset < 0:
            raise OptionError(f"Cache: `offset` must be >= 0 or None, got {offset}.")
        if layer_idx < 0:
            raise OptionError(f"Cache: `layer_idx` must be >= 0, got {layer_idx}.")
        while len(self._states) <= layer_idx:
            self._states.append(dict.fromkeys(_KEYS))
            self._seen.append(self._seen_before)
        state = self._states[layer_idx]
        if recurrent_state is not None:
            state["recurrent_state"] = recurrent_state
        if conv_state is not None:
            state["conv_state"] = conv_state
        if ffn_state is not None:
            state["ffn_state"] = ffn_state
        if attn_state is not None:
            window = (cache_kwargs or {}).get("window_size")
            state["attn_state"] = _append(state["attn_state"], attn_state, window)
        self._seen[layer_idx] += 1 if offset is None else offset
        return state

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens that layer ``layer_idx`` has seen, padding included."""
        layer_idx = layer_idx or 0
        return self._seen[layer_idx] if layer_idx < len(self._seen) else self._seen_before

    def get_max_cache_shape(self) -> int | None:
        """None: a recurrent state has no longest sequence."""
        return None

    def reorder(self, beam_idx: torch.Tensor) -> None:
        """Let sequence n continue from what was sequence ``beam_idx[n]``; int [N]."""
        tensor("Cache.reorder", "beam_idx", beam_idx)
        if beam_idx.dtype not in (torch.int32, torch.int64):
            raise DTypeError(
                f"Cache.reorder: `beam_idx` must be int32 or int64, got {beam_idx.dtype}. To keep "
                "some of the sequences, pass `keep.nonzero().squeeze(1)`."
            )
        if beam_idx.dim() != 1:
            raise ShapeError(
                f"Cache.reorder: `beam_idx` must be [N], got {list(beam_idx.shape)}. "
                "It names, for every new sequence, the old one it continues."
            )
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    reorder_cache = reorder

    def to(self, device: torch.device | str) -> Cache:
        """Move every state to ``device`` and return the cache itself."""
        self._map(lambda t: t.to(device))
        return self

    def reset(self) -> None:
        """Forget every state and every token."""
        self._states.clear()
        self._seen.clear()
        self._seen_before = 0

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for state in self._states:
            for key, value in state.items():
                state[key] = _map_tensors(function, value)


def _append(
    old: tuple[torch.Tensor, ...] | None, new: tuple[torch.Tensor, ...], window: int | None
) -> tuple[torch.Tensor, ...]:
    if old is not None:
        new = tuple(torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
    return tuple(t if window is None else t[:, -window:] for t in new)


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map_tensors(function, item) for item in value)
    if isinstance(value, dict):
        return {key: _map_tensors(function, item) for key, item in value.items()}
    return value
