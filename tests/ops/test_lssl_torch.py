# SPDX-License-Identifier: Apache-2.0
"""The linear state-space ops inside torch: derivatives, opcheck, compile, large shapes."""

import pytest
import torch
from harness import (
    assert_compiles,
    assert_gradcheck,
    assert_gradients_have_the_shapes,
    assert_second_derivatives,
)
from lssl_inputs import SMALL, Shape, conv, definition, gather_A, kernel, make, scan

from seqkern._runtime import library
from seqkern.ops._lssl_system import tridiagonal_system

TINY = Shape(2, 4, 2, 3, 1)


def _system(x):
    """The discretised system of some inputs, and the rest of the raw op's tensors."""
    tensors = dict(x.tensors)
    A = gather_A(tensors)
    E, F, g, _ = tridiagonal_system(A, tensors["B"], tensors["dt"], 0.5)
    return E, F, g, *(tensors[name] for name in ("C", "D", "u", "initial_state"))


def test_gradcheck_of_a_dense_matrix():
    assert_gradcheck(definition, make(TINY, dense=True))


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_gradcheck_kernel(measure):
    """The compiled gradients against differences of the compiled values, in float64."""
    assert_gradcheck(scan, make(TINY, torch.float64, measure, trained=True))


@pytest.mark.parametrize("view", [scan, conv, kernel])
@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_second_derivatives(view, measure):
    assert_second_derivatives(view, make(TINY, torch.float64, measure), digits=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_opcheck(measure, dtype):
    x = make(SMALL, dtype, measure)
    forward, backward = library.find_op("lssl_fwd"), library.find_op("lssl_bwd")
    E, F, g, C, D, u, x0 = _system(x)
    do = x.do.transpose(2, 3).contiguous()
    for arguments in ((E, F, g, C, D, u, x0), (E, F, g, C, None, u, None)):
        for keep in (False, True):
            torch.library.opcheck(forward, (*arguments, 0, 16, keep))
        *_, checkpoints = forward(*arguments, 0, 16, True)
        for dht, wanted in ((x.dht, 0), (None, 1), (None, 2)):
            torch.library.opcheck(backward, (do, dht, *arguments, checkpoints, 16, wanted))
    torch.library.opcheck(forward, (E, F, g, C, None, None, None, 21, 16, True))
    tensors = dict(x.tensors)
    arguments = (*gather_A(tensors), tensors["B"], tensors["dt"], 0.5)
    for rest in ((D, u, x0, 0, 16), (None, None, None, 21, 16)):
        torch.library.opcheck(library.find_op("lssl_structured"), (*arguments, C, *rest))
    torch.library.opcheck(library.find_op("lssl_system"), arguments)
    cotangents = (torch.randn_like(E), torch.randn_like(F), torch.randn_like(g))
    torch.library.opcheck(library.find_op("lssl_system_bwd"), (*cotangents, *arguments))


def test_the_convolution_compiles():
    def near(a, b):  # torch decomposes its FFTs while tracing
        for name in a:
            scale = b[name].abs().max().item()
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4 * scale, msg=name)

    assert_compiles(conv, [make(Shape(2, L, 5, 6, 2)) for L in (38, 43, 80)], same=near)


def test_offsets_beyond_int32():
    with torch.device("meta"):
        x = make(TINY)
        leaves = {n: torch.empty(t.shape, device="meta") for n, t in x.tensors.items()}
        leaves["u"] = torch.empty(1024, 2**20 + 1, 2)
        leaves["initial_state"] = torch.empty(1024, 2, 3)
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    assert leaves["u"].numel() > 2**31
    y, state = scan(**leaves)
    assert y.shape == (*leaves["u"].shape, 1)
    assert_gradients_have_the_shapes(y, list(leaves.values()))
    assert state.shape == (1024, 2, 3)
