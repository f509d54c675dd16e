# SPDX-License-Identifier: Apache-2.0
"""Diagonal linear scan: ``x_t = a_t x_{t-1} + b_t``, real or complex, any sign.

`seqkern.reference.linear_scan` is the definition.
"""

from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern.errors import DTypeError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._gradients import differentiable_grads
from seqkern.reference.linear_scan import linear_scan as reference_scan

FORWARD = library.find_op("linear_scan_fwd")
BACKWARD = library.find_op("linear_scan_bwd")
_DTYPES = _checks.FLOAT_DTYPES | {torch.complex64, torch.complex128}


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan every channel along time: ``x_t = a_t x_{t-1} + b_t``.

    The products are taken as they come, never through logarithms: ``a`` may be zero, negative, or
    beyond 1. What is carried from step to step is float32 for 16-bit inputs too. Second derivatives
    (``create_graph=True``) go through the reference.

    Args:
        a: [batch, T, ...], float32, bfloat16, float16, float64, complex64 or complex128.
        b: shape and dtype of ``a``.
        h0: [sequences, ...], the state before the first step, or None for zeros. Differentiable.
        cu_seqlens: [sequences + 1] int32 or int64; packs sequences into a batch of 1. Empty ones
            are legal.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``x`` in the shape and dtype of ``b``; the last step of a sequence is its final state.

    Raises:
        ShapeError, DTypeError, DeviceError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Blelloch 1990, "Prefix Sums and Their Applications", section 1.4; here it is sequential, for
        one core is as fast as its memory.

    Example:
        >>> x = linear_scan(a, b)                       # [B, T, D]
        >>> x2 = linear_scan(a2, b2, h0=x[:, -1])       # goes on
    """
    op = "linear_scan"
    _check(op, a, b, h0, cu_seqlens)
    obstacle = _obstacle(op, a, b, h0)
    if not backends.use_kernel(op, backend, obstacle):
        return reference_scan(a, b, h0, cu_seqlens)
    cu_seqlens = _checks.kernel_offsets(cu_seqlens, a)
    shape, pairs = b.shape, a.is_complex()
    if pairs:
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        h0 = h0 if h0 is None else torch.view_as_real(h0.to(torch.complex64).resolve_conj())
    if b.dim() != 3:
        # Not -1: a tensor without elements has no remaining size.
        width = b.shape[2:].numel()
        a, b = (t.reshape(t.shape[0], t.shape[1], width) for t in (a, b))
        h0 = h0 if h0 is None else h0.reshape(h0.shape[0], width)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (a, b, h0)):
        x = _LinearScan.apply(a, b, h0, cu_seqlens, pairs)
    else:
        x = FORWARD(a, b, h0, cu_seqlens, pairs)
    if pairs:
        return torch.view_as_complex(x.reshape(*shape, 2))
    return x if x.shape == shape else x.reshape(shape)


class _LinearScan(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None, pairs: bool
    ) -> Tensor:
        x = FORWARD(a, b, h0, cu_seqlens, pairs)
        ctx.save_for_backward(a, b, x, h0, cu_seqlens)
        ctx.pairs = pairs
        return x

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        a, b, x, h0, cu_seqlens = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (*_differentiable(ctx, a, b, h0, cu_seqlens, dx), None, None)
        da, db, dh0 = BACKWARD(dx, a, x, h0, cu_seqlens, ctx.pairs)
        return da, db, None if h0 is None else dh0.to(h0.dtype), None, None


def _differentiable(
    ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None, dx: Tensor
) -> list[Tensor | None]:
    """Return the same gradients with a graph of their own, by way of the reference."""

    def definition(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor]:
        if not ctx.pairs:
            return (reference_scan(a, b, h0, cu_seqlens),)
        start = None if h0 is None else _complex(h0)
        x = reference_scan(_complex(a), _complex(b), start, cu_seqlens)
        return (torch.view_as_real(x).flatten(2),)

    return differentiable_grads(definition, (a, b, h0), ctx.needs_input_grad, (dx,))


def _complex(pairs: Tensor) -> Tensor:
    """[..., 2 D] as complex [..., D]."""
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))


def _check(op: str, a: Tensor, b: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None) -> None:
    _checks.tensor(op, "a", a)
    _checks.tensor(op, "b", b)
    if a.dim() < 2:
        raise ShapeError(f"{op}: `a` must be [batch, T, ...], got {list(a.shape)}.")
    if b.shape != a.shape:
        raise ShapeError(
            f"{op}: `b` must have the shape of `a`, {list(a.shape)}, got {list(b.shape)}. "
            "Expand one of them."
        )
    if a.dtype not in _DTYPES or b.dtype is not a.dtype:
        raise DTypeError(
            f"{op}: `a` and `b` must share one floating or complex dtype, got {a.dtype} and "
            f"{b.dtype}. Cast one of them."
        )
    sequences = a.shape[0]
    if cu_seqlens is not None:
        _checks.packing(op, cu_seqlens, a.shape[0], a.shape[1])
        sequences = cu_seqlens.shape[0] - 1
    if h0 is not None:
        _checks.tensor(op, "h0", h0)
        expected = (sequences, *a.shape[2:])
        if h0.shape != expected:
            raise ShapeError(
                f"{op}: `h0` must be [sequences, ...] = {list(expected)}, got {list(h0.shape)}."
            )
        if h0.dtype not in _DTYPES or (h0.is_complex() and not a.is_complex()):
            raise DTypeError(
                f"{op}: `h0` must be floating, or complex like `a`, got {h0.dtype} and {a.dtype}."
            )


def _obstacle(op: str, a: Tensor, b: Tensor, h0: Tensor | None) -> str | None:
    """Return why the compiled kernel cannot serve these tensors, or None when it can."""
    _checks.same_device(op, {"a": a, "b": b, "h0": h0})
    if not (a.is_cpu or a.is_meta):
        return f"there is no compiled kernel for {a.device.type} tensors"
    if a.dtype in (torch.float64, torch.complex128):
        return f"{str(a.dtype).removeprefix('torch.')} has no compiled kernel"
    return library.missing_reason("linear_scan_fwd") if FORWARD is None else None


def _forward_fake(
    a: Tensor, b: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None, pairs: bool
) -> Tensor:
    return a.new_empty(a.shape)


def _backward_fake(
    dx: Tensor,
    a: Tensor,
    x: Tensor,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    pairs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (0,) if h0 is None else h0.shape
    return a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(shape, dtype=torch.float32)


if FORWARD is not None:
    torch.library.register_fake("seqkern::linear_scan_fwd", _forward_fake)
    torch.library.register_fake("seqkern::linear_scan_bwd", _backward_fake)
