# SPDX-License-Identifier: Apache-2.0
"""Inputs of the linear-attention family, as a trained model would produce them.

Keys are normalized for the delta rule (its write is a projection then), gates are mild log decays
and beta lies in (0, 1). The same size gives the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.registry import Size

Inputs = dict[str, torch.Tensor]


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _qkv(s: Size, *, unit_keys: bool) -> tuple[Inputs, torch.Generator]:
    """q [B, T, H, K], k [B, T * n_h, H, K], v [B, T * n_h, H, V] in the dtype of ``s``."""
    generator = torch.Generator().manual_seed(s.T + s.K)
    q = _normal(generator, s.B, s.T, s.H, s.K)
    k = _normal(generator, s.B, s.T * s.n_h, s.H, s.K)
    v = _normal(generator, s.B, s.T * s.n_h, s.H, s.V)
    if unit_keys:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return {"q": q, "k": k, "v": v}, generator


def _in_dtype(x: Inputs, s: Size) -> Inputs:
    return {name: x[name].to(s.torch_dtype) for name in ("q", "k", "v")}


def gla(s: Size) -> Inputs:
    """q, k, v and one float32 log decay per key channel, g [B, T, H, K]."""
    x, generator = _qkv(s, unit_keys=False)
    g = F.logsigmoid(_normal(generator, s.B, s.T, s.H, s.K)) / 16
    return {**_in_dtype(x, s), "g": g}


def simple_gla(s: Size) -> Inputs:
    """q, k, v and one float32 log decay per head, g [B, T, H]."""
    x, generator = _qkv(s, unit_keys=False)
    return {**_in_dtype(x, s), "g": F.logsigmoid(_normal(generator, s.B, s.T, s.H)) / 16}


def delta_rule(s: Size) -> Inputs:
    """q, k, v and the float32 write strength, beta [B, T, H]."""
    x, generator = _qkv(s, unit_keys=True)
    return {**_in_dtype(x, s), "beta": _normal(generator, s.B, s.T, s.H).sigmoid()}


def gated_delta_rule(s: Size) -> Inputs:
    """q, k, v, g [B, T, H] and beta [B, T, H]."""
    x, generator = _qkv(s, unit_keys=True)
    g = F.logsigmoid(_normal(generator, s.B, s.T, s.H)) / 16
    return {**_in_dtype(x, s), "g": g, "beta": _normal(generator, s.B, s.T, s.H).sigmoid()}


def gated_delta_product(s: Size) -> Inputs:
    """q [B, T, H, K]; k, v, beta with n_h virtual tokens a token; g [B, T, H]."""
    x, generator = _qkv(s, unit_keys=True)
    g = F.logsigmoid(_normal(generator, s.B, s.T, s.H)) / 16
    beta = _normal(generator, s.B, s.T * s.n_h, s.H).sigmoid()
    return {**_in_dtype(x, s), "g": g, "beta": beta}


def state(s: Size) -> torch.Tensor:
    """A state as a prompt leaves it, [B, H, K, V] float32."""
    generator = torch.Generator().manual_seed(s.K)
    return _normal(generator, s.B, s.H, s.K, s.V) * s.K**-0.5


def head_first(x: Inputs) -> Inputs:
    """The same inputs as [B, H, T, ...] in memory, for peers that want them so."""
    return {name: t.transpose(1, 2).contiguous() for name, t in x.items()}
