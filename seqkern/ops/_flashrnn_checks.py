# SPDX-License-Identifier: Apache-2.0
"""Checks of the classical recurrent cells: messages are built only on failure."""

import math
from numbers import Real

import torch
from torch import Tensor

from seqkern.errors import DTypeError, OptionError, SeqkernError, ShapeError
from seqkern.ops import _checks
from seqkern.reference.flashrnn import CELLS, Cell

_FLOATS = _checks.FLOAT_DTYPES
_NAMES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_PEER_BACKENDS = ("vanilla", "vanilla_fwbw", "cuda_fused", "triton_fused")


def cell(op: str, function: str) -> Cell:
    """Return the cell with this name."""
    if isinstance(function, str) and function in CELLS:
        return CELLS[function]
    names = ", ".join(f'"{name}"' for name in CELLS)
    raise OptionError(f"{op}: `function` must be one of {names}, got {function!r}.")


def backend(op: str, name: str) -> None:
    """Refuse the names of the peer's backends with the name of ours."""
    if name in _PEER_BACKENDS:
        ours = "reference" if name.startswith("vanilla") else "auto"
        raise OptionError(
            f'{op}: `backend="{name}"` is a backend of another package. Pass backend="{ours}".'
        )


def dtype(op: str, wanted: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype that ``dtype=`` asks for, given as such or by name."""
    if wanted is None or (isinstance(wanted, torch.dtype) and wanted in _FLOATS):
        return wanted
    if isinstance(wanted, str) and wanted in _NAMES:
        return _NAMES[wanted]
    raise OptionError(
        f"{op}: `dtype` must be None, float32, bfloat16, float16 or float64 (a torch.dtype or its "
        f"name), got {wanted!r}."
    )


def limit(op: str, name: str, value: float | None) -> float:
    """Return a clip value as a number, 0 for none."""
    if value is None:
        return 0.0
    if isinstance(value, (int, float, Real)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a large int
            number = math.inf
        if 0 <= number < math.inf:
            return number
    raise OptionError(f"{op}: `{name}` must be a number >= 0 or None (no clipping), got {value!r}.")


def flags(op: str, **given: bool) -> None:
    """Check options that are True or False."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise OptionError(f"{op}: `{name}` must be True or False, got {value!r}.")


def tensors(
    op: str, kind: Cell, Wx: Tensor, R: Tensor, b: Tensor | None, states: Tensor | None, count: int
) -> None:
    """Check Wx [..., gates, N, D], R, b and the states of ``count`` sequences.

    ``Wx`` has passed `inputs`.
    """
    N, D = Wx.shape[-2:]
    if not (
        isinstance(R, Tensor)
        and R.shape == (kind.recurrent, N, D, D)
        and (R.dtype is Wx.dtype or R.dtype is torch.float32)
        and (b is None or (isinstance(b, Tensor) and b.shape == (kind.bias, N, D)))
        and (b is None or b.dtype in _FLOATS)
        and (
            states is None
            or (isinstance(states, Tensor) and states.shape == (kind.states, count, 1, N, D))
        )
        and (states is None or states.dtype in _FLOATS)
        and not (Wx.dtype is torch.float64 and R.dtype is torch.float32)
        and R.layout is torch.strided
        and (b is None or b.layout is torch.strided)
        and (states is None or states.layout is torch.strided)
    ):
        raise _misfit(op, kind, Wx, R, b, states, count)


def inputs(op: str, kind: Cell, Wx: Tensor, layout: str) -> None:
    """Check the rank, the gates and the dtype of ``Wx``; ``layout`` is "[B, T, G, N, D]" or so."""
    _checks.tensor(op, "Wx", Wx)
    _checks.dense(op, "Wx", Wx)
    rank = layout.count(",") + 1
    if Wx.dim() != rank:
        hint = ""
        if Wx.dim() == rank - 1 or Wx.dim() == rank - 2:
            hint = "\nFor one dense head view its last axis, G * D wide, as [G, 1, D]."
        raise ShapeError(f"{op}: `Wx` must be {layout}, got {list(Wx.shape)}.{hint}")
    if Wx.shape[-3] != kind.input:
        raise ShapeError(
            f"{op}: `Wx` must be {layout} with G = {kind.input} input gates, got {list(Wx.shape)}."
        )
    if Wx.shape[-1] == 0:
        raise ShapeError(f"{op}: the head width D must be at least 1, got {list(Wx.shape)}.")
    if Wx.dtype not in _FLOATS:
        raise DTypeError(
            f"{op}: `Wx` must be float32, bfloat16, float16 or float64, got {Wx.dtype}."
        )


def _misfit(
    op: str,
    kind: Cell,
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None,
    states: Tensor | None,
    count: int,
) -> SeqkernError:
    """Return the error that says what is wrong with R, b or the states."""
    N, D = Wx.shape[-2:]
    _checks.tensor(op, "R", R)
    known = [
        ("R", "[G, N, D out, D in]", R, (kind.recurrent, N, D, D)),
        ("b", "[G, N, D]", b, (kind.bias, N, D)),
        ("states", "[S, sequences, 1, N, D]", states, (kind.states, count, 1, N, D)),
    ]
    for name, layout, x, expected in known:
        if x is None:
            continue
        if name == "states" and isinstance(x, (tuple, list)):
            return DTypeError(
                f"{op}: `states` must be a torch.Tensor, got {type(x).__name__}. Stack states "
                "[sequences, 1, N, D]: pass `torch.stack(states)`."
            )
        _checks.tensor(op, name, x)
        _checks.dense(op, name, x)
        if x.shape != expected:
            return ShapeError(
                f"{op}: `{name}` must be {layout} = {list(expected)} to fit `Wx`, got "
                f"{list(x.shape)}.{_hint(name, x, expected)}"
            )
        if x.dtype not in _FLOATS:
            return DTypeError(f"{op}: `{name}` must be a floating tensor, got {x.dtype}.")
    return DTypeError(
        f"{op}: `R` must have the dtype of `Wx`, {Wx.dtype}, or float32 beside a 16-bit `Wx`, got "
        f"{R.dtype}. Cast one of them, pass `dtype`, or run under torch.autocast."
    )


def _hint(name: str, x: Tensor, expected: tuple[int, ...]) -> str:
    """Return the end of a message about a shape."""
    gates, N, *_ = expected
    if name == "R" and x.dim() == 4 and x.shape[0] == N and x.shape[1] == gates:
        return "\nGates come first, then heads: pass `R.transpose(0, 1)`."
    if name == "states" and x.dim() == 4 and x.shape == (*expected[:2], *expected[3:]):
        return "\nPass `states.unsqueeze(2)`: the third axis is time, one step."
    if name == "b" and x.numel() == math.prod(expected):
        return f"\nPass `b.view{expected}`."
    return ""


def reset(op: str, mask: Tensor, B: int, T: int) -> None:
    """Check the reset mask."""
    _checks.tensor(op, "reset", mask)
    _checks.dense(op, "reset", mask)
    if mask.shape != (B, T):
        raise ShapeError(
            f"{op}: `reset` must be [B, T] = [{B}, {T}] to fit `Wx`, got {list(mask.shape)}."
        )
    if mask.dtype is not torch.bool and mask.dtype is not torch.uint8:
        raise DTypeError(
            f"{op}: `reset` must be bool or uint8, got {mask.dtype}. Pass `reset != 0`."
        )
