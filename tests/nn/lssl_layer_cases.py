# SPDX-License-Identifier: Apache-2.0
"""The layer that the tests of the linear state-space layer are about."""

import torch

from seqkern.nn import LSSL


def make_layer(measure="legs", channels=2, **options):
    """Return the same small layer every time."""
    torch.manual_seed(0)
    return LSSL(10, 8, channels, measure, **options)
