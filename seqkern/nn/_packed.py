# SPDX-License-Identifier: Apache-2.0
"""PackedSequence to packed sequences that lie one behind the other, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad


class Order(NamedTuple):
    """How to read a PackedSequence sequence by sequence.

    ``sequences`` [total] int64 are the rows of the packed data, the first sequence's first;
    ``times`` is its inverse; ``cu_seqlens`` [N + 1] int64 lies on the CPU.
    """

    sequences: torch.Tensor
    times: torch.Tensor
    cu_seqlens: torch.Tensor


def sequence_order(batch_sizes: torch.Tensor, device: torch.device) -> Order:
    """Return the order of packed data whose step t holds ``batch_sizes[t]`` sequences."""
    N = int(batch_sizes[0])
    starts = pad(batch_sizes.cumsum(0), (1, 0))[:-1]
    # Beside `batch_sizes`, which lies on the CPU, whatever the default device is.
    each = torch.arange(N, device="cpu").unsqueeze(1)
    there = (each < batch_sizes).flatten()
    rows = (each + starts).flatten()
    sequences = rows[there]
    times = torch.empty_like(sequences)
    times[sequences] = torch.arange(len(sequences), device="cpu")
    lengths = there.view(N, -1).sum(1)
    return Order(sequences.to(device), times.to(device), pad(lengths.cumsum(0), (1, 0)))


class Permute(torch.autograd.Function):
    """``x`` [rows, width] with its rows in another order; ``inverse`` undoes ``order``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> Any:
        """Return ``x[order]``."""
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Keep both orders."""
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)
        ctx.save_for_forward(order, inverse)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        """Return ``dy[inverse]``."""
        order, inverse = ctx.saved_tensors
        return Permute.apply(dy, inverse, order), None, None

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor, *_: None) -> Any:
        """Return ``dx[order]``."""
        order, inverse = ctx.saved_tensors
        return Permute.apply(dx, order, inverse)
