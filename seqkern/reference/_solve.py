# SPDX-License-Identifier: Apache-2.0
"""Linear systems in batches, also where torch's own batches go wrong."""

import torch
from torch import Tensor

# The smallest matrix of which MKL may factorize blocks, with a margin: from 140 to 150 on it does.
_LARGE = 128


def solve(A: Tensor, B: Tensor) -> Tensor:
    """Return X with A X = B, for A [N, N] or [H, N, N] and B [N, K] or [H, N, K].

    One at a time where matrices are large: torch factorizes a batch on several threads, and MKL's
    factorization of large matrices, called on two at once, returns wrong pivots or never.
    """
    large = A.dim() > 2 and A.shape[0] > 1 and A.shape[-1] >= _LARGE and A.is_cpu
    # A compiler cannot ask for the threads that there will be.
    if not large or not (torch.compiler.is_compiling() or torch.get_num_threads() > 1):
        return torch.linalg.solve(A, B)
    pairs = zip(A.unbind(), B.unbind(), strict=True)
    return torch.stack([torch.linalg.solve(a, b) for a, b in pairs])
