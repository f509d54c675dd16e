# SPDX-License-Identifier: Apache-2.0
"""A sequence classifier built from linear state-space layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqkern.errors import DTypeError, ShapeError
from seqkern.nn.lssl import LSSL, optimizer_groups
from seqkern.ops._checks import at_least, tensor


class _Block(nn.Module):
    """Norm, layer, dropout and residual; the norm stands before the layer or after the sum."""

    def __init__(self, layer: LSSL, dropout: float, prenorm: bool):
        super().__init__()
        self.layer = layer
        self.norm = nn.LayerNorm(layer.hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.prenorm = prenorm

    def forward(self, x: Tensor, rate: float) -> Tensor:
        y, _ = self.layer(self.norm(x) if self.prenorm else x, rate=rate)
        x = x + self.dropout(y)
        return x if self.prenorm else self.norm(x)


class LSSLClassifier(nn.Module):
    """Encoder, a stack of `seqkern.nn.LSSL` blocks, mean over time, head.

    The defaults are the paper's for sequential MNIST: 6 layers, H = N = 128, M = 1, dropout 0.2.

    Args:
        input_size: features per step.
        num_classes: size of the output.
        hidden_size: H.
        num_layers: blocks.
        dropout: inside the layers and on the residual branches.
        prenorm: normalise before each layer instead of after each sum.
        layer: further arguments of `seqkern.nn.LSSL`.
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        hidden_size: int = 128,
        num_layers: int = 6,
        dropout: float = 0.2,
        prenorm: bool = False,
        **layer: Any,
    ):
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("num_classes", num_classes),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            at_least("LSSLClassifier", name, 1, size)
        self.input_size = input_size
        self.encoder = nn.Linear(input_size, hidden_size)
        self.blocks = nn.ModuleList(
            _Block(LSSL(hidden_size, dropout=dropout, **layer), dropout, prenorm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size) if prenorm else nn.Identity()
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """Classify sequences.

        Args:
            x: [B, L, input_size].
            rate: how many training steps one step stands for, see `seqkern.nn.LSSL.forward`.

        Returns:
            Logits [B, num_classes].
        """
        tensor("LSSLClassifier", "x", x)
        if x.dim() != 3 or x.shape[1] == 0 or x.shape[-1] != self.input_size:
            raise ShapeError(
                f"LSSLClassifier: `x` must be [B, L, input_size] = [B, L, {self.input_size}] with "
                f"L >= 1, got {list(x.shape)}."
            )
        own = self.encoder.weight.dtype
        if x.dtype is not own and not torch.is_autocast_enabled(x.device.type):
            raise DTypeError(
                f"LSSLClassifier: `x` is {x.dtype}, the model {own}. Convert one of them, "
                f"`x.to({own})` or `model.to({x.dtype})`, or run under `torch.autocast`."
            )
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x, rate)
        return self.head(self.norm(x).mean(dim=1))

    def optimizer_groups(
        self, lr: float, weight_decay: float = 0.0, lr_A: float = 1e-4, lr_dt: float = 1e-3
    ) -> list[dict[str, Any]]:
        """Return parameter groups for an optimiser, see `seqkern.nn.LSSL.optimizer_groups`."""
        return optimizer_groups(self, lr, weight_decay, lr_A, lr_dt)
