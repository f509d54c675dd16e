# SPDX-License-Identifier: Apache-2.0
"""No kernel reads or writes beyond what it is given: arguments that end or begin at a closed page.

An access beyond them ends the process; pytest then names the test that was running.
"""

import ctypes
import functools
import mmap
from dataclasses import replace

import pytest
import torch
from harness import assert_all_equal, assert_strides_change_nothing
from op_cases import CASES, over

from seqkern import ops
from seqkern._runtime import library

mprotect = getattr(ctypes.CDLL(None), "mprotect", None) if hasattr(mmap, "PROT_READ") else None
pytestmark = pytest.mark.skipif(
    mprotect is None or library.load_error() is not None,
    reason="needs mprotect and the compiled library",
)


def guarded(t, at_end):
    """A dense copy whose memory ends, or begins, at a page that nobody may touch."""
    if t.numel() == 0:
        return t.clone()
    size = t.numel() * t.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + mmap.PAGESIZE + pages):
        assert mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    offset = mmap.PAGESIZE + (pages - size if at_end else 0)
    copy = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=offset)
    return copy.view(t.shape).copy_(t)


def ends(t):
    return guarded(t, at_end=True)


def begins_turned(t):
    """With the first axis contiguous, and the last the slowest."""
    if t.dim() < 2:
        return guarded(t, at_end=False)
    return guarded(t.transpose(0, -1), at_end=False).transpose(0, -1)


@pytest.mark.parametrize("place", [ends, begins_turned])
@over(CASES, dtype=lambda case: case.dtypes, size=lambda case: case.sizes)
def test_ops_and_their_gradients(case, dtype, size, isa, place):
    x = case.inputs(dtype, size)
    options = {
        name: place(value) if isinstance(value, torch.Tensor) else value
        for name, value in x.options.items()
    }
    assert_strides_change_nothing(case.op, replace(x, options=options), place)


D, N, W = 21, 9, 4
CALLS = {
    "flashrnn_step": (ops.flashrnn_step, [(3, 4, 2, D), (4, 2, D, D), (4, 2, D), (2, 3, 1, 2, D)]),
    "selective_state_update": (
        functools.partial(ops.selective_state_update, dt_softplus=True),
        [(2, D, N), (2, D), (2, D), (D, N), (2, N), (2, N), (D,), (2, D), (D,)],
    ),
    "causal_conv1d_update": (
        ops.causal_conv1d_update,
        [(3, 1, D), (3, D, W), (3, 1, D), (D, W), (D,)],
    ),
    "lssl_conv_fwd": (library.find_op("lssl_conv_fwd"), [(3, 37, D), (37, 2, D), (D, 2)]),
    "matmul_f32": (library.find_op("matmul_f32"), [(37, 33), (D, 33)]),
}


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
@pytest.mark.parametrize("name", CALLS)
def test_steps_and_products(name, isa, at_end):
    call, shapes = CALLS[name]
    plain = [torch.randn(shape) for shape in shapes]
    closed = [guarded(t, at_end) for t in plain]
    results = []
    for arguments in (plain, closed):
        found = call(*arguments)
        results.append([*(found if isinstance(found, tuple) else (found,)), *arguments])
    assert_all_equal(*results)
