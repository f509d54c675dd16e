# SPDX-License-Identifier: Apache-2.0
"""Layers whose constructors, parameter names and shapes are those of flash-linear-attention."""

from seqkern.nn.cache import Cache
from seqkern.nn.convolution import ShortConvolution
from seqkern.nn.delta_net import DeltaNet
from seqkern.nn.gated_delta_net import GatedDeltaNet
from seqkern.nn.gated_delta_product import GatedDeltaProduct
from seqkern.nn.gla import GatedLinearAttention
from seqkern.nn.mamba import Mamba
from seqkern.nn.norm import FusedRMSNormGated, RMSNorm, RMSNormGated

__all__ = [
    "Cache",
    "DeltaNet",
    "FusedRMSNormGated",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "GatedLinearAttention",
    "Mamba",
    "RMSNorm",
    "RMSNormGated",
    "ShortConvolution",
]
