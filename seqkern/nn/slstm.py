# SPDX-License-Identifier: Apache-2.0
"""The sLSTM of xLSTM, with the conventions of torch.nn.LSTM."""

from __future__ import annotations

import torch
from torch import Tensor

from seqkern.nn._rnn_base import RecurrentBase


class SLSTM(RecurrentBase):
    """Scalar LSTM: an exponential input gate, a normalizer and a stabilizer.

        i, f, z, o = W x + b + V h + d                                    gates in the order i f z o
        m' = max(i, log s(f) + m);  I = exp(i - m');  F = exp(log s(f) + m - m')
        c' = F c + I tanh(z);  n' = max(F n + I, 1);  h' = s(o) c' / n'

    An element whose n is zero is fresh and starts with m' = i: zeros are the empty state.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype: as in `LSTM`.
        num_heads: N independent heads of width hidden_size / N in the recurrence: ``weight_hh_l0``
            is then [4 * hidden_size, hidden_size / N], rows by gate, head and output.
        backend: as in `seqkern.ops.flashrnn`.

    Shapes:
        h_0, c_0, n_0, m_0 and the last states: [num_layers * directions, B, hidden_size] each;
            the last states are float32 (float64 for float64 inputs), whatever the input's dtype.

    Source:
        Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", section 2.2.

    Example:
        >>> output, states = SLSTM(64, 128, num_heads=4, batch_first=True)(torch.randn(8, 100, 64))
        >>> h_n, c_n, n_n, m_n = states
    """

    state_names = ("h_0", "c_0", "n_0", "m_0")

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
        # torch's base class knows the LSTM, whose parameters have the same sizes.
        super().__init__(
            "LSTM",
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
        self.mode = "SLSTM"

    def _narrow(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        return states
