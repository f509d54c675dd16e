# SPDX-License-Identifier: Apache-2.0
"""Inputs, truth and shapes that the tests of the root-mean-square norm share."""

import functools

import torch

from seqkern import reference
from seqkern.ops import rms_norm, rms_norm_gated
from seqkern.testing import Inputs, run

SHAPES = {
    "one row": (1, 1, 128),
    "narrow": (40, 5),
    "a vector": (19,),
    "odd width": (3, 11, 2, 35),
    "heads": (2, 33, 4, 64),
    "many axes": (2, 1, 3, 1, 1, 2, 1, 1, 3, 7),
    "wide": (70, 1100),
    "long sums": (5000, 24),
}
SMALL = (2, 37, 20)


PARTS = ("weight", "bias", "residual")


def make(shape, dtype=torch.float32, gate="swish", parts=PARTS, eps=None, **dtypes):
    """Draw the tensors of one call; ``dtypes`` overrides the dtype of single ones."""
    draw = torch.Generator().manual_seed(0)

    def normal(name, *size):
        return torch.randn(size, generator=draw).to(dtypes.get(name, dtype))

    tensors = {"x": normal("x", *shape)}
    if gate:
        tensors["g"] = normal("g", *shape)
    for name in parts:
        tensors[name] = normal(name, *(shape if name == "residual" else shape[-1:]))
    tensors.setdefault("weight", None)
    options = {"activation": gate} if gate else {}
    given = {name: t for name, t in tensors.items() if t is not None}
    if "weight" not in given:
        options["weight"] = None
    if eps is not None:
        options["eps"] = eps
    return Inputs(given, options, normal("do", *shape), normal("residual", *shape))


def op(output_final_state=True, **named):
    """Call the gated or the plain op, as a pair of the output and the residual stream."""
    return (rms_norm_gated if "g" in named else rms_norm)(**named, prenorm=True)


def definition(x, g=None, weight=None, output_final_state=True, **named):
    return reference.rms_norm_gated(
        x, g, weight, **{"eps": 1e-6 if g is not None else 1e-5} | named
    )


@functools.cache
def truth_and_peer(shape, dtype, gate, parts, stream):
    x = make(shape, dtype, gate, parts, residual=stream)
    return x, run(definition, x.double()), run(definition, x)
