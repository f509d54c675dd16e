# SPDX-License-Identifier: Apache-2.0
"""Batches of linear systems: the same from any number of threads."""

import pytest
import torch

from seqkern.ops import hippo
from seqkern.reference import lssl_discretize
from seqkern.reference._solve import solve


def _dense(x):
    A, _ = hippo("legt", x.shape[-1])
    return A._replace(diagonal=A.diagonal + 1 + x).dense()


def _discrete(x):
    A = 0.01 * x.unsqueeze(-1) * x.unsqueeze(-2)
    return torch.cat([part.flatten() for part in lssl_discretize(A, x, x.new_ones(x.shape[0]))])


@pytest.mark.parametrize("function", [_dense, _discrete])
@pytest.mark.parametrize("N", [8, 160])
@pytest.mark.parametrize("H", [0, 3])
def test_threads_change_nothing(function, N, H, threads, monkeypatch):
    """Of large systems each is a call of its own, for MKL may hang in a batch of them."""
    x, results, original = 0.1 * torch.rand(H, N), [], torch.linalg.solve

    def checked(A, B):
        assert A.dim() == 2 or H * N < 128 or torch.get_num_threads() == 1
        return original(A, B)

    monkeypatch.setattr(torch.linalg, "solve", checked)
    for count in (1, 2):
        threads(count)
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one)


def test_compiles_fullgraph():
    A, B = torch.eye(160).repeat(2, 1, 1), torch.randn(2, 160, 3)
    assert torch.equal(torch.compile(solve, fullgraph=True, backend="eager")(A, B), B)
