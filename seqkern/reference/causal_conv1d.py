# SPDX-License-Identifier: Apache-2.0
"""The definition of the causal depthwise convolution.

    z_t = bias + sum_{i=0}^{W-1} weight_i * h_{t-W+1+i}        h: the initial state, then x
    y_t = act(z_t) + residual_t

The final state is the last W rows of ``h``; without an initial state, ``h`` starts with zeros.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve along T, in float64 for float64 inputs and in float32 otherwise.

    Args:
        x: [B, T, D], any floating dtype.
        weight: [D, W].
        bias: [D] or None.
        residual: [B, T, D] or None; added after the activation.
        initial_state: [N, D, W], the W inputs before the first one, or None for zeros.
        activation: None, "silu" or "swish".
        cu_seqlens: [N + 1] integers; packs N sequences into B = 1.

    Returns:
        ``y`` [B, T, D] and the final state [N, D, W], both in ``x.dtype``.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    B, T, D = x.shape
    bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
    N = B if cu_seqlens is None else len(bounds) - 1
    with torch.autocast(x.device.type, enabled=False):
        w, rows = weight.to(dtype).T, x.to(dtype)
        state = rows.new_zeros(N, D, len(w)) if initial_state is None else initial_state.to(dtype)
        state = state.transpose(1, 2)
        outs, finals = [rows[:, :0]], [state[:0]]
        for i, (start, end) in enumerate(pairwise(bounds)):
            before = state if cu_seqlens is None else state[i : i + 1]
            h = torch.cat([before, rows[:, start:end]], 1)
            taps = (w[j] * h[:, j + 1 : j + 1 + end - start] for j in range(len(w)))
            z = sum(taps, rows.new_zeros(()))
            outs.append(z if bias is None else z + bias.to(dtype))
            finals.append(h[:, end - start :])
        y = torch.cat(outs, 1)
        y = y if activation is None else silu(y)
        y = y if residual is None else y + residual.to(dtype)
        return y.to(x.dtype), torch.cat(finals).transpose(1, 2).to(x.dtype)


def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve a few new inputs that follow on the ``state_width`` last ones.

    Args:
        x: [N, T, D], any floating dtype.
        state: [N, D, state_width] with state_width >= W - 1, the latest input last.
        weight, bias, residual, activation: as in `causal_conv1d`.

    Returns:
        ``y`` [N, T, D] and the new state [N, D, state_width]; ``state`` itself is left alone.
    """
    W, T = weight.shape[1], x.shape[1]
    before = torch.nn.functional.pad(state, (W, 0))[..., state.shape[2] :]
    y, _ = causal_conv1d(x, weight, bias, residual, before, activation)
    return y, torch.cat([state, x.transpose(1, 2).to(state.dtype)], 2)[..., T:]
