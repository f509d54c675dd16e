# SPDX-License-Identifier: Apache-2.0
"""What every op of the family computes: values, gradients, packing, strides, the same bits."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from specs import DTYPES, PACKED, SHAPES, SMALL, SPECS, assert_right, expected

from seqkern._runtime import library
from seqkern.testing import Shape, assert_close, grads_of, run

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.id)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same(a, b):
    """Equal shapes, dtypes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def test_the_library_is_there():
    assert library.load_error() is None


@each_spec
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id)
def test_matches_the_definition(spec, shape, dtype, isa, threads):
    x, *_ = expected(spec, shape, dtype, seed=0)
    threads(1)
    alone = assert_right(spec.op, lambda seed: expected(spec, shape, dtype, seed=seed))
    threads(2)
    assert_same(run(spec.op, x, backend="cpu"), alone)


@each_spec
def test_reference_backend(spec):
    x, truth, (peer, *_) = expected(spec, SMALL)
    assert_same(run(spec.op, x, backend="reference"), peer)
    assert_same(run(spec.op, x.double(), backend="reference"), truth)


@each_spec
def test_split_and_carry_equals_whole(spec):
    """States carried over any cut give the whole run, forwards and backwards."""
    x, truth, peers = expected(spec, SMALL)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    state, outs = leaves["initial_state"], []
    for begin, end in ((0, 1), (1, 18), (18, 18), (18, 37)):
        part = {
            name: t[:, begin * (t.shape[1] // SMALL.T) : end * (t.shape[1] // SMALL.T)]
            for name, t in leaves.items()
            if name != "initial_state"
        }
        options = {**x.options, "initial_state": state, "output_final_state": True}
        o, state = spec.op(**part, **options)
        outs.append(o)
    o = torch.cat(outs, 1)
    grads = grads_of((o, state), list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    got = {"o": o.detach(), "ht": state.detach(), **named}
    assert_close(got, truth, no_worse_than=peers, factor=2)


@each_spec
@each_dtype
def test_packed_equals_separate(spec, dtype, isa):
    """A packed call gives each sequence the bits that it gets alone."""
    x = spec.inputs(PACKED, dtype)
    packed = run(spec.op, x)
    options = {name: value for name, value in x.options.items() if name != "cu_seqlens"}
    bounds = x.options["cu_seqlens"].tolist()
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        leaves = {}
        for name, t in x.tensors.items():
            rows = t.shape[1] // PACKED.T if name != "initial_state" else 1
            cut = t[i : i + 1] if name == "initial_state" else t[:, a * rows : b * rows]
            leaves[name] = cut.clone().requires_grad_()
        o, ht = spec.op(**leaves, **options, output_final_state=True)
        grads = grads_of((o, ht), list(leaves.values()), (x.do[:, a:b], x.dht[i : i + 1]))
        assert torch.equal(o, packed["o"][:, a:b])
        assert torch.equal(ht, packed["ht"][i : i + 1])
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            whole = packed[f"d{name}"]
            rows = leaf.shape[1] // max(b - a, 1)
            part = whole[i : i + 1] if name == "initial_state" else whole[:, a * rows : b * rows]
            assert torch.equal(grad, part), (name, i)


def _transposed(t):
    """Heads before time in memory, as after a view of [B, H, T, D]."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def _sliced(t):
    """A slice of a wider tensor, so that every stride but the last is odd."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def _last_strided(t):
    """The last axis is not contiguous."""
    wide = torch.full((*t.shape, 2), float("nan"), dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


def _time_reversed_storage(t):
    """A large offset and the batch axis last in memory."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


@each_spec
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("restride", [_transposed, _sliced, _last_strided, _time_reversed_storage])
def test_strided_inputs(spec, dtype, restride):
    """Strides change no bit of any result."""
    x = spec.inputs(SMALL, dtype)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    views = {name: restride(t.detach()).requires_grad_() for name, t in leaves.items()}
    results = []
    for tensors, do, dht in (
        (leaves, x.do, x.dht),
        (views, restride(x.do), restride(x.dht)),
    ):
        outs = spec.op(**tensors, **x.options, output_final_state=True)
        results.append([*outs, *grads_of(outs, list(tensors.values()), (do, dht))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@each_spec
def test_expanded_gradients(spec):
    """A gradient with zero strides, as ``sum()`` makes it, is read right."""
    x = spec.inputs(SMALL)
    leaves = [t.clone().requires_grad_() for t in x.tensors.values()]
    outs = spec.op(**dict(zip(x.tensors, leaves, strict=True)), **x.options)
    summed = torch.autograd.grad(outs[0].sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(outs[0], leaves, torch.ones_like(outs[0]))
    for a, b in zip(summed, dense, strict=True):
        assert torch.equal(a, b)


@each_spec
@pytest.mark.parametrize(
    "shape",
    [
        Shape(B=2, T=0, H=2, K=4, V=3, id="T=0"),
        Shape(B=0, T=5, H=2, K=4, V=3, id="B=0"),
        Shape(B=1, T=5, H=0, K=4, V=3, id="H=0"),
        Shape(H=2, K=4, V=3, lengths=(0, 0), id="empty sequences"),
        Shape(H=2, K=4, V=3, lengths=(), id="no sequences"),
        Shape(B=2, T=1, H=2, K=4, V=3, id="T=1"),
    ],
    ids=lambda s: s.id,
)
@pytest.mark.parametrize("initial_state", [True, False])
def test_empty_and_single_step(spec, shape, initial_state, isa):
    x, truth, peers = expected(spec, shape, initial_state=initial_state)
    got = run(spec.op, x, backend="cpu")
    assert_close(got, truth, no_worse_than=peers, factor=2)
    if shape.T == 0:
        before = x.tensors["initial_state"] if initial_state else torch.zeros_like(got["ht"])
        assert torch.equal(got["ht"], before)
    with torch.no_grad():
        o, ht = spec.op(**x.tensors, **x.options, output_final_state=True)
    assert torch.equal(o, got["o"])
    assert torch.equal(ht, got["ht"])


@each_spec
def test_inference_equals_training(spec, isa):
    """The forward pass that saves nothing gives the same bits, in the same shapes."""
    x = spec.inputs(SMALL)
    got = run(spec.op, x)
    o, ht = spec.op(**x.tensors, **x.options, output_final_state=True)
    assert torch.equal(o, got["o"])
    assert torch.equal(ht, got["ht"])
    assert spec.op(**x.tensors, **x.options)[1] is None


@each_spec
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
def test_writes_every_output(spec, shape, dtype, isa, poisoned):
    assert torch.empty(3).isnan().all()
    for name, result in run(spec.op, spec.inputs(shape, dtype)).items():
        assert not result.isnan().any(), name


@each_spec
@each_dtype
def test_same_bits_twice(spec, dtype, isa):
    x = spec.inputs(SMALL, dtype)
    assert_same(run(spec.op, x), run(spec.op, x))


@each_spec
@each_dtype
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
def test_same_bits_for_every_thread_count(spec, shape, dtype, isa, threads):
    x = spec.inputs(shape, dtype)
    threads(1)
    alone = run(spec.op, x)
    for count in (2, 3):
        threads(count)
        assert_same(run(spec.op, x), alone)


@each_spec
def test_backward_leaves_its_inputs_alone(spec):
    """Running the same graph backwards twice gives the same gradients."""
    x = spec.inputs(SMALL)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    outs = spec.op(**leaves, **x.options, output_final_state=True)
    cotangents = (x.do.clone(), x.dht.clone())
    inputs = list(leaves.values())
    first = torch.autograd.grad(outs, inputs, cotangents, retain_graph=True)
    second = torch.autograd.grad(outs, inputs, cotangents)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.detach(), x.tensors[name]), name
    assert torch.equal(cotangents[0], x.do)
    assert torch.equal(cotangents[1], x.dht)


@each_spec
def test_state_or_output_alone(spec):
    """A loss on only one of the two outputs takes the other's gradient as zero."""
    x = spec.inputs(SMALL)
    for do, dht in ((x.do, None), (None, x.dht)):
        results = []
        for op in (spec.op, spec.definition):
            leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
            outs = op(**leaves, **x.options, output_final_state=True)
            results.append(grads_of(outs, list(leaves.values()), (do, dht)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_spec
@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gates_in_other_dtypes(spec, gate_dtype):
    """Gates and write strengths of any dtype are read as float32; gradients come back in it."""
    x, truth, (peer, *nudged) = expected(spec, SMALL, gate_dtype=gate_dtype)
    got = run(spec.op, x)
    assert got.keys() == peer.keys()
    for name in got:
        assert got[name].dtype == peer[name].dtype
    # Gradients that come back as float64 still hold float32 digits.
    got, peer = (
        {n: t.float() if t.dtype.itemsize == 8 else t for n, t in r.items()} for r in (got, peer)
    )
    assert_close(got, truth, no_worse_than=[peer, *nudged], factor=2)


@each_spec
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float64], ids=str)
def test_initial_state_in_other_dtypes(spec, state_dtype):
    x = spec.inputs(SMALL)
    tensors = {**x.tensors, "initial_state": x.tensors["initial_state"].to(state_dtype)}
    tensors["initial_state"].requires_grad_()
    o, ht = spec.op(**tensors, **x.options, output_final_state=True)
    assert ht.dtype == torch.float32
    (grad,) = torch.autograd.grad(o.sum(), tensors["initial_state"])
    assert grad.dtype == state_dtype


@each_spec
def test_state_v_first(spec):
    """Only the layout of the two states changes."""
    x = spec.inputs(SMALL)
    whole = run(spec.op, x)
    tensors = {**x.tensors, "initial_state": x.tensors["initial_state"].transpose(-1, -2)}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    for backend in ("cpu", "reference"):
        outs = spec.op(
            **leaves, **x.options, output_final_state=True, state_v_first=True, backend=backend
        )
        grads = grads_of(outs, list(leaves.values()), (x.do, x.dht.transpose(-1, -2)))
        results = dict(
            zip(("o", "ht", *(f"d{name}" for name in leaves)), (*outs, *grads), strict=True)
        )
        for name in ("ht", "dinitial_state"):
            results[name] = results[name].transpose(-1, -2)
        for name, value in results.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-4)


SCRIPT = """
import sys, hashlib, torch
sys.path.insert(0, sys.argv[1])
from specs import PACKED, SMALL, SPECS
from seqkern.testing import run
digest = hashlib.sha256()
for isa in ("", "scalar"):
    torch.ops.seqkern.set_isa_cap(isa)
    for spec in SPECS:
        for shape in (SMALL, PACKED):
            for result in run(spec.op, spec.inputs(shape)).values():
                digest.update(result.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_workspaces_need_no_initialization():
    """Whatever the allocator leaves in fresh memory, the results have the same bits."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    printed = {
        subprocess.run(
            command,
            env={**os.environ, "MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("0", "85", "255")
    }
    assert len(printed) == 1
