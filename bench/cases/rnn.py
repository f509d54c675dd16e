# SPDX-License-Identifier: Apache-2.0
"""Recurrent nets: FlashRNN's vanilla code, plain loops and torch.nn against ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bench import peers
from bench.cases import _rnn
from bench.checks import same_as_rival
from bench.registry import Bar, Contest, Entry, MemoryTrial, Size, at_least, at_most, case

WORDS = {"fwd": "forward", "fwd+bwd": "forward + backward"}
HEADS: dict[str, list[Any]] = {"B": [16], "T": [512], "H": [12], "K": [64], "V": [64]}
ONE: dict[str, list[Any]] = {"B": [16], "T": [512], "H": [1], "K": [768], "V": [768]}
NARROW: dict[str, list[Any]] = {"B": [16], "T": [128], "H": [1], "K": [256], "V": [256]}
SINGLE: dict[str, list[Any]] = {"B": [1], "T": [128], "H": [1], "K": [64], "V": [64]}


def _bar(value: float | None, aim: float | None = None) -> Bar | None:
    return None if value is None else at_least(value, aim)


def _against(entry: Entry, label: str, call: Any, s: Size, function: str) -> Contest:
    rival = Entry(label, call, entry.inputs, entry.pass_, tokens=entry.tokens, peer=True)
    gradients = entry.pass_ != "fwd"
    return Contest(
        entry,
        rival,
        lambda: [
            *_rnn.reference_heads(s, entry, function),
            *same_as_rival(entry, rival, gradients=gradients),
        ],
    )


def _vs_flashrnn(function: str, backend: str, pass_: str, bar: float | None) -> None:
    title = f"{function} 12 x 64 {WORDS[pass_]} vs FlashRNN's {backend}"

    @case("flashrnn", pass_, title=title, bar=_bar(bar), sizes=HEADS)
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_, function)
        call = peers.flashrnn(function, backend)
        return _against(entry, f"FlashRNN {backend}", call, s, function)


_vs_flashrnn("lstm", "vanilla", "fwd", 8)
_vs_flashrnn("lstm", "vanilla", "fwd+bwd", 50)
_vs_flashrnn("lstm", "vanilla_fwbw", "fwd", 5)
_vs_flashrnn("lstm", "vanilla_fwbw", "fwd+bwd", 3)
_vs_flashrnn("slstm", "vanilla", "fwd", None)
_vs_flashrnn("slstm", "vanilla", "fwd+bwd", 50)
_vs_flashrnn("gru", "vanilla", "fwd", None)


def _vs_loop(pass_: str, bar: float) -> None:
    title = f"lstm 12 x 64 {WORDS[pass_]} vs an einsum loop"

    @case("flashrnn", pass_, title=title, bar=at_least(bar), sizes=HEADS)
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_)
        return _against(entry, "einsum and stack", _rnn.einsum_loop, s, "lstm")


def _vs_separate(pass_: str, bar: float) -> None:
    title = f"lstm 12 x 64 {WORDS[pass_]} vs 12 torch.nn.LSTM(64)"

    @case("flashrnn", pass_, title=title, bar=at_least(bar), sizes=HEADS)
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_)
        rival, check = _rnn.separate_layers(s, entry)
        return Contest(entry, rival, check)


_vs_loop("fwd", 4)
_vs_loop("fwd+bwd", 6)
_vs_separate("fwd", 1.5)
_vs_separate("fwd+bwd", 1.8)


def _layer(
    name: str,
    pass_: str,
    bar: float | None,
    aim: float | None = None,
    dtype: str = "float32",
    sizes: dict[str, list[Any]] = ONE,
) -> None:
    short = "" if dtype == "float32" else f", {dtype}"
    of = "" if sizes is ONE else f", B={sizes['B'][0]}, T={sizes['T'][0]},"
    title = f"{name}({sizes['K'][0]}){of} {WORDS[pass_]} vs torch.nn.{name}{short}"

    @case(name, pass_, title=title, bar=_bar(bar, aim), sizes={**sizes, "dtype": [dtype]})
    def _(s: Size) -> Contest:
        return _rnn.layer_contest(s, name, pass_)


_layer("LSTM", "fwd", 1.1, 1.25)
_layer("LSTM", "fwd+bwd", 1.1, 1.25)
_layer("GRU", "fwd", 1.8)
_layer("GRU", "fwd+bwd", 2)
_layer("LSTM", "fwd", None, dtype="bfloat16")
_layer("LSTM", "fwd+bwd", 2.5, dtype="bfloat16")
_layer("GRU", "fwd+bwd", None, dtype="bfloat16")
_layer("RNN", "fwd+bwd", None)
for _name in ("LSTM", "GRU"):
    for _sizes in (NARROW, SINGLE):
        for _pass in ("fwd", "fwd+bwd"):
            _layer(_name, _pass, None, sizes=_sizes)


@case(
    "LSTM",
    "fwd",
    title="decode step, LSTM(768), B=1, vs torch.nn.LSTM",
    bar=at_least(1.0, aim=2),
    sizes={"B": [1], "T": [1], "H": [1], "K": [768], "V": [768]},
)
def _(s: Size) -> Contest:
    ours, theirs = _rnn.layer_entries(s, "LSTM", "fwd")
    generator = torch.Generator().manual_seed(3)
    h, c = torch.randn(2, 1, s.B, s.K, generator=generator).unbind(0)
    for entry in (ours, theirs):
        entry.inputs.update(h=h, c=c)
    return Contest(ours, theirs, lambda: same_as_rival(ours, theirs, gradients=False))


def _share(pass_: str) -> None:
    @case(
        "flashrnn",
        pass_,
        title=f"lstm 12 x 64 {WORDS[pass_]}, share of the peak",
        metric="peak_share",
        sizes=HEADS,
    )
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_)
        return Contest(entry, check=lambda: _rnn.reference_heads(s, entry))

    @case(
        "LSTM",
        pass_,
        title=f"LSTM(768) {WORDS[pass_]}, share of the peak",
        metric="peak_share",
        sizes=ONE,
    )
    def _(s: Size) -> Contest:
        ours, theirs = _rnn.layer_entries(s, "LSTM", pass_)
        return Contest(ours, check=lambda: _rnn.layer_check(ours, theirs))


def _long(pass_: str) -> None:
    @case(
        "flashrnn",
        pass_,
        title=f"lstm 4 x 64 {WORDS[pass_]}, time per step, T={{T}} vs T/16",
        metric="per_token",
        bar=at_most(1.1),
        sizes={**HEADS, "H": [4], "T": [8192]},
    )
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_)
        short = dataclasses.replace(s, T=max(32, s.T // 16))
        rival = _rnn.our_heads(short, pass_, label=f"T={short.T}")
        return Contest(entry, rival, lambda: _rnn.reference_heads(s, entry))


def _two_threads(pass_: str, heads: str, sizes: dict[str, Any]) -> None:
    @case(
        "flashrnn",
        pass_,
        title=f"lstm {heads} {WORDS[pass_]}, 2 threads vs 1",
        bar=at_least(1.7),
        sizes=sizes,
    )
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_, label="seqkern, 2 threads", threads=2)
        rival = dataclasses.replace(entry, label="1 thread", threads=1)
        return Contest(entry, rival, lambda: _rnn.reference_heads(s, entry))


def _avx2(pass_: str) -> None:
    @case(
        "flashrnn",
        pass_,
        title=f"lstm 12 x 64 {WORDS[pass_]}, capped at AVX2",
        metric="ratio",
        sizes=HEADS,
    )
    def _(s: Size) -> Contest:
        entry = _rnn.our_heads(s, pass_, label="seqkern, AVX2", isa="avx2")
        rival = dataclasses.replace(entry, label="best ISA", isa="")
        return Contest(entry, rival, lambda: _rnn.reference_heads(s, entry))


for _pass in ("fwd", "fwd+bwd"):
    _share(_pass)
    _long(_pass)
    _two_threads(_pass, "12 x 64", HEADS)
    _two_threads(_pass, "1 x 768", ONE)
    _avx2(_pass)


@case(
    "flashrnn",
    "fwd+bwd",
    title="lstm 12 x 64 extra memory, forward + backward, T={T}",
    metric="memory",
    bar=at_most(1.0),
    sizes={**HEADS, "T": [1024]},
)
def _(s: Size) -> MemoryTrial:
    return MemoryTrial("flashrnn_lstm")


@case(
    "LSTM",
    "fwd+bwd",
    title="LSTM(768) forward + backward, T={T}, 2 threads, all cores busy, vs torch.nn.LSTM",
    sizes={**ONE, "T": [64]},
)
def _(s: Size) -> Contest:
    contest = _rnn.layer_contest(s, "LSTM", "fwd+bwd", threads=2)
    load = _rnn.BusyCores()
    inner = contest.ours.call
    # The loops run as long as the contest refers to them.
    contest.ours.call = lambda x, load=load: inner(x)
    return contest
