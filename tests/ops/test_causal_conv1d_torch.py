# SPDX-License-Identifier: Apache-2.0
"""The causal convolution inside torch: derivatives, opcheck, compile, export, checkpointing."""

import pytest
import torch
from conv_inputs import SMALL, assert_same, definition, each_small, leaves_of, make
from torch.utils.checkpoint import checkpoint

from seqkern._runtime import library
from seqkern.ops import causal_conv1d
from seqkern.testing import grads_of, run


def test_gradcheck_reference():
    x = make((1, (0, 2, 5), 2, 3)).double()
    leaves = leaves_of(x)

    def call(*tensors):
        return definition(**dict(zip(leaves, tensors, strict=True)), **x.options)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


def test_second_derivatives():
    """``create_graph=True`` gives the reference's second derivatives, also of shared inputs."""
    x, results = make((2, 6, 3, 4)), []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        tensors = {**leaves, "residual": leaves["x"]}
        del leaves["residual"]
        y, ht = causal_conv1d(**tensors, **x.options, output_final_state=True, backend=backend)
        loss = y.square().sum() + ht.pow(3).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), list(leaves.values()))
        results.append([*first, *second])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.detach().abs().max().item())


@each_small
def test_opcheck(shape):
    x = make(shape)
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


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_compiles_fullgraph(packed):
    """One dynamic graph serves several lengths, forwards and backwards, with eager's bits."""
    torch._dynamo.reset()

    def call(tensors, options):
        return causal_conv1d(**tensors, **options, output_final_state=True)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((5, 0, 33), (40, 2, 1), (7, 70, 3)):
        x = make((1, lengths, 20, 4) if packed else (2, sum(lengths), 20, 4))
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
            return causal_conv1d(**tensors, **x.options, output_final_state=True)

    T = torch.export.Dim("T", max=4096)
    dynamic = {name: {1: T} if name in ("x", "residual") else {} for name in x.tensors}
    program = torch.export.export(Module(), (dict(x.tensors),), dynamic_shapes=(dynamic,))
    longer = make((2, 101, 20, 4))
    expected = causal_conv1d(**longer.tensors, **x.options, output_final_state=True)
    for a, b in zip(expected, program.module()(dict(longer.tensors)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    x = make(SMALL)
    expected, leaves = run(causal_conv1d, x), leaves_of(x)

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return causal_conv1d(**named, **x.options, output_final_state=True)

    outs = checkpoint(call, *leaves.values(), use_reentrant=use_reentrant)
    torch.autograd.backward(outs, (x.do, x.dht))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


def test_autocast():
    """Autocast changes nothing: the result has the dtype of ``x``, the sums are float32."""
    x = make(SMALL, torch.bfloat16, weight=torch.float32, bias=torch.float32)
    expected = run(causal_conv1d, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(causal_conv1d, x), expected)
        slow = run(causal_conv1d, x, backend="reference")
    assert_same(slow, run(definition, x))


def test_offsets_beyond_int32():
    with torch.device("meta"):
        x, state = torch.empty(4, 2**20, 1024), torch.empty(4, 1024, 4)
        leaves = [x, torch.empty(1024, 4), state]
    assert x.numel() > 2**31
    x, weight, state = (t.requires_grad_() for t in leaves)
    outs = causal_conv1d(x, weight, initial_state=state, output_final_state=True)
    assert [t.shape for t in outs] == [x.shape, state.shape]
    for leaf, grad in zip(leaves, torch.autograd.grad(outs, leaves, outs), strict=True):
        assert grad.shape == leaf.shape


def test_strides_beyond_int32():
    """The kernel reads a second sequence that lies 2**31 elements behind the first."""
    x = make((2, 20, 16, 4), torch.bfloat16)
    near = x.tensors["x"]
    try:
        storage = torch.empty(2**31 + near[0].numel(), dtype=near.dtype)
    except RuntimeError:
        pytest.skip("this machine does not lend that much address space")
    far = storage.as_strided(near.shape, (2**31, 16, 1))
    far.copy_(near)
    outs = causal_conv1d(**{**x.tensors, "x": far}, **x.options, output_final_state=True)
    expected = causal_conv1d(**x.tensors, **x.options, output_final_state=True)
    for a, b in zip(outs, expected, strict=True):
        assert torch.equal(a, b)
