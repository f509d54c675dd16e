# SPDX-License-Identifier: Apache-2.0
"""The short causal convolution in front of q, k and v."""

from __future__ import annotations

import torch
import torch.nn as nn

from seqkern import ops
from seqkern.errors import OptionError, ShapeError
from seqkern.ops._checks import at_least, tensor


class ShortConvolution(nn.Conv1d):
    """Depthwise causal convolution over time, an optional SiLU, and a state to continue from.

        y_t = act(bias + sum_{j<W} weight[:, j] * x_{t-W+1+j})

    Parameters: ``weight`` [hidden_size, 1, kernel_size], ``bias`` [hidden_size] or None.

    Args:
        hidden_size: number of channels.
        kernel_size: W >= 1, the taps, the last of which is the present token.
        bias: add a bias per channel.
        activation: "silu" (= "swish") or None.
        backend: as in `seqkern.ops.causal_conv1d`; "auto" picks what the tensors can run on.
        device, dtype: of the parameters.

    Example:
        >>> conv = ShortConvolution(256, 4)
        >>> y, state = conv(torch.randn(8, 128, 256), output_final_state=True)
        >>> y, state = conv(torch.randn(8, 128, 256), cache=state, output_final_state=True)
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if activation not in (None, "silu", "swish"):
            raise OptionError(
                f"ShortConvolution: `activation` must be None, 'silu' or 'swish', got "
                f"{activation!r}. Apply another one to the output."
            )
        hidden_size = at_least("ShortConvolution", "hidden_size", 1, hidden_size)
        kernel_size = at_least("ShortConvolution", "kernel_size", 1, kernel_size)
        super().__init__(
            in_channels=hidden_size,
            out_channels=hidden_size,
            kernel_size=kernel_size,
            padding=kernel_size - 1,
            groups=hidden_size,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.hidden_size = hidden_size
        self.activation = activation
        self.backend = backend

    @property
    def state_size(self) -> int:
        """Numbers a sequence's state holds."""
        return self.hidden_size * self.kernel_size[0]

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: torch.Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convolve ``x``.

        Args:
            x: [B, T, D]; B = 1 when packed.
            residual: [B, T, D], added to the result.
            mask: [B, T], nonzero for a real token; masked inputs count as zeros.
            cache: [N, D, W], the last W inputs, any float dtype. A single token without gradients
                updates it in place if ``output_final_state`` and it has the dtype of ``x``; nothing
                else writes to it.
            output_final_state: also return the state after the last token.
            cu_seqlens: [N + 1], packs N sequences into B = 1.
        Returns:
            ``y`` [B, T, D], and the state [N, D, W] or None.
        """
        tensor("ShortConvolution", "x", x)
        if x.dim() != 3:
            raise ShapeError(f"ShortConvolution: `x` must be [B, T, D], got {list(x.shape)}.")
        if mask is not None:
            if cu_seqlens is not None:
                raise ShapeError(
                    "ShortConvolution: pass either `mask` or `cu_seqlens`; packed sequences "
                    "have no padding to mask."
                )
            tensor("ShortConvolution", "mask", mask)
            if mask.shape != x.shape[:2]:
                raise ShapeError(
                    f"ShortConvolution: `mask` must be [B, T] = {list(x.shape[:2])}, got "
                    f"{list(mask.shape)}. Cut it to the tokens of `x`."
                )
            x = x.masked_fill((mask == 0).unsqueeze(-1), 0)
        if cu_seqlens is None and x.shape[1] == 1 and not torch.is_grad_enabled():
            return self.step(x, residual, cache, output_final_state)
        return ops.causal_conv1d(
            x,
            self.weight.squeeze(1),
            self.bias,
            residual=residual,
            initial_state=cache,
            output_final_state=output_final_state,
            activation=self.activation,
            backend=self.backend,
            cu_seqlens=cu_seqlens,
        )

    def step(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        cache: torch.Tensor | None = None,
        output_final_state: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convolve one token per sequence, x [B, 1, D], without gradients; see `forward`."""
        if cache is None:
            cache = x.new_zeros(x.shape[0], self.hidden_size, self.kernel_size[0])
        elif cache.dtype is not x.dtype:
            cache = cache.to(x.dtype)  # one side under autocast, the other not
        elif not output_final_state:
            cache = cache.clone()
        y, cache = ops.causal_conv1d_update(
            x,
            cache,
            residual=residual,
            weight=self.weight.squeeze(1),
            bias=self.bias,
            activation=self.activation,
            backend=self.backend,
        )
        return y, cache if output_final_state else None
