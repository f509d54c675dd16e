# SPDX-License-Identifier: Apache-2.0
"""The linear state-space ops: which type they compute in, and which backend runs."""

import pytest
import torch
from harness import assert_same
from lssl_inputs import (
    SMALL,
    conv,
    definition,
    dense_kernel,
    gather_A,
    kernel,
    kernel_inputs,
    make,
    scan,
)

from seqkern._runtime import backends
from seqkern.ops import lssl_conv, lssl_kernel, lssl_scan, lssl_step
from seqkern.testing import run

each_form = pytest.mark.parametrize("dense", [False, True], ids=["structured", "dense"])


def one_step(u, initial_state, **named):
    return lssl_step(u[:, 0], initial_state, gather_A(named), **named)


@each_form
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs(dtype, backend, dense):
    """16-bit inputs are computed in float32 and come back in their own type."""
    x = make(SMALL, dense=dense).tensors
    narrow, wide = ({**x, "u": x["u"].to(dtype).to(t)} for t in (dtype, torch.float32))
    for call in (scan, conv, one_step):
        y, state = call(**narrow, backend=backend)
        y32, state32 = call(**wide, backend=backend)
        assert y.dtype is dtype
        assert torch.equal(y, y32.to(dtype))
        assert call is conv or torch.equal(state, state32)
        assert call is conv or state.dtype is torch.float32


@each_form
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_input_decides_on_the_type(backend, dense):
    """All parameters, or one of them, of another type are read in that of the computation."""
    f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
    for dtype, other in ((f32, f64), (f64, f32), (f32, bf16)):
        x = make(SMALL, dtype, dense=dense).tensors
        for narrow in (x.keys() - {"u"}, *({name} for name in x if name != "u")):
            mixed = {name: t.to(other) if name in narrow else t for name, t in x.items()}
            rounded = {name: t.to(dtype) for name, t in mixed.items()}
            for call in (scan, conv, one_step):
                y, state = call(**mixed, backend=backend)
                assert (y.dtype, state.dtype) == (dtype, dtype)
                expected = call(**rounded, backend=backend)
                torch.testing.assert_close((y, state), expected, rtol=1e-4, atol=1e-4)
            A, C = gather_A(mixed), mixed["C"]
            K = lssl_kernel(A, mixed["B"], C, mixed["dt"], 9, backend=backend)
            assert K.dtype is (f64 if C.dtype is f64 else f32)


def test_slow_path_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr("seqkern.ops.lssl.FORWARD", None)
    monkeypatch.setattr("seqkern.ops.lssl.library.missing_reason", lambda name: "it is not there")
    x = make(SMALL)
    for _ in range(2):
        assert_same(run(scan, x), run(definition, x))
    assert len(caplog.records) == 1
    assert "it is not there" in caplog.records[0].getMessage()


@pytest.mark.parametrize("asked", ["by name", "for all"])
def test_the_reference_runs_no_kernel(asked, monkeypatch):
    for name in (
        "lssl.STRUCTURED",
        "lssl.FORWARD",
        "lssl.LSSLFunction",
        "_lssl_convolution.FORWARD",
    ):
        monkeypatch.setattr(f"seqkern.ops.{name}", pytest.fail)
    x, options = make(SMALL).tensors, {"backend": "reference"} if asked == "by name" else {}
    with backends.override("reference" if asked == "for all" else "auto"):
        y, state = scan(**x, **options)
        one_step(**x, **options)
        kernel(**x, **options)
        convolved, _ = conv(**{**x, "initial_state": None}, **options)
    expected, last = definition(**x)
    assert torch.equal(y, expected)
    assert torch.equal(state, last)
    expected, _ = definition(**{**x, "initial_state": None})
    torch.testing.assert_close(convolved, expected, rtol=1e-4, atol=1e-4)


def test_reference_kernel_is_the_definition():
    x = kernel_inputs(SMALL)
    assert_same(run(kernel, x, backend="reference"), run(dense_kernel, x))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@each_form
def test_autocast_changes_nothing(dense, backend):
    """Powers of a matrix in 16 bits would be far off; the values have the types they always do."""
    x = make(SMALL, dense=dense).tensors
    A = gather_A(x)
    u, x0 = x.pop("u"), x.pop("initial_state")
    D = x.pop("D")
    calls = (
        lambda: (lssl_kernel(A, L=9, backend=backend, **x),),
        lambda: (lssl_conv(u, A, D=D, backend=backend, **x),),
        lambda: lssl_scan(u, A, D=D, backend=backend, output_final_state=True, **x),
        lambda: lssl_step(u[:, 0], x0, A, D=D, backend=backend, **x),
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            for got, value in zip(call(), expected, strict=True):
                assert torch.equal(got, value)
