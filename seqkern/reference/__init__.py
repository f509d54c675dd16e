# SPDX-License-Identifier: Apache-2.0
"""Sequential definitions of every op in plain torch: any device, any float dtype, all gradients."""

from seqkern.reference.delta_rule import delta_rule
from seqkern.reference.gated_delta_product import gated_delta_product
from seqkern.reference.gated_delta_rule import gated_delta_rule
from seqkern.reference.gla import gla
from seqkern.reference.simple_gla import simple_gla

__all__ = [
    "delta_rule",
    "gated_delta_product",
    "gated_delta_rule",
    "gla",
    "simple_gla",
]
