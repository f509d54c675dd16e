# SPDX-License-Identifier: Apache-2.0
"""Elementwise functions by the names that flash-linear-attention's options use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from seqkern.errors import OptionError


def sqrelu(x: torch.Tensor) -> torch.Tensor:
    """``max(x, 0) ** 2``."""
    return functional.relu(x).square()


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU."""
    return functional.gelu(x, approximate="tanh")


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    """``elu(x) + 1``, without cancellation for negative x."""
    return torch.where(x >= 0, x + 1, x.clamp_max(0).exp())


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": gelu,
    "logsigmoid": functional.logsigmoid,
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sqrelu": sqrelu,
    "swish": functional.silu,
}


def activation(name: str, option: str, layer: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Look up ``name``, or say which names ``option`` of ``layer`` takes."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise OptionError(
            f"{layer}: `{option}` must be one of {', '.join(ACTIVATIONS)}, got {name!r}."
        )
    return ACTIVATIONS[name]
