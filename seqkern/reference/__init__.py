# SPDX-License-Identifier: Apache-2.0
"""Sequential definitions of every op in plain torch: any device, any float dtype, all gradients."""

from seqkern.reference.causal_conv1d import causal_conv1d, causal_conv1d_update
from seqkern.reference.delta_rule import delta_rule
from seqkern.reference.flashrnn import flashrnn
from seqkern.reference.gated_delta_product import gated_delta_product
from seqkern.reference.gated_delta_rule import gated_delta_rule
from seqkern.reference.gla import gla
from seqkern.reference.linear_scan import linear_scan
from seqkern.reference.lssl import lssl_discretize, lssl_kernel, lssl_scan
from seqkern.reference.rms_norm_gated import rms_norm_gated
from seqkern.reference.selective_scan import selective_scan
from seqkern.reference.simple_gla import simple_gla

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "delta_rule",
    "flashrnn",
    "gated_delta_product",
    "gated_delta_rule",
    "gla",
    "linear_scan",
    "lssl_discretize",
    "lssl_kernel",
    "lssl_scan",
    "rms_norm_gated",
    "selective_scan",
    "simple_gla",
]
