# SPDX-License-Identifier: Apache-2.0
"""The LSTM, a drop-in for torch.nn.LSTM."""

from __future__ import annotations

import torch
from torch import nn

from seqkern.errors import OptionError
from seqkern.nn._rnn_base import RecurrentBase


class LSTM(RecurrentBase):
    """Long short-term memory, with torch.nn.LSTM's arguments, parameter names and results.

        i, f, o = s(W x + b + V h + d);  g = tanh(W x + b + V h + d)
        c' = f c + i g;  h' = o tanh(c')                                  gates in the order i f g o

    A state dict of torch.nn.LSTM loads unchanged, and the same seed draws the same parameters.
    ``num_heads`` makes the recurrence block-diagonal.

    Args:
        input_size: channels of the input.
        hidden_size: channels of the state.
        num_layers: layers, each of which reads the output of the one below.
        bias: have ``bias_ih`` and ``bias_hh``.
        batch_first: inputs and outputs are [B, T, ...] instead of [T, B, ...].
        dropout: probability of dropping an output between two layers, in training.
        bidirectional: a second recurrence runs from the last step to the first.
        proj_size: must be 0.
        device, dtype: of the parameters.
        num_heads: N independent heads of width hidden_size / N in the recurrence: ``weight_hh_l0``
            is then [4 * hidden_size, hidden_size / N], rows by gate, head and output.
        backend: as in `seqkern.ops.flashrnn`.

    Shapes:
        h_0, c_0, h_n, c_n: [num_layers * directions, B, hidden_size].

    Example:
        >>> layer = LSTM(64, 128, num_layers=2, batch_first=True)
        >>> layer.load_state_dict(torch.nn.LSTM(64, 128, num_layers=2).state_dict())
        >>> output, (h_n, c_n) = layer(torch.randn(8, 100, 64))        # [8, 100, 128]
    """

    state_names = ("h_0", "c_0")
    # Those of torch's base class take one state.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        backend: str = "auto",
    ):
        if proj_size:
            raise OptionError(
                f"LSTM: `proj_size` is not supported, got {proj_size}. Leave it out and put a "
                "torch.nn.Linear behind the layer, or keep torch.nn.LSTM."
            )
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
