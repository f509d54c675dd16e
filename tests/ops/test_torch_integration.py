# SPDX-License-Identifier: Apache-2.0
"""The family inside torch: opcheck, compile, export, autocast, checkpointing, derivatives."""

import itertools
import warnings

import pytest
import torch
from specs import GATED_DELTA, GLA, PACKED, PRODUCT_2, SMALL, SPECS
from torch.utils.checkpoint import checkpoint

from seqkern import ops
from seqkern._runtime import backends, library
from seqkern.ops._linear_attention_function import checkpoint_interval
from seqkern.testing import Shape, grads_of, run

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.id)
TINY = Shape(B=1, T=4, H=1, HV=2, K=3, V=2)


def leaves_of(x):
    return {name: t.detach().clone().requires_grad_() for name, t in x.tensors.items()}


def raw_arguments(x, interval):
    """The arguments of the compiled forward op that the public op would pass."""
    tensors, options = dict(x.tensors), x.options
    scale = options.get("scale") or tensors["q"].shape[-1] ** -0.5
    names = ("q", "k", "v", "g", "beta", "initial_state")
    return (
        *(tensors.get(name) for name in names),
        options.get("cu_seqlens"),
        scale,
        options.get("num_householder", 1),
        options.get("use_qk_l2norm_in_kernel", False),
        interval,
    )


@each_spec
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
def test_opcheck(spec, shape):
    x = spec.inputs(shape)
    forward = library.find_op("linear_attention_fwd")
    backward = library.find_op("linear_attention_bwd")
    for interval in (0, 16, 64):
        torch.library.opcheck(forward, raw_arguments(x, interval))
    arguments = raw_arguments(x, 16)
    _, _, residual, checkpoints = forward(*arguments)
    for dht in (x.dht, None):
        torch.library.opcheck(
            backward, (x.do, dht, *arguments[:7], residual, checkpoints, *arguments[7:])
        )


@each_spec
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_compiles_fullgraph(spec, packed):
    """One dynamic graph serves several lengths, forwards and backwards, with eager's bits."""
    torch._dynamo.reset()

    def call(tensors, options):
        return spec.op(**tensors, **options, output_final_state=True)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((5, 0, 33), (40, 2, 1), (7, 70, 3)):
        shape = Shape(B=2, T=sum(lengths), H=2, HV=4, K=20, V=12)
        if packed:
            shape = Shape(H=2, HV=4, K=20, V=12, lengths=lengths)
        x = spec.inputs(shape)
        results = []
        for function in (call, compiled):
            leaves = leaves_of(x)
            outs = function(leaves, x.options)
            results.append([*outs, *grads_of(outs, list(leaves.values()), (x.do, x.dht))])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_compiles_with_inductor():
    x = GATED_DELTA.inputs(SMALL)

    def call(q, k, v, g, beta, h0):
        o, ht = GATED_DELTA.op(
            q * 2, k, v, g, beta, initial_state=h0, output_final_state=True, **x.options
        )
        return o.sigmoid(), ht

    results = []
    for function in (call, torch.compile(call, fullgraph=True)):
        leaves = leaves_of(x)
        outs = function(*leaves.values())
        results.append([*outs, *grads_of(outs, list(leaves.values()), (x.do, x.dht))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_spec
def test_compiles_inference(spec):
    torch._dynamo.reset()
    x = spec.inputs(SMALL)
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = spec.op(**x.tensors, **x.options, output_final_state=True)
        got = compiled(**x.tensors, **x.options, output_final_state=True)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


@each_spec
def test_export(spec):
    """A module that calls the op is exported with a dynamic length."""
    x = spec.inputs(SMALL)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return spec.op(**tensors, **x.options, output_final_state=True)

    T = torch.export.Dim("T", max=4096)
    rows = {name: t.shape[1] // SMALL.T for name, t in x.tensors.items()}
    dynamic = {name: {1: rows[name] * T} for name in x.tensors if name != "initial_state"}
    program = torch.export.export(
        Module(), (dict(x.tensors),), dynamic_shapes=({**dynamic, "initial_state": {}},)
    )
    longer = spec.inputs(Shape(B=2, T=101, H=2, HV=4, K=20, V=12))
    got = program.module()(dict(longer.tensors))
    expected = spec.op(**longer.tensors, **x.options, output_final_state=True)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


@each_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(spec, dtype):
    """Under autocast q, k and v of any dtypes are cast; gates, strengths and states are not."""
    x = spec.inputs(SMALL)
    leaves = leaves_of(x)
    with torch.autocast("cpu", dtype):
        outs = spec.op(**leaves, **x.options, output_final_state=True)
        mixed = {**leaves, "v": leaves["v"].to(dtype)}
        assert torch.equal(spec.op(**mixed, **x.options)[0], outs[0])
        slow = spec.op(**leaves, **x.options, backend="reference")[0]
    assert outs[0].dtype == dtype
    assert outs[1].dtype == torch.float32
    torch.testing.assert_close(slow, outs[0], rtol=0.02, atol=0.02)
    grads = grads_of(outs, list(leaves.values()), (x.do, x.dht))
    cast = {n: t.to(dtype) if n in ("q", "k", "v") else t for n, t in leaves_of(x).items()}
    explicit = spec.op(**cast, **x.options)[0]
    assert torch.equal(explicit, outs[0])
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.dtype == leaf.dtype


@each_spec
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(spec, use_reentrant):
    x = spec.inputs(SMALL)
    expected = run(spec.op, x)
    leaves = leaves_of(x)

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return spec.op(**named, **x.options, output_final_state=True)

    outs = checkpoint(call, *leaves.values(), use_reentrant=use_reentrant)
    torch.autograd.backward(outs, (x.do, x.dht))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


@each_spec
def test_gradcheck_reference(spec):
    """The definition's gradients agree with finite differences in float64, and theirs too."""
    x = spec.inputs(TINY).double()
    leaves = leaves_of(x)

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return spec.definition(**named, **x.options, output_final_state=True)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


@each_spec
def test_second_derivatives(spec):
    """``create_graph=True`` gives the reference's second derivatives, also of shared inputs."""
    x = spec.inputs(TINY)
    results = []
    for backend in ("cpu", "reference"):
        leaves = leaves_of(x)
        tensors = {**leaves, "q": leaves["q"] * 1.5}
        if spec.n == 1:
            tensors["k"] = tensors["q"]
            del leaves["k"]
        outs = spec.op(**tensors, **x.options, output_final_state=True, backend=backend)
        loss = outs[0].square().sum() + outs[1].pow(3).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), list(leaves.values()))
        results.append([*first, *second])
    for a, b in zip(*results, strict=True):
        scale = b.detach().abs().max().item()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("spec", [GLA, GATED_DELTA, PRODUCT_2], ids=lambda s: s.id)
def test_offsets_beyond_int32(spec):
    """Shapes hold past 2**31 elements, on meta tensors."""
    shape = Shape(B=4, T=2**17, H=64, K=128, V=128)
    with torch.device("meta"):
        q = torch.empty(shape.B, shape.T, shape.H, shape.K)
        k = torch.empty(shape.B, shape.T * spec.n, shape.H, shape.K)
        tensors = {"q": q, "k": k, "v": torch.empty_like(k), "g": torch.empty_like(q)}
        if spec.making["gate"] == "scalar":
            tensors["g"] = torch.empty(shape.B, shape.T, shape.H)
        if spec.making.get("beta"):
            tensors["beta"] = torch.empty(shape.B, shape.T * spec.n, shape.H)
    assert q.numel() > 2**31
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    o, ht = spec.op(**leaves, **spec.options, output_final_state=True)
    assert o.shape == (shape.B, shape.T, shape.H, shape.V)
    assert ht.shape == (shape.B, shape.H, shape.K, shape.V)
    for leaf, grad in zip(
        leaves.values(), torch.autograd.grad((o, ht), list(leaves.values()), (o, ht)), strict=True
    ):
        assert grad.shape == leaf.shape


def test_strides_beyond_int32():
    """The kernel reads the second sequence of a batch that lies 2**31 elements behind the first."""
    shape = Shape(B=2, T=20, H=2, K=16, V=16)
    x = GLA.inputs(shape, torch.bfloat16)
    far = {}
    for name, t in x.tensors.items():
        if name == "initial_state":
            far[name] = t
            continue
        try:
            storage = torch.empty(2**31 + t[0].numel(), dtype=t.dtype)
        except RuntimeError:
            pytest.skip("this machine does not lend that much address space")
        far[name] = storage.as_strided(t.shape, (2**31, *t.stride()[1:]))
        far[name].copy_(t)
    outs = GLA.op(**far, output_final_state=True)
    expected = GLA.op(**x.tensors, output_final_state=True)
    for a, b in zip(outs, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("K", "V"), [(1, 1), (64, 64), (128, 256), (256, 512)])
def test_checkpoints_stay_small(K, V, dtype):
    """Saved states take at most a third of the inputs, and come at multiples of a chunk."""
    for spec, H, HV in itertools.product((GLA, GATED_DELTA, PRODUCT_2), (1, 4), (4, 8)):
        q = torch.empty(1, 7, H, K, dtype=dtype)
        v = torch.empty(1, 7 * spec.n, HV, V, dtype=dtype)
        g = torch.empty(1, 7, H, K) if spec is GLA else torch.empty(1, 7, HV)
        interval = checkpoint_interval(q, v, g, spec.n)
        assert interval % 16 == 0
        assert interval >= 64
        inputs = sum(t.nbytes for t in (q, v, g)) + q.nbytes * spec.n
        states = 7 * spec.n * 4 * HV * K * V / interval
        assert states <= inputs / 3 * (1 + 1e-9)


def test_nothing_is_logged_on_the_compiled_path(caplog):
    x = GLA.inputs(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(GLA.op, x)
    assert not caplog.records


def test_compiles_the_reference(caplog):
    """A call that no kernel serves compiles too, warning included."""
    x = GLA.inputs(TINY)
    gv = torch.zeros(TINY.B, TINY.T, TINY.HV, TINY.V)
    tensors = {"gk" if name == "g" else name: t for name, t in x.tensors.items()}
    compiled = torch.compile(ops.fused_recurrent_gla, fullgraph=True, backend="eager")
    backends._warned.clear()
    o, _ = compiled(**tensors, gv=gv)
    assert torch.equal(o, ops.fused_recurrent_gla(**tensors, gv=gv)[0])
    assert "`gv` has no compiled kernel" in caplog.text
