# SPDX-License-Identifier: Apache-2.0
"""The discretised system of a structured matrix, in one pass and back, against its definition."""

import pytest
import torch

from seqkern.ops import Quasiseparable, _lssl_system, hippo, lssl_scan
from seqkern.ops._lssl_system import tridiagonal_system

needs_library = pytest.mark.skipif(
    _lssl_system._FORWARD is None, reason="needs the compiled library"
)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("measure", ["legs", "legt"])
@pytest.mark.parametrize("heads", [(), (7,)], ids=["shared", "a matrix for each feature"])
def test_system_in_one_pass_equals_its_definition(measure, alpha, heads, dtype):
    """Values and gradients; in float32 the gradients are rounded once."""
    A, B = hippo(measure, 11, torch.float64)
    scale = 1 + torch.rand((*heads, 11), generator=torch.Generator().manual_seed(0))
    A = A._replace(P=A.P * scale, D=A.D * scale, lower=A.lower + 0 * scale)
    tensors = [*A, B, torch.linspace(0.01, 0.2, 7)]
    tensors = [x if x is None else x.to(dtype).requires_grad_() for x in tensors]
    leaves = [x for x in tensors if x is not None]
    arguments = (Quasiseparable(*tensors[:6]), *tensors[6:], alpha)
    fast = tridiagonal_system(*arguments)
    slow = _lssl_system._definition(*arguments)
    with torch.no_grad():
        plain = tridiagonal_system(*arguments)
    assert "SystemFunction" in type(fast.E.grad_fn).__name__
    assert fast.triangular == (A.upper is None)
    for one, other, third in zip(fast[:3], slow, plain[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(third, one, rtol=0, atol=0)
    draw = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, dtype=torch.float64, generator=draw) for x in slow]
    grads = torch.autograd.grad(fast[:3], leaves, cotangents)
    expected = torch.autograd.grad(slow, leaves, cotangents)
    # The definition sums float32 gradients over features in float64 as well, then rounds.
    digits = 1e-12 if dtype is torch.float64 else 2.0**-22
    for one, other in zip(grads, expected, strict=True):
        assert one.dtype == dtype
        size = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=digits, atol=digits * size)


@needs_library
@pytest.mark.parametrize("named", [*Quasiseparable._fields, "B"])
def test_one_vector_differs_between_features(named):
    """Values and gradients of an op that may take all features for one, whatever it is."""
    A, B = hippo("legt", 5, torch.float64)
    draw = torch.Generator().manual_seed(0)
    fields = {**A._asdict(), "B": B, "dt": torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64)}
    fields[named] = fields[named] + torch.rand((3, 5), generator=draw, dtype=torch.float64)
    leaves = {name: x.requires_grad_() for name, x in fields.items()}

    def both(system):
        B, dt = leaves["B"], leaves["dt"]
        A = Quasiseparable(*(leaves[name] for name in Quasiseparable._fields))
        found = system(A, B, dt, 0.3)[:3]
        weights = torch.linspace(-1, 1, found[0].numel() + found[1].numel() + found[2].numel())
        loss = weights.double() @ torch.cat([x.flatten() for x in found])
        return *found, *torch.autograd.grad(loss, list(leaves.values()))

    for one, other in zip(both(tridiagonal_system), both(_lssl_system._definition), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    B, dt = fields.pop("B"), fields.pop("dt")
    u, C = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(3, 1, 5, dtype=torch.float64)
    with torch.no_grad():
        y, expected = (
            lssl_scan(u, Quasiseparable(**fields), B, C, dt, backend=backend)[0]
            for backend in ("cpu", "reference")
        )
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_second_derivatives_of_the_system():
    A, B = hippo("legt", 4, torch.float64)
    tensors = [*A, B, torch.tensor([0.1, 0.3], dtype=torch.float64)]
    leaves = [x.clone().requires_grad_() for x in tensors]

    def system(*x):
        return tridiagonal_system(Quasiseparable(*x[:6]), *x[6:], 0.3)[:3]

    assert torch.autograd.gradcheck(system, leaves)
    assert torch.autograd.gradgradcheck(system, leaves)
    loss = sum(x.square().sum() for x in system(*leaves))
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.testing.assert_close(again, plain)
