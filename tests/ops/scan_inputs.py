# SPDX-License-Identifier: Apache-2.0
"""Inputs, truth and shapes that the tests of the selective scan share."""

import functools

import pytest
import torch
from harness import sequences_of

from seqkern import reference
from seqkern.ops import selective_scan
from seqkern.testing import Inputs, yardstick

each_sign = pytest.mark.parametrize("negative", [False, True], ids=["[0, 1]", "[-1, 1]"])

# batch, T (or the lengths of packed sequences), D, N, kinds of B and C (varying with groups, or c
# for constant), layout ("t": time contiguous, "d": channels contiguous)
SHAPES = {
    "one step": (3, 1, 5, 16, "11", "t"),
    "one state": (2, 70, 20, 1, "11", "d"),
    "one channel": (1, 40, 1, 16, "11", "t"),
    "ragged chunk and strip": (2, 63, 37, 16, "11", "t"),
    "several chunks": (2, 150, 24, 16, "11", "d"),
    "several tasks": (1, 65, 200, 8, "11", "d"),
    "groups": (2, 50, 84, 16, "33", "t"),
    "odd states": (1, 40, 18, 19, "22", "d"),
    "wide states": (1, 70, 17, 64, "11", "t"),
    "constant B": (2, 40, 21, 16, "c1", "t"),
    "constant C": (2, 40, 22, 5, "2c", "d"),
    "both constant": (2, 70, 33, 16, "cc", "t"),
    "packed, with empty and short ones": (1, (0, 1, 70, 3, 0, 32, 66, 0), 40, 16, "11", "d"),
    "packed groups": (1, (33, 64, 5), 40, 4, "22", "t"),
}
SMALL, PACKED = (2, 37, 20, 8, "22", "t"), (1, (5, 0, 40, 30), 20, 8, "11", "d")
PARTS = ("D", "z", "delta_bias", "initial_state")


def make(shape, dtype=torch.float32, negative=False, parts=PARTS, seed=0, **dtypes):
    """Draw the tensors of one call; ``dtypes`` overrides the dtype of single ones."""
    batch, T, D, N, kinds, layout = shape
    T, sequences, packing = sequences_of(batch, T)
    options = {"delta_softplus": True, "allow_neg_eigval": negative, **packing}
    draw = torch.Generator().manual_seed(seed)

    def normal(name, *size):
        return torch.randn(size, generator=draw).to(dtypes.get(name, dtype))

    def rows(name):
        if layout == "t":
            return normal(name, batch, D, T)
        return normal(name, batch, T, D).transpose(1, 2)

    def coefficient(name, kind):
        if kind == "c":
            return normal(name, D, N)
        return normal(name, *((batch,) if kind == "1" else (batch, int(kind))), N, T)

    tensors = {
        "u": rows("u"),
        "delta": rows("delta") - 2,
        # Eigenvalues from nearly 1 to nearly 0 (to -1).
        "A": -(4 * normal("A", D, N).float().exp()).to(dtypes.get("A", torch.float32)),
        "B": coefficient("B", kinds[0]),
        "C": coefficient("C", kinds[1]),
    }
    extra = {
        "D": lambda: normal("D", D),
        "z": lambda: rows("z"),
        "delta_bias": lambda: normal("delta_bias", D),
        "initial_state": lambda: normal("initial_state", sequences, D, N).float(),
    }
    tensors |= {name: extra[name]() for name in parts}
    dht = normal("dht", sequences, D, N).float()
    return Inputs(tensors, options, normal("do", batch, D, T), dht)


def op(*args, output_final_state=True, **named):
    """`selective_scan` as a pair of the output and the last state, or None."""
    if not output_final_state:
        return selective_scan(*args, **named), None
    return selective_scan(*args, **named, return_last_state=True)


def definition(output_final_state=True, **named):
    return reference.selective_scan(**named)


@functools.cache
def expected(shape, dtype=torch.float32, negative=False, parts=PARTS, seed=0):
    """Return inputs, the truth in float64 and its peers, computed once."""
    x = make(shape, dtype, negative, parts, seed)
    return x, *yardstick(definition, x)
