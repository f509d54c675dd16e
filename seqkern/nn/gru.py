# SPDX-License-Identifier: Apache-2.0
"""The gated recurrent unit, a drop-in for torch.nn.GRU."""

from __future__ import annotations

import torch
from torch import Tensor

from seqkern._runtime.autocast import without_autocast
from seqkern.nn._rnn_base import RecurrentBase


def _joined(*parts: Tensor) -> Tensor:
    """Return ``torch.cat(parts)``, also of 16 bits other than autocast's, which it refuses."""
    if parts[0].dtype is torch.float32:
        return torch.cat(parts)
    with without_autocast(parts[0].device.type):
        return torch.cat(parts)


class GRU(RecurrentBase):
    """Gated recurrent unit, with torch.nn.GRU's arguments, parameter names and results.

        r, z = s(W x + b + V h + d)
        n = tanh(W x + b + r (V h + d));  h' = z h + (1 - z) n            gates in the order r z n

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype: as in `LSTM`.
        num_heads: N independent heads of width hidden_size / N in the recurrence: ``weight_hh_l0``
            is then [3 * hidden_size, hidden_size / N], rows by gate, head and output.
        backend: as in `seqkern.ops.flashrnn`.

    Shapes:
        h_0, h_n: [num_layers * directions, B, hidden_size].

    Example:
        >>> output, h_n = GRU(64, 128)(torch.randn(100, 8, 64))        # [100, 8, 128]
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        backend: str = "auto",
    ):
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            num_heads,
            backend,
        )

    # The op wants n first, whose product must stay apart from its input: n r z.
    _first_gate = 2

    def _recurrent(self, weight_hh: Tensor) -> Tensor:
        R = super()._recurrent(weight_hh)
        return _joined(R[2:], R[:2])

    def _bias(self, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        cut = 2 * self.hidden_size
        both = bias_ih[:cut] + bias_hh[:cut]
        joined = _joined(bias_hh[cut:], both, bias_ih[cut:])
        return joined.view(4, self.num_heads, self._width)

    def _step_bias(self, bias_hh: Tensor) -> Tensor:
        cut = 2 * self.hidden_size
        parts = (bias_hh[cut:], bias_hh[:cut], torch.zeros_like(bias_hh[cut:]))
        return torch.cat(parts).view(4, self.num_heads, self._width)
