# SPDX-License-Identifier: Apache-2.0
"""The root-mean-square norm inside torch: derivatives in 16 bits, opcheck, large shapes."""

import pytest
import torch
from harness import assert_gradients_have_the_shapes, assert_second_derivatives, each_dtype
from norm_inputs import SMALL, make, op

from seqkern._runtime import library
from seqkern.ops import rms_norm_gated


@pytest.mark.parametrize("gate", ["swish", None])
def test_second_derivatives_in_bfloat16(gate):
    x = make((3, 6), torch.bfloat16, gate, residual=torch.float32)
    assert_second_derivatives(op, x, shared=("x", "g") if gate else ("x",), digits=0.05)


@each_dtype
def test_opcheck(dtype):
    x = make(SMALL, dtype, weight=torch.float32)
    tensors = [x.tensors[name] for name in ("x", "g", "weight", "bias", "residual")]
    forward, backward = (library.find_op(f"rms_norm_gated_{way}") for way in ("fwd", "bwd"))
    none = (None,) * 4
    for call in ((*tensors, 1, False, 1e-5), (tensors[0], *none, 0, True, 1e-5)):
        torch.library.opcheck(forward, call)
    x_, g, weight, bias, residual = tensors
    _, stream, rstd = forward(x_, g, weight, bias, residual, 2, False, 1e-5)
    torch.library.opcheck(backward, (x.do, x.dht, stream, g, weight, bias, rstd, 2))
    torch.library.opcheck(backward, (x.do, None, stream, None, None, None, rstd, 0))


def test_offsets_beyond_int32():
    with torch.device("meta"):
        x, g = torch.empty(2**21, 1025), torch.empty(2**21, 1025)
        leaves = [x, g, torch.empty(1025)]
    assert x.numel() > 2**31
    y = rms_norm_gated(*(t.requires_grad_() for t in leaves))
    assert y.shape == x.shape
    assert_gradients_have_the_shapes(y, leaves)
