# SPDX-License-Identifier: Apache-2.0
"""The linear state-space ops inside torch: derivatives, opcheck, compile, export, checkpointing."""

import pytest
import torch
from lssl_inputs import SMALL, Shape, definition, gather_A, leaves_of, make, scan
from torch.utils.checkpoint import checkpoint

from seqkern._runtime import library
from seqkern.ops import lssl_conv, lssl_kernel, lssl_scan
from seqkern.ops._lssl_system import tridiagonal_system
from seqkern.testing import grads_of, run

TINY = Shape(2, 4, 2, 3, 1)


def _system(x):
    """The discretised system of some inputs, and the rest of the raw op's tensors."""
    tensors = dict(x.tensors)
    A = gather_A(tensors)
    E, F, g, _ = tridiagonal_system(A, tensors["B"], tensors["dt"], 0.5)
    return E, F, g, *(tensors[name] for name in ("C", "D", "u", "initial_state"))


@pytest.mark.parametrize("dense", [False, True])
def test_gradcheck_reference(dense):
    x = make(TINY, torch.float64, dense=dense)
    leaves = leaves_of(x)

    def call(*tensors):
        return definition(**dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_gradcheck_kernel(measure):
    """The compiled gradients against differences of the compiled values, in float64."""
    leaves = leaves_of(make(TINY, torch.float64, measure, trained=True))

    def call(*tensors):
        return scan(**dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize("view", ["scan", "conv", "kernel"])
@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_second_derivatives(view, measure):
    """``create_graph=True`` gives the reference's second derivatives."""
    x, results = make(TINY, torch.float64, measure), []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        named = dict(leaves)
        A, u, x0 = gather_A(named), named.pop("u"), named.pop("initial_state")
        D = named.pop("D")
        if view == "scan":
            y, _ = lssl_scan(u, A, **named, D=D, initial_state=x0, backend=backend)
        elif view == "conv":
            y = lssl_conv(u, A, **named, D=D, backend=backend)
        else:
            y = lssl_kernel(A, **named, L=5, backend=backend)
        inputs = list(leaves.values())
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True, allow_unused=True)
        inputs = [t for t, d in zip(inputs, first, strict=True) if d is not None]
        first = [d for d in first if d is not None]
        total = sum(d.square().sum() for d in first)
        results.append([*first, *torch.autograd.grad(total, inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())


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


@pytest.mark.parametrize("view", ["scan", "conv"])
def test_compiles_fullgraph(view):
    """One dynamic graph serves several lengths, forwards and backwards, like eager."""
    torch._dynamo.reset()

    def call(tensors):
        named = dict(tensors)
        A = gather_A(named)
        if view == "scan":
            return lssl_scan(A=A, output_final_state=True, **named)
        named.pop("initial_state")
        return (lssl_conv(A=A, **named),)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (38, 43, 80):
        x = make(Shape(2, length, 5, 6, 2))
        results = []
        for function in (call, compiled):
            leaves = leaves_of(x)
            outs = function(leaves)
            cotangents = (x.do, x.dht)[: len(outs)]
            results.append([*outs, *grads_of(outs, list(leaves.values()), cotangents)])
        for a, b in zip(*results, strict=True):
            if view == "scan":
                assert torch.equal(a, b)
            else:  # torch decomposes its FFTs while tracing
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_export():
    x = make(SMALL)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return scan(**tensors)

    L = torch.export.Dim("L", min=2, max=2000)
    dynamic = {name: {1: L} if name == "u" else {} for name in x.tensors}
    with torch.no_grad():
        program = torch.export.export(Module(), (dict(x.tensors),), dynamic_shapes=(dynamic,))
        longer = make(Shape(2, 101, 5, 6, 2))
        expected = scan(**longer.tensors)
        for a, b in zip(expected, program.module()(dict(longer.tensors)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    x = make(SMALL)
    expected, leaves = run(scan, x), leaves_of(x)

    def call(*tensors):
        return scan(**dict(zip(leaves, tensors, strict=True)))

    outs = checkpoint(call, *leaves.values(), use_reentrant=use_reentrant)
    torch.autograd.backward(outs, (x.do, x.dht))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


@pytest.mark.parametrize("alone", ["o", "ht"])
def test_state_or_output_alone(alone):
    x, results = make(SMALL), []
    cotangents = (x.do, None) if alone == "o" else (None, x.dht)
    for call in (scan, definition):
        leaves = leaves_of(x)
        results.append(grads_of(call(**leaves), list(leaves.values()), cotangents))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


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
    grads = torch.autograd.grad(y, list(leaves.values()), torch.empty_like(y))
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.shape == leaf.shape
    assert state.shape == (1024, 2, 3)
