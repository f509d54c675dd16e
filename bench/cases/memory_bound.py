# SPDX-License-Identifier: Apache-2.0
"""The short convolution and the gated norm: little arithmetic, so bytes are what counts.

The peers are what a torch user writes: `torch.nn.functional.conv1d` per channel, and a norm and a
gate in separate steps. Shapes are those of a layer: B=1, T=2048, D = 2 H V = 1024, four taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bench.checks import Finding, same_as_rival
from bench.registry import Contest, Entry, Size, case
from seqkern import ops

TAPS = 4
EPS = 1e-5
DTYPES = {"dtype": ["float32", "bfloat16"]}


def _normal(s: Size, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(s.torch_dtype)


def _torch_convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Depthwise causal convolution and SiLU; x [B, T, D], weight [D, W]."""
    T, D = x.shape[1:]
    y = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), padding=TAPS - 1, groups=D)
    return F.silu(y[..., :T]).transpose(1, 2)


def _torch_norm(x: torch.Tensor, g: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last axis times SiLU of the gate."""
    return F.rms_norm(x, (x.shape[-1],), weight, EPS) * F.silu(g)


def _our_convolution(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return ops.causal_conv1d(x, weight, activation="silu")


def _our_norm(x: torch.Tensor, g: torch.Tensor, weight: torch.Tensor) -> Any:
    return ops.rms_norm_gated(x, g, weight, eps=EPS)


def _contest(call: Any, peer: Any, x: dict[str, Any], pass_: str, tokens: int) -> Contest:
    ours = Entry("seqkern", call, x, pass_, tokens=tokens)
    rival = Entry("torch", peer, x, pass_, tokens=tokens, peer=True)

    def check() -> list[Finding]:
        found = same_as_rival(ours, rival, gradients=pass_ != "fwd")
        # Torch rounds 16-bit intermediate results, ours does not: a handful of roundings apart.
        wide = x["x"].dtype == torch.float32
        return [Finding(f.name, f.error, f.allowed * (1 if wide else 5)) for f in found]

    return Contest(ours, rival, check)


def _rows(pass_: str, words: str) -> None:
    @case("causal_conv1d", pass_, title=f"causal_conv1d {words}, {{dtype}}", sizes=DTYPES)
    def _(s: Size) -> Contest:
        D = 2 * s.H * s.V
        x = {"x": _normal(s, s.B, s.T, D), "weight": _normal(s, D, TAPS)}
        return _contest(_our_convolution, _torch_convolution, x, pass_, s.B * s.T)

    @case("rms_norm_gated", pass_, title=f"rms_norm_gated {words}, {{dtype}}", sizes=DTYPES)
    def _(s: Size) -> Contest:
        shape = (s.B, s.T, 2 * s.H, s.V)
        x = {"x": _normal(s, *shape), "g": _normal(s, *shape).flip(1), "weight": _normal(s, s.V)}
        return _contest(_our_norm, _torch_norm, x, pass_, s.B * s.T)


_rows("fwd", "forward")
_rows("fwd+bwd", "forward + backward")
