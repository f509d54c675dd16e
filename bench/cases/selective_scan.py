# SPDX-License-Identifier: Apache-2.0
"""Selective scan, linear scan, Mamba and signed gates, against what runs on a CPU today.

The peers are the two torch paths of transformers' Mamba: its loop over time steps, and mambapy's
parallel scan. The backward pass of that loop takes time quadratic in T (each step's gradient is
spread over the whole sequence: minutes at T = 2048), so it is met at T = 128, and at full length
stands the definition, a loop over unbound steps. Of a `Size`, D = H V are the channels and K the
states of each. A scan that is bound by memory is held to the bandwidth of a copy: the rival copies
as many bytes as ours must move.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bench.cases._family import against_self, ours
from bench.checks import Finding, allowed_error, relative_rms, same_as_rival
from bench.peers import HOW, PeerMissingError
from bench.registry import Contest, Entry, Size, at_least, at_most, case
from bench.timing import cotangent_like, output_and_grads
from seqkern import nn, ops, reference

USUAL = {"B": [2], "T": [2048], "H": [8], "K": [16], "V": [128]}
WORDS = {"fwd": "forward", "fwd+bwd": "forward + backward"}
PROMPT = 16


def _peer(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise PeerMissingError(f"{module.partition('.')[0]} is not usable ({e}): {HOW}") from e


@cache
def _modeling() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return _peer("transformers.models.mamba.modeling_mamba")


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _inputs(s: Size) -> dict[str, torch.Tensor]:
    """u, delta, z [B, D, T], A [D, N], B and C [B, N, T], D and delta_bias [D]."""
    D, N = s.H * s.V, s.K
    generator = torch.Generator().manual_seed(s.T + D)
    rows = {name: _normal(generator, s.B, D, s.T) for name in ("u", "delta", "z")}
    return {
        "u": rows["u"],
        "delta": rows["delta"] - 2,
        "A": -torch.arange(1.0, N + 1).repeat(D, 1),
        "B": _normal(generator, s.B, N, s.T),
        "C": _normal(generator, s.B, N, s.T),
        "D": _normal(generator, D),
        "z": rows["z"],
        "delta_bias": _normal(generator, D),
    }


def _scan(**x: Any) -> torch.Tensor:
    return ops.selective_scan(**x, delta_softplus=True)


def _signed_scan(**x: Any) -> torch.Tensor:
    return ops.selective_scan(**x, delta_softplus=True, allow_neg_eigval=True)


def _peer_scan(use_mambapy: bool) -> Callable[..., torch.Tensor]:
    if use_mambapy:
        _peer("mambapy.pscan")
    scan = _modeling().mamba_selective_scan

    def call(**x: Any) -> torch.Tensor:
        u, delta = x.pop("u"), x.pop("delta")
        return scan(u, delta, **x, delta_softplus=True, use_mambapy=use_mambapy)

    return call


def _torch_loop(**x: Any) -> torch.Tensor:
    return reference.selective_scan(**x, delta_softplus=True)[0]


def _against_peers(
    pass_: str, label: str, rival_call: Callable[[], Callable[..., torch.Tensor]], T: int = 2048
) -> None:
    title = f"selective_scan {WORDS[pass_]} vs {label}, T={{T}}"

    @case("selective_scan", pass_, title=title, bar=at_least(30), sizes={**USUAL, "T": [T]})
    def _(s: Size) -> Contest:
        x = _inputs(s)
        entry = Entry("seqkern", _scan, x, pass_, tokens=s.B * s.T)
        call = rival_call()
        rival = Entry(label, call, x, pass_, tokens=s.B * s.T, peer=label != "torch loop")
        gradients = pass_ != "fwd"
        return Contest(entry, rival, lambda: same_as_rival(entry, rival, gradients=gradients))


for _pass in WORDS:
    _against_peers(_pass, "mambapy parallel scan", lambda: _peer_scan(use_mambapy=True))
    _against_peers(_pass, "torch loop", lambda: _torch_loop)
_against_peers("fwd", "transformers loop", lambda: _peer_scan(use_mambapy=False))
_against_peers("fwd+bwd", "transformers loop", lambda: _peer_scan(use_mambapy=False), T=128)


def _signs_cost(pass_: str) -> None:
    title = f"selective_scan {WORDS[pass_]}, [-1, 1] vs [0, 1]"

    @case("selective_scan", pass_, title=title, metric="ratio", bar=at_most(1.3), sizes=USUAL)
    def _(s: Size) -> Contest:
        x = _inputs(s)
        entry = Entry("with signs", _signed_scan, x, pass_, tokens=s.B * s.T)
        return Contest(entry, Entry("without", _scan, x, pass_, tokens=s.B * s.T))

    title = f"chunk_gla {WORDS[pass_]}, signed gate vs its logarithm"

    @case("chunk_gla", pass_, title=title, metric="ratio", bar=at_most(1.3))
    def _(s: Size) -> Contest:
        entry, rival = (ours("chunk_gla", s, pass_) for _ in range(2))
        entry.inputs["g"] = 2 * entry.inputs["g"].exp() - 1
        entry.label = "with signs"
        gla = entry.call
        entry.call = lambda **x: gla(**x, signed_gate=True)
        contest = against_self("chunk_gla", s, rival, rival)
        return Contest(entry, rival, contest.check)


for _pass in WORDS:
    _signs_cost(_pass)


def _gla_layer(s: Size, allow_neg_eigval: bool) -> Entry:
    torch.manual_seed(0)
    hidden = s.H * s.V
    layer = nn.GatedLinearAttention(
        hidden_size=hidden, num_heads=s.H, allow_neg_eigval=allow_neg_eigval
    )
    x = torch.randn(s.B, s.T, hidden, generator=torch.Generator().manual_seed(2))
    label = "with signs" if allow_neg_eigval else "without"
    weights = list(layer.parameters())
    return Entry(label, lambda x: layer(x)[0], {"x": x}, "fwd+bwd", weights, tokens=s.tokens)


@case(
    "GatedLinearAttention",
    "fwd+bwd",
    title="GatedLinearAttention layer, training step, [-1, 1] vs [0, 1]",
    metric="ratio",
    bar=at_most(1.3),
)
def _(s: Size) -> Contest:
    return Contest(_gla_layer(s, True), _gla_layer(s, False))


def _copied(elements: int) -> Entry:
    """A copy of so many float32 numbers."""
    source, target = torch.zeros(elements), torch.zeros(elements)
    return Entry("torch copy", lambda source: target.copy_(source), {"source": source})


@case(
    "linear_scan",
    "fwd",
    title="linear_scan forward, share of the copy bandwidth, {dtype}",
    bar=at_least(0.60),
    sizes={"B": [4], "T": [4096], "H": [8], "V": [128]},
)
def _(s: Size) -> Contest:
    shape = (s.B, s.T, s.H * s.V)
    generator = torch.Generator().manual_seed(0)
    x = {"a": 2 * torch.rand(shape, generator=generator) - 1, "b": _normal(generator, *shape)}
    entry = Entry("seqkern", ops.linear_scan, x, tokens=s.B * s.T)

    def check() -> list[Finding]:
        truth = ops.linear_scan(x["a"].double(), x["b"].double(), backend="reference")
        got = ops.linear_scan(**x)
        return [Finding("x", relative_rms(got, truth), allowed_error(got.dtype))]

    # Two arrays read and one written, as a copy of one and a half.
    return Contest(entry, _copied(3 * s.B * s.T * s.H * s.V // 2), check)


def _mixers(s: Size) -> tuple[nn.Mamba, Any, Any]:
    """Ours and transformers' with the same weights, and their configuration."""
    modeling = _modeling()
    hidden = s.H * s.V // 2
    config = modeling.MambaConfig(hidden_size=hidden, state_size=s.K, num_hidden_layers=1)
    torch.manual_seed(0)
    theirs = modeling.MambaMixer(config, 0)
    mine = nn.Mamba(hidden, d_state=s.K, layer_idx=0)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs, config


@case(
    "Mamba",
    "fwd+bwd",
    title="Mamba layer, d_model 768, training step vs transformers",
    sizes={"B": [2], "T": [128], "H": [12], "K": [16], "V": [128]},
)
def _(s: Size) -> Contest:
    mine, theirs, _ = _mixers(s)
    x = {"x": _normal(torch.Generator().manual_seed(2), s.B, s.T, s.H * s.V // 2)}
    entry = Entry("seqkern", lambda x: mine(x)[0], x, "fwd+bwd", list(mine.parameters()))
    weights = list(theirs.parameters())
    rival = Entry("transformers", lambda x: theirs(x), x, "fwd+bwd", weights, peer=True)

    def check() -> list[Finding]:
        o, grads = output_and_grads(entry)
        their_o, their_grads = output_and_grads(rival, cotangent_like(o))
        dx, their_dx = grads[0], their_grads[0]
        if dx is None or their_dx is None:
            return [Finding("dx", float("nan"), 0.0)]
        allowed = allowed_error(o.dtype)
        return [
            Finding("o", relative_rms(o, their_o), allowed),
            Finding("dx", relative_rms(dx, their_dx), allowed),
        ]

    return Contest(entry, rival, check)


@case(
    "Mamba",
    "fwd",
    title="Mamba layer, d_model 768, decode step vs transformers",
    bar=at_least(1),
    sizes={"B": [1], "T": [1], "H": [12], "K": [16], "V": [128]},
)
def _(s: Size) -> Contest:
    mine, theirs, config = _mixers(s)
    mine, theirs = mine.eval(), theirs.eval()
    hidden = s.H * s.V // 2
    generator = torch.Generator().manual_seed(2)
    prompt, x = _normal(generator, s.B, PROMPT, hidden), _normal(generator, s.B, 1, hidden)
    our_cache, their_cache = nn.Cache(), _modeling().DynamicCache(config=config)
    with torch.no_grad():
        mine(prompt, past_key_values=our_cache, use_cache=True)
        theirs(prompt, cache_params=their_cache)

    def step(x: torch.Tensor) -> torch.Tensor:
        return mine(x, past_key_values=our_cache, use_cache=True)[0]

    entry = Entry("seqkern", step, {"x": x}, tokens=s.B)
    call = lambda x: theirs(x, cache_params=their_cache)  # noqa: E731
    rival = Entry("transformers", call, {"x": x}, tokens=s.B, peer=True)
    return Contest(entry, rival, lambda: same_as_rival(entry, rival, gradients=False))
