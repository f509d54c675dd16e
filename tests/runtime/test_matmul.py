# SPDX-License-Identifier: Apache-2.0
"""Large products: as right as torch's own, with every derivative, and only where they serve."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from seqkern._runtime import matmul
from seqkern.nn._linear import Linear

# Beyond the size from which torch does not compute; rows and widths are odd.
BIG = (515, 130, 67)
SIZES = [BIG, (70, 257, 96), (3, 5, 7), (1, 1, 1), (0, 64, 32), (64, 0, 32), (1, 2048, 700)]


def _draw(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, requires_grad=True)


def _run(function, *tensors):
    own = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*own)
    do = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * do).sum(), own)]


def _error(actual, truth):
    if truth.numel() == 0:
        return 0.0
    return ((actual.double() - truth).norm() / (truth.norm() + 1e-30)).item()


@pytest.fixture(params=["kernel", "onednn"], autouse=True)
def product(request, monkeypatch):
    """Everything here holds for the kernel, and for oneDNN, whoever serves this size."""
    if request.param == "kernel":
        for name in ("_LEAST_ROWS_A", "_LEAST_ROWS_B"):
            monkeypatch.setattr(matmul, name, 0)
    else:
        for name in ("_LEAST_ROWS_A", "_LEAST_ROWS_B"):
            monkeypatch.setattr(matmul, name, 1 << 40)
        for name in ("_FEW_ROWS_B", "_FEW_NUMBERS_B"):
            monkeypatch.setattr(matmul, name, -1)
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_matches_float64(size, bias):
    M, K, N = size
    x, w, b = _draw(M, K), _draw(N, K), _draw(N)
    tensors = [x, w, b] if bias else [x, w]
    truth = _run(F.linear, *(t.double() for t in tensors))
    torchs = _run(F.linear, *tensors)
    ours = _run(matmul.linear, *tensors)
    for actual, peer, expected in zip(ours, torchs, truth, strict=True):
        assert actual.dtype == torch.float32
        rounding = torch.finfo(torch.float32).eps
        assert _error(actual, expected) <= 2 * _error(peer, expected) + rounding


def test_transposed_and_sliced_views():
    M, K, N = BIG
    x, w = _draw(K, M + 1), _draw(K, 2 * N)
    truth = _run(lambda x, w: x[:, 1:].t() @ w[:, ::2], x.double(), w.double())
    ours = _run(lambda x, w: matmul.matmul_nt(x[:, 1:].t(), w[:, ::2].t()), x, w)
    for actual, expected in zip(ours, truth, strict=True):
        assert _error(actual, expected) < 2e-6


@pytest.mark.parametrize("stride", [0, 2, 3])
def test_a_bias_of_any_stride(stride):
    M, K, N = BIG
    x, w = _draw(M, K).detach(), _draw(N, K).detach()
    bias = torch.randn(3 * N).as_strided((N,), (stride,))
    truth = F.linear(x.double(), w.double(), bias.double())
    assert _error(matmul.linear(x, w, bias), truth) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_over_nothing(dtype):
    x, w = torch.zeros(64, 0, dtype=dtype), torch.zeros(32, 0, dtype=dtype)
    assert torch.equal(matmul.linear(x, w), torch.zeros(64, 32, dtype=dtype))


def test_gradient_of_one_operand_alone():
    M, K, N = BIG
    x, w = _draw(M, K), _draw(N, K)
    both = torch.autograd.grad(matmul.linear(x, w).square().sum(), (x, w))
    for leaf, other, expected in ((x, w, both[0]), (w, x, both[1])):
        operands = (leaf, other.detach()) if leaf is x else (other.detach(), leaf)
        (got,) = torch.autograd.grad(matmul.linear(*operands).square().sum(), leaf)
        assert torch.equal(got, expected)


def test_overlapping_windows():
    """Rows that share memory, of either operand: of the kind that `Tensor.unfold` makes."""
    x = torch.randn(1400).unfold(0, 300, 1)[:1100]
    w = _draw(64, 300)
    truth = x.double() @ w.detach().double().t()
    assert _error(matmul.linear(x, w).detach(), truth) < 2e-6
    matmul.linear(x, w).sum().backward()
    assert _error(w.grad, x.double().sum(0).expand(64, 300)) < 2e-6


# Sizes at which different libraries may be chosen, for a and for its transpose.
@pytest.mark.parametrize("size", [(800, 80, 64), (100, 800, 64), (2000, 300, 300), (64, 4096, 64)])
def test_bits_do_not_depend_on_threads(size, threads):
    M, K, N = size
    x, w = _draw(M, K), _draw(N, K)
    results = []
    for count in (1, 2, 3, 9):
        threads(count)
        results.append(_run(matmul.linear, x, w))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_large_results_that_torch_computes_are_those_of_torch(dtype, bias, monkeypatch):
    monkeypatch.setattr(matmul, "_MAPPED", 0)
    monkeypatch.setattr(matmul, "_PRODUCT", None)
    M, K, N = BIG
    tensors = [_draw(M, K).to(dtype), _draw(N, K).to(dtype)] + [_draw(N).to(dtype)] * bias
    assert matmul._serves(*tensors[:2])
    for actual, expected in zip(
        _run(matmul.linear, *tensors), _run(F.linear, *tensors), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_leading_dimensions():
    x, w, b = _draw(2, 3, 100, 130), _draw(67, 130), _draw(67)
    torch.testing.assert_close(matmul.linear(x, w, b), F.linear(x, w, b))
    torch.testing.assert_close(matmul.linear(x[0, 0, 0], w, b), F.linear(x[0, 0, 0], w, b))


def test_second_derivatives(monkeypatch):
    monkeypatch.setattr(matmul, "_WORTH", 0)
    x, w, b = _draw(7, 5), _draw(3, 5), _draw(3)

    def second(function):
        y = function(x, w, b)
        dx, dw = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.square().sum(), (x, w, b))

    for actual, expected in zip(second(matmul.linear), second(F.linear), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_are_left_to_torch(dtype):
    M, K, N = BIG
    x, w = _draw(M, K).to(dtype), _draw(N, K).to(dtype)
    assert torch.equal(matmul.linear(x, w), F.linear(x, w))


def test_autocast_is_left_to_torch():
    M, K, N = BIG
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul.linear(_draw(M, K), _draw(N, K)).dtype == torch.bfloat16


def test_respects_the_switch_of_onednn():
    M, K, N = BIG
    x, w = _draw(M, K), _draw(N, K)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(matmul.linear(x, w), F.linear(x, w))


def test_function_transforms():
    x, w = _draw(600, 130).detach(), _draw(67, 130).detach()
    grad = torch.func.grad(lambda w: matmul.linear(x, w).square().sum())(w)
    truth = torch.func.grad(lambda w: F.linear(x, w).square().sum())(w)
    torch.testing.assert_close(grad, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_mode(dtype, monkeypatch):
    """Dual tensors outside torch.func are torch's own, also where the op would serve."""
    monkeypatch.setattr(matmul, "_MAPPED", 0)
    monkeypatch.setattr(matmul, "_PRODUCT", torch.ops.mkldnn._linear_pointwise.default)
    x, w = _draw(600, 130).to(dtype), _draw(67, 130).to(dtype)
    assert matmul._serves(x, w)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), x.detach())
        y, tangent = forward_ad.unpack_dual(matmul.linear(dual, w))
    torch.testing.assert_close(tangent, y)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_fullgraph(backend):
    torch.compiler.reset()
    layer = Linear(130, 67)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for rows in (3, 515, 700):
        x = _draw(rows, 130)
        for actual, expected in zip(_run(compiled, x), _run(layer, x), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("worth", [0, 1 << 60], ids=["onednn", "torch"])
def test_opcheck(monkeypatch, worth):
    monkeypatch.setattr(matmul, "_WORTH", worth)
    a, b = _draw(9, 5).detach(), _draw(4, 5).detach()
    torch.library.opcheck(torch.ops.seqkern.matmul_nt.default, (a, b))
    torch.library.opcheck(torch.ops.seqkern.matmul_nt.default, (a, b, torch.randn(b.shape[0])))
    torch.testing.assert_close(torch.ops.seqkern.matmul_nt.default(a, b), a @ b.t())


def test_traces_and_saves(tmp_path):
    M, K, N = BIG
    layer, x = Linear(K, N), _draw(M, K).detach()
    traced = torch.jit.trace(layer, (x,))
    torch.jit.save(traced, tmp_path / "layer.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "layer.pt")(x), layer(x))


def test_same_bits_twice():
    M, K, N = BIG
    x, w = _draw(M, K), _draw(N, K)
    for first, second in zip(_run(matmul.linear, x, w), _run(matmul.linear, x, w), strict=True):
        assert torch.equal(first, second)


def test_is_a_torch_linear():
    torch.manual_seed(0)
    theirs = torch.nn.Linear(130, 67)
    torch.manual_seed(0)
    ours = Linear(130, 67)
    assert isinstance(ours, torch.nn.Linear)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    x = _draw(515, 130)
    torch.testing.assert_close(ours(x), theirs(x))
