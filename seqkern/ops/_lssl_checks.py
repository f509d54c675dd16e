# SPDX-License-Identifier: Apache-2.0
"""Checks of the linear state-space ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._lssl_system import Quasiseparable

# As messages name them.
_PARTS = tuple(f"A.{name}" for name in Quasiseparable._fields)


def _floating(op: str, name: str, x: Tensor) -> None:
    _checks.tensor(op, name, x)
    if x.dtype not in _checks.FLOAT_DTYPES:
        raise DTypeError(f"{op}: `{name}` must be a floating tensor, got {x.dtype}.")


def _one_of(op: str, name: str, x: Any, layouts: dict[str, tuple[int, ...]]) -> None:
    """Check that the shape is one of those named."""
    if isinstance(x, Tensor) and x.dtype in _checks.FLOAT_DTYPES and x.shape in layouts.values():
        return
    _floating(op, name, x)
    wanted = " or ".join(f"{layout} = {list(shape)}" for layout, shape in layouts.items())
    raise ShapeError(f"{op}: `{name}` must be {wanted} to fit `C`, got {list(x.shape)}.")


def system(
    op: str,
    A: Tensor | Quasiseparable,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None,
    alpha: float,
) -> float:
    """Check the parameters of a layer against each other; return ``alpha`` as a float."""
    _floating(op, "C", C)
    if C.dim() != 3 or C.shape[1] == 0 or C.shape[2] == 0:
        raise ShapeError(f"{op}: `C` must be [H, M, N] with M, N >= 1, got {list(C.shape)}.")
    H, M, N = C.shape
    vector = {"[N]": (N,), "[H, N]": (H, N)}
    if isinstance(A, Quasiseparable):
        for name, x in zip(_PARTS, A, strict=True):
            if x is not None or name != "A.upper":
                _one_of(op, name, x, vector)
    elif isinstance(A, Tensor):
        _one_of(op, "A", A, {"[N, N]": (N, N), "[H, N, N]": (H, N, N)})
    else:
        raise DTypeError(
            f"{op}: `A` must be a torch.Tensor [N, N] or [H, N, N], or a `Quasiseparable` (as "
            f"`hippo` returns it), got {type(A).__name__}."
        )
    _one_of(op, "B", B, vector)
    _one_of(op, "dt", dt, {"[H]": (H,)})
    if D is not None:
        _one_of(op, "D", D, {"[H, M]": (H, M)})
    return of_transform(op, alpha)


def of_transform(op: str, alpha: float) -> float:
    """Check ``alpha`` of the generalised bilinear transform."""
    if isinstance(alpha, Tensor) and alpha.requires_grad and torch.is_grad_enabled():
        raise OptionError(f"{op}: `alpha` is a number and gets no gradient. Pass `alpha.item()`.")
    expected = "a number in [0, 1] (0 Euler, 0.5 bilinear, 1 backward Euler)"
    number = _checks.real(op, "alpha", expected, alpha)
    if not 0.0 <= number <= 1.0:
        raise OptionError(f"{op}: `alpha` must be {expected}, got {alpha!r}.")
    return number


def sequence(op: str, u: Tensor, C: Tensor, initial_state: Tensor | None, step: bool) -> None:
    """Check the input [B, L, H] (or [B, H] for one step) and the state [B, H, N]."""
    H, _, N = C.shape
    _floating(op, "u", u)
    layout = "[B, H]" if step else "[B, L, H]"
    if u.dim() != (2 if step else 3) or u.shape[-1] != H:
        raise ShapeError(f"{op}: `u` must be {layout} with H = {H} like `C`, got {list(u.shape)}.")
    if initial_state is not None:
        name = "state" if step else "initial_state"
        expected = (u.shape[0], H, N)
        _floating(op, name, initial_state)
        if initial_state.shape != expected:
            raise ShapeError(
                f"{op}: `{name}` must be [B, H, N] = {list(expected)}, got "
                f"{list(initial_state.shape)}."
            )


def devices(op: str, A: Tensor | Quasiseparable, **tensors: Tensor | None) -> None:
    """Check that all tensors lie on one device."""
    tensors.update(zip(_PARTS, A, strict=True) if isinstance(A, Quasiseparable) else (("A", A),))
    _checks.same_device(op, tensors)
