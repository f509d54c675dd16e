# SPDX-License-Identifier: Apache-2.0
"""The ops of the linear-attention family as entries, with their references and operation counts.

Useful operations of a forward pass, per token and head: 2KV to write the state, 2KV to read it out
(4KV), and 2KV more for the delta rule, which reads the state before it writes (6KV); a delta
product writes n_h times and reads out once. Decays and what a chunked form adds are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import inputs
from bench.checks import Finding, same_as_rival, tail_matches_reference
from bench.registry import Contest, Entry, Size
from seqkern import ops, reference


@dataclass(frozen=True)
class Op:
    """One op: its callable, its sequential reference, its inputs, its useful operations."""

    call: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[Size], dict[str, Any]]
    flops: Callable[[Size], float]


def _product(call: Callable[..., Any], s: Size) -> Callable[..., Any]:
    return partial(call, num_householder=s.n_h)


FAMILY = {
    "chunk_gla": Op(ops.chunk_gla, reference.gla, inputs.gla, lambda s: 4 * s.K * s.V * s.tokens),
    "chunk_simple_gla": Op(
        ops.chunk_simple_gla,
        reference.simple_gla,
        inputs.simple_gla,
        lambda s: 4 * s.K * s.V * s.tokens,
    ),
    "chunk_delta_rule": Op(
        ops.chunk_delta_rule,
        reference.delta_rule,
        inputs.delta_rule,
        lambda s: 6 * s.K * s.V * s.tokens,
    ),
    "chunk_gated_delta_rule": Op(
        ops.chunk_gated_delta_rule,
        reference.gated_delta_rule,
        inputs.gated_delta_rule,
        lambda s: 6 * s.K * s.V * s.tokens,
    ),
    "chunk_gated_delta_product": Op(
        ops.chunk_gated_delta_product,
        reference.gated_delta_product,
        inputs.gated_delta_product,
        lambda s: (2 + 4 * s.n_h) * s.K * s.V * s.tokens,
    ),
}


def ours(name: str, s: Size, pass_: str = "fwd", label: str = "seqkern", **setting: Any) -> Entry:
    """Return our op at this size as an entry; ``setting`` goes to `Entry`."""
    op = FAMILY[name]
    call = op.call if "product" not in name else _product(op.call, s)
    flops = op.flops(s) if pass_ == "fwd" else 0.0
    return Entry(label, call, op.inputs(s), pass_, flops=flops, tokens=s.tokens, **setting)


def check(name: str, s: Size, entry: Entry) -> list[Finding]:
    """Compare the entry with the sequential reference: what its pass computes."""
    truth = FAMILY[name].reference
    if "product" in name:
        truth = _product(truth, s)
    return tail_matches_reference(entry, truth, gradients=entry.pass_ != "fwd")


def solo(name: str, s: Size, pass_: str = "fwd") -> Contest:
    """A contest without a rival."""
    entry = ours(name, s, pass_)
    return Contest(entry, check=lambda: check(name, s, entry))


def against_self(name: str, s: Size, entry: Entry, rival: Entry) -> Contest:
    """A contest of ours with ours, both held to the reference where they can differ."""
    return Contest(entry, rival, check=lambda: check(name, s, entry))


def against_peer(name: str, s: Size, entry: Entry, rival: Entry) -> Contest:
    """A contest with a peer that computes the same: held to it and to the reference."""
    gradients = entry.pass_ != "fwd"
    return Contest(
        entry,
        rival,
        check=lambda: [
            *check(name, s, entry),
            *same_as_rival(entry, rival, gradients=gradients),
        ],
    )
