# SPDX-License-Identifier: Apache-2.0
"""Inputs, truth and shapes that the tests of the linear state-space ops share."""

import functools
from dataclasses import dataclass

import torch

from seqkern import reference
from seqkern.ops import Quasiseparable, hippo, lssl_conv, lssl_kernel, lssl_scan
from seqkern.testing import Inputs, yardstick

MEASURES = ("legs", "legt", "lagt")


@dataclass(frozen=True)
class Shape:
    B: int = 1
    L: int = 1
    H: int = 1
    N: int = 1
    M: int = 1

    @property
    def id(self) -> str:
        return f"B{self.B} L{self.L} H{self.H} N{self.N} M{self.M}"


SHAPES = (
    Shape(1, 1, 1, 1, 1),
    Shape(2, 7, 3, 5, 2),
    Shape(3, 61, 17, 9, 1),
    Shape(2, 130, 16, 16, 3),
    Shape(9, 20, 33, 6, 1),
)
SMALL = Shape(2, 37, 5, 6, 2)


def state_matrix(measure, N, dtype, trained=False):
    """A HiPPO matrix; ``trained`` moves every element of its factors, the zeros of T too."""
    A, B = hippo(measure, N, torch.float64)
    if trained:
        draw = torch.Generator().manual_seed(N)
        A = A._replace(upper=torch.zeros(N) if A.upper is None else A.upper)
        noise = [0.02 * torch.randn(N, generator=draw, dtype=torch.float64) for _ in A]
        A = Quasiseparable(*(x + e * (1 + x.abs()) for x, e in zip(A, noise, strict=True)))
    return Quasiseparable(*(x if x is None else x.to(dtype) for x in A)), B.to(dtype)


def make(shape, dtype=torch.float32, measure="legs", trained=False, dense=False, seed=0, **options):
    """Draw the tensors of one call; the fields of A are named A_P, ..., A_upper."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=draw).to(dtype)

    B, L, H, N, M = shape.B, shape.L, shape.H, shape.N, shape.M
    A, b = state_matrix(measure, N, dtype, trained)
    tensors = {"u": normal(B, L, H), "B": b, "C": normal(H, M, N)}
    tensors["dt"] = (0.002 * 50 ** torch.rand(H, generator=draw)).to(dtype)
    tensors["D"] = normal(H, M)
    tensors["initial_state"] = normal(B, H, N)
    if dense:
        tensors["A"] = A.dense()
    else:
        tensors |= {f"A_{name}": x for name, x in A._asdict().items() if x is not None}
    return Inputs(tensors, options, normal(B, L, H, M), normal(B, H, N))


def gather_A(named):
    """Take A or its fields out of the keywords of a call."""
    if "A" in named:
        return named.pop("A")
    fields = {name: named.pop(f"A_{name}", None) for name in Quasiseparable._fields}
    return Quasiseparable(**fields)


def scan(output_final_state=True, **named):
    return lssl_scan(A=gather_A(named), output_final_state=output_final_state, **named)


def conv(initial_state=None, output_final_state=True, **named):
    """The convolution, which starts from zeros, with a second output that nothing depends on."""
    y = lssl_conv(A=gather_A(named), **named)
    return y, y.new_zeros(())


def definition(output_final_state=True, **named):
    A = gather_A(named)
    return reference.lssl_scan(A=A.dense() if isinstance(A, Quasiseparable) else A, **named)


def kernel(u, D, initial_state, output_final_state=True, **named):
    """The kernel as if it were an op with an output and a state."""
    K = lssl_kernel(A=gather_A(named), L=u.shape[1], **named)
    return K, u.new_zeros(1) + 0 * (u.sum() + D.sum() + initial_state.sum())


def dense_kernel(u, D, initial_state, output_final_state=True, **named):
    A = gather_A(named)
    A = A.dense() if isinstance(A, Quasiseparable) else A
    K = reference.lssl_kernel(A=A, L=u.shape[1], **named)
    return K, u.new_zeros(1) + 0 * (u.sum() + D.sum() + initial_state.sum())


def kernel_inputs(shape, dtype=torch.float32, **making):
    """The same with cotangents for the kernel."""
    x = make(shape, dtype, **making)
    draw = torch.Generator().manual_seed(1)
    dK = torch.randn((shape.H, shape.M, shape.L), generator=draw).to(dtype)
    return Inputs(x.tensors, x.options, dK, torch.ones(1, dtype=dtype))


@functools.cache
def truth_and_peers(shape, measure, trained, kind="scan", dense=False):
    making = {"measure": measure, "trained": trained, "dense": dense}
    x = make(shape, **making) if kind == "scan" else kernel_inputs(shape, **making)
    return x, *yardstick(definition if kind == "scan" else dense_kernel, x)
