# SPDX-License-Identifier: Apache-2.0
"""The recurrent op and layers as entries, and what they are compared with.

Useful operations: 2 G N D^2 a token for the products with R (G gates, N heads of width D), twice
that backward, and for a layer as much again for the products with its input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.checks import Finding, allowed_error, relative_rms, same_as_rival
from bench.registry import Contest, Entry, Size
from bench.timing import cotangent_like, output_and_grads
from seqkern import nn as our_nn
from seqkern import ops, reference

GATES = {"lstm": (4, 4, 4), "slstm": (4, 4, 4), "gru": (3, 3, 4), "elman": (1, 1, 1)}
TIMES = {"fwd": 1, "bwd": 2, "fwd+bwd": 3}


def head_inputs(s: Size, function: str = "lstm") -> dict[str, Any]:
    """Wx [B, T, G, H, K], R [G, H, K, K] and b [G, H, K] as a fresh layer would have them."""
    recurrent, given, bias = GATES[function]
    generator = torch.Generator().manual_seed(s.T)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    wide = {
        "Wx": normal(s.B, s.T, given, s.H, s.K),
        "R": normal(recurrent, s.H, s.K, s.K) * s.K**-0.5,
        "b": normal(bias, s.H, s.K),
    }
    return {name: x.to(s.torch_dtype) for name, x in wide.items()}


def head_flops(s: Size, function: str, pass_: str) -> float:
    """Operations of the products with R in a pass over all heads."""
    return 2.0 * GATES[function][0] * s.K**2 * s.tokens * TIMES[pass_]


def our_heads(s: Size, pass_: str, function: str = "lstm", **setting: Any) -> Entry:
    """`flashrnn` on already projected inputs; returns h [B, T, H, K]."""

    def call(Wx: Any, R: Any, b: Any) -> torch.Tensor:
        return ops.flashrnn(Wx, R, b, function=function, output_all_states=False)[0].squeeze(0)

    setting.setdefault("label", "seqkern")
    flops = head_flops(s, function, pass_)
    x = setting.pop("inputs", None) or head_inputs(s, function)
    return Entry(call=call, inputs=x, pass_=pass_, flops=flops, tokens=s.B * s.T, **setting)


def reference_heads(s: Size, entry: Entry, function: str = "lstm") -> list[Finding]:
    """Compare the first steps of an entry with the float64 definition."""
    few = {name: x.detach()[:, :32] if name == "Wx" else x for name, x in entry.inputs.items()}
    wide = {name: x.detach().double() for name, x in few.items()}

    def truth(Wx: Any, R: Any, b: Any) -> torch.Tensor:
        return reference.flashrnn(Wx, R, b, function=function)[0][0]

    short = Entry(entry.label, entry.call, {name: x.detach() for name, x in few.items()})
    return same_as_rival(short, Entry("reference", truth, wide), gradients=entry.pass_ != "fwd")


def einsum_loop(Wx: torch.Tensor, R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """LSTM as a torch user writes it: one einsum a step, states stacked at the end."""
    h = c = torch.zeros_like(Wx[:, 0, 0])
    hs = []
    # Unbinding, not indexing: the backward of Wx[:, t] fills a whole gradient for every step.
    for x in Wx.unbind(1):
        i, f, z, o = (x + torch.einsum("gndp,bnp->bgnd", R, h) + b).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        hs.append(h)
    return torch.stack(hs, 1)


def separate_layers(s: Size, entry: Entry) -> tuple[Entry, Callable[[], list[Finding]]]:
    """One `torch.nn.LSTM(K)` for each head, and the check that ours, fed by theirs, agrees."""
    torch.manual_seed(0)
    layers = [nn.LSTM(s.K, s.K, batch_first=True) for _ in range(s.H)]
    generator = torch.Generator().manual_seed(1)
    xs = {f"x{i}": torch.randn(s.B, s.T, s.K, generator=generator) for i in range(s.H)}

    def call(**xs: torch.Tensor) -> Any:
        hs = tuple(layer(x)[0] for layer, x in zip(layers, xs.values(), strict=True))
        # Backward wants one tensor; heads first, so that nothing is rearranged on the way back.
        return hs if entry.pass_ == "fwd" else torch.stack(hs)

    weights = [p for layer in layers for p in layer.parameters()]
    label = f"{s.H} x torch.nn.LSTM({s.K})"
    rival = Entry(label, call, xs, entry.pass_, weights, tokens=s.B * s.T, peer=True)

    def check() -> list[Finding]:
        with torch.no_grad():
            parts = [
                (x @ layer.weight_ih_l0.T + layer.bias_ih_l0).unflatten(-1, (4, s.K))
                for layer, x in zip(layers, xs.values(), strict=True)
            ]
            R = torch.stack([m.weight_hh_l0.unflatten(0, (4, s.K)) for m in layers], 1)
            b = torch.stack([m.bias_hh_l0.unflatten(0, (4, s.K)) for m in layers], 1)
            h = entry.call(Wx=torch.stack(parts, 3), R=R, b=b)
            theirs = torch.stack(tuple(call(**xs)), 2)
        return [Finding("h", relative_rms(h, theirs), allowed_error(h.dtype))]

    return rival, check


def layer_entries(s: Size, name: str, pass_: str, **setting: Any) -> tuple[Entry, Entry]:
    """`seqkern.nn` and `torch.nn` layers of hidden size K with equal weights, x [T, B, K]."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(s.K, s.K)
    ours = getattr(our_nn, name)(s.K, s.K)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(s.torch_dtype), theirs.to(s.torch_dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(s.T, s.B, s.K, generator=generator).to(s.torch_dtype)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name]
    flops = 4.0 * gates * s.K**2 * s.B * s.T * TIMES[pass_]

    def entry(label: str, layer: nn.Module, peer: bool) -> Entry:
        def call(x: torch.Tensor, h: Any = None, c: Any = None) -> torch.Tensor:
            return layer(x, None if h is None else (h, c))[0]

        return Entry(
            label,
            call,
            {"x": x},
            pass_,
            list(layer.parameters()),
            flops=flops,
            tokens=s.B * s.T,
            peer=peer,
            **setting,
        )

    return entry("seqkern", ours, False), entry(f"torch.nn.{name}", theirs, True)


def layer_check(ours: Entry, theirs: Entry) -> list[Finding]:
    """Compare the outputs and every gradient; 16-bit layers round at every stage, in own places."""
    o, grads = output_and_grads(ours)
    their_o, their_grads = output_and_grads(theirs, cotangent_like(o))
    allowed = allowed_error(o.dtype) * (1 if o.dtype == torch.float32 else 5)
    found = [Finding("o", relative_rms(o, their_o), allowed)]
    for i, (grad, other) in enumerate(zip(grads, their_grads, strict=True)):
        both = grad is not None and other is not None
        found.append(Finding(f"grad {i}", relative_rms(grad, other) if both else 1e9, allowed))
    return found


def layer_contest(s: Size, name: str, pass_: str, **setting: Any) -> Contest:
    """Our layer against torch's."""
    ours, theirs = layer_entries(s, name, pass_, **setting)
    return Contest(ours, theirs, lambda: layer_check(ours, theirs))


class BusyCores:
    """As many endless loops as there are cores, while this object lives (two minutes at most)."""

    LOOP = "import time; end = time.time() + 120\nwhile time.time() < end: pass"

    def __init__(self) -> None:
        count = os.cpu_count() or 1
        self._loops: Sequence[subprocess.Popen[bytes]] = [
            subprocess.Popen([sys.executable, "-c", self.LOOP]) for _ in range(count)
        ]

    def __del__(self) -> None:
        for loop in self._loops:
            loop.kill()
            loop.wait()
