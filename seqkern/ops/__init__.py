# SPDX-License-Identifier: Apache-2.0
"""The public ops: names, argument order, layouts and defaults of the packages people know."""

from seqkern.ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from seqkern.ops.causal_conv1d_mamba import causal_conv1d_fn, causal_conv1d_update_fn
from seqkern.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from seqkern.ops.flashrnn import flashrnn, flashrnn_step
from seqkern.ops.gated_delta_product import (
    chunk_gated_delta_product,
    fused_recurrent_gated_delta_product,
)
from seqkern.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from seqkern.ops.gla import chunk_gla, fused_recurrent_gla
from seqkern.ops.linear_scan import linear_scan
from seqkern.ops.lssl import (
    Quasiseparable,
    hippo,
    lssl_conv,
    lssl_kernel,
    lssl_scan,
    lssl_step,
)
from seqkern.ops.rms_norm_gated import rms_norm, rms_norm_gated
from seqkern.ops.selective_scan import selective_scan, selective_state_update
from seqkern.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

__all__ = [
    "Quasiseparable",
    "causal_conv1d",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "causal_conv1d_update_fn",
    "chunk_delta_rule",
    "chunk_gated_delta_product",
    "chunk_gated_delta_rule",
    "chunk_gla",
    "chunk_simple_gla",
    "flashrnn",
    "flashrnn_step",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_product",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gla",
    "fused_recurrent_simple_gla",
    "hippo",
    "linear_scan",
    "lssl_conv",
    "lssl_kernel",
    "lssl_scan",
    "lssl_step",
    "rms_norm",
    "rms_norm_gated",
    "selective_scan",
    "selective_state_update",
]
