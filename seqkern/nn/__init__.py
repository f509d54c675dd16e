# SPDX-License-Identifier: Apache-2.0
"""Layers: flash-linear-attention's and torch.nn's constructors, parameter names and shapes."""

from seqkern.nn.cache import Cache
from seqkern.nn.convert import Conversion, convert
from seqkern.nn.convolution import ShortConvolution
from seqkern.nn.delta_net import DeltaNet
from seqkern.nn.gated_delta_net import GatedDeltaNet
from seqkern.nn.gated_delta_product import GatedDeltaProduct
from seqkern.nn.gla import GatedLinearAttention
from seqkern.nn.gru import GRU
from seqkern.nn.lssl import LSSL
from seqkern.nn.lstm import LSTM
from seqkern.nn.mamba import Mamba
from seqkern.nn.norm import FusedRMSNormGated, RMSNorm, RMSNormGated
from seqkern.nn.rnn import RNN
from seqkern.nn.slstm import SLSTM

__all__ = [
    "GRU",
    "LSSL",
    "LSTM",
    "RNN",
    "SLSTM",
    "Cache",
    "Conversion",
    "DeltaNet",
    "FusedRMSNormGated",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "GatedLinearAttention",
    "Mamba",
    "RMSNorm",
    "RMSNormGated",
    "ShortConvolution",
    "convert",
]
