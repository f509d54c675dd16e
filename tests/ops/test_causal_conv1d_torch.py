# SPDX-License-Identifier: Apache-2.0
"""The causal convolution inside torch: opcheck, derivatives when packed, large shapes."""

import pytest
import torch
from conv_inputs import PACKED, SMALL, definition, make
from harness import (
    assert_gradcheck,
    assert_gradients_have_the_shapes,
    assert_second_derivatives,
)

from seqkern._runtime import library
from seqkern.ops import causal_conv1d


def test_gradcheck_of_packed_sequences():
    assert_gradcheck(definition, make((1, (0, 2, 5), 2, 3)))


def test_second_derivatives_without_an_activation():
    assert_second_derivatives(causal_conv1d, make((1, (0, 2, 5), 2, 3), activation=None))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SMALL, torch.bfloat16), (PACKED, torch.float32)],
    ids=["batch", "packed"],
)
def test_opcheck(shape, dtype):
    x = make(shape, dtype)
    names = ("x", "weight", "bias", "residual", "initial_state")
    tensors, cu_seqlens = [x.tensors[name] for name in names], x.options.get("cu_seqlens")
    forward, backward = (library.find_op(f"causal_conv1d_{way}") for way in ("fwd", "bwd"))
    torch.library.opcheck(forward, (*tensors, cu_seqlens, True, True))
    torch.library.opcheck(forward, (*tensors[:2], None, None, None, cu_seqlens, False, False))
    x_, weight, bias, _, state = tensors
    for options in ((x.dht, x_, weight, bias, state), (None, x_, weight, None, None)):
        torch.library.opcheck(backward, (x.do, *options, cu_seqlens, True))
    token, step = torch.randn(3, 1, 5), torch.randn(3, 5, 4)
    update = library.find_op("causal_conv1d_update")
    torch.library.opcheck(update, (token, step, torch.randn(5, 4), torch.randn(5), token, True))


def test_offsets_beyond_int32():
    with torch.device("meta"):
        x, state = torch.empty(4, 2**20, 1024), torch.empty(4, 1024, 4)
        leaves = [x, torch.empty(1024, 4), state]
    assert x.numel() > 2**31
    x, weight, state = (t.requires_grad_() for t in leaves)
    outs = causal_conv1d(x, weight, initial_state=state, output_final_state=True)
    assert [t.shape for t in outs] == [x.shape, state.shape]
    assert_gradients_have_the_shapes(outs, leaves)


def test_offsets_without_values():
    x, weight = torch.empty(1, 9, 6, device="meta"), torch.empty(6, 4, device="meta")
    cu_seqlens = torch.empty(3, dtype=torch.int64, device="meta")
    outs = causal_conv1d(x, weight, cu_seqlens=cu_seqlens, output_final_state=True)
    assert [t.shape for t in outs] == [x.shape, (2, 6, 4)]
