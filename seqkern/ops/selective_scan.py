# SPDX-License-Identifier: Apache-2.0
"""Selective scan: Mamba's diagonal recurrence, with eigenvalues in [0, 1] or [-1, 1].

    dt_t = delta_t + delta_bias, through softplus if asked for
    a_t  = exp(dt_t A), or 2 exp(dt_t A) - 1 with negative eigenvalues
    h_t  = a_t h_{t-1} + dt_t u_t B_t                                  h: [D, N]
    y_t  = sum_N C_t h_t + D u_t, times silu(z_t) if there is a z

`seqkern.reference.selective_scan` is the definition.
"""

import torch
from torch import Tensor

from seqkern._runtime import backends
from seqkern.errors import SeqkernError
from seqkern.ops import _checks, _selective_scan_checks
from seqkern.ops._gradients import overwritten
from seqkern.ops._selective_scan_function import FORWARD, STEP, SelectiveScanFunction
from seqkern.reference.selective_scan import selective_scan as reference_scan


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    allow_neg_eigval: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over whole sequences; mamba_ssm's names and layouts.

    Any strides are read in place: a transposed [batch, T, D] tensor costs nothing, and comes out
    as such. Second derivatives (``create_graph=True``) go through the reference.

    Args:
        u: [batch, D, T], float32, bfloat16, float16 or float64; computed in float32 (float64).
        delta: [batch, D, T], the time step dt before bias and softplus, any float dtype.
        A: [D, N], real, any float dtype; a state decays where it is negative.
        B, C: [batch, N, T]; [batch, G, N, T] for G groups of D / G channels; or [D, N], the same
            at every step. Any float dtype.
        D: [D], the skip connection, or None.
        z: [batch, D, T], the gate before its SiLU, or None.
        delta_bias: [D], added to ``delta``, or None.
        delta_softplus: apply softplus to the biased ``delta``.
        return_last_state: also return the state after the last step.
        initial_state: [sequences, D, N], or None for zeros. Differentiable.
        allow_neg_eigval: eigenvalues ``2 exp(dt A) - 1`` in [-1, 1] instead of ``exp(dt A)``; the
            write ``dt u B`` stays as it is.
        cu_seqlens: [sequences + 1] int32 or int64; packs sequences into a batch of 1. Empty ones
            are legal.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``out`` [batch, D, T] in the dtype of ``u``; with ``return_last_state`` a pair of it and the
        last state [sequences, D, N], float32 (float64).

    Raises:
        ShapeError, DTypeError, DeviceError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Gu and Dao 2023, "Mamba", algorithm 2; Grazzi et al. 2025, "Unlocking State-Tracking in
        Linear RNNs Through Negative Eigenvalues", section 4.

    Example:
        >>> y, state = selective_scan(u, delta, A, B, C, return_last_state=True)
        >>> y2 = selective_scan(u2, delta2, A, B2, C2, initial_state=state)     # goes on
    """
    op = "selective_scan"
    B, C = _selective_scan_checks.scan(
        op, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens
    )
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    named = {"u": u, "delta": delta, "z": z, "A": A, "B": B, "C": C, "D": D}
    named |= {"delta_bias": delta_bias, "initial_state": initial_state}
    obstacle = _selective_scan_checks.obstacle(op, named, "selective_scan_fwd", FORWARD)
    if not backends.use_kernel(op, backend, obstacle):
        out, ht = reference_scan(
            *inputs, delta_softplus, initial_state, allow_neg_eigval, cu_seqlens
        )
        return (out, ht) if return_last_state else out
    cu_seqlens = _checks.kernel_offsets(cu_seqlens, u)
    # The kernel reads the coefficients of one step side by side.
    B, C = (x if x.dim() == 2 else x.transpose(2, 3) for x in (B, C))
    time_major = u.shape[1] > 1 and u.stride(1) == 1
    flags = (bool(delta_softplus), bool(allow_neg_eigval), time_major, bool(return_last_state))
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        out, ht = SelectiveScanFunction.apply(*tensors, *flags)
    else:
        out, ht, _ = FORWARD(*tensors, *flags, False)
    return (out, ht) if return_last_state else out


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    allow_neg_eigval: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Take one step of the selective scan and move ``state`` on, in place; mamba_ssm's names.

    Not differentiable: `selective_scan` with ``initial_state`` is.

    Args:
        state: [batch, D, N], any float dtype. **Overwritten.** Dense float32 is fastest.
        x, dt: [batch, D], float32, bfloat16, float16 or float64.
        A: [D, N].
        B, C: [batch, N], [batch, G, N] for G groups of D / G channels, or, of a batch other than
            D, [D, N] for the same at every step. [D, N] is read as [batch, N] if batch = D.
        D: [D] or None.
        z: [batch, D], the gate before its SiLU, or None.
        dt_bias: [D] or None.
        dt_softplus: apply softplus to the biased ``dt``.
        allow_neg_eigval: eigenvalues ``2 exp(dt A) - 1`` instead of ``exp(dt A)``.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` [batch, D] in the dtype of ``x``.

    Raises:
        ShapeError, DTypeError, DeviceError: the message names the argument.
        SeqkernError: a gradient was asked for.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Example:
        >>> y, state = selective_scan(u, delta, A, B, C, return_last_state=True)
        >>> y_next = selective_state_update(state, u_next, delta_next, A, B_next, C_next)
    """
    op = "selective_state_update"
    B, C = _selective_scan_checks.step(op, state, x, dt, A, B, C, D, z, dt_bias)
    inputs = (x, dt, A, B, C, D, z, dt_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*inputs, state)):
        raise SeqkernError(
            f"{op}: the update has no gradient. Call it under torch.no_grad(), or use "
            "`selective_scan` with `initial_state` to train."
        )
    named = {"x": x, "dt": dt, "z": z, "A": A, "B": B, "C": C, "D": D}
    named |= {"dt_bias": dt_bias, "state": state}
    obstacle = _selective_scan_checks.obstacle(op, named, "selective_scan_step", STEP)
    if backends.use_kernel(op, backend, obstacle, in_place=True):
        if state.dtype is torch.float32 and state.is_contiguous():
            y = STEP(state, *inputs, bool(dt_softplus), bool(allow_neg_eigval))
            overwritten(state)
            return y
        dense = state.float().contiguous()
        y = STEP(dense, *inputs, bool(dt_softplus), bool(allow_neg_eigval))
        state.copy_(dense)
        return y
    B, C = (t if t.dim() == 2 else t.unsqueeze(3) for t in (B, C))
    z = None if z is None else z.unsqueeze(2)
    x, dt = x.unsqueeze(2), dt.unsqueeze(2)
    y, ht = reference_scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state, allow_neg_eigval)
    state.copy_(ht)
    return y.squeeze(2)
