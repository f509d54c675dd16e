# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, alone and multiplied by an activated gate."""

from __future__ import annotations

import torch
import torch.nn as nn

from seqkern import ops
from seqkern.errors import OptionError
from seqkern.ops._checks import at_least, positive

GATES = ("swish", "silu", "sigmoid")


class _RMSNorm(nn.Module):
    """Holds the weight (ones, or None) and the optional bias (zeros), both [hidden_size]."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool,
        bias: bool,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        name = type(self).__name__
        self.hidden_size = at_least(name, "hidden_size", 1, hidden_size)
        positive(name, "eps", eps)
        self.elementwise_affine = elementwise_affine
        self.eps = eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if elementwise_affine:
            self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
            if bias:
                self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight to one, bias to zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.hidden_size}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}, eps={self.eps}"
        )


class RMSNorm(_RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * weight + bias`` over the last dimension, in float32.

    Parameters: ``weight`` [hidden_size], and ``bias`` [hidden_size] if asked for.

    Args:
        hidden_size: width of the last dimension.
        elementwise_affine: have a ``weight``; without one there is no ``bias`` either.
        bias: have a ``bias``.
        eps: added to the mean square, > 0.
        device, dtype: of the parameters.

    Example:
        >>> y = RMSNorm(256)(torch.randn(8, 128, 256))
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalize ``x`` [..., hidden_size].

        The other arguments are those of `seqkern.ops.rms_norm`.
        """
        return ops.rms_norm(
            x,
            self.weight,
            self.bias,
            residual=residual,
            eps=self.eps,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )


class FusedRMSNormGated(_RMSNorm):
    """``RMSNorm(x) * act(g)`` in one pass over memory.

    ``RMSNormGated`` is the same class. Parameters: ``weight`` [hidden_size].

    Args:
        hidden_size: width of the last dimension.
        elementwise_affine: have a ``weight``.
        eps: added to the mean square, > 0.
        activation: of the gate: "swish" (= "silu") or "sigmoid".
        device, dtype: of the parameters.

    Example:
        >>> norm = FusedRMSNormGated(64)
        >>> y = norm(torch.randn(8, 128, 4, 64), torch.randn(8, 128, 4, 64))
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if activation not in GATES:
            raise OptionError(
                f"FusedRMSNormGated: `activation` must be one of {', '.join(GATES)}, "
                f"got {activation!r}."
            )
        super().__init__(hidden_size, elementwise_affine, False, eps, device, dtype)
        self.activation = activation

    def forward(
        self,
        x: torch.Tensor,
        g: torch.Tensor,
        residual: torch.Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalize ``x`` and gate it by ``g``, both [..., hidden_size].

        The other arguments are those of `seqkern.ops.rms_norm_gated`.
        """
        return ops.rms_norm_gated(
            x,
            g,
            self.weight,
            self.bias,
            activation=self.activation,
            residual=residual,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{super().extra_repr()}, activation={self.activation}"


RMSNormGated = FusedRMSNormGated
