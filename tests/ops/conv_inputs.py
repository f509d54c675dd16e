# SPDX-License-Identifier: Apache-2.0
"""Inputs, truth and shapes that the tests of the causal convolution share."""

import functools

import pytest
import torch
from harness import DTYPES, sequences_of

from seqkern import reference
from seqkern.ops._causal_conv1d_function import MAX_WIDTH
from seqkern.testing import Inputs, run

# B, T (or the lengths of packed sequences), D, W
SHAPES = {
    "one token": (1, 1, 5, 4),
    "shorter than the kernel": (2, 3, 33, 4),
    # A block of 64 rows begins where the second sequence still sees the state before it.
    "wider than a block of channels": (1, (62, 72), 600, 4),
    "several blocks of rows": (2, 200, 48, 3),
    "width 1": (1, 70, 20, 1),
    "width 2": (3, 19, 7, 2),
    "width 7": (1, 150, 17, 7),
    "the widest": (1, 90, 18, MAX_WIDTH),
    "packed, with empty and short ones": (1, (0, 1, 70, 3, 0, 2, 66, 0), 40, 4),
    "long sums": (1, 5000, 16, 4),
}
SMALL, PACKED = (2, 37, 20, 4), (1, (5, 0, 2, 30), 20, 4)
each_float = pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)


def backend_of(dtype):
    """Return the backend that serves a dtype."""
    return "reference" if dtype is torch.float64 else "cpu"


def make(shape, dtype=torch.float32, activation="silu", states=True, extras=True, seed=0, **dtypes):
    """Draw the tensors of one call; ``dtypes`` overrides the dtype of single ones."""
    B, T, D, W = shape
    T, N, packing = sequences_of(B, T)
    options = {"activation": activation, **packing}
    draw = torch.Generator().manual_seed(seed)

    def normal(name, *size):
        return torch.randn(size, generator=draw).to(dtypes.get(name, dtype))

    tensors = {"x": normal("x", B, T, D), "weight": normal("weight", D, W)}
    if extras:
        tensors |= {"bias": normal("bias", D), "residual": normal("residual", B, T, D)}
    if states:
        tensors["initial_state"] = normal("initial_state", N, D, W)
    return Inputs(tensors, options, normal("do", B, T, D), normal("dht", N, D, W))


def definition(x, weight, output_final_state=True, **named):
    return reference.causal_conv1d(x, weight, **named)


@functools.cache
def truth_and_peer(shape, dtype, activation="silu"):
    x = make(shape, dtype, activation)
    return x, run(definition, x.double()), run(definition, x)
