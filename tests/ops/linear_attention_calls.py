# SPDX-License-Identifier: Apache-2.0
"""Calls of the linear-attention ops that would be right, but for the arguments that are changed."""

import torch

from seqkern import ops

B, T, H, HV, K, V = 2, 6, 2, 4, 3, 5
EXACT = {
    "q": torch.randn(B, T, H, K),
    "k": torch.randn(B, T, H, K),
    "v": torch.randn(B, T, HV, V),
}
G = torch.zeros(B, T, HV)
GK = torch.zeros(B, T, H, K)
BETA = torch.ones(B, T, HV)
H0 = torch.zeros(B, HV, K, V)
NESTED = torch.nested.nested_tensor([torch.randn(T, H, K), torch.randn(1, H, K)])
ONE = {name: x[:1] for name, x in EXACT.items()}


def gla(**changes):
    return lambda: ops.chunk_gla(**{**EXACT, "g": GK, **changes})


def simple(**changes):
    return lambda: ops.chunk_simple_gla(**{**EXACT, "g": G, **changes})


def packed(offsets, **changes):
    if not isinstance(offsets, torch.Tensor):
        offsets = torch.tensor(offsets, dtype=torch.int64)
    return lambda: ops.chunk_simple_gla(**{**ONE, "cu_seqlens": offsets, **changes})


def delta(**changes):
    return lambda: ops.chunk_delta_rule(**{**EXACT, "beta": BETA, **changes})


def gated(**changes):
    return lambda: ops.chunk_gated_delta_rule(**{**EXACT, "g": G, "beta": BETA, **changes})


def recurrent(**changes):
    return lambda: ops.fused_recurrent_gated_delta_rule(**{**EXACT, **changes})


def product(**changes):
    given = {**EXACT, "g": G, "beta": BETA, "num_householder": 1, **changes}
    return lambda: ops.chunk_gated_delta_product(**given)


def step(**changes):
    given = {**EXACT, "g": G, "beta": BETA, "num_householder": 1, **changes}
    return lambda: ops.fused_recurrent_gated_delta_product(**given)
