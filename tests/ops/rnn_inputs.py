# SPDX-License-Identifier: Apache-2.0
"""Inputs of the classical recurrent cells, and the op and its definition under one calling form."""

import functools
from dataclasses import dataclass

import torch

from seqkern import ops, reference
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import Inputs, yardstick


@dataclass(frozen=True)
class RnnShape:
    """Sizes of one call; ``lengths`` packs sequences into B = 1."""

    id: str
    B: int = 1
    T: int = 1
    N: int = 1
    D: int = 1
    lengths: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.lengths is not None:
            object.__setattr__(self, "B", 1)
            object.__setattr__(self, "T", sum(self.lengths))

    @property
    def count(self):
        return self.B if self.lengths is None else len(self.lengths)


SHAPES = (
    RnnShape("one step", B=4, T=1, N=2, D=16),
    RnnShape("width one", B=21, T=3, N=3, D=1),
    RnnShape("odd width, ragged batch", B=3, T=17, N=2, D=20),
    RnnShape("more rows than a tile", B=19, T=6, N=3, D=33),
    RnnShape("packed with empty ones", N=2, D=24, lengths=(0, 1, 19, 5, 0, 8, 0)),
    RnnShape("one wide head, a team of threads", B=8, T=5, N=1, D=272),
    RnnShape("long", B=1, T=120, N=1, D=17),
)
SMALL = RnnShape("small", B=3, T=13, N=2, D=20)
PACKED = RnnShape("packed", N=2, D=20, lengths=(5, 0, 11, 3))
TINY = RnnShape("tiny", B=2, T=4, N=2, D=3)


def rnn_inputs(
    function,
    shape,
    dtype=torch.float32,
    seed=0,
    states=True,
    bias=True,
    reset=False,
    all_states=True,
    **options,
):
    """Draw inputs, the same on every machine; ``reset`` sets one step in five."""
    draw = torch.Generator().manual_seed(seed)
    cell, (B, T, N, D) = CELLS[function], (shape.B, shape.T, shape.N, shape.D)

    def normal(*size):
        return torch.randn(size, generator=draw)

    tensors = {
        "Wx": normal(B, T, cell.input, N, D).to(dtype),
        "R": (normal(cell.recurrent, N, D, D) / D**0.5).to(dtype),
    }
    b, s = normal(cell.bias, N, D), normal(cell.states, shape.count, 1, N, D)
    if function == "slstm":  # the normalizer of a state that was reached is at least 1
        s[2] = s[2].abs() + 1
    tensors |= {"b": b} if bias else {}
    tensors |= {"states": s} if states else {}
    options["function"] = function
    if reset:
        options["reset"] = torch.rand(B, T, generator=draw) < 0.2
    if shape.lengths is not None:
        options["cu_seqlens"] = torch.tensor([0, *shape.lengths]).cumsum(0)
    count = cell.states if all_states else 1
    if not all_states:
        options["output_all_states"] = False
    do = normal(count, B, T, N, D).to(dtype)
    return Inputs(tensors, options, do, normal(cell.states, shape.count, 1, N, D))


def op(output_final_state=True, **arguments):
    """`seqkern.ops.flashrnn` as `seqkern.testing.run` calls ops."""
    return ops.flashrnn(**arguments)


def definition(output_final_state=True, output_all_states=True, **arguments):
    """`seqkern.reference.flashrnn`, likewise."""
    every, last = reference.flashrnn(**arguments)
    return every if output_all_states else every[:1], last


def judges(x):
    """Return the truth in float64 and the peers, see `seqkern.testing.yardstick`."""
    return yardstick(definition, x)


@functools.cache
def expected(function, shape, dtype=torch.float32, seed=0, **making):
    """Return inputs, the truth in float64 and its peers, computed once."""
    x = rnn_inputs(function, shape, dtype, seed, **making)
    return x, *judges(x)
