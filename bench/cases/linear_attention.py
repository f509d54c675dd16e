# SPDX-License-Identifier: Apache-2.0
"""Gated linear attention and the delta rule: every bar the family is held to, and a few more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import inputs, peers
from bench.cases import _layer
from bench.cases._family import FAMILY, against_peer, against_self, check, ours, solo
from bench.checks import same_as_rival, tail_matches_reference
from bench.registry import Contest, Entry, MemoryTrial, Size, at_least, at_most, case
from bench.timing import leaves
from seqkern import ops, reference

EACH_OP = tuple(FAMILY)
MAIN_OPS = ("chunk_gla", "chunk_gated_delta_rule")
PRODUCT = {"n_h": [2]}


def _peer(
    label: str, call: Callable[..., Any], entry: Entry, turned: dict[str, Any] | None = None
) -> Entry:
    """Return a peer on the inputs of ``entry``, or on ``turned``: the same as [B, H, T, ...]."""
    x = entry.inputs if turned is None else turned
    head_first = turned is not None
    return Entry(label, call, x, entry.pass_, tokens=entry.tokens, head_first=head_first, peer=True)


def _peak_share(name: str, share: float | None) -> None:
    bar = None if share is None else at_least(share)
    sizes = PRODUCT if "product" in name else None

    @case(name, "fwd", title=f"{name} forward", metric="peak_share", bar=bar, sizes=sizes)
    def _(s: Size) -> Contest:
        return solo(name, s)


for _name, _share in (
    ("chunk_gla", 0.60),
    ("chunk_gated_delta_rule", 0.55),
    ("chunk_simple_gla", None),
    ("chunk_delta_rule", None),
    ("chunk_gated_delta_product", None),
):
    _peak_share(_name, _share)


@case(
    "chunk_gated_delta_rule",
    "fwd",
    title="gated delta rule forward vs transformers",
    bar=at_least(6),
)
def _(s: Size) -> Contest:
    entry = ours("chunk_gated_delta_rule", s)
    rival = _peer("transformers chunk", peers.transformers_chunk(), entry)
    return against_peer("chunk_gated_delta_rule", s, entry, rival)


def _vs_transformers_both(title: str, bar: float | None, *, l2norm: bool) -> None:
    name = "chunk_gated_delta_rule"

    @case(name, "fwd+bwd", title=title, bar=None if bar is None else at_least(bar))
    def _(s: Size) -> Contest:
        entry = ours(name, s, "fwd+bwd")
        call = peers.transformers_chunk(l2norm=l2norm)
        rival = _peer("transformers chunk", call, entry)
        if not l2norm:
            return against_peer(name, s, entry, rival)
        entry.call = partial(entry.call, use_qk_l2norm_in_kernel=True)
        return Contest(entry, rival, check=lambda: same_as_rival(entry, rival))


_vs_transformers_both("gated delta rule forward + backward vs transformers", 8, l2norm=False)
_vs_transformers_both("the same, q and k normalized inside", None, l2norm=True)


@case(
    "chunk_delta_rule",
    "fwd+bwd",
    title="delta rule forward + backward vs fla's torch",
    bar=at_least(8),
)
def _(s: Size) -> Contest:
    entry = ours("chunk_delta_rule", s, "fwd+bwd")
    call = peers.fla_delta_rule_chunkwise()
    turned = inputs.head_first(dict(entry.inputs))
    rival = _peer("fla chunked torch", call, entry, turned)
    return against_peer("chunk_delta_rule", s, entry, rival)


@case(
    "chunk_gated_delta_rule",
    "fwd+bwd",
    title="gated delta rule forward + backward vs fla's torch",
)
def _(s: Size) -> Contest:
    entry = ours("chunk_gated_delta_rule", s, "fwd+bwd")
    call = peers.fla_gated_delta_rule_chunk()
    rival = _peer("fla chunked torch", call, entry)
    return against_peer("chunk_gated_delta_rule", s, entry, rival)


def _backward_to_forward(name: str) -> None:
    sizes = PRODUCT if "product" in name else None

    @case(
        name,
        "bwd",
        title=f"{name} backward / forward",
        metric="ratio",
        bar=at_most(3.5),
        sizes=sizes,
    )
    def _(s: Size) -> Contest:
        entry = ours(name, s, "bwd", "seqkern backward")
        rival = dataclasses.replace(ours(name, s, label="its forward"), inputs=entry.inputs)
        return against_self(name, s, entry, rival)


for _name in EACH_OP:
    _backward_to_forward(_name)


def _vs_attention(T: int, bar: float | None) -> None:
    @case(
        "chunk_gla",
        "fwd+bwd",
        title="GLA forward + backward vs causal SDPA, T={T}",
        bar=None if bar is None else at_least(bar),
        sizes={"T": [T]},
    )
    def _(s: Size) -> Contest:
        entry = ours("chunk_gla", s, "fwd+bwd")
        turned = inputs.head_first({n: entry.inputs[n] for n in ("q", "k", "v")})
        rival = _peer("causal SDPA", peers.causal_attention(), entry, turned)
        return Contest(entry, rival, check=lambda: check("chunk_gla", s, entry))


for _T, _bar in ((256, 1.0), (512, 1.0), (1024, 1.0), (2048, 8.0), (4096, None), (8192, 30.0)):
    _vs_attention(_T, _bar)


def _vs_float32(name: str, pass_: str, dtype: str) -> None:
    words = {"fwd": "forward", "fwd+bwd": "forward + backward"}[pass_]
    bar = at_least(1.0, aim=1.5) if dtype == "bfloat16" else None

    @case(name, pass_, title=f"{name} {words}, {dtype}", bar=bar, sizes={"dtype": [dtype]})
    def _(s: Size) -> Contest:
        entry = ours(name, s, pass_)
        full = dataclasses.replace(s, dtype="float32")
        return against_self(name, s, entry, ours(name, full, pass_, "our float32"))


for _name in ("chunk_gla", "chunk_delta_rule", "chunk_gated_delta_rule"):
    for _pass in ("fwd", "fwd+bwd"):
        _vs_float32(_name, _pass, "bfloat16")
for _name in MAIN_OPS:
    _vs_float32(_name, "fwd+bwd", "float16")


@case(
    "chunk_gated_delta_product",
    "fwd+bwd",
    title="delta product, n_h=2, vs DeltaNet, forward + backward",
    metric="ratio",
    bar=at_most(1.8),
    sizes=PRODUCT,
)
def _(s: Size) -> Contest:
    entry = ours("chunk_gated_delta_product", s, "fwd+bwd")
    del entry.inputs["g"]
    entry.call = partial(entry.call, g=None)
    single = dataclasses.replace(s, n_h=1)
    rival = ours("chunk_delta_rule", single, "fwd+bwd", "our delta rule")

    def checks() -> list:
        truth = partial(reference.gated_delta_product, g=None, num_householder=s.n_h)
        return tail_matches_reference(entry, truth)

    return Contest(entry, rival, check=checks)


def _two_threads(name: str, pass_: str) -> None:
    words = {"fwd": "forward", "fwd+bwd": "forward + backward"}[pass_]

    @case(name, pass_, title=f"{name} {words}, 2 threads vs 1", bar=at_least(1.8))
    def _(s: Size) -> Contest:
        entry = ours(name, s, pass_, "seqkern, 2 threads", threads=2)
        rival = dataclasses.replace(entry, label="1 thread", threads=1)
        return against_self(name, s, entry, rival)


def _touch(entry: Entry) -> Entry:
    """Allocate and fill tensors of the sizes that the pass returns: the first touch of memory.

    What the system takes to hand out pages is part of every op's time on long inputs.
    """
    returned = [entry.inputs["v"]] if entry.pass_ == "fwd" else [entry.inputs["v"], *leaves(entry)]

    def touch(**_: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty_like(x, requires_grad=False).fill_(0) for x in returned]

    return Entry("allocating and filling what it returns, alone", touch, entry.inputs)


def _long(name: str, pass_: str) -> None:
    words = {"fwd": "forward", "fwd+bwd": "forward + backward"}[pass_]

    @case(
        name,
        pass_,
        title=f"{name} {words}, time per token, T={{T}} vs T/32",
        metric="per_token",
        bar=at_most(1.1),
        sizes={"T": [65536]},
    )
    def _(s: Size) -> Contest:
        entry = ours(name, s, pass_)
        short = dataclasses.replace(s, T=max(64, s.T // 32))
        contest = against_self(name, s, entry, ours(name, short, pass_, f"T={short.T}"))
        contest.floor = _touch(entry)
        return contest


for _name in MAIN_OPS:
    for _pass in ("fwd", "fwd+bwd"):
        _two_threads(_name, _pass)
        _long(_name, _pass)


def _memory(name: str, rival: str = "") -> None:
    @case(
        name,
        "fwd+bwd",
        title=f"{name} extra memory, forward + backward, T={{T}}",
        metric="memory",
        bar=at_most(1.0),
        sizes={"T": [16384]},
    )
    def _(s: Size) -> MemoryTrial:
        return MemoryTrial(name, rival)


_memory("chunk_gla")
_memory("chunk_simple_gla")
_memory("chunk_delta_rule")
_memory("chunk_gated_delta_rule", "transformers_chunk")


def _step(s: Size) -> Entry:
    x = inputs.gated_delta_rule(s)
    call = partial(ops.fused_recurrent_gated_delta_rule, output_final_state=True)
    return Entry(
        "seqkern",
        call,
        {**x, "initial_state": inputs.state(s)},
        tokens=s.tokens,
        state_bytes=8 * s.B * s.H * s.K * s.V,
    )


def _step_truth(entry: Entry) -> list:
    x = {name: t.double() for name, t in entry.inputs.items()}
    truth = Entry("reference", reference.gated_delta_rule, x)
    return same_as_rival(entry, truth, gradients=False)


@case(
    "fused_recurrent_gated_delta_rule",
    "fwd",
    title="decode step, gated delta rule",
    metric="latency_us",
    bar=at_most(25),
    sizes={"T": [1]},
)
def _(s: Size) -> Contest:
    entry = _step(s)
    return Contest(entry, check=lambda: _step_truth(entry))


@case(
    "fused_recurrent_gated_delta_rule",
    "fwd",
    title="decode step, gated delta rule, vs transformers",
    bar=at_least(1.0),
    sizes={"T": [1]},
)
def _(s: Size) -> Contest:
    entry = _step(s)
    rival = _peer("transformers step", peers.transformers_step(), entry)
    return Contest(entry, rival, check=lambda: same_as_rival(entry, rival, gradients=False))


@case("fused_recurrent_gla", "fwd", title="decode step, GLA", metric="latency_us", sizes={"T": [1]})
def _(s: Size) -> Contest:
    x = inputs.gla(s)
    x["gk"] = x.pop("g")
    call = partial(ops.fused_recurrent_gla, output_final_state=True)
    h0 = inputs.state(s)
    entry = Entry(
        "seqkern", call, {**x, "initial_state": h0}, tokens=s.tokens, state_bytes=2 * h0.nbytes
    )

    def checks() -> list:
        double = {name: t.double() for name, t in entry.inputs.items()}
        double["g"] = double.pop("gk")
        truth = Entry("reference", reference.gla, double)
        return same_as_rival(entry, truth, gradients=False)

    return Contest(entry, check=checks)


def _layer_row(title: str, bar: float | None, dtype: str) -> None:
    @case(
        "GatedDeltaNet",
        "fwd+bwd",
        title=title,
        bar=None if bar is None else at_least(bar),
        sizes={"dtype": [dtype]},
    )
    def _(s: Size) -> Contest:
        return _layer.contest(s)


_layer_row("GatedDeltaNet layer, hidden 1024, training step", 3, "float32")
_layer_row("GatedDeltaNet layer, hidden 1024, training step, bfloat16", None, "bfloat16")


def _avx2(name: str, pass_: str) -> None:
    words = {"fwd": "forward", "fwd+bwd": "forward + backward"}[pass_]

    @case(name, pass_, title=f"{name} {words}, capped at AVX2", metric="ratio")
    def _(s: Size) -> Contest:
        entry = ours(name, s, pass_, "seqkern, AVX2", isa="avx2")
        rival = dataclasses.replace(entry, label="best ISA", isa="")
        return against_self(name, s, entry, rival)


for _name in ("chunk_gla", "chunk_delta_rule", "chunk_gated_delta_rule"):
    for _pass in ("fwd", "fwd+bwd"):
        _avx2(_name, _pass)
