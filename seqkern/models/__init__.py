# SPDX-License-Identifier: Apache-2.0
"""Small complete models built from `seqkern.nn` layers."""

from seqkern.models.byte_lm import LAYERS, ByteLM, ByteLMConfig

__all__ = ["LAYERS", "ByteLM", "ByteLMConfig"]
