# SPDX-License-Identifier: Apache-2.0
"""The convolution behind `lssl_conv` against the sum that defines it.

Inputs are small whole numbers, of which the sum is exact in float64.
"""

import functools
import os
import subprocess
import sys

import pytest
import torch
from harness import RESTRIDE, assert_same

from seqkern.ops import _lssl_convolution as convolution
from seqkern.ops._lssl_convolution import convolve

# Lengths around the sizes of the transforms (16, 24, 32, 48, ...), vectors that are not full,
# sequences that have no partner.
SHAPES = [
    pytest.param(B, L, H, M, id=f"B={B} L={L} H={H} M={M}")
    for B, L, H, M in [
        (1, 1, 1, 1),
        (2, 2, 16, 1),
        (3, 8, 5, 2),
        (4, 9, 17, 1),
        (1, 12, 33, 3),
        (5, 13, 16, 1),
        (2, 64, 40, 2),
        (7, 97, 3, 1),
        (8, 200, 64, 1),
        (2, 769, 18, 1),
    ]
]


def draw(B, L, H, M, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"u": (B, L, H), "K": (H, M, L), "D": (H, M)}
    return {
        name: torch.randint(-8, 9, shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }


def definition(u, K, D):
    """y [B, L, H, M] by a Toeplitz matrix for each feature and channel."""
    L = u.shape[1]
    lag = torch.arange(L).unsqueeze(1) - torch.arange(L)
    toeplitz = K[..., lag.clamp_min(0)] * (lag >= 0)
    return torch.einsum("hmts,bsh->bthm", toeplitz, u) + D * u.unsqueeze(-1)


def run(call, x, dy):
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    y = call(**leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}


def cotangent(B, L, H, M, dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-8, 9, (B, L, H, M), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("B", "L", "H", "M"), SHAPES)
def test_matches_the_definition(B, L, H, M, dtype):
    x, dy = draw(B, L, H, M, dtype), cotangent(B, L, H, M, dtype)
    truth = run(definition, {name: t.double() for name, t in x.items()}, dy.double())
    got = run(convolve, x, dy)
    # A transform's error grows with its depth and with the norm of what goes through it.
    unit = torch.finfo(dtype).eps
    for name, exact in truth.items():
        scale = exact.norm() / exact.numel() ** 0.5 + 8 * (L * B) ** 0.5
        assert got[name].dtype == dtype
        error = (got[name].double() - exact).abs().max()
        assert error < 8 * unit * scale, f"{name}: {error / (unit * scale)}"


@pytest.mark.parametrize("named", ["u", "K", "D"])
def test_each_gradient_alone(named):
    x, dy = draw(3, 20, 18, 2, torch.float64), cotangent(3, 20, 18, 2, torch.float64)
    every = run(convolve, x, dy)[f"d{named}"]
    x[named].requires_grad_()
    (alone,) = torch.autograd.grad(convolve(**x), x[named], dy)
    torch.testing.assert_close(alone, every, rtol=0, atol=1e-11)


@pytest.mark.parametrize("restride", RESTRIDE)
def test_strided_inputs(restride):
    x, dy = draw(3, 30, 18, 2, torch.float32), cotangent(3, 30, 18, 2, torch.float32)
    plain = run(convolve, x, dy)
    strided = {name: restride(t) for name, t in x.items()}
    assert_same(run(convolve, strided, restride(dy)), plain)
    # The kernel reads rows of features where they lie, whatever is between them.
    assert_same(run(convolve, strided, restride(dy.transpose(2, 3)).transpose(2, 3)), plain)


def test_sequences_of_a_pair_never_mix():
    x = draw(2, 50, 16, 1, torch.float32)
    alone = convolve(x["u"][:1], x["K"], x["D"])
    x["u"][1] = 0
    torch.testing.assert_close(convolve(**x)[:1], alone, rtol=1e-6, atol=1e-3)
    assert not convolve(**x)[1].abs().gt(1e-3).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_of_a_pair_never_mix(dtype):
    """Powers of two in one sequence change no bit of another, nor of what is summed over both."""
    x, dy = draw(4, 50, 18, 2, dtype), cotangent(4, 50, 18, 2, dtype)
    expected = run(convolve, x, dy)
    powers = torch.tensor([2.0**60, 1, 1, 2.0**-60], dtype=dtype)
    x["u"] /= powers[:, None, None]
    got = run(convolve, x, dy * powers[:, None, None, None])
    got["y"] *= powers[:, None, None, None]
    got["du"] /= powers[:, None, None]
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.float32, 2.0**124), (torch.float64, 2.0**1020)], ids=str
)
def test_the_largest_numbers(dtype, power):
    """A power of two near them has no inverse among the normal numbers."""
    x = draw(2, 50, 18, 2, dtype)
    x["K"] /= 2**14
    x["D"] /= 2**14
    expected = convolve(**x)
    x["u"][0] *= power
    assert x["u"].max() > torch.finfo(dtype).max / 4
    y = convolve(**x)
    y[0] /= power
    unit = torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(y, expected, rtol=0, atol=8 * unit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_not_finite_stays_in_its_sequence_and_feature(dtype, bad):
    x, dy = draw(5, 50, 18, 2, dtype), cotangent(5, 50, 18, 2, dtype)
    expected = run(convolve, x, dy)
    alone = run(convolve, {**x, "u": x["u"][1:2]}, dy[1:2])
    x["u"][0, 7, 3] = dy[0, 7, 3, 1] = bad
    got = run(convolve, x, dy)
    for name in ("y", "du"):
        assert torch.equal(got[name][2:], expected[name][2:])
        assert torch.equal(got[name][1, :, 3], alone[name][0, :, 3])
        assert got[name][1].isfinite().all()
        for h in range(18):
            assert got[name][0, :, h].isfinite().all() == (h != 3)


def test_same_bits_twice_and_on_two_threads():
    x, dy = draw(6, 100, 40, 1, torch.float32), cotangent(6, 100, 40, 1, torch.float32)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        found.append(run(convolve, x, dy))
    torch.set_num_threads(threads)
    for other in found[1:]:
        for name in other:
            assert torch.equal(found[0][name], other[name]), name


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 3, 1), (2, 0, 3, 2), (2, 4, 0, 1)], ids=str)
def test_empty(shape, compiled, poisoned):
    B, L, H, M = shape
    x, call = draw(B, L, H, M, torch.float32), functools.partial(convolve, compiled=compiled)
    found = run(call, x, cotangent(B, L, H, M, torch.float32))
    assert found["y"].shape == (B, L, H, M)
    assert not found["dK"].any()
    assert not found["dD"].any()


def test_second_derivatives():
    x = draw(2, 5, 3, 2, torch.float64)
    leaves = [t.requires_grad_() for t in x.values()]
    assert torch.autograd.gradgradcheck(convolve, leaves)


@pytest.mark.parametrize("pass_through", [True, False], ids=["D", "no D"])
@pytest.mark.parametrize("L", [1, 2, 33, 40])
def test_without_the_library_torch_transforms(L, pass_through, monkeypatch):
    x, dy = draw(3, L, 5, 2, torch.float64), cotangent(3, L, 5, 2, torch.float64)
    call = convolve if pass_through else functools.partial(convolve, D=None)
    if not pass_through:
        del x["D"]
    compiled = run(call, x, dy)
    monkeypatch.setattr(convolution, "FORWARD", None)
    for name, value in run(call, x, dy).items():
        torch.testing.assert_close(value, compiled[name], rtol=0, atol=1e-11)


@pytest.mark.skipif(convolution.FORWARD is None, reason="needs the compiled library")
def test_opcheck():
    x = draw(2, 6, 3, 2, torch.float32)
    K, dy = x["K"].permute(2, 1, 0), torch.randn(2, 6, 2, 3)
    torch.library.opcheck(convolution.FORWARD, (x["u"], K, x["D"]))
    torch.library.opcheck(convolution.BACKWARD, (dy, x["u"], K, x["D"], True, True))
    torch.library.opcheck(convolution.BACKWARD, (dy, x["u"], K, None, True, False))


FORKS = """
import os, signal, threading, torch
from seqkern.ops._lssl_convolution import convolve
def convolved(L):
    convolve(torch.ones(1, L, 1), torch.ones(1, 1, L), torch.ones(1, 1))
convolved(8)
long = threading.Thread(target=convolved, args=(1 << 18,))
long.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        convolved(8)
        convolved(100)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
long.join()
"""


@pytest.mark.skipif(convolution.FORWARD is None, reason="needs the compiled library")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_convolves_while_another_thread_computes_twiddle_factors():
    """`fork` copies no thread, but whatever lock one of them holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FORKS], env=environment, check=True, timeout=120)
