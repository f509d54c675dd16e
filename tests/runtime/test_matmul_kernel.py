# SPDX-License-Identifier: Apache-2.0
"""The kernel of large matrix products, for every instruction set, order of operands and size."""

import pytest
import torch

from seqkern._runtime import library

PRODUCT = library.find_op("matmul_f32")
pytestmark = pytest.mark.skipif(PRODUCT is None, reason="the library is not compiled")

# (M, K, N). More than the rows of a task and more than one range of k; and a result so large that
# it is written past the caches.
LONG, PAST_CACHES = (70, 9000, 430), (8200, 30, 528)
EMPTY = [(0, 64, 32), (64, 0, 32), (64, 32, 0)]
SIZES = [(1, 1, 1), (3, 5, 7), (515, 130, 67), (70, 257, 96), LONG, PAST_CACHES, *EMPTY]


def _draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _error(actual, truth):
    return ((actual.double() - truth).norm() / (truth.norm() + 1e-30)).item()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernel_of_every_instruction_set(size, isa):
    M, K, N = size
    a, b = _draw(M, K), _draw(N, K)
    truth = a.double() @ b.double().t()
    turned = [x.t().contiguous().t() for x in (a, b)]
    every_second = [torch.stack([x, x], -1).flatten(1)[:, ::2] for x in (a, b)]
    results = [PRODUCT(*x) for x in ((a, b), turned, every_second, (a, turned[1]))]
    rounding = torch.finfo(torch.float32).eps
    for result in results:
        assert _error(result, truth) <= 2 * _error(a @ b.t(), truth) + rounding
        assert torch.equal(result, results[0])


def test_bits_depend_on_neither_threads_nor_neighbors(threads):
    M, K, N = LONG
    a, b = _draw(M, K), _draw(N, K)
    whole = PRODUCT(a, b)
    assert torch.equal(PRODUCT(a[3:], b), whole[3:])
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(PRODUCT(a, b), whole)


def test_the_kernel_rejects_what_does_not_fit():
    with pytest.raises(RuntimeError, match=r"a is \[M, K\] and b \[N, K\]"):
        PRODUCT(torch.zeros(3, 4), torch.zeros(5, 6))
    with pytest.raises(RuntimeError, match="float32 matrices"):
        PRODUCT(torch.zeros(3, 4).double(), torch.zeros(5, 4).double())
