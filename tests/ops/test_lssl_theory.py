# SPDX-License-Identifier: Apache-2.0
"""What the theory of linear state-space layers says, checked on the ops."""

import math

import pytest
import torch

from seqkern.errors import EliminationError
from seqkern.ops import Quasiseparable, hippo, lssl_conv, lssl_kernel, lssl_scan


def _legs(N):
    n = torch.arange(N, dtype=torch.float64)
    r = (2 * n + 1).sqrt()
    A = -(r.unsqueeze(1) * r).tril(-1) - torch.diag(n + 1)
    return A, r


def _legt(N):
    n = torch.arange(N, dtype=torch.float64)
    r = (2 * n + 1).sqrt()
    sign = torch.where(n.unsqueeze(1) >= n, 1.0, (-1.0) ** (n.unsqueeze(1) - n))
    return -0.5 * r.unsqueeze(1) * r * sign, r / 2


def _lagt(N):
    A = torch.eye(N, dtype=torch.float64) / 2 - torch.ones(N, N, dtype=torch.float64).tril()
    return A, torch.ones(N, dtype=torch.float64)


@pytest.mark.parametrize(("measure", "closed"), [("legs", _legs), ("legt", _legt), ("lagt", _lagt)])
@pytest.mark.parametrize("N", [1, 2, 3, 17, 64])
def test_hippo_matrices(measure, closed, N):
    """The factored form is the closed form of the papers, for x' = A x + B u."""
    A, B = hippo(measure, N, torch.float64)
    expected, b = closed(N)
    torch.testing.assert_close(A.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(B, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "identity"])
def test_hippo_dtypes(measure):
    """Every tensor has the type that was asked for, float32 if none was."""
    for dtype, options in ((torch.float32, ()), (torch.bfloat16, (torch.bfloat16,))):
        A, B = hippo(measure, 4, *options)
        assert {x.dtype for x in (*A, B) if x is not None} == {dtype}


def test_hippo_signs():
    """LegS is stable with eigenvalues -1 .. -N, and A + B B^T / 2 is -I / 2 and a skew matrix."""
    A, B = hippo("legs", 12, torch.float64)
    A = A.dense()
    torch.testing.assert_close(
        A.diagonal(), -torch.arange(1.0, 13.0, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    rest = A + B.unsqueeze(1) * B / 2 + torch.eye(12, dtype=torch.float64) / 2
    torch.testing.assert_close(rest, -rest.T, rtol=1e-12, atol=1e-12)
    for measure in ("legt", "lagt"):
        assert torch.linalg.eigvals(hippo(measure, 12, torch.float64)[0].dense()).real.max() < 0


def test_backward_euler_is_the_gated_rnn():
    """Lemma 3.1: dt = exp(z) makes x_t = (1 - sigmoid(z)) x_{t-1} + sigmoid(z) u_t."""
    A, B = hippo("identity", 1, torch.float64)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    u = torch.randn(2, 40, 7, dtype=torch.float64)
    C = torch.ones(7, 1, 1, dtype=torch.float64)
    y, _ = lssl_scan(u, A, B, C, z.exp(), alpha=1.0)
    x, gate = torch.zeros(2, 7, dtype=torch.float64), torch.sigmoid(z)
    for t in range(40):
        x = (1 - gate) * x + gate * u[:, t]
        torch.testing.assert_close(y[:, t, :, 0], x, rtol=1e-12, atol=1e-12)


def test_kernel_starts_with_the_present_input():
    A, B = hippo("legs", 5, torch.float64)
    C = torch.randn(3, 1, 5, dtype=torch.float64)
    dt = torch.full((3,), 0.1, dtype=torch.float64)
    implicit = torch.eye(5, dtype=torch.float64) - 0.05 * A.dense()
    first = C[:, 0] @ torch.linalg.solve(implicit, 0.1 * B)
    torch.testing.assert_close(lssl_kernel(A, B, C, dt, 4)[:, 0, 0], first)


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_doubled_step_on_every_second_sample(measure):
    """Half the samples with twice the step give the same output within 5 %; without it, not."""
    A, B = hippo(measure, 32)
    H, L = 8, 512
    C = torch.randn(H, 1, 32) / math.sqrt(32)
    dt = torch.full((H,), 0.004)
    t = torch.arange(L) / L
    phase = torch.rand(4, 1, H)
    u = torch.sin(2 * math.pi * (2 * t[None, :, None] + phase))
    y = lssl_conv(u, A, B, C, dt)[:, ::2]
    half = lssl_conv(u[:, ::2], A, B, C, 2 * dt)
    wrong = lssl_conv(u[:, ::2], A, B, C, dt)
    size = y.square().mean().sqrt()
    assert (half - y).square().mean().sqrt() < 0.05 * size
    assert (wrong - y).square().mean().sqrt() > 0.3 * size


REFUSED = r"^lssl: .* magnify rounding errors .*`A\.dense\(\)`"


@pytest.mark.parametrize("size", [1e-5, 1e-9, 0.0])
def test_growth_is_refused(size):
    """Elimination without row exchanges would divide by (almost) 0: said, with the way out."""
    N = 4
    ones, tiny = torch.ones(N), torch.full((N,), size)
    # T = [[0, 1], [1, 0]] twice, and P so large that E is T plus almost nothing.
    T = {"lower": torch.tensor([0.0, 1, 0, 1]), "upper": torch.tensor([1.0, 0, 1, 0])}
    A = Quasiseparable(P=ones, D=0 * ones, Q=tiny, diagonal=0 * ones, **T)
    u, C, dt = torch.randn(1, 9, 2), torch.randn(2, 1, N), torch.full((2,), 0.1)
    with pytest.raises(EliminationError, match=REFUSED):
        lssl_scan(u, A, ones, C, dt)
    y, _ = lssl_scan(u, A.dense(), ones, C, dt)
    torch.testing.assert_close(y, lssl_scan(u, A, ones, C, dt, backend="reference")[0])


@pytest.mark.parametrize("learn", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_a_time_step_that_is_no_number_is_refused(measure, dtype, learn, isa):
    """Wherever it lies: features go to different vectors, and these to different tasks."""
    A, B = hippo(measure, 6, dtype)
    u, C = torch.randn(2, 9, 70, dtype=dtype), torch.randn(70, 1, 6, dtype=dtype)
    for h in (0, 20, 69):
        dt = torch.full((70,), 0.1, dtype=dtype).index_fill(0, torch.tensor(h), math.nan)
        for call in (lssl_scan, lssl_conv):
            with pytest.raises(EliminationError, match=REFUSED):
                call(u, A, B, C, dt.requires_grad_(learn))
