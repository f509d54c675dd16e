# SPDX-License-Identifier: Apache-2.0
"""Checks that ops and layers share, and all those of the linear-attention family.

Straight-line tests; messages are built only on failure.
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor

from seqkern._runtime.autocast import autocasts
from seqkern.errors import DeviceError, DTypeError, OptionError, ShapeError

KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
FLOAT_DTYPES = KERNEL_DTYPES | {torch.float64}


def linear_attention(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
    n: int,
    vector_gate: str,
    state_v_first: bool,
) -> None:
    """Check all that ops of the family share; ``vector_gate`` names ``g`` if it is [B, T, H, K]."""
    queries_keys_values(op, q, k, v, n)
    for name, x in (("q", q), ("k", k), ("v", v)):
        dense(op, name, x)
    B, T, H, K = q.shape
    HV, V = v.shape[2], v.shape[3]
    if g is not None:
        if vector_gate:
            hint = "\nFor one decay per head use `chunk_simple_gla`."
            gate(op, vector_gate, "[B, T, H, K]", g, (B, T, H, K), hint)
        else:
            hint = "\nFor one decay per key channel use `chunk_gla`." if beta is None else ""
            gate(op, "g", "[B, T, HV]", g, (B, T, HV), hint)
    if beta is not None:
        rows = "T" if n == 1 else "T * num_householder"
        if isinstance(beta, Tensor) and beta.dim() == 4:
            gate(op, "beta", f"[B, {rows}, HV, V]", beta, (B, T * n, HV, V), "")
        else:
            gate(op, "beta", f"[B, {rows}, HV]", beta, (B, T * n, HV), "")
    N = B
    if cu_seqlens is not None:
        packing(op, cu_seqlens, B, T)
        N = cu_seqlens.shape[0] - 1
    if h0 is not None:
        state(op, h0, (N, HV, V, K) if state_v_first else (N, HV, K, V), state_v_first)


def queries_keys_values(op: str, q: Tensor, k: Tensor, v: Tensor, n: int) -> None:
    """Check the ranks, shapes and dtypes of q, k and v against each other."""
    qs, vs = q.shape, v.shape
    if len(qs) != 4:
        raise ShapeError(f"{op}: `q` must be [B, T, H, K], got {list(qs)}.")
    B, T, H, K = qs
    rows = T * n
    name = "T" if n == 1 else "T * num_householder"
    if k.shape != (B, rows, H, K):
        raise _shape(op, "k", f"[B, {name}, H, K]", (B, rows, H, K), k.shape, " to fit `q`")
    if len(vs) != 4 or vs[0] != B or vs[1] != rows:
        raise ShapeError(
            f"{op}: `v` must be [B, {name}, HV, V] = [{B}, {rows}, a multiple of {H}, any] to fit "
            f"`q`, got {list(vs)}."
        )
    HV, V = vs[2], vs[3]
    if HV != H and (H == 0 or HV % H != 0):
        raise ShapeError(
            f"{op}: the heads of `v` must be a multiple of those of `q`, got HV = {HV} and "
            f"H = {H}. Repeat or drop value heads until H divides HV."
        )
    if K == 0 or V == 0:
        raise ShapeError(
            f"{op}: the head widths K and V must be at least 1, got K = {K} and V = {V}."
        )
    dtype = q.dtype
    if k.dtype is not dtype or v.dtype is not dtype:
        raise DTypeError(
            f"{op}: `q`, `k` and `v` must share one dtype, got {dtype}, {k.dtype} and {v.dtype}. "
            "Cast them to one, or run under torch.autocast."
        )
    if dtype not in FLOAT_DTYPES:
        raise DTypeError(
            f"{op}: `q`, `k` and `v` must be float32, bfloat16, float16 or float64, got {dtype}."
        )


def tensors(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check that q, k and v are tensors."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise _not_tensor(op, q=q, k=k, v=v)
    if q.is_nested or k.is_nested or v.is_nested:
        raise _nested(op, q=q, k=k, v=v)


def tensor(op: str, name: str, x: Tensor) -> None:
    """Check that a required argument is a tensor, and one that has a shape."""
    if not isinstance(x, Tensor):
        raise _not_tensor(op, **{name: x})
    if x.is_nested:
        raise _nested(op, **{name: x})


def dense(op: str, name: str, x: Tensor) -> None:
    """Check that a tensor has strides."""
    if x.is_nested:
        raise _nested(op, **{name: x})
    if x.layout is not torch.strided:
        raise DTypeError(
            f"{op}: `{name}` must be a dense tensor, got {x.layout}. Pass `{name}.to_dense()`."
        )


def misfit_of_weights(layer: str, name: str, x: Tensor, dtype: torch.dtype) -> str | None:
    """Return why a layer's input does not fit weights of ``dtype``, or None where it does."""
    if x.dtype is dtype:
        return None
    if autocasts(x.device.type) and {x.dtype, dtype} <= KERNEL_DTYPES:  # it casts no others
        return None
    other = f", or call `.to({x.dtype})` on the layer" if x.dtype in FLOAT_DTYPES else ""
    return (
        f"{layer}: `{name}` must have the dtype of the weights, {dtype}, got {x.dtype}. Pass "
        f"`{name}.to({dtype})`{other}."
    )


def integers(op: str, name: str, layout: str, x: Tensor, expected: tuple[int, ...]) -> None:
    """Check a tensor of integers that name or count something."""
    tensor(op, name, x)
    if x.shape != expected or x.is_floating_point() or x.is_complex():
        raise ShapeError(
            f"{op}: `{name}` must be integers {layout} = {list(expected)}, got {list(x.shape)} of "
            f"{x.dtype}."
        )


def kernel_offsets(cu_seqlens: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the offsets of packed ``x`` as kernels read them: int64, on the CPU (or meta)."""
    if cu_seqlens is None or (cu_seqlens.is_cpu and x.is_cpu and cu_seqlens.dtype is torch.int64):
        return cu_seqlens
    return cu_seqlens.to("meta" if x.is_meta else "cpu", torch.int64)


def written(op: str, name: str, x: Tensor, dtype: torch.dtype | None = None) -> None:
    """Check a tensor to be overwritten: dense, no two elements in one place, of ``dtype`` if any.

    ``dtype`` is that of the op's ``x``.
    """
    if dtype is not None and x.dtype is not dtype:
        raise DTypeError(
            f"{op}: `{name}` must have the dtype of `x`, {dtype}, because it is updated in place, "
            f"got {x.dtype}. Cast one of them."
        )
    dense(op, name, x)
    strides = x.stride()
    if 0 in strides and any(
        n > 1 for n, stride in zip(x.shape, strides, strict=True) if not stride
    ):
        raise ShapeError(
            f"{op}: `{name}` is updated in place, so its elements must not share memory, got "
            f"{list(x.shape)} of strides {list(strides)}. Pass `{name}.clone()`."
        )


def ones_like_heads(op: str, v: Tensor) -> Tensor:
    """Return the write strength that ``beta=None`` means: float32 ones, one per row and head."""
    tensor(op, "v", v)
    dense(op, "v", v)
    return v.new_ones(()).float().expand(v.shape[:3])


def gate(op: str, name: str, layout: str, x: Tensor, expected: tuple[int, ...], hint: str) -> None:
    """Check the shape and dtype of a gate or of ``beta``; ``hint`` ends a message about shape."""
    if not isinstance(x, Tensor):
        raise _not_tensor(op, **{name: x})
    dense(op, name, x)
    if x.shape != expected:
        raise _shape(op, name, layout, expected, x.shape, " to fit `q` and `v`", hint)
    if x.dtype not in FLOAT_DTYPES:
        raise DTypeError(f"{op}: `{name}` must be a floating tensor, got {x.dtype}.")


def state(op: str, h0: Tensor, expected: tuple[int, ...], state_v_first: bool) -> None:
    """Check the shape and dtype of the initial state, [N, HV, K, V] or [N, HV, V, K]."""
    if not isinstance(h0, Tensor):
        raise _not_tensor(op, initial_state=h0)
    dense(op, "initial_state", h0)
    if h0.shape != expected:
        layout = "[N, HV, V, K]" if state_v_first else "[N, HV, K, V]"
        N, HV, *tail = expected
        hint = ""
        if h0.shape == (N, HV, *reversed(tail)):
            hint = f"\nThe widths are swapped: pass state_v_first={not state_v_first}."
        elif len(h0.shape) == 4 and h0.shape[0] != N:
            hint = f"\nThere must be one state per sequence, {N} in all."
        raise _shape(op, "initial_state", layout, expected, h0.shape, "", hint)
    if h0.dtype not in FLOAT_DTYPES:
        raise DTypeError(f"{op}: `initial_state` must be a floating tensor, got {h0.dtype}.")


def packing(op: str, cu_seqlens: Tensor, B: int, T: int) -> None:
    """Check ``cu_seqlens``: rank, dtype and B always, its values only where they can be read."""
    if not isinstance(cu_seqlens, Tensor):
        raise _not_tensor(op, cu_seqlens=cu_seqlens)
    dense(op, "cu_seqlens", cu_seqlens)
    if B != 1:
        raise ShapeError(
            f"{op}: with `cu_seqlens` the batch size must be 1, got {B}. Pack the sequences one "
            "after the other along T."
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ShapeError(
            f"{op}: `cu_seqlens` must be [N + 1] with N + 1 >= 1, got {list(cu_seqlens.shape)}."
        )
    if cu_seqlens.dtype is not torch.int64 and cu_seqlens.dtype is not torch.int32:
        raise DTypeError(f"{op}: `cu_seqlens` must be int32 or int64, got {cu_seqlens.dtype}.")
    if type(cu_seqlens) is not Tensor or cu_seqlens.is_meta or torch.compiler.is_compiling():
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != T or bounds != sorted(bounds):
        raise ShapeError(
            f"{op}: `cu_seqlens` must start at 0, never fall and end at T = {T}, got "
            f"{abbreviate(bounds)}. Cut or pad the tensors to its last value."
        )


def same_device(op: str, named: dict[str, Tensor | None]) -> None:
    """Check that every tensor is dense and lies on the device of the first."""
    first: tuple[str, torch.device] | None = None
    for name, x in named.items():
        if x is None:
            continue
        dense(op, name, x)
        if first is None:
            first = (name, x.device)
        elif x.device != first[1]:
            raise DeviceError(
                f"{op}: `{name}` must be on the device of `{first[0]}`, {first[1]}, got "
                f"{x.device}. Move it with `.to({first[0]}.device)`."
            )


def chunk_size(op: str, size: int | None, head_first: bool | None) -> None:
    """Check two options of the peer's chunk ops that have no effect here."""
    if head_first:
        raise OptionError(
            f"{op}: `head_first` was removed from this family. Pass [B, T, H, D] tensors."
        )
    if size is not None and ((n := integer(size)) is None or n < 16 or n & (n - 1) != 0):
        raise OptionError(
            f"{op}: `chunk_size` must be a power of two from 16 on, got {size}. It has no effect "
            "here: the kernel chooses its own blocks."
        )


def no_context_parallel(op: str, cp_context: object) -> None:
    """Refuse the peer's context-parallel argument."""
    if cp_context is not None:
        raise OptionError(
            f"{op}: `cp_context` is not supported. Carry the state between ranks with "
            "`initial_state` and `output_final_state`."
        )


def integer(x: Any) -> int | None:
    """Return ``x`` as a plain or symbolic integer; None for all that is none, and for a bool."""
    if isinstance(x, bool):
        return None
    try:
        symbolic: Any = x
        return symbolic if isinstance(x, torch.SymInt) else operator.index(x)
    except TypeError:
        return None


def at_least(op: str, name: str, least: int, x: Any) -> int:
    """Check an integer, and return it as one of Python's."""
    number = integer(x)
    if number is None or number < least:
        raise OptionError(f"{op}: `{name}` must be an integer >= {least}, got {x!r}.")
    return number


def real(op: str, name: str, expected: str, x: Any) -> float:
    """Return ``x``, a number or a tensor of one, as one of Python's."""
    try:
        if isinstance(x, str):
            raise TypeError
        return float(x)
    except (TypeError, ValueError, RuntimeError):
        raise OptionError(f"{op}: `{name}` must be {expected}, got {x!r}.") from None


def factor(op: str, name: str, x: Any) -> float:
    """Return a factor, which no gradient reaches, as one of Python's floats."""
    if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
        raise OptionError(
            f"{op}: `{name}` is a number and gets no gradient. Multiply `q` by the tensor and pass "
            f"{name}=1.0, or pass `{name}.item()`."
        )
    return real(op, name, "a number or None", x)


def positive(op: str, name: str, x: Any) -> float:
    """Return ``x`` as one of Python's floats, checked to be a finite number above zero."""
    number = real(op, name, "a number > 0", x)
    if not 0 < number < math.inf:
        raise OptionError(f"{op}: `{name}` must be a number > 0, got {x!r}.")
    return number


def _shape(
    op: str,
    name: str,
    layout: str,
    expected: tuple[int, ...],
    got: torch.Size,
    why: str,
    hint: str = "",
) -> ShapeError:
    return ShapeError(
        f"{op}: `{name}` must be {layout} = {list(expected)}{why}, got {list(got)}.{hint}"
    )


def _not_tensor(op: str, **arguments: object) -> DTypeError:
    name, x = next((name, x) for name, x in arguments.items() if not isinstance(x, Tensor))
    return DTypeError(f"{op}: `{name}` must be a torch.Tensor, got {type(x).__name__}.")


def _nested(op: str, **arguments: Tensor) -> DTypeError:
    name = next(name for name, x in arguments.items() if x.is_nested)
    return DTypeError(
        f"{op}: `{name}` must be a dense tensor, got a nested one. Pass "
        f"`torch.nested.to_padded_tensor({name}, 0.0)`, or its sequences one behind the other "
        "where there is a `cu_seqlens`."
    )


def abbreviate(bounds: list[int]) -> str:
    """Return a list for a message, its middle left out if it is long."""
    return str(bounds) if len(bounds) <= 12 else f"{bounds[:6]} ... {bounds[-6:]}"
