# SPDX-License-Identifier: Apache-2.0
"""The FlashRNN tile problems that tests and benchmarks share, infeasible ones included."""

from __future__ import annotations

from constrint.examples.flashrnn import Problem, gpu

# D, N, B, function, bytes per element
_SIZES = [
    (16, 48, 16, "lstm", 2),
    (32, 24, 16, "lstm", 2),
    (64, 12, 16, "lstm", 2),
    (64, 12, 64, "lstm", 2),
    (128, 6, 16, "lstm", 2),
    (256, 3, 16, "lstm", 2),
    (256, 3, 256, "slstm", 2),
    (512, 1, 16, "lstm", 2),
    (768, 1, 16, "lstm", 2),
    (768, 1, 16, "lstm", 4),
    (1024, 1, 16, "lstm", 2),
    (1024, 1, 16, "elman", 2),
    (1024, 4, 64, "lstm", 2),
    (2048, 1, 8, "lstm", 2),
    (2688, 1, 8, "lstm", 2),
    (5120, 1, 8, "elman", 2),
    (8, 96, 16, "lstm", 2),
    (24, 32, 16, "lstm", 2),
    (40, 4, 16, "lstm", 2),
    (200, 4, 16, "lstm", 2),
    (1000, 1, 16, "lstm", 2),
]

PROBLEMS = [
    Problem(gpu(name), width, heads, batch, direction, function, size)
    for name in ("A100", "H100")
    for width, heads, batch, function, size in _SIZES
    for direction in ("forward", "backward")
]
