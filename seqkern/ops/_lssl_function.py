# SPDX-License-Identifier: Apache-2.0
"""Autograd and shapes of the compiled ops behind the linear state-space layer.

The forward pass keeps one state in `segment_length` steps; the backward pass runs the steps in
between again.
"""

from typing import Any

import torch
from torch import Tensor

from seqkern._runtime import library
from seqkern.errors import EliminationError
from seqkern.ops._gradients import differentiable_grads
from seqkern.reference.lssl import tridiagonal_scan

FORWARD = library.find_op("lssl_fwd")
# Without gradients, and without E, F and g in between: a short kernel costs little more than these.
STRUCTURED = library.find_op("lssl_structured")
BACKWARD = library.find_op("lssl_bwd")

# LsslWanted in lssl.h.
_NONE, _LOWER, _ALL = 0, 1, 2
# Steps between two saved states. After the fewest, most_kept in lssl_system.hpp, the backward pass
# takes every step once more instead of twice; where that is worth the bytes they are as few as
# these allow.
SEGMENT, _BYTES = 128, 64 << 20


def solved(op: Any, *arguments: Any) -> Any:
    """Call `FORWARD` or `STRUCTURED`, which refuse systems that they would solve badly."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        if not str(error).startswith("lssl: elimination"):
            raise
        raise EliminationError(str(error).splitlines()[0]) from None


def _block(H: int) -> int:
    """Return how many features share a block of checkpoints: lssl_checkpoint_block in lssl.h."""
    return 32 if H > 16 else 16


def segment_length(B: int, L: int, C: Tensor, triangular: bool) -> int:
    """Return how many steps lie between two saved states of ``B`` sequences of length ``L``."""
    if triangular:  # a step costs little more than saving its state
        return SEGMENT
    bytes_of_all = B * L * C.shape[0] * C.shape[2] * C.element_size()
    segment = 64 // C.element_size()
    while segment < SEGMENT and bytes_of_all > segment * _BYTES:
        segment *= 2
    return segment


class LSSLFunction(torch.autograd.Function):
    """One compiled op forward, one backward; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        E: Tensor,
        F: Tensor,
        g: Tensor,
        C: Tensor,
        D: Tensor | None,
        u: Tensor | None,
        x0: Tensor | None,
        L: int,
        triangular: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return ``y`` [B, L, M, H] and the last state [B, H, N].

        Args:
            ctx: of autograd.
            E, F: [3, H, N] float64.
            g: [H, N] float64.
            C: [H, M, N], float32 or float64: the type of all that follows.
            D: [H, M] or None.
            u: [B, L, H], or None for the impulse response of length ``L`` (B = 1).
            x0: [B, H, N] or None.
            L: counts only without ``u``.
            triangular: E and F have only zeros above their diagonals, and these need no gradient.
        """
        count, length = (1, L) if u is None else u.shape[:2]
        segment = segment_length(count, length, C, triangular)
        y, xt, checkpoints = solved(FORWARD, E, F, g, C, D, u, x0, L, segment, True)
        ctx.save_for_backward(E, F, g, C, D, u, x0, checkpoints)
        ctx.options = (y.shape, segment, triangular)
        ctx.set_materialize_grads(False)
        return y, xt

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dxt: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of E, F, g, C, D, u and x0."""
        *inputs, checkpoints = ctx.saved_tensors
        shape, segment, triangular = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable(ctx, inputs, dy, dxt), None, None
        E, F, g, C, D, u, x0 = inputs
        if dy is None:
            dy = C.new_zeros(shape)
        needs = ctx.needs_input_grad
        wanted = (_LOWER if triangular else _ALL) if any(needs[:3]) else _NONE
        du, dx0, dE, dF, dg, dC, dD = BACKWARD(
            dy, dxt, E, F, g, C, D, u, x0, checkpoints, segment, wanted
        )
        found = (dE, dF, dg, dC.to(C.dtype), dD.to(C.dtype), du, dx0)
        return *(d if need else None for d, need in zip(found, needs, strict=False)), None, None


def _differentiable(
    ctx: Any, inputs: list[Any], dy: Tensor | None, dxt: Tensor | None
) -> list[Tensor | None]:
    def definition(
        E: Tensor, F: Tensor, g: Tensor, C: Tensor, D: Tensor | None, u: Any, x0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if u is None:
            u = C.new_zeros(1, ctx.options[0][1], C.shape[0])
            u[:, :1] = 1
        return tridiagonal_scan(E, F, g, C, D, u, x0)

    return differentiable_grads(definition, inputs, ctx.needs_input_grad, (dy, dxt))


def _forward_fake(
    E: Tensor,
    F: Tensor,
    g: Tensor,
    C: Tensor,
    D: Tensor | None,
    u: Tensor | None,
    x0: Tensor | None,
    L: int,
    segment: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    H, M, N = C.shape
    B, T = (1, L) if u is None else (u.shape[0], u.shape[1])
    block = _block(H)
    saved = (B, (T + segment - 1) // segment, (H + block - 1) // block, N, block)
    return (
        C.new_empty((B, T, M, H)),
        C.new_empty((B, H, N)),
        C.new_empty(saved if keep else (0,)),
    )


def _structured_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    # Nine describe the system, of which the shapes that follow say enough.
    C, pass_through, u, x0, L, segment = arguments[9:]
    y, xt, _ = _forward_fake(C, C, C, C, pass_through, u, x0, L, segment, False)
    return y, C.new_empty((0,)) if u is None else xt


def _backward_fake(
    dy: Tensor,
    dxt: Tensor | None,
    E: Tensor,
    F: Tensor,
    g: Tensor,
    C: Tensor,
    D: Tensor | None,
    u: Tensor | None,
    x0: Tensor | None,
    checkpoints: Tensor,
    segment: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    H, M, N = C.shape
    wide = E.new_empty
    return (
        C.new_empty((0,) if u is None else u.shape),
        C.new_empty((dy.shape[0], H, N)),
        wide((3 if wanted else 0, H, N)),
        wide((3 if wanted else 0, H, N)),
        wide((H if wanted else 0, N)),
        wide(C.shape),
        wide((0 if D is None else H, M)),
    )


if FORWARD is not None:
    torch.library.register_fake("seqkern::lssl_fwd", _forward_fake)
    torch.library.register_fake("seqkern::lssl_structured", _structured_fake)
    torch.library.register_fake("seqkern::lssl_bwd", _backward_fake)
