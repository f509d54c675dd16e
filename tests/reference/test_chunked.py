# SPDX-License-Identifier: Apache-2.0
"""The chunked forms in plain torch agree with the sequential recurrence."""

import pytest
import torch
from torch.nn import functional as F

from seqkern.reference._recurrence import recurrence
from seqkern.reference.chunked import chunked_linear_attention

# B, T, H, HV, K, V, householders, gate (none, "head" or "key"), delta rule
CASES = {
    "simple": (2, 130, 2, 4, 16, 24, 1, "head", False),
    "gla": (2, 130, 2, 2, 16, 24, 1, "key", False),
    "no gate": (1, 65, 2, 2, 8, 8, 1, None, False),
    "gated delta": (2, 100, 2, 4, 16, 24, 1, "head", True),
    "delta": (1, 64, 2, 2, 16, 16, 1, None, True),
    "product of three": (2, 50, 2, 4, 16, 24, 3, "head", True),
    "one token": (1, 1, 1, 1, 8, 8, 1, "key", False),
    "no token": (1, 0, 1, 1, 8, 8, 1, "head", True),
}


def _inputs(case, dtype, strength=3.0):
    B, T, H, HV, K, V, n, gate, delta = CASES[case]
    torch.manual_seed(0)
    shape = (B, T, HV) if gate == "head" else (B, T, H, K)
    inputs = {
        "q": torch.randn(B, T, H, K),
        "k": F.normalize(torch.randn(B, T * n, H, K), dim=-1),
        "v": torch.randn(B, T * n, HV, V),
        "g": None if gate is None else F.logsigmoid(strength * torch.randn(shape)),
        "beta": 2 * torch.rand(B, T * n, HV) if delta else None,
        "initial_state": torch.randn(B, HV, K, V),
    }
    return n, {
        name: None if x is None else x.to(dtype).requires_grad_() for name, x in inputs.items()
    }


def _truth(x, n, cu_seqlens=None):
    g = x["g"]
    gates = [] if g is None else [g[..., None, None] if g.dim() == 3 else g[..., None]]
    return recurrence(
        x["q"], x["k"], x["v"], gates, x["beta"], None, x["initial_state"], cu_seqlens, n
    )


def _all(outputs, inputs):
    torch.manual_seed(1)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype)).sum() for x in outputs)
    leaves = [x for x in inputs.values() if x is not None]
    return [*outputs, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


@pytest.mark.parametrize("strength", [3.0, 100.0], ids=["mild", "strong decay"])
@pytest.mark.parametrize("case", CASES)
def test_matches_the_definition(case, strength):
    n, x = _inputs(case, torch.float64, strength)
    actual = _all(chunked_linear_attention(**x, num_householder=n), x)
    for a, b in zip(actual, _all(_truth(x, n), x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["gla", "gated delta"])
def test_sixteen_bit_inputs_are_computed_in_float32(case):
    n, x = _inputs(case, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = chunked_linear_attention(**x, num_householder=n)
    truth, final = _truth({k: None if v is None else v.double() for k, v in x.items()}, n)
    assert o.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    torch.testing.assert_close(state.double(), final, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(o.double(), truth, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_packed_equals_separate(n):
    torch.manual_seed(0)
    bounds = torch.tensor([0, 0, 5, 70])
    x = {
        "q": torch.randn(1, 70, 2, 8, dtype=torch.float64),
        "k": 0.1 * torch.randn(1, 70 * n, 2, 8, dtype=torch.float64),
        "v": torch.randn(1, 70 * n, 2, 8, dtype=torch.float64),
        "g": -torch.rand(1, 70, 2, dtype=torch.float64),
        "beta": torch.rand(1, 70 * n, 2, dtype=torch.float64),
        "initial_state": torch.randn(3, 2, 8, 8, dtype=torch.float64),
    }
    actual = chunked_linear_attention(**x, cu_seqlens=bounds, num_householder=n)
    for a, b in zip(actual, _truth(x, n, bounds), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
