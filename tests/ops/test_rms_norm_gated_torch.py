# SPDX-License-Identifier: Apache-2.0
"""The root-mean-square norm inside torch: derivatives, opcheck, compile, export, checkpointing."""

import pytest
import torch
from norm_inputs import DTYPES, SMALL, assert_same, definition, each_dtype, leaves_of, make, op
from torch.utils.checkpoint import checkpoint

from seqkern._runtime import library
from seqkern.ops import rms_norm_gated
from seqkern.testing import grads_of, run


@pytest.mark.parametrize("gate", ["swish", "sigmoid", None])
def test_gradcheck_reference(gate):
    x = make((3, 5), gate=gate).double()
    leaves = leaves_of(x)

    def call(*tensors):
        return definition(**dict(zip(leaves, tensors, strict=True)), **x.options)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize("gate", ["swish", None])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_second_derivatives(gate, dtype):
    """``create_graph=True`` gives the reference's second derivatives, also of shared inputs."""
    x, results = make((3, 6), dtype, gate, residual=torch.float32), []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        tensors = dict(leaves)
        if gate:
            tensors["g"] = tensors["x"]
            del leaves["g"]
        y, stream = op(**tensors, **x.options, backend=backend)
        loss = y.float().square().sum() + stream.pow(3).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        total = sum(d.float().square().sum() for d in first)
        second = torch.autograd.grad(total, list(leaves.values()))
        results.append([*first, *second])
    digits = 1e-4 if dtype is torch.float32 else 0.05
    for a, b in zip(*results, strict=True):
        scale = b.detach().abs().max().item()
        torch.testing.assert_close(a, b, rtol=digits, atol=digits * scale)


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


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("gate", ["swish", None])
def test_compiles_fullgraph(gate, dtype):
    """One dynamic graph serves several lengths, forwards and backwards, with eager's bits."""
    torch._dynamo.reset()

    def call(tensors, options):
        return op(**tensors, **options)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (38, 43, 80):
        x = make((2, rows, 20), dtype, gate, residual=torch.float32)
        results = []
        for function in (call, compiled):
            leaves = leaves_of(x)
            outs = function(leaves, x.options)
            results.append([*outs, *grads_of(outs, list(leaves.values()), (x.do, x.dht))])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_export():
    x = make(SMALL)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return op(**tensors, **x.options)

    T = torch.export.Dim("T", max=4096)
    dynamic = {name: {1: T} if t.dim() > 1 else {} for name, t in x.tensors.items()}
    program = torch.export.export(Module(), (dict(x.tensors),), dynamic_shapes=(dynamic,))
    longer = make((2, 101, 20))
    expected = op(**longer.tensors, **x.options)
    for a, b in zip(expected, program.module()(dict(longer.tensors)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    x = make(SMALL)
    expected, leaves = run(op, x), leaves_of(x)

    def call(*tensors):
        return op(**dict(zip(leaves, tensors, strict=True)), **x.options)

    outs = checkpoint(call, *leaves.values(), use_reentrant=use_reentrant)
    torch.autograd.backward(outs, (x.do, x.dht))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


def test_autocast():
    """Autocast changes nothing: the result has the dtype of ``x``, the sums are float32."""
    x = make(SMALL, torch.bfloat16, weight=torch.float32)
    expected = run(op, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(op, x), expected)
        assert_same(run(op, x, backend="reference"), run(definition, x))


def test_offsets_beyond_int32():
    with torch.device("meta"):
        x, g = torch.empty(2**21, 1025), torch.empty(2**21, 1025)
        leaves = [x, g, torch.empty(1025)]
    assert x.numel() > 2**31
    y = rms_norm_gated(*(t.requires_grad_() for t in leaves))
    assert y.shape == x.shape
    for leaf, grad in zip(leaves, torch.autograd.grad(y, leaves, y), strict=True):
        assert grad.shape == leaf.shape
