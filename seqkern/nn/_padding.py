# SPDX-License-Identifier: Apache-2.0
"""Padding by mask: take the real tokens out, run them as packed sequences, put them back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from seqkern.errors import ShapeError
from seqkern.ops._checks import tensor


class Packed(NamedTuple):
    """The tokens a layer really has to work on.

    ``x`` is [B, T, hidden], or [1, tokens, hidden] when packed; ``cu_seqlens`` is [N + 1] int or
    None; ``indices`` [tokens] int64 are the tokens' rows in the padded [B * T] grid, None when
    nothing was taken out; ``num_sequences`` is N.
    """

    x: torch.Tensor
    cu_seqlens: torch.Tensor | None
    indices: torch.Tensor | None
    num_sequences: int


def pack(
    x: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    name: str,
) -> Packed:
    """Drop the masked tokens of ``x`` [B, T, hidden]; explicit ``cu_seqlens`` win over a mask.

    Args:
        x: [B, T, hidden], any float dtype.
        attention_mask: [B, S] with S >= T, bool or number, nonzero for a real token. The last T
            columns belong to ``x``, the ones before them to tokens a cache has seen.
        cu_seqlens: [N + 1] int32 or int64, for an ``x`` that the caller has packed (B = 1).
        name: the layer's name, for error messages.
    """
    B, T, _ = x.shape
    if cu_seqlens is not None:
        tensor(name, "cu_seqlens", cu_seqlens)
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
            raise ShapeError(
                f"{name}: `cu_seqlens` must be [N + 1], got {list(cu_seqlens.shape)}. "
                "It holds the start of every sequence and the total length."
            )
        if B != 1:
            raise ShapeError(
                f"{name}: `cu_seqlens` packs all sequences into a batch of 1, got `hidden_states` "
                f"{list(x.shape)}. Concatenate the sequences along dimension 1."
            )
        return Packed(x, cu_seqlens, None, cu_seqlens.shape[0] - 1)
    if attention_mask is None:
        return Packed(x, None, None, B)
    tensor(name, "attention_mask", attention_mask)
    if attention_mask.dim() != 2:
        raise ShapeError(
            f"{name}: `attention_mask` must be a padding mask [B, T] = [{B}, {T}], got "
            f"{list(attention_mask.shape)}. The layer is causal by itself; pass only the padding."
        )
    S = attention_mask.shape[1]
    if attention_mask.shape[0] != B or S < T:
        raise ShapeError(
            f"{name}: `attention_mask` must be [B, S] with B = {B} and S >= T = {T}, got "
            f"{list(attention_mask.shape)}. Its last T columns belong to `hidden_states`."
        )
    keep = attention_mask[:, S - T :] != 0
    if not torch.compiler.is_compiling() and bool(keep.all()):
        return Packed(x, None, None, B)
    indices = keep.flatten().nonzero().squeeze(1)
    cu_seqlens = pad(keep.sum(1).cumsum(0), (1, 0))
    return Packed(x.flatten(0, 1).index_select(0, indices)[None], cu_seqlens, indices, B)


def unpack(o: torch.Tensor, indices: torch.Tensor | None, B: int, T: int) -> torch.Tensor:
    """Undo `pack` on ``o`` [1, tokens, hidden]: [B, T, hidden] with zeros at the padding."""
    if indices is None:
        return o
    grid = o.new_zeros(B * T, o.shape[-1])
    return grid.index_copy(0, indices, o.squeeze(0)).view(B, T, o.shape[-1])
