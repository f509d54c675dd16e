# SPDX-License-Identifier: Apache-2.0
"""The linear state-space ops as `seqkern check` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqkern import ops
from seqkern.testing import Inputs, Shape

_CHANNELS = 2


def inputs(*left_out: str) -> Callable[[Shape, torch.dtype, int], Inputs]:
    """Make inputs for H = HV features and order K, without the tensors named."""

    def make(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        B, L, H, N, M = shape.B, shape.T, shape.HV or shape.H, shape.K, _CHANNELS

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw).to(dtype)

        A, b = ops.hippo("legs", N)
        tensors = {
            "u": normal(B, L, H),
            "B": b.to(dtype),
            "C": normal(H, M, N),
            "dt": (1e-3 * 50 ** torch.rand(H, generator=draw)).to(dtype),
            "D": normal(H, M),
            "state": normal(B, H, N).float(),
            **{f"A_{name}": x.to(dtype) for name, x in A._asdict().items() if x is not None},
        }
        kept = {name: x for name, x in tensors.items() if name not in left_out}
        if "u" in left_out:
            return Inputs(kept, {"L": L}, normal(H, M, L), normal(1))
        return Inputs(kept, {}, normal(B, L, H, M), normal(B, H, N).float())

    return make


def _matrix(named: dict[str, Any]) -> ops.Quasiseparable:
    fields = {name: named.pop(f"A_{name}", None) for name in ops.Quasiseparable._fields}
    return ops.Quasiseparable(**fields)


def scan(output_final_state: bool, state: Tensor, **named: Any) -> Any:
    """`lssl_scan` from a state."""
    return ops.lssl_scan(
        A=_matrix(named), initial_state=state, output_final_state=output_final_state, **named
    )


def conv(output_final_state: bool, state: Tensor, **named: Any) -> Any:
    """`lssl_conv`, and the state as it was."""
    return ops.lssl_conv(A=_matrix(named), **named), state * 1


def kernel(output_final_state: bool, **named: Any) -> Any:
    """`lssl_kernel`, and a number."""
    return ops.lssl_kernel(A=_matrix(named), **named), named["dt"].sum().reshape(1)


def step(output_final_state: bool, state: Tensor, u: Tensor, **named: Any) -> Any:
    """`lssl_step`, over and over."""
    A, ys = _matrix(named), []
    for u_t in u.unbind(1):
        y, state = ops.lssl_step(u_t, state, A, **named)
        ys.append(y)
    return torch.stack(ys, 1), state
