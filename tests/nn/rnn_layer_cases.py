# SPDX-License-Identifier: Apache-2.0
"""The recurrent layers, as their tests count states and gates."""

import pytest

from seqkern import nn

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN, "SLSTM": nn.SLSTM}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1, "SLSTM": 4}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "SLSTM": 4}
IN, HIDDEN = 5, 12
each_kind = pytest.mark.parametrize("name", KINDS)


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)
