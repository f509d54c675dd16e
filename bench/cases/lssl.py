# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer against torch: kernel by doubling and FFT, as everybody writes it.

Sizes: T is the length L, K the order N, H the features; one channel. HiPPO-LegS, time steps
log-uniform in [1e-3, 1e-1].
"""

from __future__ import annotations

from typing import Any

import torch

from bench.cases._lssl_torch import doubling, torch_layer
from bench.checks import same_as_rival
from bench.registry import Contest, Entry, Size, at_least, case, within
from seqkern.nn import LSSL
from seqkern.ops import hippo, lssl_kernel
from seqkern.ops._lssl_dense import dense_kernel
from seqkern.reference import lssl_discretize


def _draw(s: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """C [H, 1, N] and dt [H]."""
    draw = torch.Generator().manual_seed(s.K)
    C = torch.randn(s.H, 1, s.K, generator=draw)
    return C, 1e-3 * 100 ** torch.rand(s.H, generator=draw)


def _discretized(s: Size) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = hippo("legs", s.K, torch.float64)
    A_bar, B_bar = lssl_discretize(A.dense(), B, _draw(s)[1].double())
    return A_bar.float(), B_bar.float()


def _kernel(s: Size, label: str = "seqkern", times: int = 1) -> Entry:
    A, B = hippo("legs", s.K)
    C, dt = _draw(s)

    def call(C: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        for _ in range(times):
            K = lssl_kernel(A, B, C, dt, s.T)
        return K

    return Entry(label, call, {"C": C, "dt": dt}, tokens=times * s.T * s.K)


def _doubling(s: Size) -> Entry:
    A_bar, B_bar = _discretized(s)

    def call(C: torch.Tensor) -> torch.Tensor:
        return doubling(A_bar, B_bar, C, s.T)

    return Entry("torch doubling", call, {"C": _draw(s)[0]}, peer=True)


def _against(ours: Entry, rival: Entry) -> Contest:
    gradients = ours.pass_ != "fwd"
    return Contest(ours, rival, lambda: same_as_rival(ours, rival, gradients=gradients))


def _kernel_row(bar: float, **sizes: list[Any]) -> None:
    @case(
        "lssl_kernel",
        "fwd",
        title="LegS kernel, N={K} L={T}, vs doubling",
        bar=at_least(bar),
        sizes={"H": [64], **sizes},
    )
    def _(s: Size) -> Contest:
        return _against(_kernel(s), _doubling(s))


_kernel_row(25, K=[64], T=[1024])
_kernel_row(80, K=[256], T=[4096])


def _layer_row(title: str, bar: float | None, moved: bool, learn: bool, **sizes: list[Any]) -> None:
    @case(
        "LSSL",
        "fwd+bwd",
        title=title + ", B={B} N={K} L={T}",
        bar=None if bar is None else at_least(bar),
        sizes={"H": [64], **sizes},
    )
    def _(s: Size) -> Contest:
        torch.manual_seed(0)
        layer = LSSL(s.H, s.K, learn_A=learn)
        if moved:  # as after some training: T is no longer triangular
            with torch.no_grad():
                layer.A_upper.normal_(0, 1e-3)
        u = torch.randn(s.B, s.T, s.H, generator=torch.Generator().manual_seed(1))
        weights = list(layer.parameters())
        ours = Entry("seqkern", lambda u: layer(u)[0], {"u": u}, "fwd+bwd", weights)
        rival = Entry(
            "torch doubling + FFT",
            lambda u: torch_layer(layer, u),
            {"u": u},
            "fwd+bwd",
            weights,
            peer=True,
        )
        return _against(ours, rival)


_layer_row("layer, dt trained", 6, False, False, B=[8], K=[64], T=[1024])
_layer_row("layer, dt trained", 40, False, False, B=[4], K=[256], T=[4096])
_layer_row("layer, A and dt trained, first step", 6, False, True, B=[8], K=[64], T=[1024])
_layer_row("layer, A and dt trained, first step", 40, False, True, B=[4], K=[256], T=[4096])
_layer_row("layer, A and dt trained, later", 6, True, True, B=[8], K=[64], T=[1024])
_layer_row("layer, A and dt trained, later", 40, True, True, B=[4], K=[256], T=[4096])


@case(
    "lssl_kernel",
    "fwd",
    title="LegS kernel, cost per step, L={T} vs as many of 1024",
    metric="per_token",
    bar=within(1.2),
    sizes={"H": [64], "K": [64], "T": [4096, 16384, 65536]},
)
def _(s: Size) -> Contest:
    short = Size(H=s.H, K=s.K, T=min(s.T, 1024))
    return Contest(_kernel(s), _kernel(short, f"{s.T // short.T} x L=1024", s.T // short.T))


@case(
    "lssl_kernel",
    "fwd",
    title="LegS kernel, cost per state, N={K} vs 128",
    metric="per_token",
    bar=within(1.2),
    sizes={"H": [64], "T": [16384], "K": [16, 32, 64, 256, 512]},
)
def _(s: Size) -> Contest:
    return Contest(_kernel(s), _kernel(Size(H=s.H, K=128, T=s.T), label="N=128"))


@case(
    "lssl_kernel",
    "fwd",
    title="dense A, N={K} L={T}, vs doubling",
    bar=at_least(3),
    sizes={"H": [64], "K": [64], "T": [1024]},
)
def _(s: Size) -> Contest:
    A_bar, B_bar = _discretized(s)

    def call(C: torch.Tensor) -> torch.Tensor:
        return dense_kernel(A_bar, B_bar, C, s.T)

    return _against(Entry("seqkern", call, {"C": _draw(s)[0]}), _doubling(s))
