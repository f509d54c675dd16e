# SPDX-License-Identifier: Apache-2.0
"""The definition of the linear state-space layer: one dense matrix, one step after the other.

x' = A x + B u,   y = C x + D u                                  per feature, time step dt
A_bar = (I - alpha dt A)^-1 (I + (1 - alpha) dt A)
B_bar = dt (I - alpha dt A)^-1 B
x_t = A_bar x_{t-1} + B_bar u_t,   y_t = C x_t + D u_t,   K_i = C A_bar^i B_bar
"""

import torch
from torch import Tensor

from seqkern.reference._solve import solve


def lssl_discretize(A: Tensor, B: Tensor, dt: Tensor, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return A_bar [H, N, N] and B_bar [H, N] of the generalised bilinear transform.

    Args:
        A: [N, N] or [H, N, N].
        B: [N] or [H, N].
        dt: [H].
        alpha: 0 Euler, 1/2 bilinear, 1 backward Euler.
    """
    step = dt[:, None, None]
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    implicit = eye - alpha * step * A
    inputs = (dt[:, None] * B).unsqueeze(-1)
    both = torch.cat([(eye + (1 - alpha) * step * A).expand_as(implicit), inputs], dim=-1)
    solved = solve(implicit, both)
    return solved[..., :-1], solved[..., -1]


def lssl_scan(
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    alpha: float = 0.5,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over u [L, B, H]-wise; all tensors of one dtype.

    Returns:
        ``y`` [B, L, H, M] and the last state [B, H, N].
    """
    A_bar, B_bar = lssl_discretize(A, B, dt, alpha)
    x = u.new_zeros(u.shape[0], *B_bar.shape) if initial_state is None else initial_state.clone()
    ys = []
    for u_t in u.unbind(1):
        x = torch.einsum("hij,bhj->bhi", A_bar, x) + B_bar * u_t.unsqueeze(-1)
        y = torch.einsum("hmn,bhn->bhm", C, x)
        ys.append(y if D is None else y + D * u_t.unsqueeze(-1))
    return torch.stack(ys, 1) if ys else u.new_zeros(*u.shape, C.shape[1]), x


def lssl_kernel(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int, alpha: float = 0.5) -> Tensor:
    """Return the convolution kernel K [H, M, L], power by power."""
    A_bar, B_bar = lssl_discretize(A, B, dt, alpha)
    K, x = [], B_bar
    for _ in range(L):
        K.append(torch.einsum("hmn,hn->hm", C, x))
        x = torch.einsum("hij,hj->hi", A_bar, x)
    return torch.stack(K, -1) if K else C.new_zeros(*C.shape[:2], 0)


def tridiagonal_scan(
    E: Tensor,
    F: Tensor,
    g: Tensor,
    C: Tensor,
    D: Tensor | None,
    u: Tensor,
    x0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run E d_t = F x_{t-1} + g u_t, x_t = x_{t-1} + d_t, y_t = C x_t + D u_t with dense solves.

    Args:
        E, F: [3, H, N], below, on and above the diagonal.
        g: [H, N].
        C, D: [H, M, N], [H, M].
        u: [B, L, H].
        x0: [B, H, N].
    """
    N = g.shape[-1]
    eye = torch.eye(N, dtype=E.dtype, device=E.device)
    below, above = eye.roll(-1, 1).tril(-1), eye.roll(1, 1).triu(1)

    def dense(x: Tensor) -> Tensor:
        return sum(p.unsqueeze(-1) * q for p, q in zip(x, (below, eye, above), strict=True))

    solved = solve(dense(E), torch.cat([dense(F), g.unsqueeze(-1)], dim=-1))
    A_bar, B_bar = (eye + solved[..., :-1]).to(C.dtype), solved[..., -1].to(C.dtype)
    x = u.new_zeros(u.shape[0], *g.shape) if x0 is None else x0.clone()
    ys = []
    for u_t in u.unbind(1):
        x = torch.einsum("hij,bhj->bhi", A_bar, x) + B_bar * u_t.unsqueeze(-1)
        y = torch.einsum("hmn,bhn->bmh", C, x)
        ys.append(y if D is None else y + D.t() * u_t.unsqueeze(1))
    return torch.stack(ys, 1) if ys else u.new_zeros(u.shape[0], 0, C.shape[1], u.shape[2]), x
