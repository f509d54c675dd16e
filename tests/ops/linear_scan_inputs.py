# SPDX-License-Identifier: Apache-2.0
"""Inputs, truth and shapes that the tests of the linear scan share."""

import functools

import torch
from harness import sequences_of

from seqkern import reference
from seqkern.ops import linear_scan
from seqkern.testing import Inputs, yardstick

# batch, T (or the lengths of packed sequences), the rest of the shape
SHAPES = {
    "one step": (2, 1, (5,)),
    "one channel": (2, 70, (1,)),
    "odd width": (2, 63, (37,)),
    "several blocks of channels": (2, 40, (2500,)),
    "no channels named": (3, 40, ()),
    "heads and states": (2, 30, (3, 4, 5)),
    "packed, with empty and short ones": (1, (0, 1, 70, 3, 0, 32, 0), (40,)),
}
SMALL, PACKED = (2, 37, (20,)), (1, (5, 0, 40, 30), (20,))


def make(shape, dtype=torch.float32, state=True, seed=0):
    batch, T, rest = shape
    T, sequences, options = sequences_of(batch, T)
    draw = torch.Generator().manual_seed(seed)
    a = 2 * torch.rand(batch, T, *rest, generator=draw) - 1
    a = a.sign() * a.abs().pow(0.1)  # mostly near -1 or 1
    b, do = (torch.randn(batch, T, *rest, generator=draw) for _ in range(2))
    tensors = {"a": a.to(dtype), "b": b.to(dtype)}
    if state:
        tensors["h0"] = torch.randn(sequences, *rest, generator=draw)
    return Inputs(tensors, options, do.to(dtype), torch.zeros(1))


def op(*args, output_final_state=True, **named):
    """`linear_scan` with a second output that nothing depends on, as `run` wants it."""
    x = linear_scan(*args, **named)
    return x, torch.zeros(1, dtype=x.dtype)


def definition(output_final_state=True, **named):
    x = reference.linear_scan(**named)
    return x, torch.zeros(1, dtype=x.dtype)


@functools.cache
def expected(shape, dtype):
    x = make(shape, dtype)
    return x, *yardstick(definition, x)
