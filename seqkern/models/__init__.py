# SPDX-License-Identifier: Apache-2.0
"""Small complete models built from `seqkern.nn` layers."""

from seqkern.models.byte_lm import LAYERS, ByteLM, ByteLMConfig
from seqkern.models.lssl import LSSLClassifier

__all__ = ["LAYERS", "ByteLM", "ByteLMConfig", "LSSLClassifier"]
