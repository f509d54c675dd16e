# SPDX-License-Identifier: Apache-2.0
"""The definition of the root-mean-square norm, plain and gated.

r = x + residual
y = r / sqrt(mean(r^2) + eps) * weight + bias        the mean is over the last axis
y = y * act(g)                                       act: swish (= silu) or sigmoid
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm_gated(
    x: Tensor,
    g: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "swish",
    residual: Tensor | None = None,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalise and gate, in float64 for float64 inputs and in float32 otherwise.

    Args:
        x: [..., D], any floating dtype.
        g: [..., D] gate, or None for the plain norm.
        weight, bias: [D] or None.
        activation: "swish", "silu" or "sigmoid".
        residual: [..., D] or None, added to ``x`` first.
        residual_in_fp32: without a residual, return ``x`` in float32 as the residual stream.
        eps: added to the mean square, > 0.

    Returns:
        ``y`` [..., D] in ``x.dtype``, and the residual stream [..., D] in the dtype of the residual
        (without one: of ``x``, or float32 if asked).
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    stream = x.dtype if residual is None else residual.dtype
    if residual is None and residual_in_fp32 and dtype == torch.float32:
        stream = dtype
    with torch.autocast(x.device.type, enabled=False):
        r = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
        y = r * torch.rsqrt(r.square().mean(-1, keepdim=True) + eps)
        y = y if weight is None else y * weight.to(dtype)
        y = y if bias is None else y + bias.to(dtype)
        if g is not None:
            y = y * (g.to(dtype).sigmoid() if activation == "sigmoid" else silu(g.to(dtype)))
        return y.to(x.dtype), r.to(stream)
