# SPDX-License-Identifier: Apache-2.0
"""Checks of the selective scan: straight-line tests, messages built only on failure."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import library
from seqkern.errors import DTypeError, ShapeError
from seqkern.ops import _checks

_FLOATS = _checks.FLOAT_DTYPES


def scan(
    op: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Check a call over whole sequences; return B and C as [D, N] or [batch, G, N, T]."""
    tensors(op, u=u, delta=delta, A=A, B=B, C=C)
    if u.dim() != 3:
        raise ShapeError(f"{op}: `u` must be [batch, D, T], got {list(u.shape)}.")
    batch, channels, T = u.shape
    if delta.shape != u.shape:
        transposed = delta.dim() == 3 and delta.shape == (batch, T, channels)
        hint = "\nIt looks transposed: pass `delta.transpose(1, 2)`." if transposed else ""
        shape(op, "delta", "[batch, D, T]", delta, u.shape, hint)
    N = state_width(op, A, channels, "u")
    if z is not None:
        shape(op, "z", "[batch, D, T]", z, u.shape)
    B = coefficient(op, "B", B, batch, channels, N, T)
    C = coefficient(op, "C", C, batch, channels, N, T)
    same_groups(op, B, C)
    per_channel(op, channels, D=D, delta_bias=delta_bias)
    sequences = batch
    if cu_seqlens is not None:
        _checks.packing(op, cu_seqlens, batch, T)
        sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None:
        expected = (sequences, channels, N)
        shape(op, "initial_state", "[sequences, D, N]", initial_state, expected)
    return B, C


def step(
    op: str,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Check a single step; return B and C as [D, N] or [batch, G, N]."""
    tensors(op, state=state, x=x, dt=dt, A=A, B=B, C=C)
    if x.dim() != 2:
        raise ShapeError(f"{op}: `x` must be [batch, D], one step, got {list(x.shape)}.")
    batch, channels = x.shape
    N = state_width(op, A, channels, "x")
    shape(op, "state", "[batch, D, N]", state, (batch, channels, N))
    _checks.written(op, "state", state)
    shape(op, "dt", "[batch, D]", dt, x.shape)
    if z is not None:
        shape(op, "z", "[batch, D]", z, x.shape)
    B = coefficient(op, "B", B, batch, channels, N, None)
    C = coefficient(op, "C", C, batch, channels, N, None)
    same_groups(op, B, C)
    per_channel(op, channels, D=D, dt_bias=dt_bias)
    return B, C


def tensors(op: str, **named: Tensor) -> None:
    """Check that required arguments are tensors of a float dtype."""
    for name, x in named.items():
        _checks.tensor(op, name, x)
        if x.dtype not in _FLOATS:
            hint = ""
            if x.is_complex():
                hint = " Complex states are not supported: use `linear_scan`, which takes them."
            raise DTypeError(
                f"{op}: `{name}` must be float32, bfloat16, float16 or float64, got "
                f"{x.dtype}.{hint}"
            )


def shape(
    op: str, name: str, layout: str, x: Tensor, expected: Sequence[int], hint: str = ""
) -> None:
    """Check one tensor against its layout."""
    tensors(op, **{name: x})
    if x.shape != tuple(expected):
        raise ShapeError(
            f"{op}: `{name}` must be {layout} = {list(expected)}, got {list(x.shape)}.{hint}"
        )


def state_width(op: str, A: Tensor, channels: int, like: str) -> int:
    """Check A and return N."""
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ShapeError(
            f"{op}: `A` must be [D, N] = [{channels}, at least 1] to fit `{like}`, got "
            f"{list(A.shape)}."
        )
    return A.shape[1]


def coefficient(
    op: str, name: str, x: Tensor, batch: int, channels: int, N: int, T: int | None
) -> Tensor:
    """Check B or C and give a varying one its dimension of groups; without T: of one step."""
    end = () if T is None else (T,)
    size = list(x.shape)
    if size == [batch, N, *end]:
        return x.unsqueeze(1)
    if len(size) == 2 and size == [channels, N]:
        return x
    fits = len(size) == 3 + len(end) and size[0] == batch and tuple(size[2:]) == (N, *end)
    if not fits:
        layout = ("[batch, N, T]", "[batch, G, N, T]") if end else ("[batch, N]", "[batch, G, N]")
        raise ShapeError(
            f"{op}: `{name}` must be {layout[0]} = {[batch, N, *end]}, {layout[1]} with G groups, "
            f"or [D, N] = {[channels, N]} for the same at every step, got {size}."
        )
    if size[1] < 1 or channels % size[1]:
        raise ShapeError(
            f"{op}: the groups of `{name}` must divide D = {channels}, got {size[1]} of them."
        )
    return x


def same_groups(op: str, B: Tensor, C: Tensor) -> None:
    """Check that B and C, if both vary, have the same number of groups."""
    if B.dim() > 2 and C.dim() > 2 and B.shape[1] != C.shape[1]:
        raise ShapeError(
            f"{op}: `B` and `C` must have the same number of groups, got {B.shape[1]} and "
            f"{C.shape[1]}. Repeat the groups of one of them."
        )


def per_channel(op: str, channels: int, **named: Tensor | None) -> None:
    """Check tensors [D] that may be None."""
    for name, x in named.items():
        if x is not None:
            shape(op, name, "[D]", x, (channels,))


def obstacle(op: str, named: dict[str, Any], kernel: str, found: object) -> str | None:
    """Return why ``kernel``, whose overload is ``found``, cannot serve these tensors, or None.

    ``named`` has them under the names of ``op``; u, delta and z come first.
    """
    u, delta, z, *_ = named.values()
    _checks.same_device(op, named)
    if not (u.is_cpu or u.is_meta):
        return f"there is no compiled kernel for {u.device.type} tensors"
    if torch.float64 in (u.dtype, delta.dtype, u.dtype if z is None else z.dtype):
        return "float64 has no compiled kernel"
    return library.missing_reason(kernel) if found is None else None
