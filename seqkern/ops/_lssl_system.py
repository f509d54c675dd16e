# SPDX-License-Identifier: Apache-2.0
"""Structured state matrices, and the tridiagonal systems that their discretisation leads to.

A structured matrix is A = P (D + T^-1) Q with P, D, Q diagonal and T tridiagonal. The three HiPPO
matrices for classical orthogonal polynomials are of this form. With a = alpha dt, the step
d = x_t - x_{t-1} of the generalised bilinear transform solves

    (I - a A) d = dt (A x_{t-1} + B u_t)

and T P^-1 from the left turns both sides into tridiagonal matrices:

    E d = F x_{t-1} + g u_t
    E = T (P^-1 - a D Q) - a Q,   F = dt (T D Q + Q),   g = dt T P^-1 B

so one step costs O(N). The authors' own algorithm for the kernel (divide and conquer over rational
matrix functions, O(N log^2 N + L log L)) expands (I - z A_bar)^-1 in powers of z; its intermediate
polynomials have coefficients that grow like binomials and cancel, which floating point does not
survive. The recurrence costs O(N L), is stable, and never holds more than a few states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seqkern._runtime import backends, library
from seqkern.errors import DTypeError, OptionError
from seqkern.ops._checks import at_least
from seqkern.ops._gradients import differentiable_grads
from seqkern.reference._solve import solve

MEASURES = ("legs", "legt", "lagt", "identity")


class Quasiseparable(NamedTuple):
    """A = P (D + T^-1) Q of order N, in O(N) numbers; every field [N], or [H, N] for H features.

    Attributes:
        P: left factor; no element may be 0.
        D: the diagonal beside T^-1.
        Q: right factor.
        lower: T[n, n - 1] at position n; the first element is not used.
        diagonal: T[n, n].
        upper: T[n, n + 1] at position n, the last element not used; None for zeros that stay zeros,
            which makes A lower triangular and every kernel about twice as fast.
    """

    P: Tensor
    D: Tensor
    Q: Tensor
    lower: Tensor
    diagonal: Tensor
    upper: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the matrix, [N, N] or [H, N, N]; differentiable."""
        below = torch.diag_embed(self.lower[..., 1:], -1)
        T = torch.diag_embed(self.diagonal) + below
        if self.upper is not None:
            T = T + torch.diag_embed(self.upper[..., :-1], 1)
        eye = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
        middle = torch.diag_embed(self.D) + solve(T, eye.expand_as(T))
        return self.P.unsqueeze(-1) * middle * self.Q.unsqueeze(-2)


def hippo(
    measure: str, N: int, dtype: torch.dtype = torch.float32
) -> tuple[Quasiseparable, Tensor]:
    """Return A, and B [N], of x' = A x + B u for a HiPPO measure.

    Args:
        measure: "legs" (scaled Legendre, lower triangular, eigenvalues -1 .. -N), "legt"
            (translated Legendre, window of length 1), "lagt" (translated Laguerre), or "identity"
            (A = -I, B = 1: N equal averages, for comparison).
        N: order, >= 1.
        dtype: of the tensors, a floating-point one.

    Raises:
        OptionError, DTypeError: the message names the argument.

    Source:
        Gu et al. 2021, "Combining Recurrent, Convolutional, and Continuous-time Models with Linear
        State-Space Layers", appendices B and E, with the sign of x' = A x + B u.
    """
    if measure not in MEASURES:
        names = ", ".join(f'"{name}"' for name in MEASURES)
        raise OptionError(f"hippo: `measure` must be one of {names}, got {measure!r}.")
    N = at_least("hippo", "N", 1, N)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise DTypeError(f"hippo: `dtype` must be a floating-point dtype, got {dtype!r}.")
    n = torch.arange(N, dtype=torch.float64)
    one, root = torch.ones_like(n), (2 * n + 1).sqrt()
    if measure == "legs":
        parts, B = [-root, -n / (2 * n + 1), root, -one, one], root
    elif measure == "lagt":
        parts, B = [-one, -one / 2, one, -one, one], one
    elif measure == "legt":
        ends = torch.zeros_like(n)
        ends[0] += 0.5
        ends[-1] += 0.5
        parts, B = [-root / 2, 0 * n, root, -one / 2, ends, one / 2], root / 2
    else:
        parts, B = [one, -2 * one, one, 0 * n, one], one
    return Quasiseparable(*(x.to(dtype) for x in parts)), B.to(dtype)


# The same in one pass and back, where some thirty small operations of torch, and twice as many
# for their gradients, would cost as much as a short kernel.
_FORWARD = library.find_op("lssl_system")
_BACKWARD = library.find_op("lssl_system_bwd")


def in_one_pass(tensors: list[Tensor | None]) -> bool:
    """Say whether the compiled ops may read these parameters."""
    if _FORWARD is None or torch.compiler.is_compiling() or backends.transform() is not None:
        return False
    for x in tensors:  # a loop: this is a good part of a short call
        if x is not None and not (x.is_cpu and x.dtype in (torch.float32, torch.float64)):
            return False
    return True


def learning(tensors: Sequence[Tensor | None]) -> bool:
    """Say whether gradients of any of these are wanted."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


class System(NamedTuple):
    """E, F [3, H, N] (below, on and above the diagonal) and g [H, N], float64; see the module."""

    E: Tensor
    F: Tensor
    g: Tensor
    # Whether nothing above the diagonals can ever differ from 0.
    triangular: bool


def tridiagonal_system(A: Quasiseparable, B: Tensor, dt: Tensor, alpha: float) -> System:
    """Discretise in float64; differentiable with respect to every tensor."""
    tensors = [*A, B, dt]
    if not in_one_pass(tensors):
        E, F, g = _definition(A, B, dt, alpha)
    elif learning(tensors):
        E, F, g = _SystemFunction.apply(*tensors, alpha)
    else:
        E, F, g = _FORWARD(*tensors, alpha)
    return System(E, F, g, A.upper is None)


class _SystemFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the definition."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return E, F and g of the fields of A, B, dt and alpha."""
        *tensors, ctx.alpha = arguments
        ctx.save_for_backward(*tensors)
        return _FORWARD(*tensors, ctx.alpha)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the fields of A, B and dt."""
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():

            def definition(*tensors: Tensor) -> tuple[Tensor, ...]:
                *fields, B, dt = tensors
                return _definition(Quasiseparable(*fields), B, dt, ctx.alpha)

            grads = differentiable_grads(definition, tensors, ctx.needs_input_grad, cotangents)
            return *grads, None
        grads = _BACKWARD(*cotangents, *tensors, ctx.alpha)
        needs = ctx.needs_input_grad
        return *(d if need else None for d, need in zip(grads, needs, strict=False)), None


def _definition(
    A: Quasiseparable, B: Tensor, dt: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E, F and g of `System`."""
    P, D, Q, lower, diagonal = (x.double() for x in A[:5])
    upper = None if A.upper is None else A.upper.double()
    step = dt.double().unsqueeze(-1)
    implicit, inverse, DQ = alpha * step, 1 / P, D * Q
    shape = torch.broadcast_shapes(step.shape, P.shape, Q.shape, D.shape, diagonal.shape)

    def with_columns(x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the diagonals of T with its columns multiplied by x."""
        below = lower * functional.pad(x[..., :-1], (1, 0))
        above = None if upper is None else upper * functional.pad(x[..., 1:], (0, 1))
        return below, diagonal * x, above

    def stacked(parts: tuple[Tensor, Tensor, Tensor | None], on: Tensor) -> Tensor:
        below, middle, above = parts
        above = torch.zeros_like(below) if above is None else above
        return torch.stack([t.expand(shape) for t in (below, middle + on, above)])

    E = stacked(with_columns(inverse - implicit * DQ), -implicit * Q)
    F = stacked(with_columns(step * DQ), step * Q)
    below, on, above = with_columns(torch.ones_like(inverse))
    b = B.double() * inverse
    g = on * b + below * functional.pad(b[..., :-1], (1, 0))
    if above is not None:
        g = g + above * functional.pad(b[..., 1:], (0, 1))
    return E, F, (step * g).expand(shape)


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *fields, _, dt, _ = arguments
    H, N = dt.shape[0], fields[0].shape[-1]
    shapes = ((3, H, N), (3, H, N), (H, N))
    return tuple(dt.new_empty(shape, dtype=torch.float64) for shape in shapes)


def _backward_fake(dE: Tensor, dF: Tensor, dg: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _ = arguments
    return tuple(dE.new_empty((0,)) if x is None else x.new_empty(x.shape) for x in tensors)


if _FORWARD is not None:
    torch.library.register_fake("seqkern::lssl_system", _forward_fake)
    torch.library.register_fake("seqkern::lssl_system_bwd", _backward_fake)
