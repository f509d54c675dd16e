# SPDX-License-Identifier: Apache-2.0
"""Linear attention inside torch: opcheck, inductor, autocast, large shapes, saved states."""

import itertools

import pytest
import torch
from harness import assert_gradients_have_the_shapes, leaves_of
from specs import GATED_DELTA, GLA, PACKED, PRODUCT_2, SMALL, SPECS

from seqkern import ops
from seqkern._runtime import backends, library
from seqkern.errors import DTypeError
from seqkern.ops._linear_attention_function import checkpoint_interval
from seqkern.testing import Shape, grads_of, run

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.id)
TINY = Shape(B=1, T=4, H=1, HV=2, K=3, V=2)


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


@pytest.mark.parametrize("saved", ["residual", "checkpoints"])
def test_rejects_saved_tensors_that_were_laid_out_again(saved):
    """A hook on saved tensors may return others; what is read by address must be dense."""
    x = GATED_DELTA.inputs(Shape(B=1, T=70, H=2, K=8, V=12))
    sizes = {"residual": (1, 70, 2, 12), "checkpoints": (1, 1, 2, 8, 12)}[saved]

    def pack(t):
        own = t.shape == sizes and not t.requires_grad
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if own else t

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        pytest.raises(RuntimeError, match="must be those of the forward pass"),
    ):
        run(GATED_DELTA.op, x)


def test_compiles_with_inductor():
    x = GATED_DELTA.inputs(SMALL)

    def call(q, **named):
        o, ht = GATED_DELTA.op(q * 2, **named)
        return o.sigmoid(), ht

    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(call, x), rtol=1e-5, atol=1e-5)


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


def test_autocast_casts_float32_and_narrower_alone():
    """Doubles keep their digits, and integers are refused, as without autocast."""
    x = GLA.inputs(SMALL).double()
    expected = GLA.op(**x.tensors, backend="reference")[0]
    integers = {name: t.int() if name in ("q", "k", "v") else t for name, t in x.tensors.items()}
    with torch.autocast("cpu"):
        o = GLA.op(**x.tensors, backend="reference")[0]
        with pytest.raises(DTypeError, match=r"or float64, got torch\.int32"):
            GLA.op(**integers)
    assert o.dtype is torch.float64
    assert torch.equal(o, expected)


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
    assert_gradients_have_the_shapes((o, ht), list(leaves.values()))


def test_offsets_without_values():
    q = torch.empty(1, 9, 2, 4, device="meta")
    cu_seqlens = torch.empty(3, dtype=torch.int64, device="meta")
    o, ht = ops.chunk_simple_gla(q, q, q, cu_seqlens=cu_seqlens, output_final_state=True)
    assert o.shape == q.shape
    assert ht.shape == (2, 2, 4, 4)


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
        # A segment of the backward pass lies in memory: it is no longer than it has to be.
        assert interval == 64 or states * interval / (interval - 16) > inputs / 3


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
