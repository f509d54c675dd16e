# SPDX-License-Identifier: Apache-2.0
"""Reading and writing one layer's state in a cache of ours, of fla's or of transformers' kind."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch

from seqkern.errors import DTypeError, SeqkernError, ShapeError


class LayerState(NamedTuple):
    """What a layer carries: [N, HV, K, V] float32, and one [N, D, W] per short convolution."""

    recurrent: torch.Tensor | None = None
    conv: tuple[torch.Tensor, ...] | None = None


def read_state(
    cache: Any, layer_idx: int | None, widths: tuple[int, ...], N: int, name: str
) -> LayerState:
    """The state of layer ``layer_idx`` for N sequences; empty before the first update.

    ``widths`` are the channel counts of the layer's convolutions, () when it has none.
    """
    if cache is None:
        return LayerState()
    if layer_idx is None:
        raise SeqkernError(
            f"{name}: a cache was passed or asked for, but the layer was built without "
            "`layer_idx`. Build it with `layer_idx=i`, its position in the model, so that it "
            "finds its own state."
        )
    if _is_transformers(cache):
        state = _read_transformers(cache, layer_idx, widths, name)
    elif hasattr(cache, "__getitem__") and hasattr(cache, "update") and not isinstance(cache, dict):
        entry = cache[layer_idx] if len(cache) > layer_idx else None
        state = LayerState(entry["recurrent_state"], entry["conv_state"]) if entry else LayerState()
    else:
        raise DTypeError(
            f"{name}: `past_key_values` must be a `seqkern.nn.Cache` or a cache of transformers 5, "
            f"got {type(cache).__name__}."
        )
    if widths and state.recurrent is not None and state.conv is None:
        raise SeqkernError(
            f"{name}: the cache holds a recurrent state but no convolution state for layer "
            f"{layer_idx}. Pass `conv_state` to `Cache.update` too, or an empty cache."
        )
    if widths and state.conv is not None and tuple(c.shape[1] for c in state.conv) != widths:
        raise _of_another_layer(name, layer_idx, [c.shape[1] for c in state.conv], widths)
    if state.recurrent is not None and state.recurrent.shape[0] != N:
        raise ShapeError(
            f"{name}: the cache holds {state.recurrent.shape[0]} sequences, the input has {N}. "
            "Use one cache per batch, or `cache.reorder(beam_idx)` to select sequences."
        )
    return state


def write_state(cache: Any, layer_idx: int, state: LayerState, tokens: int) -> None:
    """Store ``state`` as the layer's newest, ``tokens`` per sequence after the one before."""
    if not _is_transformers(cache):
        cache.update(
            recurrent_state=state.recurrent,
            conv_state=state.conv,
            layer_idx=layer_idx,
            offset=tokens,
        )
        return
    if state.conv is None:
        cache.layers[layer_idx].has_previous_state[0] = True
    else:
        # That cache appends columns and keeps the newest W: a whole state replaces the old one.
        joined = torch.cat(state.conv, dim=1)
        cache.update_conv_state(joined, layer_idx, conv_kernel_size=joined.shape[-1])
    cache.update_recurrent_state(state.recurrent, layer_idx)


def _is_transformers(cache: Any) -> bool:
    return hasattr(cache, "update_recurrent_state") and not hasattr(cache, "__getitem__")


def _read_transformers(
    cache: Any, layer_idx: int, widths: tuple[int, ...], name: str
) -> LayerState:
    layers = cache.layers
    if len(layers) <= layer_idx and cache.layer_class_to_replicate is not None:
        # A cache built without a config grows by attention layers; ours is a linear one.
        linear = _linear_layer_class(cache)
        while len(layers) < layer_idx:
            layers.append(cache.layer_class_to_replicate())
        layers.append(linear())
    if len(layers) <= layer_idx or not hasattr(layers[layer_idx], "recurrent_states"):
        kind = type(layers[layer_idx]).__name__ if len(layers) > layer_idx else "missing"
        raise SeqkernError(
            f"{name}: layer {layer_idx} of the {type(cache).__name__} is {kind}, not a linear "
            "attention layer. Build the cache from a config whose `layer_types` says "
            '"linear_attention" there, or pass a `seqkern.nn.Cache`.'
        )
    if cache.is_recording_past(layer_idx):
        raise SeqkernError(
            f"{name}: the {type(cache).__name__} records the past to roll it back, which a "
            "recurrent state cannot do. Generate without speculative decoding."
        )
    recurrent = cache.get_recurrent_state(layer_idx)
    conv = cache.get_conv_state(layer_idx) if widths else None
    if torch.is_grad_enabled():
        # The cache overwrites its tensors; autograd needs the values of this call.
        recurrent = recurrent if recurrent is None else recurrent.clone()
        conv = conv if conv is None else conv.clone()
    if conv is not None and conv.shape[1] != sum(widths):
        raise _of_another_layer(name, layer_idx, [conv.shape[1]], widths)
    return LayerState(recurrent, conv if conv is None else conv.split(widths, dim=1))


def _of_another_layer(
    name: str, layer_idx: int, held: list[int], widths: tuple[int, ...]
) -> ShapeError:
    return ShapeError(
        f"{name}: the convolution states of layer {layer_idx} in the cache must be {list(widths)} "
        f"channels wide, got {held}. Another layer has filled them: give every layer of a model a "
        "`layer_idx` of its own."
    )


def _linear_layer_class(cache: Any) -> Any:
    """transformers' LinearAttentionLayer, from wherever ``cache``'s base class is defined."""
    homes = (sys.modules[base.__module__] for base in type(cache).__mro__)
    return next(
        home.LinearAttentionLayer for home in homes if hasattr(home, "LinearAttentionLayer")
    )
