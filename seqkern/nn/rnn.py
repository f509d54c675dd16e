# SPDX-License-Identifier: Apache-2.0
"""The Elman network, a drop-in for torch.nn.RNN."""

from __future__ import annotations

import torch

from seqkern.errors import OptionError
from seqkern.nn._rnn_base import RecurrentBase


class RNN(RecurrentBase):
    """Elman network, with torch.nn.RNN's arguments, parameter names and results.

        h' = f(W x + b + V h + d)                                            f: tanh or relu

    Args:
        input_size, hidden_size, num_layers: as in `LSTM`.
        nonlinearity: "tanh" or "relu".
        bias, batch_first, dropout, bidirectional, device, dtype: as in `LSTM`.
        num_heads: N independent heads of width hidden_size / N in the recurrence: ``weight_hh_l0``
            is then [hidden_size, hidden_size / N], rows by head and output.
        backend: as in `seqkern.ops.flashrnn`.

    Shapes:
        h_0, h_n: [num_layers * directions, B, hidden_size].

    Example:
        >>> output, h_n = RNN(64, 128, nonlinearity="relu")(torch.randn(100, 8, 64))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
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
        if nonlinearity not in ("tanh", "relu"):
            raise OptionError(
                f'RNN: `nonlinearity` must be "tanh" or "relu", got {nonlinearity!r}.'
            )
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
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
        self.nonlinearity = nonlinearity
