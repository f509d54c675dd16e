# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer: kernel, convolution, recurrence and single step.

    x' = A x + B u,   y = C x + D u            H independent features, order N, M channels
    A_bar = (I - alpha dt A)^-1 (I + (1 - alpha) dt A),   B_bar = dt (I - alpha dt A)^-1 B
    x_t = A_bar x_{t-1} + B_bar u_t,   y_t = C x_t + D u_t
    y = K * u + D u,   K_i = C A_bar^i B_bar

With a structured A (`hippo`, `Quasiseparable`) a step costs O(N), a kernel O(N L). A dense A goes
through matrix products. `seqkern.reference.lssl_scan` is the definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqkern._runtime import backends, library
from seqkern._runtime.autocast import without_autocast
from seqkern.ops import _lssl_checks as checks
from seqkern.ops._checks import at_least
from seqkern.ops._lssl_convolution import convolve
from seqkern.ops._lssl_dense import dense_kernel, dense_scan
from seqkern.ops._lssl_function import FORWARD, SEGMENT, STRUCTURED, LSSLFunction, solved
from seqkern.ops._lssl_system import (
    Quasiseparable,
    System,
    hippo,
    in_one_pass,
    learning,
    tridiagonal_system,
)
from seqkern.reference.lssl import lssl_discretize
from seqkern.reference.lssl import lssl_kernel as reference_kernel
from seqkern.reference.lssl import lssl_scan as reference_scan

__all__ = ["Quasiseparable", "hippo", "lssl_conv", "lssl_kernel", "lssl_scan", "lssl_step"]

StateMatrix = Tensor | Quasiseparable

_PLAIN = (Tensor, torch.nn.Parameter)
_COMPILED_DTYPES = (torch.float32, torch.float64)


def lssl_kernel(
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    L: int,
    alpha: float = 0.5,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return the convolution kernel K_i = C A_bar^i B_bar, also known as Krylov function.

    Args:
        A: `Quasiseparable` of order N, or a dense matrix [N, N] or [H, N, N].
        B: [N] or [H, N].
        C: [H, M, N]; float64 makes everything float64, any other type float32.
        dt: [H] time steps, > 0 (not checked).
        L: length, >= 0.
        alpha: of the generalised bilinear transform, in [0, 1]: 0 Euler, 1/2 bilinear, 1 backward
            Euler.
        backend: "auto", "cpu" or "reference".

    Returns:
        [H, M, L], a view with strides (1, H, H M). All tensors are differentiable.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.
        EliminationError: ``dt`` holds NaN, or the system cannot be solved without row exchanges.

    Source:
        Gu et al. 2021, "Combining Recurrent, Convolutional, and Continuous-time Models with Linear
        State-Space Layers", section 3.

    Example:
        >>> A, B = hippo("legs", 64)
        >>> K = lssl_kernel(A, B, torch.randn(16, 1, 64), torch.full((16,), 0.01), L=1024)
    """
    op = "lssl_kernel"
    done = _at_once(backend, A, B, C, dt, alpha, L=L)
    if done is not None:
        return done[0].squeeze(0).permute(2, 1, 0)
    alpha = checks.system(op, A, B, C, dt, None, alpha)
    L = at_least(op, "L", 0, L)
    return _kernel(A, B, C, dt, L, alpha, _use_kernel(op, backend, A, C, B=B, dt=dt))


def lssl_conv(
    u: Tensor,
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    alpha: float = 0.5,
    *,
    backend: str = "auto",
) -> Tensor:
    """Run the layer as a causal convolution: the kernel, then Fourier transforms of length 2 L.

    Args:
        u: [B, L, H], any floating dtype; float64 makes everything float64, else float32.
        A, B, C, dt, alpha, backend: see `lssl_kernel`.
        D: [H, M] or None.

    Returns:
        ``y`` [B, L, H, M] in the dtype of ``u``. All tensors are differentiable.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.
        EliminationError: ``dt`` holds NaN, or the system cannot be solved without row exchanges.
    """
    op = "lssl_conv"
    alpha = checks.system(op, A, B, C, dt, D, alpha)
    checks.sequence(op, u, C, None, step=False)
    use = _use_kernel(op, backend, A, C, B=B, dt=dt, u=u, D=D)
    v, C, D = _in(_work(u), u, C, D)
    K = _kernel(A, B, C, dt, u.shape[1], alpha, use)
    return convolve(v, K, D, compiled=use).to(u.dtype)


def lssl_scan(
    u: Tensor,
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    alpha: float = 0.5,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Run the layer as a recurrence over a whole sequence; no kernel, no FFT, O(N) state.

    Args:
        u: [B, L, H], any floating dtype; float64 makes everything float64, else float32.
        A, B, C, dt, alpha, backend: see `lssl_kernel`.
        D: [H, M] or None.
        initial_state: [B, H, N], or None for zeros.
        output_final_state: also return the state after the last step.

    Returns:
        ``y`` [B, L, H, M] in the dtype of ``u``, and the final state [B, H, N] in float32 (float64)
        or None. All tensors are differentiable.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.
        EliminationError: ``dt`` holds NaN, or the system cannot be solved without row exchanges.

    Example:
        >>> y, x = lssl_scan(u, A, B, C, dt, output_final_state=True)
        >>> y2, _ = lssl_scan(u2, A, B, C, dt, initial_state=x)  # continue where we stopped
    """
    op = "lssl_scan"
    done = _at_once(backend, A, B, C, dt, alpha, D, u, initial_state)
    if done is not None:
        return done[0].transpose(2, 3), done[1] if output_final_state else None
    alpha = checks.system(op, A, B, C, dt, D, alpha)
    checks.sequence(op, u, C, initial_state, step=False)
    y, x = _scan(op, u, A, B, C, dt, D, alpha, initial_state, backend)
    return y, x if output_final_state else None


def lssl_step(
    u: Tensor,
    state: Tensor | None,
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    alpha: float = 0.5,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one step of the recurrence.

    Args:
        u: [B, H], any floating dtype.
        state: [B, H, N], or None for zeros.
        A, B, C, dt, D, alpha, backend: see `lssl_scan`.

    Returns:
        ``y`` [B, H, M] in the dtype of ``u`` and the new state [B, H, N]. ``state`` is unchanged.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.
        EliminationError: ``dt`` holds NaN, or the system cannot be solved without row exchanges.
    """
    op = "lssl_step"
    done = _at_once(backend, A, B, C, dt, alpha, D, u, state, step=True)
    if done is not None:
        return done[0].squeeze(1).transpose(1, 2), done[1]
    alpha = checks.system(op, A, B, C, dt, D, alpha)
    checks.sequence(op, u, C, state, step=True)
    y, x = _scan(op, u.unsqueeze(1), A, B, C, dt, D, alpha, state, backend)
    return y.squeeze(1), x


def run_system(
    system: System,
    C: Tensor,
    D: Tensor | None,
    u: Tensor | None,
    x0: Tensor | None,
    L: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run the compiled recurrence of a discretised system.

    Args:
        system: see `tridiagonal_system`.
        C: [H, M, N], float32 or float64.
        D: [H, M] or None, dtype of ``C``.
        u: [B, L, H], dtype of ``C``, or None for the impulse response of length ``L``.
        x0: [B, H, N] or None, dtype of ``C``.
        L: counts only without ``u``.

    Returns:
        ``y`` [B, L, M, H] and the final state [B, H, N].
    """
    E, F, g, triangular = system
    exporting = torch.compiler.is_exporting()
    if u is None and exporting:  # into an impulse, whose length may be symbolic
        u, L = functional.pad(C.new_ones(1, 1, C.shape[0]), (0, 0, 0, L - 1)), 0
    tensors = (E, F, g, C, D, u, x0)
    # An exported graph has no backward pass, and the checkpoints of one would pin its length.
    if not exporting and learning(tensors):
        return LSSLFunction.apply(*tensors, L, triangular)
    y, x, _ = solved(FORWARD, *tensors, L, SEGMENT, False)
    return y, x


def run_structured(
    A: Quasiseparable,
    B: Tensor,
    dt: Tensor,
    alpha: float,
    C: Tensor,
    D: Tensor | None,
    u: Tensor | None,
    x0: Tensor | None,
    L: int = 0,
) -> tuple[Tensor, Tensor]:
    """Discretise and run; see `tridiagonal_system` and `run_system`."""
    if not learning((*A, B, dt, C, D, u, x0)) and _is_shared(A, B) and in_one_pass([*A, B, dt]):
        y, x = solved(STRUCTURED, *A, B, dt, alpha, C, D, u, x0, L, SEGMENT)
        return y, x
    return run_system(tridiagonal_system(A, B, dt, alpha), C, D, u, x0, L)


def _at_once(
    backend: str,
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    alpha: float,
    D: Tensor | None = None,
    u: Tensor | None = None,
    x0: Tensor | None = None,
    L: int | None = None,
    step: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Return ``y`` [B, L, M, H] and the last state by an op that checks its arguments itself.

    A short call costs no more than the checks in Python. None where the op does not serve, or has
    refused: the caller then checks, to say what is wrong.

    Args:
        backend, A, B, C, dt, alpha, D, u, x0: see `lssl_scan`.
        L: length of the impulse response; None with ``u``.
        step: ``u`` is [B, H].
    """
    if (
        STRUCTURED is None
        or (backends.preferred if backend == "auto" else backend) not in ("auto", "cpu")
        or C is None
        or not (type(A) is Quasiseparable and type(alpha) is float and 0 <= alpha <= 1)
        or not (u is not None if L is None else type(L) is int and L >= 0)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or backends.forward_mode()
    ):
        return None
    learning = torch.is_grad_enabled()
    for x in (*A, B, dt, C, D, u, x0):
        if x is None:
            continue
        if type(x) not in _PLAIN or not x.is_cpu or x.dtype not in _COMPILED_DTYPES:
            return None
        if learning and x.requires_grad:
            return None
    for x in (D, u, x0):
        if x is not None and x.dtype is not C.dtype:
            return None
    if not _is_shared(A, B):
        return None
    if step:
        if u is None or u.dim() != 2:
            return None
        u = u.unsqueeze(1)
    try:
        y, x = STRUCTURED(*A, B, dt, alpha, C, D, u, x0, L or 0, SEGMENT)
    except RuntimeError:
        return None
    return y, x


def _is_shared(A: Quasiseparable, B: Tensor) -> bool:
    return all(x is None or x.dim() == 1 for x in (*A, B))


def _work(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _use_kernel(op: str, backend: str, A: StateMatrix, C: Tensor, **tensors: Tensor | None) -> bool:
    """Say whether the fast path serves this call: the compiled one, or products for a dense A."""
    checks.devices(op, A, C=C, **tensors)
    obstacle = None
    if isinstance(A, Quasiseparable):
        if not (C.is_cpu or C.is_meta):
            obstacle = f"there is no compiled kernel for {C.device.type} tensors"
        elif FORWARD is None:
            obstacle = library.missing_reason("lssl_fwd")
    return backends.use_kernel(op, backend, obstacle)


def _in(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [t if t is None else t.to(dtype) for t in tensors]


def _definition(A: StateMatrix, B: Tensor, dt: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return A as a matrix, B and dt in the dtype of the call."""
    if isinstance(A, Quasiseparable):
        A = Quasiseparable(*_in(dtype, *A)).dense()
    return A.to(dtype), B.to(dtype), dt.to(dtype)


def _kernel(
    A: StateMatrix, B: Tensor, C: Tensor, dt: Tensor, L: int, alpha: float, use: bool
) -> Tensor:
    work = _work(C)
    C = C.to(work)
    if use and isinstance(A, Quasiseparable):
        y, _ = run_structured(A, B, dt, alpha, C, None, None, None, L)
        return y.squeeze(0).permute(2, 1, 0)
    with without_autocast(C.device.type):
        A, B, dt = _definition(A, B, dt, work)
        if use:
            return dense_kernel(*lssl_discretize(A, B, dt, alpha), C, L)
        return reference_kernel(A, B, C, dt, L, alpha)


def _scan(
    op: str,
    u: Tensor,
    A: StateMatrix,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None,
    alpha: float,
    state: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    work, name = _work(u), "state" if op == "lssl_step" else "initial_state"
    use = _use_kernel(op, backend, A, C, B=B, dt=dt, D=D, u=u, **{name: state})
    v, C, D, x0 = _in(work, u, C, D, state)
    if use and isinstance(A, Quasiseparable):
        y, x = run_structured(A, B, dt, alpha, C, D, v, x0)
        return y.transpose(2, 3).to(u.dtype), x
    with without_autocast(u.device.type):
        A, B, dt = _definition(A, B, dt, work)
        if use:
            y, x = dense_scan(v, *lssl_discretize(A, B, dt, alpha), C, D, x0)
        else:
            y, x = reference_scan(v, A, B, C, dt, D, alpha, x0)
    return y.to(u.dtype), x
