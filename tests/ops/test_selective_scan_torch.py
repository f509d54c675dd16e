# SPDX-License-Identifier: Apache-2.0
"""The selective scan inside torch: derivatives, opcheck, compile, export, checkpointing."""

import pytest
import torch
from scan_inputs import (
    DTYPES,
    PACKED,
    PARTS,
    SHAPES,
    SMALL,
    assert_same,
    definition,
    each_dtype,
    each_sign,
    leaves_of,
    make,
    op,
)
from torch.utils.checkpoint import checkpoint

from seqkern._runtime import library
from seqkern.ops import selective_scan, selective_state_update
from seqkern.testing import grads_of, run

TINY = (2, 3, 4, 2, "22", "t")


@each_sign
@pytest.mark.parametrize("kinds", ["11", "22", "cc"])
def test_gradcheck_reference(kinds, negative):
    x = make((1, 3, 4, 2, kinds, "t"), negative=negative).double()
    leaves = leaves_of(x)

    def call(*tensors):
        return definition(**dict(zip(leaves, tensors, strict=True)), **x.options)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


@each_sign
def test_gradients_are_those_of_differences(negative):
    """The kernel's gradients against finite differences of the float64 definition.

    With negative eigenvalues a kernel that rebuilt a_t h_{t-1} as h_t - dt u B and took that for
    the derivative would be wrong here, and nowhere in the forward pass.
    """
    x = make((1, 9, 3, 2, "11", "t"), negative=negative)
    got = run(op, x, backend="cpu")
    wide = x.double()
    for name, value in wide.tensors.items():
        direction = torch.randn(value.shape, dtype=torch.float64)

        def loss(step, name=name, value=value, direction=direction):
            moved = {**wide.tensors, name: value + step * direction}
            y, h = definition(**moved, **wide.options)
            return (y * wide.do).sum() + (h * wide.dht).sum()

        size = 1e-6
        slope = (loss(size) - loss(-size)) / (2 * size)
        ours = (got[f"d{name}"].double() * direction).sum()
        torch.testing.assert_close(ours, slope, rtol=1e-4, atol=1e-4)


@each_sign
@pytest.mark.parametrize("kinds", ["11", "2c"])
def test_second_derivatives(kinds, negative):
    """``create_graph=True`` gives the reference's second derivatives, also of shared inputs."""
    x, results = make((2, 3, 4, 2, kinds, "t"), negative=negative), []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        tensors = {**leaves, "z": leaves["u"]}
        del leaves["z"]
        y, state = op(**tensors, **x.options, backend=backend)
        loss = y.square().sum() + state.pow(3).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        total = sum(d.square().sum() for d in first)
        results.append([*first, *torch.autograd.grad(total, list(leaves.values()))])
    for a, b in zip(*results, strict=True):
        scale = b.detach().abs().max().item()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * scale)


def _arguments(x):
    """The positional tensors of the compiled op."""
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    tensors = [x.tensors.get(name) for name in names]
    for i in (3, 4):
        t = tensors[i]
        t = t.unsqueeze(1) if t.dim() == 3 else t
        tensors[i] = t if t.dim() == 2 else t.transpose(2, 3)
    return [*tensors, x.options.get("cu_seqlens")]


@each_dtype
def test_opcheck(dtype):
    forward, backward = (library.find_op(f"selective_scan_{way}") for way in ("fwd", "bwd"))
    for shape, parts in ((SMALL, PARTS), (PACKED, ()), (SHAPES["constant C"], ("z",))):
        x = make(shape, dtype, parts=parts)
        tensors, time_major = _arguments(x), shape[5] == "d"
        torch.library.opcheck(forward, (*tensors, True, True, time_major, True, True))
        torch.library.opcheck(forward, (*tensors, True, False, time_major, False, False))
        checkpoints = forward(*tensors, True, True, time_major, False, True)[2]
        for dht in (None, x.dht):
            call = (x.do, dht, *tensors, checkpoints, True, True, time_major)
            torch.library.opcheck(backward, call)


def test_opcheck_of_the_step():
    x = make((2, 1, 5, 4, "11", "t"))
    tensors = [x.tensors["initial_state"].clone()]
    tensors += [t if t is None or t.dim() == 1 else t.squeeze(-1) for t in _arguments(x)[:8]]
    for i in (4, 5):
        tensors[i] = tensors[i].reshape(2, 1, 4)
    tensors[3] = x.tensors["A"]
    torch.library.opcheck(library.find_op("selective_scan_step"), (*tensors, True, False))


@each_sign
@pytest.mark.parametrize("layout", ["t", "d"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_compiles_fullgraph(dtype, layout, negative):
    """One dynamic graph serves several lengths, forwards and backwards, with eager's bits."""
    torch._dynamo.reset()

    def call(tensors, options):
        return op(**tensors, **options)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (38, 43, 80):
        x = make((2, T, 20, 8, "11", layout), dtype, negative)
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
    over_time = ("u", "delta", "B", "C", "z")
    dynamic = {n: {t.dim() - 1: T} if n in over_time else {} for n, t in x.tensors.items()}
    program = torch.export.export(Module(), (dict(x.tensors),), dynamic_shapes=(dynamic,))
    longer = make((2, 101, *SMALL[2:]))
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
    """Autocast changes nothing: the result has the dtype of ``u``, the state is float32."""
    x = make(SMALL, torch.bfloat16)
    expected = run(op, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(op, x), expected)
        assert_same(run(op, x, backend="reference"), run(definition, x))


@each_sign
def test_offsets_beyond_int32(negative):
    """Shapes hold past 2**31 elements, on meta tensors."""
    with torch.device("meta"):
        u, B = torch.empty(4, 1024, 2**19 + 7), torch.empty(4, 16, 2**19 + 7)
        leaves = [u, torch.empty_like(u), torch.empty(1024, 16), B, torch.empty_like(B)]
    assert u.numel() > 2**31
    leaves = [t.requires_grad_() for t in leaves]
    y, h = op(*leaves, allow_neg_eigval=negative)
    assert y.shape == u.shape
    assert h.shape == (4, 1024, 16)
    for leaf, grad in zip(leaves, torch.autograd.grad((y, h), leaves, (y, h)), strict=True):
        assert grad.shape == leaf.shape


def test_strides_beyond_int32():
    """The kernel reads the second sequence of a batch that lies 2**31 elements behind the first."""
    x = make((2, 20, 5, 4, "11", "t"), torch.bfloat16)
    far = dict(x.tensors)
    for name in ("u", "delta", "z"):
        t = x.tensors[name]
        try:
            storage = torch.empty(2**31 + t[0].numel(), dtype=t.dtype)
        except RuntimeError:
            pytest.skip("this machine does not lend that much address space")
        far[name] = storage.as_strided(t.shape, (2**31, *t.stride()[1:]))
        far[name].copy_(t)
    for a, b in zip(op(**far, **x.options), op(**x.tensors, **x.options), strict=True):
        assert torch.equal(a, b)


def test_the_step_compiles():
    torch._dynamo.reset()
    x = make((3, 1, 5, 4, "11", "t"))
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    values = [x.tensors[n] if x.tensors[n].dim() < 3 else x.tensors[n].squeeze(2) for n in names]

    def call(state):
        return selective_state_update(state, *values, dt_softplus=True)

    states = [x.tensors["initial_state"].clone() for _ in range(2)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(states[0]), compiled(states[1]))
    assert torch.equal(*states)


def test_meta_tensors():
    x = make(SMALL)
    tensors = {name: t.to("meta") for name, t in x.tensors.items()}
    assert selective_scan(**tensors, **x.options).is_meta
