# SPDX-License-Identifier: Apache-2.0
"""What every op of the family computes: values, gradients, packing, strides, the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import assert_right, assert_same, each_dtype
from specs import PACKED, SHAPES, SMALL, SPECS, expected

from seqkern._runtime import library
from seqkern.testing import Shape, assert_close, grads_of, run

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.id)


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
def test_returns_a_state_when_asked(spec):
    x = spec.inputs(SMALL)
    assert spec.op(**x.tensors, **x.options)[1] is None


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
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=["batch", "packed"])
def test_state_v_first(spec, shape):
    """Only the layout of the two states changes."""
    x = spec.inputs(shape)
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


STEPS = {
    "one vector": {"B": 2, "T": 1, "V": 16},
    "many vectors": {"B": 1, "T": 1, "V": 272},
    "packed with an empty one": {"lengths": (1, 0, 1), "V": 16},
}


@each_spec
@pytest.mark.parametrize("state", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS)
def test_a_step_of_decoding(spec, sizes, state, isa):
    """A single token without gradients, which has a kernel of its own, equals the chunked one."""
    x = spec.inputs(Shape(H=2, HV=4, K=20, **sizes))
    tensors = {n: t for n, t in x.tensors.items() if state or n != "initial_state"}
    tensors["k"] = 1.5 * tensors["k"]  # no unit vectors
    options = {**x.options, "output_final_state": True}
    step = spec.op(**tensors, **options)
    chunk = spec.op(**{n: t.clone().requires_grad_() for n, t in tensors.items()}, **options)
    for a, b in zip(step, chunk, strict=True):
        assert b.requires_grad
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)


def test_offsets_with_gaps():
    x = SPECS[0].inputs(PACKED)
    offsets = x.options["cu_seqlens"]
    gaps = torch.stack([offsets, torch.zeros_like(offsets)], 1)[:, 0]
    assert not gaps.is_contiguous()
    results = [SPECS[0].op(**x.tensors, cu_seqlens=given)[0] for given in (offsets, gaps)]
    assert torch.equal(*results)


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
