# SPDX-License-Identifier: Apache-2.0
"""Products of matrices where torch's own choice leaves the CPU half idle, or waiting for memory.

On x86 `torch.mm` hands float32 to MKL, which runs 256-bit code on processors that are not Intel's,
whatever they have: half of an AVX-512 machine's peak, or less. There
  - a product of many rows, of small weights, or of a transposed matrix is our own kernel's
    (`csrc/cpu/matmul.hpp`): operands in any order, its result in memory that is used again; large
    ones at 85 to 95 % of the peak;
  - of the others the larger are oneDNN's, which does not pack its operands. It is reachable as the
    op behind inductor's linear layers; there is no public function for it.
What torch multiplies as well as anybody, bfloat16 and elsewhere float32 too, stays its own; what is
done for it here is to put large results into memory that is used again.

    matmul_nt(a, b) = a b^T         a: [M, K], b: [N, K]

It is its own derivative, da = g b = matmul_nt(g, b^T) and db = g^T a = matmul_nt(g^T, a^T), so one
autograd function serves every order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqkern._runtime import backends, library

# Multiply-adds from which on oneDNN wins; below, its 11 us a call cost more than it saves.
_WORTH = 1 << 20
_PLAIN = (Tensor, torch.nn.Parameter)

# Where the kernel, which packs both operands, is ahead of oneDNN, which packs none: from so many
# rows of both on, or where b has more rows than columns; and of fewer rows of a where b is small,
# for a call of the kernel costs 2 us.
# Where a is the transpose of what lies in memory, oneDNN is slow and packing is copying: then also
# if b has few rows, or few numbers.
_LEAST_ROWS_A, _LEAST_ROWS_B = 512, 256
_SMALL_B = 1 << 16  # numbers
_FEW_ROWS_B, _FEW_NUMBERS_B = 128, 1 << 18
# None of it asks for the number of threads, for no bit may depend on that.

# Bytes of a result from which on the C library maps fresh memory for it every time: touching every
# page of that costs up to a third of the product. Such a result comes from the pool.
_MAPPED = 32 << 20
_EMPTY = library.find_op("empty_matrix")
_KERNEL = library.find_op("matmul_f32")
_CPU_INFO = library.find_op("cpu_info")
_SERVED = (torch.float32, torch.bfloat16, torch.float16)


def _onednn() -> Any:
    """Return oneDNN's product, or None where it is missing or MKL is as fast."""
    op = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    info = library.cpu_info()
    if op is None or info is None or not info["found"].startswith("avx512"):
        return None
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            vendor = next((line for line in lines if line.startswith("vendor_id")), "Intel")
    except OSError:
        return None
    return None if "Intel" in vendor else op.default


_PRODUCT = _onednn()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by what is fastest; all derivatives.

    Args:
        x: [..., K], any dtype; float32 on a CPU is what this function is about, and results from
            32 MB on.
        weight: [N, K], dtype of ``x``.
        bias: [N] or None.
    Returns:
        ``x weight^T + bias``, [..., N].
    """
    if not _serves(x, weight):
        return F.linear(x, weight, bias)
    product = _MatmulNT.apply if torch.is_grad_enabled() else _product
    return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], weight.shape[0])


def matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of a [M, K] and b [N, K], by what is fastest; all derivatives."""
    return _MatmulNT.apply(a, b, None) if _serves(a, b) else a @ b.t()


def _serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the op serves this product; never by a size that a compiler may keep symbolic."""
    if (
        weight.dtype is not x.dtype
        or type(weight) not in _PLAIN
        or not (x.is_cpu and weight.is_cpu and torch.backends.mkldnn.enabled)
        or x.dim() < 2
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or backends.forward_mode()
    ):
        return False
    compiling = torch.compiler.is_compiling()
    if x.dtype not in _SERVED:
        return False
    if _left_to_torch(x):
        return not compiling and _mapped(x.numel() // max(1, x.shape[-1]), weight)
    return compiling or _worth(x.numel(), weight.shape[0])


def _left_to_torch(x: Tensor) -> bool:
    # Whether torch multiplies this type as well as anybody here.
    return x.dtype is not torch.float32 or _PRODUCT is None


def _mapped(rows: int, weight: Tensor) -> bool:
    # Whether a result of so many rows goes into pooled memory.
    return _EMPTY is not None and rows * weight.shape[0] * weight.element_size() >= _MAPPED


def _packed(a: Tensor, b: Tensor) -> bool:
    # Whether the product is the kernel's, which may be capped at narrower vectors.
    if _KERNEL is None:
        return False
    (rows, depth), N = a.shape, b.shape[0]
    if a.stride(0) == 1:
        worth = rows >= _LEAST_ROWS_A or N <= _FEW_ROWS_B or N * depth <= _FEW_NUMBERS_B
    elif rows >= _LEAST_ROWS_A:
        worth = N >= _LEAST_ROWS_B or depth < N
    else:
        worth = N * depth <= _SMALL_B
    return (worth and _CPU_INFO().startswith("avx512")) or _overlaps(a) or _overlaps(b)


def _overlaps(x: Tensor) -> bool:
    # Whether rows share memory, as overlapping windows do: oneDNN refuses them.
    rows, columns = x.shape
    along, across = x.stride()
    return not ((across == 1 and along >= columns) or (along == 1 and across >= rows))


def _worth(elements: int, N: int) -> bool:
    # A symbolic size is not asked, for that would pin it; the op asks again when it runs.
    return isinstance(elements, torch.SymInt) or elements * N >= _WORTH


class _MatmulNT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return _product(a, b, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        da = matmul_nt(g, b.t()) if ctx.needs_input_grad[0] else None
        db = matmul_nt(g.t(), a.t()) if ctx.needs_input_grad[1] else None
        return da, db, g.sum(0) if ctx.needs_input_grad[2] else None


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling() or not (type(a) in _PLAIN and type(b) in _PLAIN):
        return torch.ops.seqkern.matmul_nt.default(a, b, bias)
    return _matmul_nt(a, b, bias)  # a third of a small product sooner


def _matmul_nt(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    N = b.shape[0]
    if _left_to_torch(a):
        out = _EMPTY(a, a.shape[0], N) if _mapped(a.shape[0], b) else None
        if bias is None:
            return torch.mm(a, b.t(), out=out)
        return torch.addmm(bias, a, b.t(), out=out)
    if not _worth(a.numel(), N):
        return F.linear(a, b, bias)
    if not _packed(a, b):
        # It reads a bias of any strides as if it were dense.
        return _PRODUCT(a, b, None if bias is None else bias.contiguous(), "none", [], "")
    y = _KERNEL(a, b)
    return y if bias is None else y.add_(bias)


_library = torch.library.Library("seqkern", "FRAGMENT")
_library.define("matmul_nt(Tensor a, Tensor b, Tensor? bias=None) -> Tensor")
_library.impl("matmul_nt", _matmul_nt, "CPU")


def _fake(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]))


torch.library.register_fake("seqkern::matmul_nt", _fake, lib=_library)
if _KERNEL is not None:
    torch.library.register_fake("seqkern::matmul_f32", _fake)
